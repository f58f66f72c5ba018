"""What is broken: each kind breaks a case once; what has to hold afterwards is in `Case` and in `checks`."""
import contextlib
import errno
import itertools
import os
import pickle
import resource
import shutil
import signal
import subprocess
import time
from functools import partial
from pathlib import Path
from typing import Callable, NamedTuple

import psutil
import torch

from bidirseg import cli
from bidirseg.core import HALF_WRITTEN, STOP_SIGNALS
from bidirseg.training import loop

from . import checks, power
from .case import Case, Missed, at_write, die, stop
from .child import command_of, run_in_process
from .tap import Event, Tap
from .world import REPORT


def struck(happened: bool):
    if not happened:
        raise Missed


# Killed and stopped

def cut_and_die(case: Case, event: Event):
    "Half a file is on the disk when the kill comes, under the name that it has until it is whole."
    path = Path(event.path)
    if path.is_file() and HALF_WRITTEN.fullmatch(path.name):
        os.truncate(path, int(path.stat().st_size * case.rng.uniform()))
    die()


def kill_at_write(case: Case):
    how = case.rng.integers(3)
    do = partial(cut_and_die, case) if how == 0 else die
    status = case.end(case.start(at_write(case.moment(), do, done=how == 2)))
    struck(status == -signal.SIGKILL)


def kill_at_any_time(case: Case):
    child = case.start()
    case.wait_a_share(child)
    child.end()
    struck(child.status == -signal.SIGKILL)


def answers_as_a_kernel():
    "A kernel's answer to signals, in the place of the command line's."
    for number in STOP_SIGNALS:
        signal.signal(number, loop.end_soon)
    cli._stopped_by_signals = contextlib.nullcontext


def terminate_kernel(case: Case):
    number = STOP_SIGNALS[case.number % len(STOP_SIGNALS)]
    child = case.start(prepare=answers_as_a_kernel)
    case.wait_a_share(child)
    child.send(number)
    struck(case.end(child) == loop.STOPPED)


def stop_line(case: Case):
    number = (signal.SIGINT, *STOP_SIGNALS)[case.number % 3]
    child = case.start(prepare=lambda: signal.signal(signal.SIGINT, signal.default_int_handler))
    case.wait_a_share(child)
    child.send(number)
    struck(case.end(child) in (130, 143))


def kill_worker(case: Case):
    line = case.line('--update', '--set', 'training.workers=1')
    child = case.start(line=line)
    until, workers = time.monotonic() + 60, []
    while not workers and time.monotonic() < until and psutil.pid_exists(child.pid):
        child.ask(0)
        if child.status is not None:
            raise Missed
        workers = psutil.Process(child.pid).children()
        time.sleep(.002)
    time.sleep(case.rng.uniform(0, .3))
    for worker in workers[:1]:
        worker.kill()
    struck(case.end(child) != 0)
    case.after_fault()
    case.start_again('--update')


# The disk

_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EIO)


def fails_from(number: int, error: int, writes_only: bool) -> Callable[[Event], None]:
    "From one write on every one fails; what is deleted is deleted all the same, unless the disk is read-only."
    def act(event: Event):
        if event.done or event.number < number or writes_only and event.what in ('unlink', 'remove', 'rmdir'):
            return
        raise OSError(error, os.strerror(error), event.path)
    return act


def refuse_writes(case: Case):
    error = _ERRORS[case.number % len(_ERRORS)]
    struck(case.end(case.start(fails_from(case.moment(), error, True))) != 0)


def read_only(case: Case):
    struck(case.end(case.start(fails_from(case.moment(), errno.EROFS, False))) != 0)


def fail_once(case: Case):
    "One write fails, and the next ones do not."
    def fail(event: Event):
        raise OSError(errno.EIO, os.strerror(errno.EIO), event.path)

    struck(case.end(case.start(at_write(case.moment(), fail))) != 0)


class Mounted:
    "A disk of its own for a run, of a size that can be changed; None of it where nothing may be mounted."
    def __init__(self, case: Case):
        self.place = case.place/'disk'
        self.place.mkdir()
        done = subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=2g', 'none', self.place], capture_output=True)
        if done.returncode:
            raise CannotBeDone('a file system of its own cannot be mounted here')
        shutil.copytree(case.run_dir, self.place/'run')
        case.run_dir = self.place/'run'

    def remount(self, options: str):
        subprocess.run(['mount', '-o', f'remount,{options}', self.place], check=True)

    def used(self) -> int:
        status = os.statvfs(self.place)
        return (status.f_blocks - status.f_bfree) * status.f_frsize

    def __enter__(self):
        return self

    def __exit__(self, *error):
        subprocess.run(['umount', '-l', self.place], check=True)


