"""On a real GPU: every stage, several processes, and what is made of a model. Skipped where there is none."""
import os
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from bidirseg import core, load
from bidirseg.core import InputError, load_json
from bidirseg.mixture import ClassPrototypes, GaussianMixture
from bidirseg.pipeline.export import export
from bidirseg.pipeline.predict import evaluate_run, predict_files
from bidirseg.pipeline.stages import configure, stage_spec
from bidirseg.runs import open_images, processes, small_run, stage_dir, stage_names, start_run
from bidirseg.training import loop
from test_distributed import FIFTY, train

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason='there is no GPU here')

CPU, GPU = torch.device('cpu'), torch.device('cuda', 0)


@pytest.fixture
def float32(monkeypatch):
    "No autocast and no TF32: a GPU computes as a CPU does, but for rounding."
    monkeypatch.setattr(core, '_has_bfloat16', lambda device: False)
    monkeypatch.setattr(torch.backends.cudnn, 'allow_tf32', False)


def run(run_dir, *stages: str):
    for name in stages:
        stage_spec(name).run(run_dir, name)


def test_the_first_stages_as_on_the_cpu(preset, tmp_path, float32, monkeypatch):
    "Training begins alike, and the CPU's network gets the same prototypes and labels on a GPU."
    for layer in (torch.nn.Dropout, torch.nn.Dropout2d):   # which draw other numbers on each device
        monkeypatch.setattr(layer, 'forward', lambda layer, x: x)
    on_cpu, on_gpu = (tmp_path/device for device in ('cpu', 'cuda'))
    for run_dir in (on_cpu, on_gpu):
        start_run(run_dir, configure(str(preset), [f'device={run_dir.name}']))
        run(run_dir, 'data', 'source_only', 'warmup')
    for stage in ('source_only', 'warmup'):
        cpu, gpu = (load_json(stage_dir(run_dir, stage)/'history.json') for run_dir in (on_cpu, on_gpu))
        for row, expected in zip(gpu[:3], cpu[:3], strict=True):   # later steps amplify the last bits
            assert row == pytest.approx(expected, rel=1e-3), stage
    shutil.copytree(stage_dir(on_cpu, 'warmup'), stage_dir(on_gpu, 'warmup'), dirs_exist_ok=True)
    for run_dir in (on_cpu, on_gpu):
        run(run_dir, 'prototypes', 'pseudo_labels')
    maps = sorted(stage_dir(on_cpu, 'pseudo_labels').glob('labels/*.png'))
    assert maps
    for path in maps:
        other = stage_dir(on_gpu, 'pseudo_labels')/'labels'/path.name
        same = np.asarray(Image.open(path)) == np.asarray(Image.open(other))
        assert same.mean() > .98, path.name


def test_a_run_with_kernels_and_what_is_made_of_it(preset, call, tmp_path):
    run_dir = tmp_path/'run'
    line = 'bidirseg', 'run', preset, '--run-dir', run_dir, '--set', 'device=cuda'
    call(*line)
    assert call(*line).count('complete') == len(stage_names(load(run_dir).config))
    record = load_json(stage_dir(run_dir, 'self_training')/'stage.json')
    assert record['device'] == 'cuda' and record['peak_gpu_memory_mb'] > 0
    segmenter = load(run_dir)
    image = open_images(segmenter.config, 'target').image(0)
    image.save(tmp_path/'photo.png')
    assert next(segmenter.model.parameters()).device.type == 'cuda'
    assert segmenter.predict(image).shape == (image.height, image.width)
    predict_files(run_dir, [str(tmp_path/'photo.png')], tmp_path/'labels')
    evaluate_run(run_dir)
    export(run_dir, torch_file=tmp_path/'model.pt2')


def test_mixtures_and_label_maps_as_on_the_cpu():
    rows = torch.randn(4000, 16, generator=torch.Generator().manual_seed(0)).relu()
    fits = [GaussianMixture(4, random_state=0).fit(rows.to(device)) for device in (CPU, GPU)]
    assert fits[1].means_.device == GPU
    torch.testing.assert_close(fits[1].means_.cpu(), fits[0].means_, rtol=1e-3, atol=1e-3)
    features = {0: rows[:2000], 1: rows[2000:] + .5}
    prototypes = ClassPrototypes.fit(features, n_components=2, random_state=0)
    maps = rows[:128].T.reshape(1, 16, 8, 16)
    labels, scores = prototypes.label_map(maps, (32, 64))
    on_gpu = prototypes.to(GPU).label_map(maps.to(GPU), (32, 64))
    assert (on_gpu[0].cpu() == labels).double().mean() > .99
    torch.testing.assert_close(on_gpu[1].cpu(), scores, rtol=1e-3, atol=1e-2)


def on_one_gpu(packed: bytes) -> dict:
    "What a process of several does that share the only GPU; over gloo, since NCCL wants a GPU for each."
    processes.own_device = loop.own_device = lambda device: GPU
    core._has_bfloat16 = lambda device: False
    torch.backends.cudnn.allow_tf32 = False
    return loop._train_share(packed)


def test_two_processes_have_the_losses_of_one(tmp_path, float32, monkeypatch):
    alone, _ = train(small_run(tmp_path/'1', device='cuda'), 1, FIFTY)
    monkeypatch.setattr(loop, 'check_processes', lambda *args: None)
    monkeypatch.setattr(loop, 'launch', lambda function, count, device, packed:
                        processes.launch(on_one_gpu, count, CPU, packed))
    history, _ = train(small_run(tmp_path/'2', device='cuda'), 2, FIFTY)
    assert len(history) == 50 and alone[-1]['loss'] < .8 * alone[0]['loss']
    for row, expected in zip(history, alone, strict=True):
        assert row == pytest.approx(expected, abs=1e-3)


def test_a_group_of_one_over_nccl(tmp_path, monkeypatch):
    "The way of several GPUs, with one: a process of its own, NCCL, its batch norm, the state handed back."
    alone, _ = train(small_run(tmp_path/'1', device='cuda'), 1, FIFTY)
    monkeypatch.setattr(loop, 'starts_processes', lambda count: 'LOCAL_RANK' not in os.environ)
    history, _ = train(small_run(tmp_path/'2', device='cuda'), 1, FIFTY)
    assert load_json(stage_dir(tmp_path/'2', 'warmup')/'stage.json')['processes'] == 1
    assert len(history) == 50 and history[-1]['loss'] < .8 * history[0]['loss']
    for row, expected in zip(history[:3], alone[:3], strict=True):   # later steps amplify what bfloat16 rounds
        assert row == pytest.approx(expected, rel=.02)


def test_more_processes_than_gpus_are_refused():
    count = torch.cuda.device_count() + 1
    with pytest.raises(InputError, match='a GPU for each process'):
        processes.check_devices(count, torch.device('cuda'))
