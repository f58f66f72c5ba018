"""Nothing happens without a word: notes are not deleted, flipped bits not used, two writers do not share a run, and
data do not change under a stage."""
import errno
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import psutil
import pytest
import torch
from PIL import Image
from test_batches import SHORT

from bidirseg.cli import main
from bidirseg.core import InputError, load_json, load_torch, read_toml, save_json, save_torch
from bidirseg.data import ahead, open_colors, open_ids, open_rgb
from bidirseg.data.class_files import find_class_names
from bidirseg.models import build_model, load_checkpoint, save_checkpoint
from bidirseg.pipeline.predict import load
from bidirseg.pipeline.stages import reuse_stage, stage_spec
from bidirseg.reweighting import fit_centroids
from bidirseg.runs import RunConfig, Stage, load_preset, open_stage, run_lock, small_run, stage_dir, start_run
from bidirseg.runs.config import StageSettings
from bidirseg.runs.stage import clear_folder

BIN = Path(sys.executable).parent


@pytest.fixture(scope='module')
def finished(preset, tmp_path_factory) -> Path:
    "A run whose first two stages are complete, made in this process."
    run_dir = start_run(tmp_path_factory.mktemp('runs')/'whole', load_preset(str(preset), SHORT))
    torch.set_num_threads(1)
    for name in ('data', 'source_only'):
        stage_spec(name).run(run_dir, name)
    return run_dir


@pytest.fixture
def run_dir(finished, tmp_path) -> Path:
    return shutil.copytree(finished, tmp_path/'run')


def run_data(run_dir: Path, **changes) -> Path:
    return stage_spec('data').run(run_dir, 'data', **changes)


def aside(run_dir: Path) -> dict[str, str]:   # name -> text
    return {path.name: path.read_text() for path in (run_dir/'set_aside').rglob('*') if path.is_file()}


def flip(path: Path, where: float = .5):
    "Change one bit of a file."
    content = bytearray(path.read_bytes())
    content[int(where * len(content))] ^= 4
    path.write_bytes(content)


# What a folder of the run holds beside the program's own files

def test_a_stage_folder_that_is_a_link_is_refused(run_dir, preset, tmp_path, capsys):
    shutil.rmtree(run_dir/'01_data')
    (tmp_path/'v').mkdir()
    (tmp_path/'v'/'thesis.txt').write_text('mine')
    (tmp_path/'v'/'stage.json').write_text('mine')
    (run_dir/'01_data').symlink_to(tmp_path/'v')
    line = ['run', str(preset), '--run-dir', str(run_dir), *(part for change in SHORT for part in ('--set', change))]
    assert main(line) == 2
    said = capsys.readouterr().err
    assert f'01_data is a link to {tmp_path}/v' in said and len(said.splitlines()) == 1
    with pytest.raises(InputError, match='is a link'):
        run_data(run_dir)
    with pytest.raises(InputError, match='is a link'):
        reuse_stage(run_dir, 'data', [])
        clear_folder(run_dir/'01_data')
    assert {path.name: path.read_text() for path in (tmp_path/'v').iterdir()} == \
           {'thesis.txt': 'mine', 'stage.json': 'mine'}


def test_notes_and_links_are_moved_aside(run_dir, tmp_path, capsys):
    folder, others = run_dir/'01_data', tmp_path/'others'
    others.mkdir()
    (others/'label.png').write_text('of somebody')
    (folder/'notes.txt').write_text('mine')
    (folder/'link').symlink_to(others)
    (folder/'gone').symlink_to(tmp_path/'nowhere')
    before = sorted(path.name for path in folder.iterdir())
    run_data(run_dir)
    assert 'nothing to do' in capsys.readouterr().out
    (folder/'pictures'/'note.txt').write_text('mine, too')
    run_data(run_dir, sample=2)
    assert 'that this stage did not write are now in' in capsys.readouterr().out
    assert aside(run_dir) == {'notes.txt': 'mine', 'note.txt': 'mine, too'}
    moved, = (run_dir/'set_aside').iterdir()
    assert (moved/'link').is_symlink() and (moved/'gone').is_symlink() and moved.name.startswith('01_data-')
    assert (others/'label.png').read_text() == 'of somebody'
    assert set(before) - {path.name for path in folder.iterdir()} == {'notes.txt', 'link', 'gone'}


