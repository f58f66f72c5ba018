"""Losses, schedule and transferability agree with numbers of the published implementation; skipped where the vectors
are not at hand."""
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from bidirseg.reweighting import nearest_distance, transferability, weight_map
from bidirseg.training import (
    consistency_loss, distillation_loss, poly_schedule, symmetric_cross_entropy, weighted_cross_entropy)


def vectors(root: Path, name: str) -> dict:
    path = Path(os.environ.get('BIDIRSEG_SHARED', root.parent/'shared'))/'parity'/f'{name}.npz'
    if not path.exists():
        pytest.skip(f'no parity vectors at {path}; set BIDIRSEG_SHARED to the folder that holds parity/')
    return {key: torch.from_numpy(np.asarray(value)) for key, value in np.load(path).items()}


def test_losses(root):
    v = vectors(root, 'losses')
    logits, target, weight = v['logits'], v['target'], v['pixel_weight']
    student, teacher = v['student_logits'], v['teacher_logits']
    losses = dict(
        cross_entropy=weighted_cross_entropy(logits, target, torch.ones_like(weight)),
        weighted_cross_entropy=weighted_cross_entropy(logits, target, weight),
        symmetric_cross_entropy=symmetric_cross_entropy(logits, target),
        consistency_kl_mean_over_elements=consistency_loss(student, teacher, ~v['cutout_mask']),
        distillation_kl_per_pixel=distillation_loss(student, teacher))
    for name, ours in losses.items():
        torch.testing.assert_close(ours.double(), v[name], rtol=1e-5, atol=1e-5, msg=lambda said: f'{name}: {said}')
    assert v['distillation_published'] < 0 <= losses['distillation_kl_per_pixel']


def test_schedule(root):
    v = vectors(root, 'schedule')
    total, warmup = int(v['total_iters']), int(v['warmup_iters'])
    lr, gamma, eta_min = (float(v[name]) for name in ('lr', 'gamma', 'eta_min'))
    ours = [poly_schedule(step, total, warmup, lr, gamma, eta_min) for step in range(total)]
    np.testing.assert_allclose(ours, v['lr_per_iter'], rtol=0, atol=1e-7)


def test_transferability(root):
    v = vectors(root, 'transferability')
    rows, centroids = v['source_features'].permute(0, 2, 3, 1), v['target_centroids']
    distance = nearest_distance(rows.reshape(-1, 64), centroids).view(5, 4, 7)
    torch.testing.assert_close(distance, v['min_distances'], rtol=1e-5, atol=1e-5)
    entropy = v['class_entropy_gta5'].float()
    entropy = (entropy - entropy.min()) / (entropy.max() - entropy.min())
    # the published running mean; ours is over the whole source
    for i, mean_distance in enumerate(v['running_mean_distance'].tolist()):
        weight = transferability(rows[i].reshape(-1, 64), centroids, mean_distance).view(4, 7)
        ours = weight_map(weight, v['source_labels'][i].numpy(), entropy)
        torch.testing.assert_close(ours, v['maps'][i], rtol=1e-5, atol=1e-5)
