"""The method with networks of timm: a small convolutional one from a random start, and a frozen vision transformer.

The transformer's file lies in `weights/` of the folder named by BIDIRSEG_SHARED, or of `../shared` beside the
repository; without it that test is skipped."""
import os
from pathlib import Path

import numpy as np
import pytest
import torch

import bidirseg
from bidirseg import distillation, evaluation, prototypes, pseudo_labels, reweighting, self_training, warmup
from bidirseg.core import InputError, load_json
from bidirseg.mixture import ClassPrototypes
from bidirseg.models import build_backbone, load_checkpoint, parameter_groups
from bidirseg.runs import load_run, small_run, stage_dir
from bidirseg.training import init_model

VIT = 'timm/vit_small_patch14_dinov2.lvd142m'
TABLES = dict(training=dict(steps=3, batch_size=2, warmup_steps=1, lr=0.01),
              prototypes=dict(n_components=2, max_iter=5, reg_covar=0.1),
              pseudo_labels=dict(label_source='both', score='margin'), reweighting=dict(n_centroids=8))


def tables(**changes) -> dict:
    "The settings of all stages; changes are added to their tables."
    return {name: {**TABLES.get(name, {}), **changes.get(name, {})} for name in {*TABLES, *changes}}


def maps_below(cache: Path) -> dict[Path, int]:
    "The kept maps of frozen backbones, and when each was written."
    return {path: path.stat().st_mtime_ns for path in (cache/'bidirseg'/'maps').rglob('*.npy')}


def weights_of(run_dir: Path, stage: str) -> dict:
    return load_checkpoint(stage_dir(run_dir, stage)/'model.pt')[0].state_dict()


@pytest.fixture(scope='module')
def vit_file(root) -> str:
    path = Path(os.environ.get('BIDIRSEG_SHARED', root.parent/'shared'))/'weights'/'vit_s14_dinov2_form.pth'
    if not path.is_file():
        pytest.skip(f'no {path}')
    return str(path)


@pytest.mark.filterwarnings('ignore')   # EM is stopped early on purpose
def test_every_stage_with_a_small_network_of_timm(tmp_path, monkeypatch):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path/'cache'))
    torch.manual_seed(0)
    file = str(tmp_path/'vit.pth')
    torch.save(build_backbone('timm/test_vit').net.state_dict(), file)
    frozen = dict(features='timm/test_vit', features_weights=file, features_scale=2.0, discriminant=True)
    run_dir = small_run(tmp_path/'run', backbone='timm/test_resnet', output_stride=16, rounds=1,
                        settings=tables(prototypes=frozen, reweighting=dict(backbone='timm/test_vit', weights=file)))
    warmup.run(run_dir)
    folder = prototypes.run(run_dir)
    kept = maps_below(tmp_path/'cache')
    assert len(kept) == 16 and all(np.load(path).dtype == np.float16 for path in kept)   # 8 images of each domain
    classes = sum(rows > 1 for rows in load_json(folder/'prototypes.json')['rows'].values())
    assert ClassPrototypes.load(folder/'prototypes.pt').means_.shape[-1] == classes - 1   # the axes between them
    pseudo_labels.run(run_dir)
    assert maps_below(tmp_path/'cache') == kept   # read, not written
    reweighting.run(run_dir)
    with pytest.raises(InputError, match="network's own features"):
        self_training.run(run_dir, model_selection='likelihood')
    self_training.run(run_dir)
    distillation.run(run_dir)
    scores = load_json(evaluation.run(run_dir)/'scores.json')
    assert scores
    image = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    assert bidirseg.load(run_dir).predict(image).shape == (50, 70)
    assert not torch.equal(weights_of(run_dir, 'warmup')['backbone.net.conv1.0.weight'],
                           weights_of(run_dir, 'distillation_1')['backbone.net.conv1.0.weight'])


@pytest.mark.filterwarnings('ignore')
def test_a_frozen_transformer_learns_nothing(tmp_path, vit_file, monkeypatch):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path/'cache'))
    run_dir = small_run(tmp_path/'run', backbone=VIT, weights=vit_file, freeze_backbone=True, keep_maps=True,
                        settings=tables(training=dict(scale=[1.0, 1.0], jitter=0.0), warmup=dict(style='none'),
                                        prototypes=dict(features=VIT, features_weights=vit_file)))
    warmup.run(run_dir)
    assert maps_below(tmp_path/'cache')   # written while the head learnt
    prototypes.run(run_dir)
    kept = maps_below(tmp_path/'cache')
    assert 16 <= len(kept) <= 16 + 3 * 2   # 8 images of each domain, and what was mirrored in 3 steps of 2 images
    pseudo_labels.run(run_dir)
    assert maps_below(tmp_path/'cache') == kept   # read, not written
    model, _ = load_checkpoint(stage_dir(run_dir, 'warmup')/'model.pt')
    trained, fresh = model.state_dict(), init_model(load_run(run_dir), torch.device('cpu')).state_dict()
    for name, value in torch.load(vit_file, weights_only=True).items():
        assert torch.equal(trained[f'backbone.net.{name}'], value.float()), name
    assert not torch.equal(trained['decoder.first.0.weight'], fresh['decoder.first.0.weight'])
    assert [group['name'] for group in parameter_groups(model, 1.0) if group['params']] == ['head']