class Killed(BaseException):
    "Stands for a kill."


def killed_while_labelling(run_dir: Path, settings: type):
    with pytest.raises(Killed), open_stage(run_dir, 'warmup', settings) as stage:
        for name in 'ab':
            (stage.dir/'labels').mkdir(exist_ok=True)
            save_json(stage.dir/'labels'/f'{name}.json', name)
        raise Killed


def test_what_a_killed_run_left_is_known_and_notes_in_it_stay(tmp_path):
    run_dir = small_run(tmp_path)
    killed_while_labelling(run_dir, StageSettings)
    folder = stage_dir(run_dir, 'warmup')
    (folder/'labels'/'mine.json').write_text('mine')
    (folder/'.key').write_text('0123456789abcdef')   # as if of other settings
    with pytest.raises(Killed), open_stage(run_dir, 'warmup', StageSettings) as stage:
        assert sorted(path.name for path in stage.dir.iterdir()) == ['.key']
        raise Killed
    assert aside(run_dir) == {'mine.json': 'mine'}


def test_what_is_taken_over_leaves_notes_where_they_are(run_dir, finished, preset, tmp_path):
    (run_dir/'01_data'/'notes.txt').write_text('mine')
    (run_dir/'01_data'/'link').symlink_to(tmp_path)
    new = start_run(tmp_path/'new', load_preset(str(preset), SHORT))
    (new/'01_data').mkdir()
    (new/'01_data'/'own.txt').write_text('mine')
    assert reuse_stage(new, 'data', [run_dir])
    names = {path.name for path in (new/'01_data').iterdir()}
    assert names == {path.name for path in (finished/'01_data').iterdir()} and aside(new) == {'own.txt': 'mine'}


# Damaged states

def test_a_flipped_bit_in_a_checkpoint_is_found(run_dir, capsys):
    stage = Stage(run_dir, 'source_only', stage_spec('source_only').settings)
    stage.is_complete()
    stage.owner, state, rows = '', dict(weights=torch.arange(1000.)), [dict(loss=3.), dict(loss=2.)]
    for step in (1, 2):
        stage.save_checkpoint(dict(state, step=step), rows[:step])
    assert stage.checkpoint()['step'] == 2
    states = {path: path.read_bytes() for path in sorted(stage.dir.glob('.*')) + [stage.dir/'resume.pt']}

    def heal():
        for path, content in states.items():
            path.write_bytes(content)

    flip(stage.dir/'.history.jsonl', .1)
    assert stage.checkpoint()['history'] == rows and not capsys.readouterr().out   # from the copy
    for name in ('.history.jsonl', '.history_copy.jsonl'):
        flip(stage.dir/name, .9)   # in the second row
    assert stage.checkpoint()['history'] == rows[:1]
    assert f'{stage.dir}/.history.jsonl is damaged, and so is its copy' in capsys.readouterr().out
    heal()
    flip(stage.dir/'resume.pt')
    assert stage.checkpoint()['step'] == 1
    assert f'{stage.dir}/resume.pt is damaged' in capsys.readouterr().out
    assert not (stage.dir/'resume.pt').exists()   # or it would take the place of the one before
    heal()
    (stage.dir/'resume.pt').write_bytes((stage.dir/'resume.pt').read_bytes()[:100])
    assert stage.checkpoint()['step'] == 1
    flip(stage.dir/'.resume_before.pt')
    assert stage.checkpoint() is None
    stage.remove_states()
    assert not list(stage.dir.glob('*resume*')) and not list(stage.dir.glob('.history*'))


