"""The pipeline as a whole, through the command line: every stage by papermill, the second run idle, a killed run the same to the bit,
bad input in one line, and target labels that nothing reads."""
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bidirseg.core import load_run, load_torch, stage_dir, stage_names
from bidirseg.cli import main
from bidirseg.pipeline import stage_of

TINY = '''
label_space = "cityscapes19"
height = 48
width = 96
backbone = "resnet10"
output_stride = 32
feature_dim = 16
rounds = 1
oracle = true
device = "cpu"
[source]
dataset = "scenes"
count = 8
height = 48
width = 96
[target]
dataset = "scenes"
domain = "camera"
count = 6
height = 48
width = 96
[evaluation]
dataset = "scenes"
domain = "camera"
first = 1000000
count = 4
height = 48
width = 96
[prototypes]
n_components = 2
[reweighting]
n_centroids = 8
''' + ''.join(f'[{k}]\nsteps = 6\nbatch_size = 2\nwarmup_steps = 1\ncheckpoint_every = 2\nlr = 0.01\n{more}' for k, more in dict(
    warmup='style = "fourier"\nlight = "source"\n', self_training='mix = true\nstatistics = "joint"\nhand_on = "teacher"\nramp_steps = 2\n', distillation='').items())


@pytest.fixture(scope='module')
def preset(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp('preset')/'tiny.toml'
    path.write_text(TINY)
    return path


@pytest.fixture(scope='module')
def finished(preset, call, tmp_path_factory) -> Path:
    run_dir = tmp_path_factory.mktemp('runs')/'whole'
    said = call('bidirseg', 'run', preset, '--run-dir', run_dir)
    assert f'report: {run_dir}' in said
    return run_dir


def weights(run_dir: Path) -> dict:   # stage -> state dict
    return {n: load_torch(p)['state'] for n in stage_names(load_run(run_dir)) if (p := stage_dir(run_dir, n)/'model.pt').exists()}


def assert_same(a: dict, b: dict):
    assert a.keys() == b.keys()
    for stage in a:
        for k, v in a[stage].items(): assert torch.equal(v, b[stage][k]), (stage, k)


def test_every_stage_leaves_its_record_and_picture(finished):
    for name in stage_names(load_run(finished)):
        folder = stage_dir(finished, name)
        record = json.loads((folder/'stage.json').read_text())
        assert record['outputs'] and record['seconds'] >= 0 and record['peak_memory_mb'] > 0 and record['versions']['torch']
        assert list(folder.glob('*.png')), f'{name} draws nothing'
        executed = json.loads((folder/'notebook.ipynb').read_text())
        assert any('injected-parameters' in c['metadata'].get('tags', []) for c in executed['cells'])
    assert not list(finished.rglob('*.tmp*')) and not list(finished.rglob('resume.pt'))


def test_report_is_one_file_with_every_stage(finished):
    page = (finished/'report.html').read_text()
    assert not re.findall(r'(?:src|href)="(?!data:)', page)
    for name in stage_names(load_run(finished)): assert name.replace('_', ' ') in page, name
    assert page.count('data:image/png') >= 10 and 'gap closed' in page


def test_second_run_does_nothing(finished, preset, call):
    before = {p: p.stat().st_mtime_ns for p in finished.rglob('*') if p.is_file() and p.name not in ('report.html', 'run.json', 'run.lock')}
    said = call('bidirseg', 'run', preset, '--run-dir', finished)
    assert said.count('complete') == len(stage_names(load_run(finished)))
    assert before == {p: p.stat().st_mtime_ns for p in before}


def test_a_stage_from_the_shell(finished, call, root, tmp_path):
    run_dir = tmp_path/'run'
    shutil.copytree(finished, run_dir)
    call('papermill', root/'nbs'/'05_prototypes.ipynb', tmp_path/'out.ipynb', '-p', 'run_dir', run_dir, '-p', 'keep', '0.2', cwd=tmp_path)
    record = json.loads((stage_dir(run_dir, 'prototypes')/'stage.json').read_text())
    assert record['params']['keep'] == 0.2
    before, after = (json.loads((stage_dir(d, 'prototypes')/'labels.json').read_text())['classes'] for d in (finished, run_dir))
    kept = [sum(c['share'] * c['kept'] for c in x.values()) for x in (before, after)]
    assert kept[0] == pytest.approx(0.5, abs=0.02) and kept[1] == pytest.approx(0.2, abs=0.02), kept


def test_evaluate_and_predict(finished, call, tmp_path):
    scores = json.loads(call('bidirseg', 'evaluate', finished, '--json', '--stage', 'warmup'))
    stored = json.loads((stage_dir(finished, 'evaluation')/'scores.json').read_text())['warmup']
    assert (scores['miou'], scores['iou'], scores['pixel_accuracy'], scores['images']) == tuple(stored[k] for k in ('miou', 'iou', 'pixel_accuracy', 'images'))
    tree = tmp_path/'data'/'folder'   # a labelled set on disk, of another size
    for sub in ('images', 'labels'): (tree/sub).mkdir(parents=True)
    Image.fromarray(np.full((70, 140, 3), 90, np.uint8)).save(tree/'images'/'a.png')
    Image.fromarray(np.zeros((70, 140), np.uint8)).save(tree/'labels'/'a.png')
    scores = json.loads(call('bidirseg', 'evaluate', finished, '--dataset', 'folder', '--root', tree, '--json'))
    assert scores['images'] == 1 and scores['stage'] == 'distillation_1'
    assert scores['pixel_accuracy'] == pytest.approx(scores['iou']['road'] or 0)
    call('bidirseg', 'predict', finished, tree/'images'/'a.png', '--out', tmp_path/'out')
    labels = np.asarray(Image.open(tmp_path/'out'/'a.png'))
    assert labels.shape == (70, 140) and labels.max() < 19 and (tmp_path/'out'/'a_color.png').exists()
    assert (labels == 0).mean() == pytest.approx(scores['pixel_accuracy'], abs=1e-6)


def stop_in(run_dir: Path, preset: Path, stage: str, has: str):
    "Start a run, kill it and its kernel with SIGKILL as soon as a file is there."
    p = subprocess.Popen([Path(sys.executable).parent/'bidirseg', 'run', preset, '--run-dir', run_dir], start_new_session=True,
                         stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ, 'OMP_NUM_THREADS': '1'})
    until = time.time() + 120
    try:
        while time.time() < until and p.poll() is None and not list(run_dir.glob(f'*_{stage}/{has}')): time.sleep(.01)
        assert list(run_dir.glob(f'*_{stage}/{has}')), f'{stage} never wrote {has}'
    finally:
        me, kids = p.pid, []
        for f in Path('/proc').glob('[0-9]*/stat') if Path('/proc').is_dir() else []:
            try: pid, parent = int(f.parent.name), int(f.read_text().rsplit(')', 1)[1].split()[1])
            except (OSError, ValueError, IndexError): continue
            if parent == me: kids.append(pid)
        for pid in (me, *kids):
            try: os.kill(pid, signal.SIGKILL)
            except ProcessLookupError: pass
        p.wait()