class CannotBeDone(Exception):
    "This machine does not allow the fault."


def bytes_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in checks.files_of(folder).values())


def full_disk(case: Case):
    "A real one: a file system with room for a seeded part of what the stage writes."
    name = case.world.names[-1] if case.stage == REPORT else case.stage
    wanted = bytes_of(case.world.stage_folder(case.world.reference, name)) + 300_000
    with Mounted(case) as disk:
        room = int(wanted * case.rng.uniform(0, .9) / 2**case.attempt)
        disk.remount(f'size={disk.used() + room // 4096 * 4096 + 4096}')
        struck(case.end(case.start()) != 0)
        case.after_fault()
        disk.remount('size=2g')
        case.goes_on()


def read_only_disk(case: Case):
    "A real one, from before the start."
    with Mounted(case) as disk:
        disk.remount('ro')
        struck(case.end(case.start()) != 0)
        case.after_fault()
        disk.remount('rw')
        case.goes_on()


# Memory

def few_bytes(case: Case):
    "The process may have little more memory than it has."
    more = int(case.rng.uniform(.05, 1) * 4e8 / 4**case.attempt)

    def limit():
        has = psutil.Process().memory_info().vms
        resource.setrlimit(resource.RLIMIT_AS, (has + more, resource.RLIM_INFINITY))

    child = case.start(prepare=limit)
    status = child.wait()
    struck(status != 0)
    checks.said_one_line(child.said(), status)   # of any library's error, which may be about a font
    case.said += checks.spoken(child.said())


def no_memory(case: Case):
    "Python has none left at a write."
    def fail(event: Event):
        raise MemoryError

    struck(case.end(case.start(at_write(case.moment(), fail))) != 0)


def memory_group(case: Case):
    "The system kills what takes more than its control group may have."
    group = Path('/sys/fs/cgroup/memory')/f'faults_{os.getpid()}'
    try:
        group.mkdir()
        (group/'memory.limit_in_bytes').write_text(str(int(case.rng.uniform(8, 120) * 2**20 / 2**case.attempt)))
    except OSError:
        raise CannotBeDone('no memory control group (version 1) can be made here') from None
    try:
        child = case.start(prepare=lambda: (group/'cgroup.procs').write_text(str(os.getpid())))
        status = child.wait()
        case.heard(child.said(), status)
    finally:
        group.rmdir()
    struck(status == -signal.SIGKILL)


# Numbers, clock, data

def spoil_weights(case: Case):
    "A step leaves a weight that is no number."
    at, real, calls = int(case.rng.integers(6)), torch.optim.SGD.step, itertools.count()
    value = (float('nan'), float('inf'))[case.number % 2]

    def step(self, *args, **more):
        result = real(self, *args, **more)
        if next(calls) == at:
            with torch.no_grad():
                self.param_groups[0]['params'][0].fill_(value)
        return result

    def prepare():
        torch.optim.SGD.step = step

    struck(case.end(case.start(prepare=prepare)) != 0)


def spoil_loss(case: Case):
    "The losses of a step are no numbers."
    at, real, calls = int(case.rng.integers(6)), loop._read_losses, itertools.count()

    def read(losses: dict) -> dict:
        values = real(losses)
        return dict.fromkeys(values, float('nan')) if next(calls) == at else values

    def prepare():
        loop._read_losses = read

    struck(case.end(case.start(prepare=prepare)) != 0)


def step_the_clock(case: Case):
    "The clock of the system jumps by hours, forward or back, and the stage does not mind."
    hours, real = case.rng.uniform(1, 30) * case.rng.choice([-1, 1]), time.time

    def jump(event: Event):
        time.time = lambda: real() + 3600 * hours

    assert case.end(case.start(at_write(case.moment(), jump))) == 0


def _vanish(path: Path):
    path.unlink()


