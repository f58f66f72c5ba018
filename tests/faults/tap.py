"""Writes below a folder, counted, with something done at one of them: by functions put in the place of Python's own."""
import builtins
import io
import itertools
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Callable

_NAMED = ('replace', 'rename', 'unlink', 'remove', 'mkdir', 'rmdir', 'link')


@dataclass(frozen=True)
class Event:
    "A write that is about to happen or has just happened."
    number: int        # from 0, below the folder
    what: str          # a function of `os`, or open
    path: str          # what it is about; of two paths the first
    target: str        # of two paths the second, or ''
    done: bool         # whether it has happened


def _path_of(place) -> str:   # '' where it has none
    "The absolute path of what a function is given: a path or an open file."
    if isinstance(place, int):
        return os.readlink(f'/proc/self/fd/{place}')
    try:
        return os.path.abspath(os.fsdecode(place))
    except TypeError:
        return ''


class Tap:
    "Calls a function before and after each write below a folder; see `install`."
    def __init__(self, folder: Path, act: Callable[[Event], None] = lambda event: None):
        self.folder, self.act, self.numbers, self.count = str(folder), act, itertools.count(), 0

    def is_below(self, path: str) -> bool:
        return path == self.folder or path.startswith(self.folder + os.sep)

    def around(self, what: str, path: str, target: str, real: Callable):
        "Do what was asked for, between two words to whoever listens."
        number = next(self.numbers)
        self.count = number + 1
        self.act(Event(number, what, path, target, False))
        result = real()
        self.act(Event(number, what, path, target, True))
        return result

    def tapped(self, what: str, real: Callable) -> Callable:
        "A function of `os` that is listened to."
        def call(place, *args, **more):
            path = _path_of(place)
            if not self.is_below(path) or what in ('unlink', 'remove') and not os.path.lexists(path):
                return real(place, *args, **more)
            target = _path_of(args[0]) if what in ('replace', 'rename', 'link') else ''
            return self.around(what, path, target, lambda: real(place, *args, **more))
        return call

    def tapped_open(self, real: Callable) -> Callable:
        "`open` that is listened to where it writes."
        def call(place, mode='r', *args, **more):
            path = '' if isinstance(place, int) or not set(mode) & set('wax+') else _path_of(place)
            if not self.is_below(path):
                return real(place, mode, *args, **more)
            return self.around('open', path, '', lambda: real(place, mode, *args, **more))
        return call

    def install(self):
        "Listen to every write of this process from now on."
        for what in (*_NAMED, 'fsync'):
            setattr(os, what, self.tapped(what, getattr(os, what)))
        builtins.open = io.open = self.tapped_open(io.open)
