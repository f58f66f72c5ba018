"Hard data, found by hypothesis: a mixture is finite or says what is wrong with the rows."
import math
import warnings

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch.distributions import Normal

from bidirseg.core import InputError, stream
from bidirseg.mixture import ClassPrototypes, GaussianMixture, gaussian_log_density, map_adapt

KINDS = ('diag', 'full', 'tied', 'spherical')
quick = settings(max_examples=40, deadline=None, derandomize=True)


@pytest.fixture(autouse=True)
def quiet():
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        yield


@st.composite
def hard_rows(draw, dtypes=(torch.float32, torch.float64)):
    "Rows with dead channels, duplicates, wild scales and offsets; sometimes very few."
    n, d = draw(st.integers(1, 40)), draw(st.integers(1, 6))
    g = stream(draw(st.integers(0, 2**16)), 'rows')
    x = torch.randn(n, d, generator=g, dtype=torch.float64)
    x = x * 10.**torch.tensor(draw(st.lists(st.integers(-4, 4), min_size=d, max_size=d)))
    x = x + draw(st.sampled_from([0., 0., 100., -1e4]))
    if draw(st.booleans()):
        x = x.relu()
    if draw(st.booleans()):
        x[:, draw(st.integers(0, d - 1))] = draw(st.sampled_from([0., 1., -3e5]))
    if draw(st.booleans()):
        x = x[torch.randint(max(1, n//4), (n,), generator=g)]
    return x.to(draw(st.sampled_from(dtypes)))


def finite(*tensors) -> bool:
    return all(torch.isfinite(torch.as_tensor(t)).all() for t in tensors)


@quick
@given(hard_rows(), st.sampled_from(KINDS), st.integers(1, 9), st.sampled_from([1e-6, 1e-2, 0.]))
def test_finite(x, kind, k, reg):
    m = GaussianMixture(k, kind, max_iter=8, reg_covar=reg).fit(x)
    p = m.predict_proba(x)
    assert finite(m.means_, m.covariances_, m.weights_, m.lower_bound_, m.score_samples(x), p, m.bic(x), m.sample(5)[0])
    assert (m.covariances_ if kind in ('diag', 'spherical') else m.covariances_.diagonal(dim1=-2, dim2=-1)).min() > 0
    assert abs(m.weights_.sum().item() - 1) < 1e-5 and (p.sum(1) - 1).abs().max() < 1e-4
    assert len(m.means_) <= min(k, len(x)) and m.means_.dtype == x.dtype


@quick
@given(hard_rows((torch.float64,)), st.sampled_from(KINDS), st.integers(1, 5))
def test_likelihood_never_falls(x, kind, k):
    bounds = [GaussianMixture(k, kind, tol=0, max_iter=n, random_state=0).fit(x).lower_bound_ for n in range(1, 8)]
    for a, b in zip(bounds, bounds[1:]):
        assert b >= a - 1e-9*(1 + abs(a))


@quick
@given(hard_rows(), st.integers(1, 5), st.integers(1, 7))
def test_batches_make_no_difference(x, k, size):
    a = GaussianMixture(k, max_iter=5, random_state=0).fit(x)
    b = GaussianMixture(k, max_iter=5, random_state=0).fit_batches(lambda: x.split(size))
    assert len(a.means_) == len(b.means_)
    scale = x.abs().amax(0).clamp_min(1e-3)
    assert ((a.means_ - b.means_).abs() / scale).max() < (1e-5 if x.dtype == torch.float64 else 1e-3)


@quick
@given(st.integers(0, 2**16), st.sampled_from([0., 100., -100.]), st.integers(0, 4))
def test_float32_density_is_within_a_thousandth(seed, offset, decades):
    g = stream(seed, 'density')
    scale = 10.**(torch.rand(32, generator=g)*2*decades - decades)
    mean, var = torch.randn(6, 32, generator=g)*3*scale + offset, (torch.rand(6, 32, generator=g) + 0.05)*scale**2
    x = torch.randn(200, 32, generator=g)*2*scale + offset
    pairs = zip(mean.double(), var.double())
    oracle = torch.stack([Normal(m, v.sqrt()).log_prob(x.double()).sum(1) for m, v in pairs], 1)
    assert ((gaussian_log_density(x, mean, var) - oracle).abs() / oracle.abs().clamp_min(1)).max() < 1e-3


@quick
@given(hard_rows(), st.integers(0, 39), st.sampled_from([math.inf, -math.inf, math.nan]), st.sampled_from(KINDS))
def test_rows_that_are_not_finite_are_counted(x, row, value, kind):
    x = x.clone()
    x[row % len(x), 0] = value
    with pytest.raises(InputError, match=f'class 7: 1 of {len(x)} rows'):
        ClassPrototypes.fit({7: x}, 2)
    with pytest.raises(InputError, match=f'1 of {len(x)} rows'):
        GaussianMixture(2, kind).fit(x)


@quick
@given(hard_rows(), st.integers(1, 4), st.sampled_from(['density', 'margin', 'posterior']))
def test_labels_of_hard_prototypes(x, k, score):
    rows = {0: x, 2: x[:1], 3: x[:0]}
    p = ClassPrototypes.fit(rows, k, num_classes=5, max_iter=5)
    logp = p.log_density(x)
    assert finite(logp[:, [0, 2]]) and (logp[:, [1, 3, 4]] == -math.inf).all()
    f = x.T.reshape(1, x.shape[1], 1, -1)
    labels, scores = p.label_map(f, (3, 2*f.shape[3]), score=score)
    assert set(labels.unique().tolist()) <= {0, 2} and finite(scores)
    q = map_adapt(p, x, relevance_factor=10, n_iter=3)
    assert finite(q.log_density(x)[:, [0, 2]], q.log_prior_[[0, 2]])


def test_an_empty_component_stays_where_it_was():
    x = torch.randn(200, 3, generator=stream(0))
    far = torch.stack([x.mean(0), torch.full((3,), 1e4)])
    for kind in KINDS:
        cov = dict(diag=torch.ones(2, 3), full=torch.eye(3).expand(2, 3, 3), tied=torch.eye(3), spherical=torch.ones(2))
        half = torch.tensor([0.5, 0.5])
        m = GaussianMixture(2, kind, means_init=far, covariances_init=cov[kind], weights_init=half).fit(x)
        assert finite(m.means_, m.covariances_, m.score_samples(x))
        assert torch.equal(m.means_[1], far[1]) and m.weights_[1] < 1e-6


def test_half_a_pass_is_noticed():
    with pytest.raises(InputError, match='fresh iterator'):
        batches = iter(torch.randn(40, 3, generator=stream(0)).split(10))
        GaussianMixture(2).fit_batches(lambda: batches)
