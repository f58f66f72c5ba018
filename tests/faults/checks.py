"""What has to hold after a fault, whatever it was. Each check raises `AssertionError` with what it saw."""
import filecmp
import json
import os
import re
import zipfile
from pathlib import Path

from PIL import Image

from bidirseg.core import HALF_WRITTEN

BOOKS = ('stage.json', 'notebook.ipynb', '.key', '.written')   # they hold times, or speak of a stage that is half done
STATES = re.compile(r'resume\.pt|\..*\.(jsonl|pt)')


def files_of(folder: Path) -> dict[str, Path]:   # place in the folder -> file
    return {os.path.relpath(Path(at, name), folder): Path(at, name) for at, _, names in os.walk(folder)
            for name in names}


def nothing_half_written(run_dir: Path):
    "No temporary file and no state of a pass is left of a run that has ended well."
    left = [name for name, path in files_of(run_dir).items()
            if HALF_WRITTEN.fullmatch(path.name) or STATES.fullmatch(path.name)]
    assert not left, f'half-written: {left}'


def _read(path: Path):
    "Read a file in full; raises what its reader raises."
    if path.suffix == '.json':
        json.loads(path.read_text())
    elif path.suffix == '.pt':
        assert zipfile.ZipFile(path).testzip() is None, path
    elif path.suffix in ('.png', '.jpg'):
        with Image.open(path) as image:
            image.load()
    elif path.name == 'report.html':
        assert path.read_text().rstrip().endswith('</html>'), path


def every_artefact_is_readable(run_dir: Path, notes: dict[str, str]):
    "What has its final name is whole, at any moment and whoever was killed."
    for name, path in files_of(run_dir).items():
        if path.name.startswith('.') or path.name in notes or 'set_aside' in path.parts:
            continue
        try:
            _read(path)
        except Exception as error:
            raise AssertionError(f'{name} is half-written: {error!r}') from None


def the_users_files_stay(run_dir: Path, notes: dict[str, str]):   # name -> text
    "Every note is where it was, or set aside, unchanged."
    found = {path.name: path.read_text() for path in files_of(run_dir).values() if path.name in notes}
    assert found == notes, f'notes: {notes.keys() - found.keys()} are gone'


def same_bytes(folder: Path, reference: Path, notes: dict[str, str]):
    "A stage's folder holds the files of the undisturbed run, and no others."
    here = {name: path for name, path in files_of(folder).items() if path.name not in (*BOOKS, *notes)}
    there = {name: path for name, path in files_of(reference).items() if path.name not in BOOKS}
    assert here.keys() == there.keys(), f'{folder.name}: files {sorted(here.keys() ^ there.keys())}'
    for name, path in here.items():
        same = path.samefile(there[name]) or filecmp.cmp(path, there[name], shallow=False)
        assert same, f'{folder.name}/{name} differs from that of the undisturbed run'


def the_record_is_sound(folder: Path):
    "The record says that the stage took a time that a stage can take."
    record = json.loads((folder/'stage.json').read_text())
    assert 0 <= record['seconds'] < 600, f"{folder.name} took {record['seconds']} s"


CLEAR = re.compile(r'bidirseg: Seen: .+\. Wanted: .+\. Fix: .+\.')
STOPPED = 'bidirseg: stopped; the same line goes on from here'


def spoken(text: str) -> list[str]:
    "The lines of the program itself."
    return [line for line in text.splitlines() if line.startswith('bidirseg: ')]


def said_one_line(text: str, status: int):
    "One line, and whatever libraries say that have no memory."
    assert len(spoken(text)) == 1, f'status {status}, and it said {spoken(text) or text[-500:]}'


def said_one_clear_line(text: str, status: int):
    "No traceback; an error is one line with its three parts, a stop is one line, a kill says nothing."
    assert 'Traceback' not in text, f'a traceback: {text[-1500:]}'
    lines = spoken(text)
    if status in (130, 143):
        assert lines in ([STOPPED], []), f'a stop said {lines}'
    elif status > 0:
        assert len(lines) == 1 and CLEAR.fullmatch(lines[0]), f'status {status}, and it said {lines or text[-500:]}'
    else:
        assert not lines, f'status {status}, and it said {lines}'