def test_damaged_checkpoints_never_block_a_training(finished, run_dir, capsys):
    "It begins anew, and ends with the same bytes."
    spec, folder = stage_spec('source_only'), run_dir/'02_source_only'
    for name in ('resume.pt', '.resume_before.pt', '.a_pass.pt'):
        (folder/name).write_bytes(b'PK torn')
    (folder/'stage.json').unlink()
    (folder/'model.pt').unlink()
    spec.run(run_dir, 'source_only')
    said = capsys.readouterr().out
    assert 'resume.pt cannot be read' in said and '.a_pass.pt cannot be read' in said
    records = [load_json(place/'02_source_only'/'stage.json')['outputs'] for place in (finished, run_dir)]
    assert records[0] == records[1] and not list(folder.glob('.*.pt'))


@pytest.mark.parametrize('name, content', [('stage.json', b'{"key": '), ('stage.json', b'\xff'),
                                           ('stage.json', b'{"outputs": 3}'), ('.key', b'\xff\xfe')])
def test_damaged_books_are_named_and_the_stage_runs_again(run_dir, name, content, capsys):
    (run_dir/'01_data'/name).write_bytes(content)
    if name == '.key':
        (run_dir/'01_data'/'stage.json').unlink()
    run_data(run_dir)
    assert f'01_data/{name} is damaged' in capsys.readouterr().out
    assert load_json(run_dir/'01_data'/'stage.json')['outputs'] and not (run_dir/'set_aside').exists()


# One writer

def test_a_stage_writes_nothing_once_another_process_holds_the_run(tmp_path):
    run_dir = small_run(tmp_path)
    with pytest.raises(InputError, match='belongs to another process'), run_lock(run_dir):
        with open_stage(run_dir, 'warmup', StageSettings) as stage:
            (run_dir/'run.lock').write_text('another')
            save_json(stage.dir/'a.json', 1)
    assert [path.name for path in stage.dir.iterdir()] == ['.key']


def test_a_lock_that_is_a_link_is_refused(run_dir, tmp_path):
    (tmp_path/'thesis.txt').write_text('mine')
    (run_dir/'run.lock').unlink(missing_ok=True)
    (run_dir/'run.lock').symlink_to(tmp_path/'thesis.txt')
    with pytest.raises(InputError, match='is a link'), run_lock(run_dir):
        pass
    assert (tmp_path/'thesis.txt').read_text() == 'mine'


KERNEL = '''
import time
from bidirseg.pipeline.kernels import own_kernel
with own_kernel() as kernel:
    print(kernel.provisioner.process.pid, flush=True)
    time.sleep(600)
'''


@pytest.mark.skipif(sys.platform != 'linux', reason='elsewhere the kernel looks for its parent itself')
def test_a_kernel_dies_with_its_program_even_where_it_cannot_act(tmp_path):
    program = subprocess.Popen([sys.executable, '-c', KERNEL], stdout=subprocess.PIPE, text=True)
    kernel = psutil.Process(int(program.stdout.readline()))
    while os.getsid(kernel.pid) != kernel.pid:   # what it does first
        time.sleep(.1)
    time.sleep(1)
    kernel.suspend()   # as one that computes without pause: no thread of it looks for the parent
    program.kill()
    program.wait()
    assert not psutil.wait_procs([kernel], timeout=120)[1]


LONG = ['source_only.steps=100000', 'training.checkpoint_every=90000', 'training.workers=1', *SHORT]


@pytest.mark.parametrize('beside, stop', [((), 'signal'), ((), 'Slurm'), (('--nproc', '2'), 'Slurm'),
                                          (('--jobs', '2'), 'signal'), (('--jobs', '2'), 'Slurm'),
                                          (('--jobs', '2'), 'Ctrl-C')])