SUICIDE = '''
import os, signal, sys, torch
from bidirseg.pipeline import stage_of
place, stage, where, n = sys.argv[1:]
def dies(real, count=[0]):
    def call(*a, **k):
        count[0] += 1
        if count[0] > int(n): os.kill(os.getpid(), signal.SIGKILL)
        return real(*a, **k)
    return call
if where == 'step': torch.optim.SGD.step = dies(torch.optim.SGD.step)
else: os.replace = dies(os.replace)
stage_of(stage)[2](place, stage)
'''
TRAINED = ('source_only', 'oracle', 'warmup', 'self_training', 'distillation_1')


@pytest.mark.parametrize('stage, where, n', [
    *((s, 'step', n) for s in TRAINED for n in ((3,) if s != 'self_training' else (0, 1, 2, 5))), ('source_only', 'write', 1), ('warmup', 'write', 3), ('self_training', 'write', 4),
    ('data', 'write', 1), ('prototypes', 'write', 2), ('prototypes', 'write', 9), ('reweighting', 'write', 3), ('evaluation', 'write', 1)])
def test_a_stage_killed_at_any_place_ends_with_the_same_bytes(finished, tmp_path, capsys, stage, where, n):
    run_dir = tmp_path/'killed'
    shutil.copytree(finished, run_dir)
    shutil.rmtree(stage_dir(run_dir, stage))
    died = subprocess.run([sys.executable, '-c', SUICIDE, run_dir, stage, where, str(n)], capture_output=True, text=True, env={**os.environ, 'OMP_NUM_THREADS': '1'})
    assert died.returncode == -signal.SIGKILL, died.stderr
    assert not (stage_dir(run_dir, stage)/'stage.json').exists()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try: stage_of(stage)[2](run_dir, stage)
    finally: torch.set_num_threads(threads)
    if where == 'step': assert ('going on at step' in capsys.readouterr().out) == (n >= 2)   # there is a checkpoint every two steps
    ours, theirs = (json.loads((stage_dir(d, stage)/'stage.json').read_text())['outputs'] for d in (run_dir, finished))
    assert ours == theirs and not list(run_dir.rglob('.*.tmp*'))


