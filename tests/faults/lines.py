"""The real thing: lines of the shell with their kernels, killed and stopped from outside."""
import os
import signal
import sys
import time
from pathlib import Path

import psutil

from . import checks
from .case import Case, Missed
from .kinds import Kind

BIDIRSEG = Path(sys.executable).parent/'bidirseg'


class Line:
    "A line of the shell at work, in a group of its own."
    def __init__(self, case: Case, *words):
        self.log = case.place/f'line_{time.monotonic_ns()}.txt'
        words = words or case.line()
        with open(self.log, 'w') as file:
            self.process = psutil.Popen([BIDIRSEG, *map(str, words)], stdout=file, stderr=file, start_new_session=True)

    def said(self) -> str:
        return self.log.read_text(errors='replace')

    def kernel(self, timeout: float = 120) -> psutil.Process:
        "Its kernel, once the stage has begun in it."
        until = time.monotonic() + timeout
        while time.monotonic() < until and self.process.poll() is None:
            for process in self.process.children(recursive=True):
                if os.getpgid(process.pid) == process.pid != self.process.pid:
                    return process
            time.sleep(.01)
        raise Missed

    def end(self):
        "Kill what is left of it."
        for process in [*self.process.children(recursive=True), self.process] if self.process.is_running() else []:
            process.kill()
        self.process.wait()


def work_has_begun(case: Case, line: Line, timeout: float = 120):
    "Wait until the stage has its folder, then for a seeded time."
    until = time.monotonic() + timeout
    while not (case.folder/'.key').exists() and time.monotonic() < until and line.process.poll() is None:
        time.sleep(.005)
    time.sleep(case.rng.uniform(0, .8 * case.world.seconds[case.stage]) / 2**case.attempt)
    if line.process.poll() is not None:
        raise Missed


def helpers_of(line: Line) -> list[psutil.Process]:
    return line.process.children(recursive=True)


def all_are_gone(processes: list[psutil.Process]):
    "No process outlives its run."
    alive = psutil.wait_procs(processes, timeout=20)[1]
    for process in alive:
        process.kill()
    assert not alive, f'{len(alive)} processes outlive their run'


def signal_line(case: Case):
    "A signal to the line alone, to its group, or to its kernel alone."
    whom = ('line', 'group', 'kernel')[case.number % 3]
    number = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)[case.number // 3 % 4]
    line = Line(case)
    try:
        work_has_begun(case, line)
        helpers, kernel = helpers_of(line), line.kernel()
        case.about = f'{signal.Signals(number).name} to the {whom}'
        if whom == 'group':
            os.killpg(line.process.pid, number)
        else:
            os.kill(kernel.pid if whom == 'kernel' else line.process.pid, number)
        status = line.process.wait(60)
        all_are_gone(helpers)
    finally:
        line.end()
    text = line.said()
    case.said += checks.spoken(text)
    if status == 0:   # a kernel does not mind an interrupt, or it was too late
        raise Missed
    if status != -signal.SIGKILL:
        assert len(checks.spoken(text)) == 1 and 'Traceback' not in text, text[-1500:]


def orphaned_kernel(case: Case):
    "A kernel stands still, its line is killed, the same line runs, and the kernel is woken, if it is there."
    line, again = Line(case), None
    try:
        work_has_begun(case, line)
        kernel = line.kernel()
        kernel.suspend()
        line.process.kill()
        line.process.wait()
        case.after_fault()
        again = Line(case)
        work_has_begun(case, again)
        if kernel.is_running():
            kernel.resume()
        assert again.process.wait(120) == 0, again.said()[-1500:]
        all_are_gone([kernel])
    finally:
        line.end()
        if again:
            again.end()


def two_lines(case: Case):
    "The same line, while it is at work."
    line = Line(case)
    try:
        kernel = line.kernel()
        work_has_begun(case, line)
        kernel.suspend()   # a second line takes longer to start than a small stage to end
        second = Line(case)
        status = second.process.wait(60)
        kernel.resume()
        case.heard(second.said(), status)
        assert status == 2 and 'in use by another process' in case.said[-1], second.said()
        assert line.process.wait(120) == 0, line.said()[-1500:]
    finally:
        line.end()


LINE_KINDS = {
    'line-signal': Kind(signal_line, 'a line of the shell with its kernel: signals to the line, its group, its kernel',
                        turn=4),
    'line-orphan': Kind(orphaned_kernel, 'a kernel that stands still when its line is killed, woken during the next',
                        then='done', turn=4),
    'line-twice': Kind(two_lines, 'the same line of the shell twice at once', then='done', turn=4),
}
