"""Passes over images in several processes: the bytes of one, killed processes, fewer processes, mixtures, and
commands that are killed in a pass."""
import multiprocessing
import os
import shutil
import signal
import socket
import threading
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Callable

import pytest
import torch
import torch.distributed as dist

from bidirseg.core import load_json, stream
from bidirseg.data import ImageSet, audit
from bidirseg.evaluation import ScoredImages
from bidirseg.mixture import ClassPrototypes, GaussianMixture
from bidirseg.mixture.em import sample_rows
from bidirseg.pipeline import suggest
from bidirseg.pipeline.check import check
from bidirseg.pipeline.predict import evaluate_run
from bidirseg.pipeline.stages import configure, stage_spec
from bidirseg.runs import Stage, open_stage, small_run, stage_dir, start_run
from bidirseg.runs.hosts import dismiss, follow, lead
from bidirseg.runs.processes import HOSTS, launch, pack, rank, unpack, world_size
from bidirseg.training import TrainSettings, sample_rare_classes

SHARED = ('prototypes', 'pseudo_labels', 'reweighting', 'evaluation')   # stages whose outputs come of passes alone
TRAINED = ('warmup', 'prototypes', 'pseudo_labels', 'reweighting', 'self_training', 'distillation_1', 'evaluation')
COPIES = multiprocessing.get_context('forkserver')   # a process that is killed has the imports already
COPIES.set_forkserver_preload(['bidirseg.pipeline.stages'])


@pytest.fixture(scope='module', autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def with_processes(run_dir: Path, preset: Path, processes: int) -> Path:
    "A run of so many processes; its source has more images than a network sees at once, and more rows than are kept."
    changes = ['oracle=false', 'source.count=10', 'self_training.steps=2', 'distillation.steps=2',
               'prototypes.rows_per_class=50', 'prototypes.target_rows=200', f'processes={processes}']
    start_run(run_dir, configure(str(preset), changes), update=True)
    return run_dir


@pytest.fixture(scope='module')
def alone(preset, tmp_path_factory) -> Path:
    "A run in one process."
    run_dir = with_processes(tmp_path_factory.mktemp('runs')/'alone', preset, 1)
    for name in TRAINED:
        stage_spec(name).run(run_dir, name)
    return run_dir


def without(finished: Path, run_dir: Path, stages: tuple[str, ...]) -> Path:
    "A copy of a run without the results of some stages."
    shutil.copytree(finished, run_dir)
    for name in stages:
        shutil.rmtree(stage_dir(run_dir, name))
    return run_dir


def outputs(run_dir: Path, name: str) -> dict[str, str]:
    return load_json(stage_dir(run_dir, name)/'stage.json')['outputs']


@dataclass
class Killed:
    "The work of a pass, at whose second batch process 1 kills itself or the process that launched, once."
    work: Callable
    note: Path     # a file that says that it happened
    parent: bool   # whom to kill
    batches: int = 0

    def __call__(self, batch: dict):
        self.batches += 1
        if rank() == 1 and not self.note.exists() and (self.batches == 2 or not self.parent):
            self.note.touch()
            os.kill(multiprocessing.parent_process().pid if self.parent else os.getpid(), signal.SIGKILL)
        return self.work(batch)


def kill_in_passes(folder: Path, parent: bool = False) -> Callable:
    "A `Stage.share_pass` that kills in the first pass of each stage."
    share_pass = Stage.share_pass

    def share_and_kill(stage, method, images, batch_size, *arguments):
        place, arguments = dict(each_image=2, gather=3)[method], [*arguments]
        arguments[place] = Killed(arguments[place], folder/stage.name, parent)
        return share_pass(stage, method, images, batch_size, *arguments)
    return share_and_kill


def test_four_processes_write_the_bytes_of_one(alone, preset, tmp_path):
    run_dir = with_processes(without(alone, tmp_path/'run', SHARED), preset, 4)
    for name in SHARED:
        stage_spec(name).run(run_dir, name)
        assert outputs(run_dir, name) == outputs(alone, name), name
        assert load_json(stage_dir(run_dir, name)/'stage.json')['processes'] > 1


def test_a_killed_process_of_a_pass_is_started_again(alone, preset, tmp_path, monkeypatch):
    "One of two processes is killed in every stage with a pass."
    run_dir = with_processes(without(alone, tmp_path/'run', SHARED), preset, 2)
    monkeypatch.setattr(Stage, 'share_pass', kill_in_passes(tmp_path))
    for name in (*SHARED, 'distillation_1'):
        shutil.rmtree(stage_dir(run_dir, name), ignore_errors=True)
        stage_spec(name).run(run_dir, name)
        assert (tmp_path/name).exists(), f'nobody was killed in {name}'
        same = ['labels'] if name == 'distillation_1' else outputs(alone, name)   # its training differs in last digits
        for output in same:
            assert outputs(run_dir, name)[output] == outputs(alone, name)[output], (name, output)


def killed(target: Callable, *arguments):
    "Have a process do something that kills it."
    process = COPIES.Process(target=target, args=arguments)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL


def run_and_die(run_dir: Path, folder: Path, stage: str):
    "Run a stage in this process, which one of its processes kills."
    torch.set_num_threads(1)
    Stage.share_pass = kill_in_passes(folder, parent=True)
    stage_spec(stage).run(run_dir, stage)


def test_a_run_killed_with_four_processes_goes_on_with_two(alone, preset, tmp_path):
    name = 'pseudo_labels'
    run_dir = with_processes(without(alone, tmp_path/'run', (name,)), preset, 4)
    killed(run_and_die, run_dir, tmp_path, name)
    assert not (stage_dir(run_dir, name)/'stage.json').exists()
    stage_spec(name).run(with_processes(run_dir, preset, 2), name)
    assert outputs(run_dir, name) == outputs(alone, name)
    assert load_json(stage_dir(run_dir, name)/'stage.json')['processes'] == 2


def test_two_hosts_write_the_bytes_of_one(alone, preset, tmp_path, monkeypatch):
    "Here this process is the host that leads, and a thread of it the one that follows."
    monkeypatch.setenv(HOSTS, '1')   # is taken back behind the test
    name, statuses = 'pseudo_labels', []   # with a pass that gathers and one that writes
    run_dir = with_processes(without(alone, tmp_path/'run', (name,)), preset, 1)
    with socket.socket() as free:
        free.bind(('localhost', 0))
        endpoint = f'localhost:{free.getsockname()[1]}'
    store = lead(endpoint, '2')
    second = threading.Thread(target=lambda: statuses.append(follow(endpoint, None)))
    second.start()
    try:
        stage_spec(name).run(run_dir, name)
    finally:
        dismiss(store, 0)
        second.join()
    assert statuses == [0] and outputs(run_dir, name) == outputs(alone, name)
    assert load_json(stage_dir(run_dir, name)/'stage.json')['processes'] == 2


def test_a_pass_decodes_each_image_once(tmp_path, monkeypatch):
    "Of a long one the last image is read ahead, to see how many workers it needs."
    decoded, image = Counter(), ImageSet.image
    monkeypatch.setattr(ImageSet, 'image', lambda images, i: decoded.update([images.keys[i]]) or image(images, i))
    with open_stage(small_run(tmp_path), 'warmup', TrainSettings) as stage:
        source = stage.samples('source')
        for samples, most in ((source, 1), (replace(source, cache_mb=0), 2)):
            decoded.clear()
            list(stage.each_image(f'pass {most}', samples, lambda batch: batch['label'], lambda i, label: i))
            assert len(decoded) == len(source) > 2
            assert decoded.pop(source.images.keys[-1]) <= most and set(decoded.values()) == {1}


def kill_at(function: Callable, call: int) -> Callable:
    "The same function; its process is killed when it is called so often."
    calls = []

    def call_or_kill(*arguments):
        calls.append(arguments)
        if len(calls) == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments)
    return call_or_kill