def test_a_stopped_run_keeps_its_training(run_dir, preset, tmp_path, beside, stop):
    "A signal goes to the program, Slurm's and Ctrl-C to all; kernels and workers end. No code of the folder is run."
    waits = ['oracle=true'] if '--jobs' in beside else []   # a third line for two processes
    changes = [part for change in [*LONG, *waits] for part in ('--set', change)]
    work = tmp_path/'work'
    work.mkdir()
    for name in ('torch', 'numpy', 'bidirseg', 'sitecustomize', 'pickle'):   # what lies at hand is not imported
        (work/f'{name}.py').write_text(f'open({str(tmp_path/"was_here")!r}, "w")')
    line = [BIN/'bidirseg', 'run', preset, '--run-dir', run_dir, '--update', *changes, *beside]
    log = tmp_path/'log.txt'
    with open(log, 'w') as file:
        process = psutil.Popen(line, stdout=file, stderr=file, cwd=work, env={**os.environ, 'OMP_NUM_THREADS': '1'},
                               start_new_session=True)
    until = time.time() + 600
    training = re.compile(r'source_only: \d+/100000 .* loss')
    while not training.search(log.read_text()) and process.poll() is None and time.time() < until:
        time.sleep(.1)
    helpers, began = process.children(recursive=True), time.time()
    if stop == 'signal':
        process.send_signal(signal.SIGUSR1)   # SIGTERM is answered alike
    elif stop == 'Slurm':   # which takes no order
        for number in (signal.SIGUSR1, signal.SIGTERM):
            for each in [*helpers, process]:
                with suppress(psutil.NoSuchProcess):
                    each.send_signal(number)
    else:
        os.killpg(process.pid, signal.SIGINT)
    status, seconds = process.wait(60), time.time() - began
    assert status == (130 if stop == 'Ctrl-C' else 143), log.read_text()
    assert 'stopped; the same line goes on' in log.read_text(), log.read_text()
    assert helpers and not psutil.wait_procs(helpers, timeout=20)[1], 'a process outlives its run'
    state = load_torch(run_dir/'02_source_only'/'resume.pt')
    rows = (run_dir/'02_source_only'/'.history.jsonl').read_text().splitlines()
    assert 0 < state['step'] < 90_000 and len(rows) == state['kept']['rows'] == state['step']
    assert not (tmp_path/'was_here').exists(), 'code of the folder at hand was run'
    assert not re.search('Traceback|leaked', log.read_text()) and seconds < 60, log.read_text()


def interrupted_at_import(module: str, folder: Path, line: list, answer=signal.SIG_DFL) -> subprocess.CompletedProcess:
    "Do a line in which Ctrl-C comes just when a module is imported; where nobody minds, it ends with 7."
    (folder/f'{module}.py').write_text('import os, signal\nos.kill(os.getpid(), signal.SIGINT)\nos._exit(7)\n')
    environment = {**os.environ, 'PYTHONPATH': f"{folder}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    return subprocess.run(line, env=environment, capture_output=True, text=True,
                          preexec_fn=lambda: signal.signal(signal.SIGINT, answer))


@pytest.mark.parametrize('module', ['lazy_loader', 'numpy', 'torch'])   # of the package, of the commands, of one
def test_ctrl_c_during_imports_is_one_line(module, tmp_path):
    ended = interrupted_at_import(module, tmp_path, [BIN/'bidirseg', 'run', 'demo', '--run-dir', tmp_path/'run'])
    assert (ended.returncode, ended.stderr) == (130, 'bidirseg: stopped; the same line goes on from here\n')


def test_ctrl_c_is_left_to_who_ignores_it_and_to_other_programs(tmp_path):
    ignored = interrupted_at_import('numpy', tmp_path, [BIN/'bidirseg', '--version'], signal.SIG_IGN)
    assert ignored.returncode == 7, ignored.stderr
    other = interrupted_at_import('numpy', tmp_path, [sys.executable, '-c', 'import bidirseg.cli'])
    assert other.returncode == -signal.SIGINT and 'KeyboardInterrupt' in other.stderr


# Data that change

@pytest.mark.parametrize('how', ['middle', 'gone'])
def test_a_file_that_changes_while_a_stage_reads_it(tmp_path, how):
    path = tmp_path/'data'/'images'/'a.png'
    path.parent.mkdir(parents=True)
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(path)
    target = dict(dataset='folder', root=str(tmp_path/'data'))
    run_dir = start_run(tmp_path/'run', RunConfig(target=target, device='cpu'))

    class Reads(StageSettings):
        def inputs(self, stage):
            return ['target']

    with pytest.raises(InputError, match='target changed while warmup read it'):
        with open_stage(run_dir, 'warmup', Reads) as stage:
            size = path.stat().st_size
            path.unlink() if how == 'gone' else flip(path)
            assert how == 'gone' or path.stat().st_size == size > 10_000
    assert not (stage.dir/'stage.json').exists()
    if how == 'middle':
        with open_stage(run_dir, 'warmup', Reads) as stage:
            assert not stage.skip
        assert (stage.dir/'stage.json').exists()


