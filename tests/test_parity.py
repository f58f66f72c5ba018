"Losses, schedule and transferability agree with numbers of the published implementation; skipped where the vectors are not at hand."
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from bidirseg.reweighting import nearest_distance, transferability, weight_map
from bidirseg.self_training import consistency_loss, distillation_loss, poly_schedule, symmetric_cross_entropy, weighted_cross_entropy


def vectors(root: Path, name: str) -> dict:
    path = Path(os.environ.get('BIDIRSEG_SHARED', root.parent/'shared'))/'parity'/f'{name}.npz'
    if not path.exists(): pytest.skip(f'no parity vectors at {path}; set BIDIRSEG_SHARED to the folder that holds parity/')
    return {k: torch.from_numpy(np.asarray(v)) for k, v in np.load(path).items()}


def test_losses(root):
    v = vectors(root, 'losses')
    logits, target = v['logits'], v['target']
    close = lambda got, name: torch.testing.assert_close(got.double(), v[name], rtol=1e-5, atol=1e-5)
    close(weighted_cross_entropy(logits, target, torch.ones_like(v['pixel_weight'])), 'cross_entropy')
    close(weighted_cross_entropy(logits, target, v['pixel_weight']), 'weighted_cross_entropy')
    close(symmetric_cross_entropy(logits, target), 'symmetric_cross_entropy')
    close(consistency_loss(v['student_logits'], v['teacher_logits'], ~v['cutout_mask']), 'consistency_kl_mean_over_elements')
    close(distillation_loss(v['student_logits'], v['teacher_logits']), 'distillation_kl_per_pixel')
    assert v['distillation_published'] < 0 <= distillation_loss(v['student_logits'], v['teacher_logits'])


def test_schedule(root):
    v = vectors(root, 'schedule')
    total, warmup = int(v['total_iters']), int(v['warmup_iters'])
    ours = [poly_schedule(t, total, warmup, float(v['lr']), float(v['gamma']), float(v['eta_min'])) for t in range(total)]
    np.testing.assert_allclose(ours, v['lr_per_iter'], rtol=0, atol=1e-7)


def test_transferability(root):
    v = vectors(root, 'transferability')
    rows = v['source_features'].permute(0, 2, 3, 1)
    distance = nearest_distance(rows.reshape(-1, 64), v['target_centroids']).view(5, 4, 7)
    torch.testing.assert_close(distance, v['min_distances'], rtol=1e-5, atol=1e-5)
    entropy = v['class_entropy_gta5'].float()
    entropy = (entropy - entropy.min()) / (entropy.max() - entropy.min())
    for i, mean in enumerate(v['running_mean_distance'].tolist()):   # the published running mean; ours is over the whole source
        w = transferability(rows[i].reshape(-1, 64), v['target_centroids'], mean).view(4, 7)
        ours = weight_map(w, v['source_labels'][i].numpy(), entropy)
        torch.testing.assert_close(ours, v['maps'][i], rtol=1e-5, atol=1e-5)