def count_lines(folder: Path, pattern: str) -> list[int]:
    "How many whole lines the files of killed passes have."
    return [path.read_bytes().count(b'\n') for path in sorted(folder.glob(pattern))]


EIGHT = dict(dataset='scenes', domain='camera', first=10**6, count=8, height=48, width=96)


def evaluate_and_die(run_dir: Path):
    torch.set_num_threads(1)
    ScoredImages.read = kill_at(ScoredImages.read, 7)
    evaluate_run(run_dir, 'warmup', EIGHT)


def test_a_killed_evaluate_goes_on(alone, monkeypatch):
    "With the first image that has no line; of a long pass the last image is read ahead."
    whole, folder = evaluate_run(alone, 'warmup', EIGHT), stage_dir(alone, 'warmup')
    killed(evaluate_and_die, alone)
    done, = count_lines(folder, '.scores_*.jsonl')
    assert 0 < done < 7
    again, read = [], ScoredImages.read
    monkeypatch.setattr(ScoredImages, 'read', lambda images, i: again.append(i) or read(images, i))
    evaluate_run(alone, 'warmup', dict(EIGHT, first=10**7))   # other images are another work
    assert {*again} == {*range(8)} and count_lines(folder, '.scores_*.jsonl') == [done]
    again.clear()
    assert evaluate_run(alone, 'warmup', EIGHT) == whole
    assert {*again} == {*range(done, 8)} and not list(folder.glob('.scores_*'))


def check_and_die(preset: Path, out: Path):
    audit._color_facts = kill_at(audit._color_facts, 12)   # the fourth image of the target
    check(configure(str(preset)), out, workers=0)


def test_a_killed_check_goes_on(preset, tmp_path, monkeypatch):
    "In the domain in which it was, with the first image that has no line, to the same page."
    whole, out, looked, facts = tmp_path/'whole', tmp_path/'out', [], audit._color_facts
    monkeypatch.setattr(audit, '_color_facts', lambda image: looked.append(image.size) or facts(image))
    check(configure(str(preset)), whole, workers=0)
    assert len(looked) == 8 + 6 + 4
    killed(check_and_die, preset, out)
    assert count_lines(out, '.check_*.jsonl') == [8, 3] and not (out/'check.json').exists()
    looked.clear()
    check(configure(str(preset)), out, workers=0)
    assert len(looked) == 3 + 4
    written = [{path.name: path.read_bytes() for path in folder.iterdir()} for folder in (whole, out)]
    assert written[0] == written[1]


