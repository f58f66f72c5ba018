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

from bidirseg.models import build_model, load_published
from bidirseg.models.checkpoints import _rename_published

PARITY = Path(os.environ.get('BIDIRSEG_SHARED', Path(__file__).resolve().parents[2]/'shared'))/'parity'
KEYS, FORWARD = PARITY/'official_checkpoint_keys.tsv', PARITY/'official_forward.npz'


def needs(path: Path):
    return pytest.mark.skipif(not path.is_file(),
                              reason=f'no {path}: set BIDIRSEG_SHARED to the folder that holds parity/')


def published_shapes() -> dict:
    "Published key -> shape, in the file's order."
    with open(KEYS, newline='') as file:
        rows = list(csv.DictReader(file, delimiter='\t'))
    return {row['key']: () if row['shape'] == 'scalar' else tuple(map(int, row['shape'].split('x'))) for row in rows}


def filled(key: str, shape: tuple, seed: int) -> torch.Tensor:
    "A tensor of the reference, from its own numpy stream."
    if key.endswith('num_batches_tracked'):
        return torch.tensor(0)
    noise = np.random.RandomState(seed).standard_normal(shape).astype(np.float32)
    if len(shape) == 4:
        noise = noise * np.float32(np.sqrt(2 / np.prod(shape[1:])))
    elif key.endswith('running_var'):
        noise = 1 + 0.1 * np.abs(noise)
    elif key.endswith(('running_mean', 'bias')):
        noise = 0.1 * noise
    else:
        noise = 1 + 0.1 * noise
    return torch.from_numpy(noise.astype(np.float32))


def published_state(seed: int) -> dict:
    "The reference's weights: numbered in the order of sorted names."
    shapes = published_shapes()
    return {key: filled(key, shapes[key], 10000 * seed + j) for j, key in enumerate(sorted(shapes))}


@pytest.fixture(scope='module')
def model():
    return build_model(backbone='resnet101', num_classes=19).eval()


@needs(KEYS)
def test_names_and_shapes_are_the_published_ones(model):
    ours = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    assert {_rename_published(key): shape for key, shape in published_shapes().items()} == ours


@needs(KEYS)
@needs(FORWARD)
def test_forward_pass_is_the_published_one(model, tmp_path):
    want = np.load(FORWARD)
    seed = int(want['seed'])
    torch.save({'DeepLabV3_plus': {'model_state': published_state(seed)}}, tmp_path/'published.pkl')
    load_published(model, tmp_path/'published.pkl')
    images = torch.from_numpy(np.random.RandomState(seed).standard_normal((1, 3, 96, 160)).astype(np.float32))
    with torch.no_grad():
        out = model(images)
    got = dict(logits=out.logits, features_mean=out.features.mean((2, 3)), features_corner=out.features[:, :, :4, :4])
    for name, value in got.items():
        assert value.shape == want[name].shape, name
        error = np.abs(value.numpy() - want[name]).max() / np.abs(want[name]).max()
        assert error < 1e-3, f'{name}: relative error {error:.2e}'