@pytest.mark.parametrize('stage, has', [('self_training', 'resume.pt')])
def test_killed_run_ends_with_the_same_bits(finished, preset, call, tmp_path, stage, has):
    run_dir = tmp_path/'killed'
    shutil.copytree(finished, run_dir)
    names = stage_names(load_run(run_dir))
    for n in names[names.index(stage):]: shutil.rmtree(stage_dir(run_dir, n))
    stop_in(run_dir, preset, stage, has)
    assert not (stage_dir(run_dir, stage)/'stage.json').exists()
    said = call('bidirseg', 'run', preset, '--run-dir', run_dir)
    if has == 'resume.pt': assert 'going on at step' in said
    assert_same(weights(finished), weights(run_dir))


@pytest.mark.parametrize('arguments, says', [
    (['run', 'dmeo', '--run-dir', 'x'], 'did you mean demo'),
    (['run', 'demo', '--run-dir', 'x', '--set', 'sed=1'], 'did you mean seed'),
    (['run', 'demo', '--run-dir', 'x', '--set', 'warmup.stesp=1'], 'did you mean steps'),
    (['run', 'demo', '--run-dir', 'x', '--set', 'warmup.steps=many'], 'Wanted: int'),
    (['run', 'demo', '--run-dir', 'x', '--set', 'backbone'], 'key=value'),
    (['run', 'camvid-dusk', '--run-dir', 'x'], 'data_root'),
    (['run', 'camvid-dusk', '--run-dir', 'x', '--set', 'data_root=/nowhere/at/all'], 'no folder /nowhere/at/all'),
    (['evaluate', 'nowhere'], 'a run directory or a checkpoint file'),
    (['predict', 'nowhere', 'a.png', '--out', 'y'], 'a run directory or a checkpoint file')])