# Models and records

def load_and_report(run_dir: Path, capsys) -> list[str]:
    "What the commands say that take a model of a run."
    said = []
    for line in (['evaluate', str(run_dir)], ['predict', str(run_dir), str(run_dir), '--out', str(run_dir/'out')],
                 ['report', str(run_dir)], ['export', str(run_dir), '--torch', str(run_dir/'model.pt2')]):
        assert main(line) == 2
        said.append(capsys.readouterr().err)
    return said


def test_a_model_that_its_stage_did_not_write_is_refused(run_dir, finished, tmp_path, capsys):
    path = run_dir/'02_source_only'/'model.pt'
    assert load(run_dir).name == 'source_only'
    net = build_model(backbone='resnet10', num_classes=19, feature_dim=16, output_stride=32, seed=1)
    save_checkpoint(path, net)
    assert all(f'{path} is another file than its stage wrote' in text for text in load_and_report(run_dir, capsys))
    flip(path)
    assert all(f'{path} is another file' in text for text in load_and_report(run_dir, capsys))
    alone = shutil.copy(finished/'02_source_only'/'model.pt', tmp_path/'alone.pt')
    assert load(alone).name == 'alone.pt'
    flip(Path(alone))
    with pytest.raises(InputError, match='alone.pt is damaged'):
        load_checkpoint(alone)


def test_a_received_checkpoint_starts_no_download(finished, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, 'load_state_dict_from_url', lambda *args, **more: pytest.fail('a download'))
    content = load_torch(finished/'02_source_only'/'model.pt')
    for backbone, weights in (('resnet18', 'IMAGENET1K_V1'), ('resnet18', '/etc/passwd.pt'), ('timm/hf-hub:a/b', None)):
        build = dict(content['build'], backbone=backbone) | (dict(weights=weights) if weights else {})
        save_torch(tmp_path/'model.pt', dict(content, build=build))
        with pytest.raises(InputError, match='model.pt'):
            load_checkpoint(tmp_path/'model.pt')


@pytest.mark.parametrize('content', [b'{"format": 3, "con', b'\xff', b'[]', b'{"format": 3, "config": 3}'])
def test_a_damaged_run_file_is_written_anew(run_dir, preset, content, capsys, monkeypatch):
    (run_dir/'run.json').write_bytes(content)
    (run_dir/'.run.json.4194999.tmp.json').touch()   # of a process that is gone
    line = ['run', str(preset), '--run-dir', str(run_dir), '--until', 'data',
            *(part for change in SHORT for part in ('--set', change))]
    assert main(line) == 2
    said = capsys.readouterr().err
    assert f'{run_dir}/run.json' in said and len(said.splitlines()) == 1 and '--update' in said
    assert main([*line, '--update']) == 0 and '[1/8] data: complete' in capsys.readouterr().out
    assert not list(run_dir.glob('.*.tmp*'))


# The system

