"""The pipeline as a whole, through the command line: every stage by papermill, the second run idle, a killed run the
same to the bit, bad input in one line, and target labels that nothing reads."""
import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from PIL import Image

from bidirseg import distillation, load, self_training
from bidirseg.cli import main, make_parser
from bidirseg.core import InputError, load_json, load_torch
from bidirseg.models import update_bn
from bidirseg.pipeline.predict import evaluate_run
from bidirseg.pipeline.stages import configure, stage_spec
from bidirseg.runs import Stage, load_preset, load_run, open_images, stage_dir, stage_names, start_run


@pytest.fixture(scope='module')
def finished(preset, call, tmp_path_factory) -> Path:
    run_dir = tmp_path_factory.mktemp('runs')/'whole'
    said = call('bidirseg', 'run', preset, '--run-dir', run_dir)
    assert f'report: {run_dir}' in said
    return run_dir


def record(run_dir: Path, stage: str) -> dict:
    return load_json(stage_dir(run_dir, stage)/'stage.json')


def weights(run_dir: Path) -> dict:   # stage -> state dict
    files = {name: stage_dir(run_dir, name)/'model.pt' for name in stage_names(load_run(run_dir))}
    return {name: load_torch(path)['state'] for name, path in files.items() if path.exists()}


def assert_same(a: dict, b: dict):
    assert a.keys() == b.keys()
    for stage in a:
        for key, value in a[stage].items():
            assert torch.equal(value, b[stage][key]), (stage, key)


def test_every_stage_leaves_its_record_and_picture(finished):
    for name in stage_names(load_run(finished)):
        folder, made = stage_dir(finished, name), record(finished, name)
        assert made['outputs'] and made['seconds'] >= 0 and made['peak_memory_mb'] > 0 and made['versions']['torch']
        assert list(folder.glob('*.png')), f'{name} draws nothing'
        cells = load_json(folder/'notebook.ipynb')['cells']
        assert any('injected-parameters' in cell['metadata'].get('tags', []) for cell in cells)
        assert not any('test_fail(' in ''.join(cell['source']) for cell in cells), 'a run executes no tests'
    folders = {path.relative_to(finished).as_posix() for path in finished.glob('*/*') if path.is_dir()}
    of_every_image = {name for name in folders if not name.endswith('/pictures')}
    assert of_every_image == {'05_pseudo_labels/labels', '08_distillation_1/labels'}, 'no scores and no weights'
    for left_over in ('.*.tmp*', 'resume.pt', '.*.jsonl', '.*.pt'):
        assert not list(finished.rglob(left_over))


def test_report_is_one_file_with_every_stage(finished):
    page = (finished/'report.html').read_text()
    assert not re.findall(r'src="(?!data:)', page)
    files = re.findall(r'href="(?!data:|#)([^"]*)"', page)
    assert '03_warmup/notebook.ipynb' in files and all((finished/file).exists() for file in files)
    for name in stage_names(load_run(finished)):
        assert name.replace('_', ' ') in page, name
    assert page.count('data:image/png') >= 10 and 'gap closed' in page


def test_second_run_does_nothing(finished, preset, call):
    rewritten = ('report.html', 'run.json', 'run.lock')
    before = {p: p.stat().st_mtime_ns for p in finished.rglob('*') if p.is_file() and p.name not in rewritten}
    said = call('bidirseg', 'run', preset, '--run-dir', finished)
    assert said.count('complete') == len(stage_names(load_run(finished)))
    assert before == {p: p.stat().st_mtime_ns for p in before}


