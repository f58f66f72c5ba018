"""A power cut: what was synced is on the disk; all else is as it was, as it became, empty, cut off, zeros or gone.

A recorder in the process that is cut off notes what each sync brings to the disk. From that and from what the process
left, which is what its system had in memory, one of the folders is built that the disk may hold."""
import os
import pickle
import shutil
import signal
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from .tap import Event, Tap


@dataclass
class Disk:
    "What is safe: names by folder, and contents; a file is told by its number, or one of ours once it is unlinked."
    names: dict[str, dict[str, int]] = field(default_factory=dict)   # folder -> name -> file
    contents: dict[int, bytes] = field(default_factory=dict)         # file -> what it held when it was synced last


def _listing(folder: str) -> dict[str, int]:
    with os.scandir(folder) as entries:
        return {entry.name: entry.inode() for entry in entries}


class Recorder:
    "Notes what is safe while a stage works, and cuts the process off at a write."
    def __init__(self, run_dir: Path, folder: Path, cut_at: int, out: Path):
        self.cut_at, self.out, self.unlinked, self.disk = cut_at, out, -1, Disk()
        self.run_dir, self.folder = str(run_dir), str(folder)
        self.tap = Tap(run_dir, self.note)
        for at, _, names in os.walk(run_dir):
            if self.is_watched(at):
                self.disk.names[at] = _listing(at)
                for name in names:
                    self.keep(os.path.join(at, name))

    def is_watched(self, folder: str) -> bool:
        "Whether the stage writes into a folder: the run's, its own, and where it sets things aside."
        own = self.folder, os.path.join(self.run_dir, 'set_aside')
        return folder == self.run_dir or any(f'{folder}/'.startswith(f'{place}/') for place in own)

    def keep(self, path: str):
        "A file's content is safe."
        if os.path.isfile(path):
            with os.fdopen(os.open(path, os.O_RDONLY), 'rb') as file:
                self.disk.contents[os.stat(path).st_ino] = file.read()

    def forget(self, path: str):
        "A file is about to lose its name; its number may be given to another, so what is safe of it gets one of ours."
        if not os.path.isfile(path) or os.stat(path).st_nlink > 1:
            return
        number = os.stat(path).st_ino
        for names in self.disk.names.values():
            names.update({name: self.unlinked for name, file in names.items() if file == number})
        if number in self.disk.contents:
            self.disk.contents[self.unlinked] = self.disk.contents.pop(number)
        self.unlinked -= 1

    def note(self, event: Event):
        if event.number == self.cut_at and event.done == bool(self.cut_at % 2):
            self.out.write_bytes(pickle.dumps(self.disk))
            os.kill(os.getpid(), signal.SIGKILL)
        if not event.done and event.what in ('unlink', 'remove', 'replace', 'rename'):
            self.forget(event.target or event.path)
        if event.done and event.what == 'fsync':
            self.keep(event.path)
            if os.path.isdir(event.path) and self.is_watched(event.path):
                self.disk.names[event.path] = _listing(event.path)


def _lost(rng: np.random.Generator, old: bytes, new: bytes) -> bytes:
    "What a file may hold that was not synced since it was written."
    cut = new[:int(rng.integers(len(new) + 1))]
    choices = [old, new, new, b'', cut, cut + bytes(len(new) - len(cut))]
    return choices[rng.integers(len(choices))]


def _choose(rng: np.random.Generator, disk: Disk, at: str, arrived: dict[int, bool], may_be: bool = True):
    "For everything below a folder whether its last move reached the disk; nothing moves into what is not there."
    safe = disk.names.get(at, {})
    for name, number in sorted(_listing(at).items()):
        here = safe.get(name) == number
        arrived[number] = may_be and (here or bool(rng.integers(2)))
        if os.path.isdir(os.path.join(at, name)):
            _choose(rng, disk, os.path.join(at, name), arrived, arrived[number])
    for number in safe.values():
        arrived.setdefault(number, bool(rng.integers(2)))   # it was moved away or deleted


def _file_at(old: int | None, new: int | None, arrived: dict[int, bool]) -> int | None:
    "Which file has a name: a new one replaces the old one in one step."
    if new is not None and arrived[new]:
        return new
    stays = old is not None and (new is not None or not arrived[old])
    return old if stays else None


def _build_folder(rng: np.random.Generator, disk: Disk, at: str, target: Path, arrived: dict[int, bool]):
    "One folder as the disk may hold it."
    target.mkdir(parents=True, exist_ok=True)
    safe, there = disk.names.get(at, {}), _listing(at)
    for name in sorted({*there, *safe}):
        file, place = _file_at(safe.get(name), there.get(name), arrived), os.path.join(at, name)
        if file is None or place in disk.names and not os.path.isdir(place):   # a folder that was removed
            continue
        old = disk.contents.get(file, b'')
        if os.path.isdir(place):
            _build_folder(rng, disk, place, target/name, arrived)
        elif file != there.get(name):
            (target/name).write_bytes(old)
        else:
            new = Path(place).read_bytes()
            (target/name).write_bytes(new if new == old else _lost(rng, old, new))


def build(rng: np.random.Generator, disk: Disk, run_dir: Path, folder: Path, target: Path):
    "A run directory as the disk may hold it after the cut; `folder` is that of the stage. It takes `run_dir` apart."
    others = [path for path in run_dir.iterdir() if path.is_dir() and path != folder and path.name != 'set_aside']
    for path in others:   # complete, and nobody wrote there
        shutil.copytree(path, target/path.name, copy_function=os.link)
        disk.names[str(run_dir)].pop(path.name)
        shutil.rmtree(path)
    arrived = {}
    _choose(rng, disk, str(run_dir), arrived)
    _build_folder(rng, disk, str(run_dir), target, arrived)