def test_bad_input_is_one_line(arguments, says, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    err = capsys.readouterr().err
    assert says in err and len(err.strip().splitlines()) == 1 and err.startswith('bidirseg: Seen: '), err
    assert not (tmp_path/'x').exists(), 'a refused run leaves nothing behind'


def camvid(root: Path, n: int = 6):
    "A little CamVid: daylight and dusk."
    rng = np.random.default_rng(0)
    for d in ('train', 'trainannot', 'val', 'valannot'): (root/'camvid'/d).mkdir(parents=True)
    for split, drive, count in (('train', '0016E5', n), ('val', '0016E5', 2), ('train', '0001TP', n)):
        for i in range(count):
            Image.fromarray(rng.integers(0, 255, (36, 48, 3), dtype=np.uint8)).save(root/'camvid'/split/f'{drive}_{split}{i}.jpg')
            Image.fromarray(rng.integers(0, 12, (36, 48), dtype=np.uint8)).save(root/'camvid'/f'{split}annot'/f'{drive}_{split}{i}.png')


DUSK = ['--set', 'height=36', '--set', 'width=48', '--set', 'weights=none', '--set', 'backbone=resnet10', '--set', 'target.take="0:3"', '--set', 'evaluation.take="3:"']


@pytest.mark.parametrize('spoil, says', [
    (lambda c: shutil.rmtree(c/'trainannot'), 'have no label map'),
    (lambda c: [p.unlink() for p in (c/'train').iterdir()], 'no image of drives'),
    (lambda c: next((c/'trainannot').glob('0016*')).unlink(), '1 of 8 images of camvid have no label map'),
    (lambda c: Image.fromarray(np.zeros((9, 9), np.uint8)).save(sorted((c/'trainannot').glob('0016*'))[0]), 'is 9 x 9, its image 48 x 36'),
    (lambda c: Image.fromarray(np.full((36, 48), 77, np.uint8)).save(sorted((c/'trainannot').glob('0016*'))[0]), '77 on 12.50 % of the pixels, first in train__0016'),
    (lambda c: sorted((c/'train').glob('0016*'))[0].write_bytes(b'no image'), 'cannot be read as an image')])
def test_bad_data_is_one_line(spoil, says, tmp_path, capsys):
    camvid(tmp_path)
    spoil(tmp_path/'camvid')
    status = main(['run', 'camvid-dusk', '--run-dir', str(tmp_path/'run'), '--set', f'data_root={tmp_path}', '--set', 'oracle=false', *DUSK])
    err = capsys.readouterr().err
    assert status == 2 and says in err and 'Traceback' not in err, err


def test_another_configuration_is_refused(finished, preset, capsys):
    before = (finished/'run.json').read_text()
    assert main(['run', str(preset), '--run-dir', str(finished), '--set', 'seed=5']) == 2
    assert 'seed was 0 and is now 5' in capsys.readouterr().err
    assert (finished/'run.json').read_text() == before


def test_target_labels_are_never_opened(tmp_path, monkeypatch):
    "With every label of the target's training images gone, each stage but the oracle gives the same bits."
    from bidirseg import distillation, prototypes, reweighting, self_training, warmup
    from bidirseg.core import load_preset, start_run
    from bidirseg.data import Images
    from bidirseg.datasets import open_target
    camvid(tmp_path/'a')
    shutil.copytree(tmp_path/'a', tmp_path/'b')
    for p in sorted((tmp_path/'b'/'camvid'/'trainannot').glob('0001TP*'))[:3]: p.unlink()
    small = [f'{s}.{k}={v}' for s in ('warmup', 'self_training', 'distillation') for k, v in dict(steps=2, batch_size=2).items()]
    result = {}
    for name in 'ab':
        config = load_preset('camvid-dusk', [*DUSK[1::2], f'data_root={tmp_path/name}', 'oracle=false', 'rounds=1', 'prototypes.n_components=2', 'reweighting.n_centroids=5', 'feature_dim=16', *small])
        assert type(open_target(config)) is Images
        run_dir = start_run(tmp_path/f'run_{name}', config)
        for stage, work in dict(warmup=warmup, prototypes=prototypes, reweighting=reweighting, self_training=self_training, distillation_1=distillation).items(): work.run(run_dir, stage)
        result[name] = weights(run_dir)
    assert_same(result['a'], result['b'])


def test_ablation_shares_stages_and_goes_on(preset, tmp_path, capsys):
    out = tmp_path/'ablation'
    line = ['ablate', str(preset), '--seeds', '0', '--out', str(out), '--variants', 'source_only', 'full', 'distillation_none', 'oracle']
    assert main(line) == 0
    rows = json.loads((out/'results.json').read_text())
    assert [r['variant'] for r in rows] == ['source_only', 'full', 'distillation_none', 'oracle']
    for r in rows: assert {'variant', 'seed', 'miou', 'iou', 'seconds', 'device', 'commit'} <= r.keys() and 0 <= r['miou'] <= 1 and r['seconds'] > 0
    models = [next((out/'seed0'/v).glob('*_self_training/model.pt')) for v in ('full', 'distillation_none')]
    assert os.path.samefile(*models), 'a shared stage is the same file'
    assert (out/'table.md').stat().st_size and (out/'figure.png').stat().st_size
    times = {p: p.stat().st_mtime_ns for p in out.rglob('stage.json')}
    assert main(line) == 0
    assert {p: p.stat().st_mtime_ns for p in out.rglob('stage.json')} == times, 'nothing runs twice'
    assert main([*line[:-1], 'fulll']) == 2 and 'did you mean full' in capsys.readouterr().err
    assert main(['labels', str(preset), '--seeds', '0', '--out', str(out)]) == 0
    labels = json.loads((out/'labels.json').read_text())
    assert len({r['method'] for r in labels}) == len(labels) > 10 and all(0 <= r['miou'] <= 1 for r in labels)