def test_a_damaged_notebook_is_a_word_and_no_reason_to_run_again(finished, preset, tmp_path, capsys):
    run_dir, line = shutil.copytree(finished, tmp_path/'run'), ['run', str(preset), '--until', 'data', '--run-dir']
    notebook = stage_dir(run_dir, 'data')/'notebook.ipynb'
    assert main([*line, str(run_dir)]) == 0 and 'notebook.ipynb' not in capsys.readouterr().out
    content = bytearray(notebook.read_bytes())
    content[len(content) // 2] ^= 4
    notebook.write_bytes(content)
    assert main([*line, str(run_dir)]) == 0
    said = capsys.readouterr().out
    assert 'data: complete' in said and 'data: notebook.ipynb is not as it was executed' in said
    assert notebook.read_bytes() == content


def test_a_stage_from_the_shell_goes_into_a_run_of_its_own(finished, call, root, tmp_path):
    "What holds is taken over, the other run stays, and the notebook that made the labels lies beside them."
    run_dir, before = tmp_path/'run', {path: path.stat().st_mtime_ns for path in finished.rglob('*')}
    (tmp_path/'keep.yaml').write_text(f'from_run: {finished}\nrun_dir: elsewhere\nkeep: 0.2\n')
    call('papermill', root/'nbs'/'04_pseudo_labels.ipynb', tmp_path/'out.ipynb',
         '-f', 'keep.yaml', '-p', 'run_dir', run_dir, cwd=tmp_path)
    assert before == {path: path.stat().st_mtime_ns for path in finished.rglob('*')}
    assert os.path.samefile(*(stage_dir(place, 'warmup')/'model.pt' for place in (finished, run_dir)))
    assert not (tmp_path/'elsewhere').exists() and not stage_dir(run_dir, 'self_training').exists()
    beside = load_json(stage_dir(run_dir, 'pseudo_labels')/'notebook.ipynb')['cells']
    given = [cell['source'] for cell in beside if 'injected-parameters' in cell['metadata'].get('tags', [])]
    assert len(given) == 1 and 'keep = 0.2' in given[0]
    ran = [''.join(cell['source']) for cell in load_json(tmp_path/'out.ipynb')['cells'] if cell.get('outputs')]
    assert any('folder = run(run_dir' in source for source in ran)
    assert not any('test_fail(' in source for source in ran), 'the tests of definitions are left out'
    assert record(run_dir, 'pseudo_labels')['params']['keep'] == 0.2
    kept = []
    for folder in (finished, run_dir):
        shares = load_json(stage_dir(folder, 'pseudo_labels')/'labels.json')
        kept.append(sum(c['share'] * c['kept'] for c in shares.values()))
    assert kept == pytest.approx([0.5, 0.2], abs=0.02)


@pytest.mark.parametrize('module, name', [(distillation, 'distillation_1'), (self_training, 'self_training')])
def test_a_network_is_handed_on_with_statistics_of_the_target(finished, tmp_path, module, name):
    "The weights are those of training; the batch-norm statistics are those of whole target images."
    run_dir = tmp_path/'run'
    shutil.copytree(finished, run_dir)
    stage = Stage(run_dir, name, stage_spec(name).settings)
    model = stage.load_model(name).to(memory_format=torch.channels_last)   # as the stage has it, for dropout's draws
    update_bn(model, stage.samples('target', exposure_gain=model.exposure_gain))
    moved = [key for key, value in weights(run_dir)[name].items() if not torch.allclose(value, model.state_dict()[key])]
    assert {key.rsplit('.')[-1] for key in moved} == {'running_mean', 'running_var', 'num_batches_tracked'}
    module.run(run_dir, name, adapt_bn=True)
    assert_same({name: model.state_dict()}, {name: weights(run_dir)[name]})


ON_DEVICE = {'convolution', 'convolution_backward', 'native_batch_norm', 'upsample_bilinear2d', 'searchsorted', 'mm'}


def test_every_stage_on_an_accelerator(preset, call, root, tmp_path):
    "On a device that refuses what a GPU would, everything runs, and gives the labels, losses and scores of the CPU."
    if not hasattr(torch.utils.backend_registration, '_setup_privateuseone_for_python_backend'):
        pytest.skip(f'torch {torch.__version__} lets nobody pretend an accelerator')
    said = call(sys.executable, root/'tests'/'on_accelerator.py', preset, tmp_path)
    calls = json.loads(said.splitlines()[-1])
    assert not {f'aten::{name}' for name in ON_DEVICE} - calls.keys()
    here, there = tmp_path/'cpu', tmp_path/'pretend'
    maps = sorted(path.relative_to(here) for path in here.glob('*/labels/*.png'))
    assert maps and all((here/path).read_bytes() == (there/path).read_bytes() for path in maps)
    histories = sorted(path.relative_to(here) for path in here.glob('*/history.json'))
    assert len(histories) == 5
    for path in histories:
        for row, other in zip(load_json(here/path), load_json(there/path), strict=True):
            assert other == pytest.approx(row, rel=1e-4), path


def test_every_stage_in_bfloat16(preset, monkeypatch, tmp_path):
    "As on a GPU, networks compute in bfloat16, and all that is compared or summed is float32 again."
    monkeypatch.setattr('bidirseg.core.is_accelerator', lambda device: True)
    monkeypatch.setattr('bidirseg.core._has_bfloat16', lambda device: True)
    computed, convolve = set(), torch.nn.Conv2d.forward

    def note(layer, x):
        y = convolve(layer, x)
        computed.add(y.dtype)
        return y

    monkeypatch.setattr(torch.nn.Conv2d, 'forward', note)
    config = configure(str(preset), ['oracle=false', 'distillation.steps=2'])
    start_run(tmp_path, config)
    for name in stage_names(config):
        stage_spec(name).run(tmp_path, name)
    assert computed == {torch.bfloat16}
    computed.clear()
    photo = open_images(config, 'target').image(0)
    labels, found = load(tmp_path, 'distillation_1').predict(photo), evaluate_run(tmp_path, 'distillation_1')
    assert computed == {torch.bfloat16} and labels.shape == photo.size[::-1]
    recorded = load_json(stage_dir(tmp_path, 'evaluation')/'scores.json')['distillation_1']
    assert found['confusion'] == recorded['confusion']
    for state in weights(tmp_path).values():
        assert all(value.isfinite().all() and value.dtype != torch.bfloat16 for value in state.values())


def test_evaluate_and_predict(finished, call, tmp_path):
    scores = json.loads(call('bidirseg', 'evaluate', finished, '--json', '--stage', 'warmup'))
    stored = load_json(stage_dir(finished, 'evaluation')/'scores.json')['warmup']
    for key in ('miou', 'iou', 'pixel_accuracy', 'images'):
        assert scores[key] == stored[key]
    tree = tmp_path/'data'/'folder'   # a labelled set on disk, of another size
    for sub in ('images', 'labels'):
        (tree/sub).mkdir(parents=True)
    Image.fromarray(np.full((70, 140, 3), 90, np.uint8)).save(tree/'images'/'a.png')
    Image.fromarray(np.zeros((70, 140), np.uint8)).save(tree/'labels'/'a.png')
    scores = json.loads(call('bidirseg', 'evaluate', finished, '--dataset', 'folder', '--root', tree, '--json'))
    assert scores['images'] == 1 and scores['stage'] == 'distillation_1'
    assert scores['pixel_accuracy'] == pytest.approx(scores['iou']['road'] or 0)
    call('bidirseg', 'predict', finished, tree/'images'/'a.png', '--out', tmp_path/'out')
    labels = np.asarray(Image.open(tmp_path/'out'/'a.png'))
    assert labels.shape == (70, 140) and labels.max() < 19 and (tmp_path/'out'/'a_color.png').exists()
    assert (labels == 0).mean() == pytest.approx(scores['pixel_accuracy'], abs=1e-6)


def kill_run_when(run_dir: Path, preset: Path, stage: str, file: str):
    "Start a run and kill it with SIGKILL as soon as a file is there; its kernel has to end by itself."
    command = [Path(sys.executable).parent/'bidirseg', 'run', preset, '--run-dir', run_dir]
    process = psutil.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                           env={**os.environ, 'OMP_NUM_THREADS': '1'})
    until, helpers = time.time() + 300, []
    try:
        while time.time() < until and process.poll() is None and not list(run_dir.glob(f'*_{stage}/{file}')):
            time.sleep(.01)
        assert list(run_dir.glob(f'*_{stage}/{file}')), f'{stage} never wrote {file}'
        helpers = process.children(recursive=True)
    finally:
        process.kill()
        process.wait()
    assert helpers and not psutil.wait_procs(helpers, timeout=20)[1], 'a process outlives its run'


