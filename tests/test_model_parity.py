"""The network against the published one: names and shapes of the state dict, and one forward pass.

The reference files lie in `parity/` of the folder named by BIDIRSEG_SHARED, or of `../shared` beside
the repository; where they are absent these tests skip.
"""
import csv
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from bidirseg.model import build_model, load_published, rename_published

PARITY = Path(os.environ.get('BIDIRSEG_SHARED', Path(__file__).resolve().parents[2]/'shared'))/'parity'
KEYS, FORWARD = PARITY/'official_checkpoint_keys.tsv', PARITY/'official_forward.npz'
needs = lambda path: pytest.mark.skipif(not path.is_file(), reason=f'no {path}: set BIDIRSEG_SHARED to the folder that holds parity/')


def published_shapes() -> dict:
    "Published key -> shape, in the file's order."
    with open(KEYS, newline='') as f: rows = list(csv.DictReader(f, delimiter='\t'))
    return {r['key']: () if r['shape'] == 'scalar' else tuple(map(int, r['shape'].split('x'))) for r in rows}


def fill(shapes: dict, seed: int) -> dict:
    "The reference's weights: numbered in the order of sorted names, each from its own numpy stream."
    state = {}
    for j, key in enumerate(sorted(shapes)):
        shape = shapes[key]
        if key.endswith('num_batches_tracked'): state[key] = torch.tensor(0); continue
        r = np.random.RandomState(10000 * seed + j).standard_normal(shape).astype(np.float32)
        if len(shape) == 4: r = r * np.float32(np.sqrt(2 / np.prod(shape[1:])))
        elif key.endswith('running_var'): r = 1 + 0.1 * np.abs(r)
        elif key.endswith(('running_mean', 'bias')): r = 0.1 * r
        else: r = 1 + 0.1 * r
        state[key] = torch.from_numpy(r.astype(np.float32))
    return state


@pytest.fixture(scope='module')
def model():
    return build_model(backbone='resnet101', num_classes=19).eval()


@needs(KEYS)
def test_names_and_shapes_are_the_published_ones(model):
    ours = {k: tuple(v.shape) for k, v in model.state_dict().items()}
    assert {rename_published(k): s for k, s in published_shapes().items()} == ours


@needs(KEYS)
@needs(FORWARD)
def test_forward_pass_is_the_published_one(model, tmp_path):
    want = np.load(FORWARD)
    seed = int(want['seed'])
    state = fill(published_shapes(), seed)
    torch.save({'DeepLabV3_plus': {'model_state': state}}, tmp_path/'published.pkl')
    load_published(model, tmp_path/'published.pkl')
    images = torch.from_numpy(np.random.RandomState(seed).standard_normal((1, 3, 96, 160)).astype(np.float32))
    with torch.no_grad(): out = model(images)
    got = dict(logits=out.logits, features_mean=out.features.mean((2, 3)), features_corner=out.features[:, :, :4, :4])
    for name, value in got.items():
        assert value.shape == want[name].shape, name
        error = np.abs(value.numpy() - want[name]).max() / np.abs(want[name]).max()
        assert error < 1e-3, f'{name}: relative error {error:.2e}'
