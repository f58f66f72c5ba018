"""Copies of this process, in which stages run and are broken."""
import os
import signal
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Callable

from bidirseg import cli
from bidirseg.cli import main
from bidirseg.core import InputError, StageError, die_with_parent
from bidirseg.pipeline import execute, stages
from bidirseg.runs import stage_dir


def run_in_process(run_dir: Path, name: str, log):
    "Stands for a stage's notebook in a kernel: its work in this process, and errors as a run makes them of a kernel's."
    folder = stage_dir(run_dir, name)
    try:
        stages.stage_spec(name).run(run_dir, name)
    except InputError:
        raise
    except Exception as error:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)   # torch's handler may raise once more, about the same worker
        said = SimpleNamespace(ename=type(error).__name__, evalue=str(error), exec_count=1)
        known = execute._as_input_error(said)
        raise known or StageError(name, str(folder/'notebook.ipynb'), said.ename, said.evalue) from None


def _begin_and_run(run_dir: Path, name: str, log):
    stages.begin_stage(stage_dir(run_dir, name))
    run_in_process(run_dir, name, log)


def command(line: list) -> int:   # exit status
    "What `bidirseg` does with a line, its stages in this process."
    stages._run_notebook = _begin_and_run
    return main([str(word) for word in line])


def command_of(work: Callable) -> int:   # exit status
    "What `bidirseg` says about a piece of work."
    return cli._carry_out(SimpleNamespace(command=lambda args: work()))


@dataclass
class Child:
    "A copy of this process at work, in a group of its own."
    pid: int
    log: Path                  # what it says
    status: int | None = None  # as of `subprocess`: negative for a signal

    def ask(self, options: int) -> int | None:   # the signal that stopped it
        "Learn whether it has ended, without waiting."
        pid, status = os.waitpid(self.pid, options | os.WNOHANG)
        if pid and os.WIFSTOPPED(status):
            return os.WSTOPSIG(status)
        if pid:
            self.status = os.waitstatus_to_exitcode(status)

    def wait(self, timeout: float = 120) -> int:
        "Its exit status; one that does not end is killed, and that is an error."
        until = time.monotonic() + timeout
        while self.status is None:
            self.ask(0)
            if time.monotonic() > until:
                self.end()
                raise AssertionError(f'no end in {timeout} s: {self.said()[-500:]}')
            time.sleep(.002)
        return self.status

    def wait_for_stop(self, timeout: float = 120) -> bool:   # False: it ended before
        "Wait until it has stopped itself."
        until = time.monotonic() + timeout
        while self.status is None and time.monotonic() < until:
            if self.ask(os.WUNTRACED):
                return True
            time.sleep(.002)
        return False

    def send(self, number: int):
        os.kill(self.pid, number)

    def end(self):
        "Kill it and all that it started."
        if self.status is None:
            os.killpg(self.pid, signal.SIGKILL)
            self.status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def said(self) -> str:
        return self.log.read_text(errors='replace') if self.log.exists() else ''


def _be_child(log: Path):
    "What a copy does first."
    os.setpgid(0, 0)
    die_with_parent()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    file = os.open(log, os.O_CREAT | os.O_APPEND | os.O_WRONLY)
    os.dup2(file, 1)
    os.dup2(file, 2)
    sys.stdout.reconfigure(line_buffering=True)


def start(work: Callable[[], int], log: Path) -> Child:
    "Do something in a copy of this process; its result is the exit status."
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        try:
            os.setpgid(pid, pid)   # it does the same: whoever is first
        except OSError:
            pass
        return Child(pid, log)
    status = 70
    try:
        _be_child(log)
        status = work()
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