COPIES = multiprocessing.get_context('forkserver')   # each process that is killed has the imports already
COPIES.set_forkserver_preload(['bidirseg.pipeline.stages'])


def dies_after(n: int, real):
    "A function that kills its process when it is called once more than `n` times."
    calls = []

    def call(*args, **more):
        calls.append(1)
        if len(calls) > n:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **more)
    return call


def run_and_die(run_dir: Path, stage: str, where: str, n: int):
    "Run a stage in this process and kill it in its n-th step or write."
    torch.set_num_threads(1)
    if where == 'step':
        torch.optim.SGD.step = dies_after(n, torch.optim.SGD.step)
    else:
        os.replace = dies_after(n, os.replace)
    stage_spec(stage).run(run_dir, stage)


def kill_stage(run_dir: Path, stage: str, where: str, n: int):
    "A stage in a process of its own, which is killed."
    process = COPIES.Process(target=run_and_die, args=(run_dir, stage, where, n))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL


KILLED_IN_A_STEP = [('source_only', 3), ('oracle', 3), ('warmup', 3), ('distillation_1', 3),
                    *(('self_training', n) for n in (0, 1, 2, 5))]
KILLED_IN_A_WRITE = [('source_only', 1), ('warmup', 3), ('self_training', 4), ('data', 1), ('prototypes', 2),
                     ('pseudo_labels', 4), ('reweighting', 3), ('reweighting', 8), ('distillation_1', 4),
                     ('evaluation', 1)]