def _cut(path: Path):
    os.truncate(path, path.stat().st_size // 2)


def _replace(path: Path):
    others = sorted(path.parent.iterdir())
    content = others[(others.index(path) + 1) % len(others)].read_bytes()
    path.write_bytes(content)


def change_data(case: Case):
    "An image or a label map is deleted, cut or replaced while the stage works, and put back afterwards."
    data = case.world.folder/'data'
    files = [path for path in sorted(checks.files_of(data).values()) if 'target/labels' not in str(path)]
    path = files[case.rng.integers(len(files))]
    how = (_vanish, _cut, _replace, Path.touch)[case.number % 4]
    content, status = path.read_bytes(), path.stat()
    try:
        ended = case.end(case.start(at_write(case.moment(), lambda event: how(path))))
        struck(path.stat().st_mtime_ns != status.st_mtime_ns if path.exists() else True)
    finally:
        path.write_bytes(content)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    if ended == 0:   # it was not read any more: what is there is what an undisturbed run makes
        case.finished()


# Power

def cut_power(case: Case):
    "The run's folder becomes one that the disk may hold after a cut at a write."
    out, before, folder = case.place/'safe.pickle', case.run_dir, case.folder
    child = case.start(prepare=lambda: power.Recorder(before, folder, case.moment(), out).tap.install())
    struck(case.end(child) == -signal.SIGKILL)
    case.run_dir = case.place/'after'
    power.build(case.rng, pickle.loads(out.read_bytes()), before, folder, case.run_dir)
    checks.the_users_files_stay(case.run_dir, case.notes)


# Damage

def _flip(case: Case, path: Path):
    content = bytearray(path.read_bytes())
    if content:
        content[case.rng.integers(len(content))] ^= 1 << int(case.rng.integers(8))
    path.unlink()   # it may be a link to a file of the reference
    path.write_bytes(content)


def _halve(case: Case, path: Path):
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content[:len(content) // 2])


def _delete(case: Case, path: Path):
    path.unlink()


_DAMAGES = (_flip, _halve, _delete)


def damage(case: Case, files: list[Path]):
    "Break one of some files; the same line mends it, or says in one line what does."
    path, how = files[case.number // 3 % len(files)], _DAMAGES[case.number % 3]
    how(case, path)
    case.about = f'{path.relative_to(case.run_dir)} {how.__name__.strip("_")}'
    status = case.end(case.start())
    if status and path.name == 'run.json':
        assert '--update' in case.said[-1], case.said
        case.start_again('--update')
        return
    assert status == 0, f'{case.about}: {case.said}'
    assert path.exists() or path.parent != case.run_dir, f'{path} is not written anew'


def damage_complete(case: Case):
    for name in case.world.names:
        case.world.link_stage(name, case.run_dir)
    shutil.copy(case.world.reference/'report.html', case.run_dir)
    files = [path for path in sorted(checks.files_of(case.run_dir).values())
             if path.parent == case.run_dir or path.is_relative_to(case.folder)]
    damage(case, [path for path in files if path.name not in (*case.notes, 'run.lock')])


def damage_half_done(case: Case):
    number = case.world.events[case.stage]
    at = int(case.rng.integers(number // 3, number))
    struck(case.end(case.start(at_write(at, die))) == -signal.SIGKILL)
    case.add_note(case.folder)
    left = [path for path in checks.files_of(case.folder).values() if path.name not in case.notes]
    struck(bool(left))
    damage(case, sorted(left, key=lambda path: (not path.name.startswith(('.', 'resume')), path)))   # states first


# Two at once

def second_line(case: Case):
    first = case.start(at_write(case.moment(), stop))
    struck(first.wait_for_stop())
    assert case.end(case.start()) == 2 and 'in use by another process' in case.said[-1], case.said
    case.after_fault()
    first.send(signal.SIGCONT)
    assert case.end(first) == 0


def read_during_run(case: Case):
    "What only reads a run, while it stands still at a write."
    images = case.world.folder/'data'/'evaluation'/'images'
    commands = (['evaluate', case.run_dir], ['predict', case.run_dir, images, '--out', case.place/'out'],
                ['report', case.run_dir], ['stages', case.run_dir])
    first = case.start(at_write(case.moment(), stop))
    struck(first.wait_for_stop())
    assert case.end(case.start(line=commands[case.number % len(commands)])) in (0, 2)
    first.send(signal.SIGCONT)
    assert case.end(first) == 0


def wake_orphan(case: Case):
    "A stage whose run is gone stands still at a write, and goes on while or after another run does its work."
    (case.run_dir/'run.lock').write_text('999999 of a run that is gone')
    stops = at_write(case.moment(), stop, done=bool(case.number % 2))

    def orphan() -> int:
        Tap(case.run_dir, stops).install()
        return command_of(lambda: run_in_process(case.run_dir, case.stage, None))

    first = case.do(orphan)
    struck(first.wait_for_stop())
    wakes_during = case.number // 2 % 2
    second = case.start(at_write(case.moment(), stop) if wakes_during else None)
    if wakes_during and second.wait_for_stop():
        first.send(signal.SIGCONT)
        status = first.wait()
        second.send(signal.SIGCONT)
    else:
        second.wait()
        first.send(signal.SIGCONT)
        status = first.wait()
    assert second.wait() == 0, second.said()
    assert status in (0, 2), f'the orphan ended with {status}: {first.said()}'
    case.heard(first.said(), status)


def kill_predict(case: Case):
    "`predict` is killed at a write and started again."
    images, outs = case.world.folder/'data'/'evaluation'/'images', [case.place/'whole', case.place/'killed']
    lines = [['predict', case.run_dir, images, '--out', out] for out in outs]
    assert case.end(case.start(line=lines[0])) == 0
    do = partial(cut_and_die, case) if case.number % 2 else die
    at = int(case.rng.integers(30)) >> case.attempt
    struck(case.end(case.start(at_write(at, do), line=lines[1], folder=outs[1])) == -signal.SIGKILL)
    checks.every_artefact_is_readable(outs[1], {})
    assert case.end(case.start(line=lines[1])) == 0
    checks.nothing_half_written(outs[1])
    checks.same_bytes(outs[1], outs[0], {})
    case.finished()


class Kind(NamedTuple):
    "A kind of fault."
    does: Callable[[Case], None]
    what: str               # is broken, in words
    stages: str = 'all'     # all, report (all and the report), training, complete (a complete run)
    then: str = 'again'     # again: the same line ends well; rebuilt: so does it, and nothing holds before; done
    often: int = 1          # cases in a round, one a turn
    turn: int = 0           # of a round in which the first comes


KINDS = {
    'kill-write': Kind(kill_at_write, 'SIGKILL before, in and after a write', 'report', often=4),
    'kill-time': Kind(kill_at_any_time, 'SIGKILL at any time', 'report', often=2),
    'stop-kernel': Kind(terminate_kernel, 'SIGTERM or SIGUSR1 to a stage'),
    'stop-line': Kind(stop_line, 'SIGINT, SIGTERM or SIGUSR1, which raise wherever a stage is', 'report'),
    'kill-worker': Kind(kill_worker, 'SIGKILL of a data worker', 'training', 'done'),
    'full': Kind(full_disk, 'a file system with room for a part of what the stage writes', 'report', 'done', often=2),
    'refused': Kind(refuse_writes, 'ENOSPC, EDQUOT or EIO from a write on', 'report', often=3),
    'one-error': Kind(fail_once, 'EIO at one write', 'report', often=2),
    'read-only': Kind(read_only, 'EROFS from a write on', 'report'),
    'read-only-disk': Kind(read_only_disk, 'a file system that is read-only', 'report', 'done'),
    'memory-limit': Kind(few_bytes, 'RLIMIT_AS close above what is in use'),
    'memory-group': Kind(memory_group, 'the system kills for a limit of the control group'),
    'memory-error': Kind(no_memory, 'MemoryError at a write'),
    'nan-weights': Kind(spoil_weights, 'a step leaves NaN or infinity in the weights', 'training'),
    'nan-loss': Kind(spoil_loss, 'NaN as the losses of a step', 'training'),
    'clock': Kind(step_the_clock, 'the clock jumps by up to 30 hours, forward or back', then='done'),
    'data': Kind(change_data, 'an image or a label map is deleted, cut, replaced or touched', often=3),
    'power': Kind(cut_power, 'power cut: what was not synced is old, new, empty, cut, zeros or gone', 'report',
                  'rebuilt', often=5),
    'damage': Kind(damage_complete, 'a flipped bit, half a file or none, in a complete run', 'report', 'done', often=4),
    'damage-half': Kind(damage_half_done, 'the same in what a killed stage left', then='done', often=4),
    'two-lines': Kind(second_line, 'the same line twice at once', 'report', 'done'),
    'readers': Kind(read_during_run, 'evaluate, predict, report or stages during a run', then='done'),
    'kill-predict': Kind(kill_predict, 'SIGKILL at a write of predict', 'complete', 'done'),
    'orphan': Kind(wake_orphan, 'a stage without a run wakes while or after another run works', then='done', often=2),
}
