"""Runs in batches: lines of papermill on one stage, logs for programs, exit statuses, and failures that say where."""
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from bidirseg.cli import main
from bidirseg.pipeline import stages
from bidirseg.runs import load_preset, start_run

BIN = Path(sys.executable).parent
SHORT = ['rounds=0', 'oracle=false', 'warmup.brightness_match=false', 'training.steps=2', 'training.batch_size=2']
CHANGES = [part for change in SHORT for part in ('--set', change)]


@pytest.fixture(scope='module')
def finished(preset, tmp_path_factory) -> Path:
    "A run whose first stage is complete, made in this process."
    run_dir = start_run(tmp_path_factory.mktemp('runs')/'whole', load_preset(str(preset), SHORT))
    stages.stage_spec('data').run(run_dir, 'data')
    return run_dir


def files(run_dir: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in run_dir.rglob('*') if path.is_file()}


def test_an_unknown_parameter_is_refused(finished, root, tmp_path):
    before = files(finished)
    line = [BIN/'papermill', root/'nbs'/'04_pseudo_labels.ipynb', 'out.ipynb', '-p', 'run_dir', finished]
    done = subprocess.run([*line, '-p', 'keeep', '0.25'], cwd=tmp_path, capture_output=True, text=True,
                          env={**os.environ, 'OMP_NUM_THREADS': '1'})
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode and last.startswith("InputError: Seen: unknown parameter 'keeep'"), done.stderr[-2000:]
    assert 'did you mean keep' in last
    assert files(finished) == before


@pytest.fixture
def line(finished, preset, tmp_path) -> list[str]:   # of the shell; its run is the first path in it
    "One stage is to do; the one before is complete and needs no kernel."
    run_dir = tmp_path/'run'
    shutil.copytree(finished, run_dir)
    return ['run', str(preset), '--run-dir', str(run_dir), '--until', 'source_only', *CHANGES]


def test_a_log_for_programs(line, capfd):
    assert main([*line, '--log-json']) == 0
    printed, errors = capfd.readouterr()
    events = [json.loads(text) for text in printed.splitlines()]
    assert 'ERROR' not in errors and '\r' not in printed
    complete = [event['stage'] for event in events if event['event'] == 'complete']
    assert complete == ['data']
    start, *_, end, done = events[len(complete):]
    assert (start['event'], end['event'], done['event']) == ('start', 'end', 'done')
    assert start['stage'] == end['stage'] == 'source_only' and end['seconds'] > 0
    progress = [event for event in events if event['event'] == 'progress']
    assert progress and progress[-1]['done'] == progress[-1]['total'] == 2 and progress[-1]['rate'] > 0
    assert main([*line, '--log-json', '--set', 'seed=1']) == 2
    assert json.loads(capfd.readouterr().out)['kind'] == 'InputError'


def test_a_failing_stage_says_where(line, capfd, tmp_path, monkeypatch):
    cells = [nbformat.v4.new_code_cell(source) for source in ('run_dir = None', 'a = 0\nprint(1 / a)', 'never = 1')]
    for cell, tag in zip(cells, ('parameters', 'stage', 'stage')):
        cell.metadata['tags'] = [tag]
    python = dict(language_info=dict(name='python'))
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=python), tmp_path/'fails.ipynb')
    monkeypatch.setattr(stages, 'stage_notebook', lambda config, name: tmp_path/'fails.ipynb')
    assert main(line) == 1
    last = capfd.readouterr().err.strip().splitlines()[-1]
    kept = tmp_path/'run'/'02_source_only'/'notebook.ipynb'
    where = f'{kept}, cell In [3], line 2'
    assert last == f'bidirseg: stage source_only failed in {where}: ZeroDivisionError: division by zero'
    half = nbformat.read(kept, 4).cells
    assert any(cell.get('outputs') for cell in half) and half[-1].execution_count is None