@pytest.mark.parametrize('stage, where, n', [*((stage, 'step', n) for stage, n in KILLED_IN_A_STEP),
                                             *((stage, 'write', n) for stage, n in KILLED_IN_A_WRITE)])
def test_a_stage_killed_at_any_place_ends_with_the_same_bytes(finished, tmp_path, capsys, stage, where, n):
    run_dir = tmp_path/'killed'
    shutil.copytree(finished, run_dir)
    shutil.rmtree(stage_dir(run_dir, stage))
    kill_stage(run_dir, stage, where, n)
    assert not (stage_dir(run_dir, stage)/'stage.json').exists()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        stage_spec(stage).run(run_dir, stage)
    finally:
        torch.set_num_threads(threads)
    if where == 'step':   # there is a checkpoint every two steps
        assert ('going on at step' in capsys.readouterr().out) == (n >= 2)
    assert record(run_dir, stage)['outputs'] == record(finished, stage)['outputs']
    assert not list(run_dir.rglob('.*.tmp*'))


def test_a_pass_over_images_goes_on_behind_the_last_one(finished, tmp_path):
    "Labels that a killed run wrote are not written again."
    run_dir = tmp_path/'killed'
    shutil.copytree(finished, run_dir)
    folder = stage_dir(run_dir, 'pseudo_labels')
    shutil.rmtree(folder)
    kill_stage(run_dir, 'pseudo_labels', 'write', 4)
    written = {path: path.stat().st_mtime_ns for path in (folder/'labels').glob('[!.]*.png')}   # the whole ones
    assert 1 < len(written) < 6
    stage_spec('pseudo_labels').run(run_dir, 'pseudo_labels')
    assert len(list((folder/'labels').iterdir())) == 6
    done = {path: path.stat().st_mtime_ns for path in written}
    again = [path for path in written if done[path] != written[path]]
    assert len(again) <= 1, 'only the image that was under way is labelled again'