def test_a_full_disk_names_the_file(run_dir, preset, tmp_path, capsys, monkeypatch):
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limit[1]))
    try:
        with pytest.raises(OSError, match=r'big\.pt'):
            save_torch(tmp_path/'big.pt', torch.zeros(100_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert not list(tmp_path.glob('*big*'))

    def full(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, 'fsync', full)
    assert main(['run', str(preset), '--run-dir', str(tmp_path/'new')]) == 2
    said = capsys.readouterr().err
    assert f"{tmp_path}/new/run.json: No space left on device" in said and len(said.splitlines()) == 1
    with pytest.raises(OSError, match='No space left on device'):
        run_data(run_dir, sample=2)
    assert not list(run_dir.rglob('.*.tmp*')) and not (run_dir/'01_data'/'stage.json').exists()


@pytest.mark.skipif(sys.platform != 'linux', reason='other systems keep no such limit')
@pytest.mark.parametrize('more, work', [(2**25, lambda rows: fit_centroids(rows, 3)),      # OpenBLAS tries without end
                                        (2**19, lambda rows: list(ahead(sum, rows, 1)))])   # a thread does not begin
def test_want_of_memory_is_said_where_it_would_be_waited_for(more, work):
    rows, limit = torch.rand(300, 4), resource.getrlimit(resource.RLIMIT_AS)
    work(rows)
    resource.setrlimit(resource.RLIMIT_AS, (psutil.Process().memory_info().vms + more, limit[1]))
    try:
        with pytest.raises(MemoryError, match='bytes cannot be had'):
            work(rows)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limit)


def test_want_of_memory_spoils_no_state(run_dir, capsys):
    "Neither a model nor a state is called broken for it."
    stage = Stage(run_dir, 'source_only', stage_spec('source_only').settings)
    stage.is_complete()
    stage.owner = ''
    stage.save_checkpoint(dict(step=1), [dict(loss=3.)])
    refused = RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9437184 bytes")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(MemoryError):
        patch.setattr(torch, 'load', Mock(side_effect=refused))
        stage.checkpoint()
    with pytest.MonkeyPatch.context() as patch, pytest.raises(MemoryError):
        patch.setattr(torch.nn.Module, 'load_state_dict', Mock(side_effect=refused))
        stage.load_model('source_only')
    assert stage.checkpoint()['step'] == 1 and not capsys.readouterr().out


def test_a_run_that_is_deleted_midway_is_one_line(tmp_path):
    run_dir = small_run(tmp_path/'run')
    with pytest.raises(InputError, match='was deleted while warmup worked in it'):
        with open_stage(run_dir, 'warmup', StageSettings) as stage:
            shutil.rmtree(run_dir)
            save_json(stage.dir/'a.json', 1)


def test_a_nul_and_special_files_are_refused(tmp_path, capsys):
    text = '[source]\ndataset = "folder"\nroot = "a\\u0000b"\n'
    (tmp_path/'own.toml').write_text(text)
    (tmp_path/'data.toml').write_text(text.removeprefix('[source]\n'))
    (tmp_path/'images.toml').write_text('dataset = "folder"\nroot = "."\nimages = "a\\u0000"\n')
    lines = [['run', str(tmp_path/'own.toml')], ['check', '--source', str(tmp_path/'data.toml')],
             ['check', '--source', str(tmp_path/'images.toml')],
             ['run', 'demo', '--set', 'weights="a\\u0000.pt"']]
    for line in lines:
        assert main(line) == 2
        said = capsys.readouterr().err
        assert 'a NUL' in said and len(said.splitlines()) == 1
    image = tmp_path/'data'/'images'/'a.png'
    image.parent.mkdir(parents=True)
    for target in ('/proc/self/environ', '/dev/zero'):
        image.unlink(missing_ok=True)
        image.symlink_to(target)
        for opener in (open_rgb, open_ids, open_colors):
            with pytest.raises(InputError, match='no plain file'):
                opener(image)
    (tmp_path/'classes.txt').symlink_to('/proc/self/environ')
    (tmp_path/'own.toml').unlink()
    (tmp_path/'own.toml').symlink_to('/dev/zero')
    for read in (lambda: find_class_names([tmp_path]), lambda: read_toml(tmp_path/'own.toml')):
        with pytest.raises(InputError, match='no plain file'):
            read()
    os.mkfifo(tmp_path/'pipe.png')
    with pytest.raises(InputError, match='no plain file'):
        open_ids(tmp_path/'pipe.png')


def test_every_promise_names_a_test_that_is_there(root):
    text = (root/'SECURITY.md').read_text()
    named = re.findall(r'`(tests/\w+\.py)::(\w+)`', text)
    assert len(named) > 10
    for file, name in named:
        assert f'def {name}(' in (root/file).read_text(), name
    for line in re.findall(r'^\| [A-Z].*', text, re.MULTILINE):
        assert 'tests/' in line or '.ipynb`' in line, line
