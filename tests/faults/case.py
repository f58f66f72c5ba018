"""One case: a stage, a seeded moment, what is broken, and what has to hold afterwards."""
import os
import signal
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Callable

import numpy as np

from bidirseg.core import numpy_stream

from . import checks
from .child import Child, command, start
from .tap import Event, Tap
from .world import REPORT, World


class Missed(Exception):
    "The fault found nothing to break: the stage had ended before."


@dataclass
class Case:
    "A fault to be injected; `place` is a folder of its own."
    world: World
    kind: str
    stage: str
    number: int
    seed: int
    place: Path
    attempt: int = 0
    about: str = ''                                       # what exactly was broken, where the seed does not say it
    said: list[str] = field(default_factory=list)
    notes: dict[str, str] = field(default_factory=dict)   # name -> text
    children: list[Child] = field(default_factory=list)   # that were started

    def __post_init__(self):
        self.rng: np.random.Generator = numpy_stream(self.seed, self.kind, self.stage, self.number, self.attempt)
        self.run_dir = self.place/'run'
        self.world.before(self.stage, self.run_dir)
        self.add_note(self.run_dir)
        self.add_note(self.folder)

    @property
    def folder(self) -> Path:
        "Of the stage; of the report it is the last stage's."
        return self.world.stage_folder(self.run_dir, self.world.names[-1] if self.stage == REPORT else self.stage)

    def add_note(self, folder: Path):
        "The user writes something."
        folder.mkdir(parents=True, exist_ok=True)
        name = f'my notes {len(self.notes)}.txt'
        self.notes[name] = f'{self.kind} {self.stage} {self.number} {len(self.notes)}\n' * 50
        (folder/name).write_text(self.notes[name])

    def line(self, *more) -> list:
        return self.world.line(self.run_dir, self.stage, *more)

    def start(self, act: Callable[[Event], None] | None = None,   # called at each write
              prepare: Callable = lambda: None,                   # called first, in the copy
              line: list | None = None,
              folder: Path | None = None) -> Child:               # whose writes are counted; None: the run's
        "Start the case's line, or another, in a copy of this process."
        line = self.line() if line is None else line

        def work() -> int:
            prepare()
            if act:
                Tap(folder or self.run_dir, act).install()
            return command(line)

        return self.do(work)

    def do(self, work: Callable[[], int]) -> Child:
        "Start some work in a copy of this process, which ends with the case."
        self.children.append(start(work, self.place/f'said_{time.monotonic_ns()}.txt'))
        return self.children[-1]

    def end_all(self):
        "Nothing of a case is left, not even what stands still."
        for child in self.children:
            child.end()

    def moment(self) -> int:
        "A write of the stage; the later the attempt, the earlier."
        return int(self.rng.integers(max(1, self.world.events[self.stage] >> self.attempt)))

    def wait_a_share(self, child: Child):
        "Let a seeded share of the usual time pass."
        share = self.rng.uniform(.02, 1) / 2**self.attempt
        time.sleep(share * self.world.seconds[self.stage])

    def end(self, child: Child) -> int:
        "Wait for the end of what was broken, and check what it said."
        status = child.wait()
        self.heard(child.said(), status)
        return status

    def heard(self, text: str, status: int):
        "Check what was said."
        checks.said_one_clear_line(text, status)
        self.said += checks.spoken(text)

    def after_fault(self):
        "What holds at once."
        checks.every_artefact_is_readable(self.run_dir, self.notes)
        checks.the_users_files_stay(self.run_dir, self.notes)

    def start_again(self, *more):
        "The same line, undisturbed, ends well."
        child = self.start(line=self.line(*more))
        status = child.wait()
        assert status == 0, f'started again, it ended with {status}: {child.said()[-1500:]}'
        checks.said_one_clear_line(child.said(), status)
        assert self.stage != REPORT or (self.run_dir/'report.html').exists()

    def finished(self):
        "What holds after the same line has ended well."
        checks.nothing_half_written(self.run_dir)
        checks.every_artefact_is_readable(self.run_dir, self.notes)
        checks.the_users_files_stay(self.run_dir, self.notes)
        names = self.world.names
        for name in names if self.stage == REPORT else names[:names.index(self.stage) + 1]:
            folder = self.world.stage_folder(self.run_dir, name)
            checks.same_bytes(folder, self.world.stage_folder(self.world.reference, name), self.notes)
            checks.the_record_is_sound(folder)

    is_over = False   # all has been checked

    def goes_on(self):
        "The state after a fault is sound, and the same line ends as if nothing had been."
        self.is_over = True
        self.after_fault()
        self.start_again()
        self.finished()


def at_write(number: int, do: Callable[[Event], None], done: bool = False) -> Callable[[Event], None]:
    "Does something at one write: before it, or after it."
    def act(event: Event):
        if event.number == number and event.done == done:
            do(event)
    return act


def die(event: Event | None = None, number: int = signal.SIGKILL):
    os.kill(os.getpid(), number)


stop = partial(die, number=signal.SIGSTOP)