def test_killed_run_ends_with_the_same_bits(finished, preset, call, tmp_path):
    run_dir = tmp_path/'killed'
    shutil.copytree(finished, run_dir)
    names = stage_names(load_run(run_dir))
    for name in names[names.index('self_training'):]:
        shutil.rmtree(stage_dir(run_dir, name))
    kill_run_when(run_dir, preset, 'self_training', 'resume.pt')
    assert not (stage_dir(run_dir, 'self_training')/'stage.json').exists()
    assert 'going on at step' in call('bidirseg', 'run', preset, '--run-dir', run_dir)
    assert_same(weights(finished), weights(run_dir))


@pytest.mark.parametrize('arguments, says', [
    (['run', 'dmeo', '--run-dir', 'x'], 'did you mean demo'),
    (['run', 'demo', '--run-dir', 'x', '--set', 'sed=1'], 'did you mean seed'),
    (['run', 'demo', '--run-dir', 'x', '--set', 'warmup.stesp=1'], 'did you mean steps'),
    (['run', 'demo', '--run-dir', 'x', '--set', 'whitten=3'], 'did you mean prototypes.whiten?\n'),
    (['run', 'demo', '--run-dir', 'x', '--set', 'self_training.ema_decay=2'], 'set self_training.ema_decay=1'),
    (['run', 'demo', '--run-dir', 'x', '--set', 'warmup.steps=many'], 'Wanted: int'),
    (['run', 'demo', '--run-dir', 'x', '--set', 'prototypes.paper=true'], "setting of prototypes 'paper'"),
    (['run', 'demo', '--run-dir', 'x', '--set', 'backbone'], 'key=value'),
    (['run', 'camvid-dusk', '--run-dir', 'x'], 'data_root'),
    (['run', 'camvid-dusk', '--run-dir', 'x', '--set', 'data_root=/nowhere/all'], 'no folder /nowhere/all'),
    (['evaluate', 'nowhere'], 'a run directory or a checkpoint file'),
    (['predict', 'nowhere', 'a.png', '--out', 'y'], 'a run directory or a checkpoint file')])