def suggest_and_die(run_dir: Path):
    torch.set_num_threads(1)
    suggest.log_likelihood = kill_at(suggest.log_likelihood, 4)
    suggest.suggest(run_dir, 3)


def test_a_killed_suggest_goes_on(alone, monkeypatch):
    "To the same suggestions, and nothing is left of its lines."
    whole, folder = suggest.suggest(alone, 3), stage_dir(alone, 'prototypes')
    killed(suggest_and_die, alone)
    assert count_lines(folder, '.suggest_*.jsonl') == [3]
    looked, look = [], suggest.log_likelihood
    monkeypatch.setattr(suggest, 'log_likelihood', lambda *given: looked.append(given) or look(*given))
    assert suggest.suggest(alone, 3) == whole
    assert len(looked) == 3 and not list(folder.glob('.suggest_*'))


def threads_of_process(batch: dict) -> list[int]:
    return [torch.get_num_threads()]


def test_each_process_has_the_threads_of_one(tmp_path):
    "On a CPU the last bits depend on their number."
    torch.set_num_threads(2)   # one for each process, if they were shared out
    with open_stage(small_run(tmp_path, processes=2), 'warmup', TrainSettings) as stage:
        found = set(stage.each_image('threads', stage.samples('source'), threads_of_process, lambda i, n: n))
        torch.set_num_threads(1)
    assert found == {stage.threads} and stage.extra['processes'] == 2


def test_two_processes_draw_rare_classes_as_one(tmp_path):
    chances = []
    for processes in (1, 2):
        rare_first = dict(rare_class_temperature=.01)
        with open_stage(small_run(tmp_path/f'{processes}', processes=processes), 'warmup', TrainSettings,
                        rare_first) as stage:
            chances.append(sample_rare_classes(stage, stage.samples('source')).chances)
            assert stage.extra.get('processes', 1) == processes
    assert torch.equal(*chances)
    assert len(set(chances[0].tolist())) > 1


KINDS = 'diag', 'full', 'tied', 'spherical'
SHARES = {2: (100, 800), 4: (500, 0, 399, 1)}   # rows of each process


def fit_mixtures(rows: torch.Tensor, group: dist.ProcessGroup | None = None) -> dict[str, dict]:
    "The parameters of mixtures of every kind."
    return {kind: vars(GaussianMixture(3, kind, random_state=1).fit(rows, group)) for kind in KINDS}


def fit_classes(rows: dict[int, torch.Tensor], group: dist.ProcessGroup | None = None) -> dict:
    return vars(ClassPrototypes.fit(rows, 2, num_classes=5, random_state=0, process_group=group))


def fit_share(packed: bytes) -> tuple[dict, dict]:
    "Mixtures in one process of several, which has some rows, and lacks a class or two."
    rows, classes = unpack(packed)
    shares = SHARES[world_size()]
    own_rows, own_classes = rows.split(shares)[rank()], classes.split(shares)[rank()]
    by_class = {c: own_rows[own_classes == c] for c in own_classes.unique().tolist()}
    return fit_mixtures(own_rows, dist.group.WORLD), fit_classes(by_class, dist.group.WORLD)


@pytest.mark.parametrize('processes', [2, 4])
def test_mixtures_of_rows_in_several_processes(processes):
    "Equal to one process to 1e-5, with the sample of the start in the order of the rows."
    g = stream(0, 'rows')
    rows = torch.cat([torch.randn(300, 6, generator=g) * s + m for s, m in ((1, 0), (.3, 1.5), (2, -2))])
    classes = (torch.arange(900) // 60 % 5).clamp(max=3)   # class 4 has no rows at all
    by_class = {c: rows[classes == c] for c in range(4)}
    pairs = zip(launch(fit_share, processes, torch.device('cpu'), pack(rows, classes)),
                (fit_mixtures(rows), dict(classes=fit_classes(by_class))))
    (mixtures, alone), (of_classes, classes_alone) = pairs
    for kind, fields in {**mixtures, 'classes': of_classes}.items():
        expected = {**alone, **classes_alone}[kind]
        assert fields.get('n_iter_') == expected.get('n_iter_')
        for name in ('weights_', 'means_', 'covariances_'):
            torch.testing.assert_close(fields[name], expected[name], rtol=1e-5, atol=1e-5, msg=f'{kind} {name}')


def sample_share(packed: bytes) -> torch.Tensor:
    rows, = unpack(packed)
    own = rows.split((5_000, 15_000))[rank()]
    return sample_rows(lambda: own.split(700), 16_384, stream(1), process_group=dist.group.WORLD)[0]


def test_the_start_in_several_processes_is_that_of_one():
    rows = torch.arange(40_000.).view(-1, 2)
    sample = launch(sample_share, 2, torch.device('cpu'), pack(rows))
    assert torch.equal(sample, sample_rows(lambda: [rows], 16_384, stream(1))[0])
