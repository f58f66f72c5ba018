"The mixture against numbers that the method's published implementation gave on seeded inputs."
import os
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from bidirseg.mixture.em import ConvergenceWarning, GaussianMixture

SHARED = Path(os.environ.get('BIDIRSEG_SHARED', Path(__file__).parents[1]/'../shared'))


def vectors(name):
    path = SHARED/'parity'/name
    if not path.is_file():
        pytest.skip(f'no parity vectors at {path}: set BIDIRSEG_SHARED to the folder that holds parity/')
    with np.load(path) as z:
        return {name: torch.from_numpy(z[name]) if z[name].ndim else float(z[name]) for name in z}


def run_em(steps, x, kind, means, cov, weights, eps=1e-6):
    "A mixture after so many EM steps from given parameters."
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', ConvergenceWarning)
        mixture = GaussianMixture(len(means), kind, tol=0, max_iter=steps, reg_covar=eps,
                                  means_init=means, covariances_init=cov, weights_init=weights)
        return mixture.fit(x)


def error(a, b):
    "Largest difference, relative to the larger of the value and the typical size."
    a, b = torch.as_tensor(a, dtype=torch.float64), torch.as_tensor(b, dtype=torch.float64)
    return float(((a - b).abs() / torch.maximum(b.abs(), b.abs().mean())).max())


@pytest.mark.parametrize('dtype, tolerance', [(torch.float32, 1e-3), (torch.float64, 1e-4)])
@pytest.mark.parametrize('steps', [1, 5, 20])
def test_diagonal_steps(steps, dtype, tolerance):
    z = vectors('gmm_diag.npz')
    m = run_em(steps, z['x'].to(dtype), 'diag', z['means_init'], z['variances_init'], z['weights_init'], z['eps'])
    for ours, theirs in ((m.means_, 'means'), (m.covariances_, 'variances'), (m.weights_, 'weights')):
        assert error(ours, z[f'{theirs}_{steps}']) < tolerance, theirs
    assert error(m.score_samples(z['x'].to(dtype)).mean(), z[f'mean_log_likelihood_{steps}']) < tolerance


@pytest.mark.parametrize('dtype, tolerance', [(torch.float32, 1e-3), (torch.float64, 1e-4)])
def test_diagonal_query(dtype, tolerance):
    z = vectors('gmm_diag.npz')
    m = run_em(20, z['x'].to(dtype), 'diag', z['means_init'], z['variances_init'], z['weights_init'], z['eps'])
    q = z['x_query'].to(dtype)
    assert error(m.score_samples(q), z['log_density_20']) < tolerance
    resp, theirs = m.predict_proba(q), z['responsibilities_20']
    assert torch.isfinite(resp).all()
    good = z['log_density_20'] > -80   # farther out the published code divides underflowed densities and ends in 0 / 0
    assert good.sum() > len(q)/2 and error(resp[good], theirs[good]) < tolerance
    log_det = 0.5*m.covariances_.log().sum(1)
    gaussians = m._gaussians()
    without = torch.logsumexp(gaussians.log_joint(gaussians.expand(q)).T + log_det, 1)
    assert error(without, z['log_density_without_log_det_20']) < tolerance


def test_full():
    z = vectors('gmm_full.npz')
    m = run_em(10, z['x'], 'full', z['means_init'], z['covariances_init'], z['weights_init'])
    assert error(m.means_, z['means_10']) < 1e-6
    assert error(m.covariances_, z['covariances_10']) < 1e-6
    assert error(m.weights_, z['weights_10']) < 1e-6
    assert error(m.score_samples(z['x']), z['log_density_10']) < 1e-6