def test_bad_input_is_one_line(arguments, says, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert says in said and len(said.strip().splitlines()) == 1 and said.startswith('bidirseg: Seen: '), said
    assert not (tmp_path/'x').exists(), 'a refused run leaves nothing behind'


def make_camvid(root: Path, n: int = 6):
    "A little CamVid: daylight and dusk."
    rng = np.random.default_rng(0)
    for folder in ('train', 'trainannot', 'val', 'valannot'):
        (root/'camvid'/folder).mkdir(parents=True)
    for split, drive, count in (('train', '0016E5', n), ('val', '0016E5', 2), ('train', '0001TP', n)):
        for i in range(count):
            image = rng.integers(0, 255, (36, 48, 3), dtype=np.uint8)
            labels = rng.integers(0, 12, (36, 48), dtype=np.uint8)
            Image.fromarray(image).save(root/'camvid'/split/f'{drive}_{split}{i}.jpg')
            Image.fromarray(labels).save(root/'camvid'/f'{split}annot'/f'{drive}_{split}{i}.png')


SMALL_DUSK = ['height=36', 'width=48', 'weights=none', 'backbone=resnet10', 'target.slice="0:3"',
              'evaluation.slice="3:"']
DUSK = [part for change in SMALL_DUSK for part in ('--set', change)]


def first_daylight(camvid: Path, folder: str) -> Path:
    return sorted((camvid/folder).glob('0016*'))[0]


def without_labels(camvid):
    shutil.rmtree(camvid/'trainannot')


def without_images(camvid):
    for path in (camvid/'train').iterdir():
        path.unlink()


def without_one_label(camvid):
    first_daylight(camvid, 'trainannot').unlink()


def label_of_another_size(camvid):
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(first_daylight(camvid, 'trainannot'))


def label_of_unknown_values(camvid):
    Image.fromarray(np.full((36, 48), 77, np.uint8)).save(first_daylight(camvid, 'trainannot'))


def broken_image(camvid):
    first_daylight(camvid, 'train').write_bytes(b'no image')


@pytest.mark.parametrize('spoil, says', [
    (without_labels, 'have no label map'), (without_images, 'no image of drives'),
    (without_one_label, '1 of 8 images of camvid have no label map'),
    (label_of_another_size, 'is 9 x 9, its image 48 x 36'),
    (label_of_unknown_values, '77 on 12.50 % of the pixels, first in train__0016'),
    (broken_image, 'cannot be read as an image')])
def test_bad_data_is_one_line(spoil, says, tmp_path, capsys):
    make_camvid(tmp_path)
    spoil(tmp_path/'camvid')
    line = ['run', 'camvid-dusk', '--run-dir', str(tmp_path/'run'), '--set', f'data_root={tmp_path}']
    status, said = main([*line, '--set', 'oracle=false', *DUSK]), capsys.readouterr().err
    assert status == 2 and says in said and 'Traceback' not in said, said


def test_another_configuration_is_refused(finished, preset, capsys):
    before = (finished/'run.json').read_text()
    assert main(['run', str(preset), '--run-dir', str(finished), '--set', 'seed=5']) == 2
    assert 'seed was 0 and is now 5' in capsys.readouterr().err
    assert (finished/'run.json').read_text() == before


def test_target_labels_are_never_opened(tmp_path):
    "With every label of the target's training images gone, each stage but the oracle gives the same bits."
    make_camvid(tmp_path/'a')
    shutil.copytree(tmp_path/'a', tmp_path/'b')
    for path in sorted((tmp_path/'b'/'camvid'/'trainannot').glob('0001TP*'))[:3]:
        path.unlink()
    trained = ('warmup', 'self_training', 'distillation')
    small = [f'{stage}.{change}' for stage in trained for change in ('steps=2', 'batch_size=2')]
    small += ['prototypes.n_components=2', 'reweighting.n_centroids=5', 'feature_dim=16', 'oracle=false', 'rounds=1']
    result = {}
    for name in 'ab':
        config = load_preset('camvid-dusk', [*SMALL_DUSK, f'data_root={tmp_path/name}', *small])
        run_dir = start_run(tmp_path/f'run_{name}', config)
        for stage in ('warmup', 'prototypes', 'pseudo_labels', 'reweighting', 'self_training', 'distillation_1'):
            stage_spec(stage).run(run_dir, stage)
        result[name] = weights(run_dir)
    assert_same(result['a'], result['b'])


def test_a_few_target_labels_and_no_others_are_read(tmp_path):
    "All other label maps of the target are broken, so that opening one would fail; those of the few do their work."
    make_camvid(tmp_path)
    labels = sorted((tmp_path/'camvid'/'trainannot').glob('0001TP*'))
    for path in (labels[0], *labels[3:5]):
        path.write_bytes(b'nobody may open this')
    small = ['target.slice="0:5"', 'evaluation.slice="5:"', 'prototypes.n_components=2', 'prototypes.adapt_steps=2',
             'reweighting.n_centroids=5', 'feature_dim=16', 'oracle=false', 'rounds=1', f'data_root={tmp_path}']
    trained = ('warmup', 'self_training', 'distillation')
    small += [f'{stage}.{change}' for stage in trained for change in ('steps=2', 'batch_size=2')]
    few = start_run(tmp_path/'few', load_preset('camvid-dusk', [*SMALL_DUSK, *small, 'target_labels.slice="1:3"']))
    for name in ('data', 'warmup', 'prototypes', 'pseudo_labels', 'reweighting', 'self_training', 'distillation_1'):
        stage_spec(name).run(few, name)
        reads = name not in ('pseudo_labels', 'reweighting')
        assert ('target_labels' in record(few, name)['inputs']) == reads, name
    baseline = Stage(few, 'source_only', stage_spec('source_only').settings)
    assert baseline.settings.inputs(baseline) == ['source']
    labels[1].write_bytes(b'one of the few')
    with pytest.raises(InputError, match='cannot be read as a label map'):
        stage_spec('warmup').run(few, 'warmup')


def test_seeds_beside_each_other(finished, preset, call, tmp_path):
    "Two processes at once give what one gives, and jobs of submitit take it from there."
    line = ['bidirseg', 'ablate', preset, '--seeds', '0', '1', '--variants', 'source_only', '--out', tmp_path]
    said = call(*line, '--jobs', '2')
    assert 'seed 0: source_only: 6/6' in said and 'seed 1: source_only: 6/6' in said
    alone, beside = (load_torch(folder/'model.pt')['state'] for folder in (
        stage_dir(finished, 'source_only'), stage_dir(tmp_path/'seed0'/'source_only', 'source_only')))
    assert_same(dict(source_only=alone), dict(source_only=beside))
    rows = load_json(tmp_path/'results.json')
    assert [row['seed'] for row in rows] == [0, 1] and rows[0]['miou'] != rows[1]['miou']
    assert 'source_only: 6/6' not in call(*line, '--executor', 'submitit')
    assert load_json(tmp_path/'results.json') == rows and list((tmp_path/'jobs').glob('*_result.pkl'))


def test_baselines_beside_the_method(finished, preset, call, tmp_path):
    "Stages at the same time give what they give one after the other; lines of JSON stay whole."
    said = call('bidirseg', 'run', preset, '--run-dir', tmp_path, '--jobs', '2', '--log-json')
    events = [json.loads(line) for line in said.splitlines()]
    ended = [event['stage'] for event in events if event['event'] == 'end']
    assert sorted(ended) == sorted(stage_names(load_run(tmp_path))) and events[-1]['event'] == 'done'
    assert ended[0] == 'data' and not {'evaluation', 'judgement'} & {*ended[:ended.index('source_only')]}
    marks = [(event['event'], event['stage']) for event in events]
    assert max(map(marks.index, [('start', 'warmup'), ('start', 'source_only')])) < min(
        map(marks.index, [('end', 'warmup'), ('end', 'source_only')])), 'not at the same time'
    for name in ('source_only', 'self_training'):
        alone, beside = (load_torch(stage_dir(run_dir, name)/'model.pt')['state'] for run_dir in (finished, tmp_path))
        assert_same({name: alone}, {name: beside})


@pytest.mark.parametrize('other', [('--nproc', '2'), ('--nnodes', '2')])
def test_jobs_are_of_one_process_each(preset, tmp_path, other):
    namespace = make_parser().parse_args(['run', str(preset), '--run-dir', str(tmp_path/'run'), '--jobs', '2', *other])
    with pytest.raises(InputError, match='leave --jobs'):
        namespace.command(namespace)
    assert not (tmp_path/'run').exists(), 'it was started'


def test_ablation_shares_stages_and_goes_on(preset, tmp_path, capsys):
    out, variants = tmp_path/'ablation', ['source_only', 'full', 'distillation_none', 'oracle']
    line = ['ablate', str(preset), '--seeds', '0', '--out', str(out), '--variants', *variants]
    assert main(line) == 0
    rows = load_json(out/'results.json')
    assert [row['variant'] for row in rows] == variants
    for row in rows:
        assert {'variant', 'seed', 'miou', 'iou', 'seconds', 'device', 'commit'} <= row.keys()
        assert 0 <= row['miou'] <= 1 and row['seconds'] > 0
    folders = [out/'seed0'/variant for variant in ('full', 'distillation_none')]
    models = [next(folder.glob('*_self_training/model.pt')) for folder in folders]
    assert os.path.samefile(*models), 'a shared stage is the same file'
    assert (out/'results.md').stat().st_size and (out/'figure.png').stat().st_size
    times = {path: path.stat().st_mtime_ns for path in out.rglob('stage.json')}
    assert main(line) == 0
    assert {path: path.stat().st_mtime_ns for path in out.rglob('stage.json')} == times, 'nothing runs twice'
    assert main([*line[:-1], 'fulll']) == 2 and 'did you mean full' in capsys.readouterr().err
    assert main(['labels', str(preset), '--seeds', '0', '--out', str(out)]) == 0
    labels = load_json(out/'labels.json')
    assert len({row['method'] for row in labels}) == len(labels) > 10
    assert all(0 <= row['miou'] <= 1 for row in labels)
