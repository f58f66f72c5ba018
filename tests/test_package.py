"The sdist, the wheel made from it, and the wheel in an environment that holds nothing else of the repository."
import shutil
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest


@pytest.fixture(scope='module')
def built(root, call, tmp_path_factory) -> Path:   # a folder with the sdist and the wheel
    "`python -m build` without a network, on a copy so that the repository stays as it is."
    source, out = tmp_path_factory.mktemp('source')/'bidirseg', tmp_path_factory.mktemp('dist')
    shutil.copytree(root, source, symlinks=True, ignore=shutil.ignore_patterns('.venv', '.git', 'runs', '_*s', '_proc', 'build', '*.egg-info'))
    call(sys.executable, '-m', 'build', '--no-isolation', '--outdir', out, cwd=source)
    return out


def stages(root) -> set: return {p.name for p in (root/'nbs').glob('[0-9]*.ipynb')}


def test_sdist(built, root):
    with tarfile.open(next(built.glob('*.tar.gz'))) as tar: names = {n.split('/', 1)[1] for n in tar.getnames() if '/' in n}
    assert {'settings.ini', 'constraints.txt', 'LICENSE', 'setup.py', 'nbs/_quarto.yml'} <= names
    assert {f'nbs/{n}' for n in stages(root)} <= names


def test_wheel(built, root):
    with zipfile.ZipFile(next(built.glob('*.whl'))) as wheel:
        names = set(wheel.namelist())
        points = wheel.read(next(n for n in names if n.endswith('entry_points.txt'))).decode()
        meta = wheel.read(next(n for n in names if n.endswith('dist-info/METADATA'))).decode()
        for n in stages(root): assert wheel.read(f'bidirseg/nbs/{n}') == (root/'nbs'/n).read_bytes()
    assert {f'bidirseg/presets/{p.name}' for p in (root/'bidirseg'/'presets').glob('*.toml')} <= names
    assert {f'bidirseg/{p.name}' for p in (root/'bidirseg').glob('*.py')} <= names
    assert {n.split('/')[0] for n in names if '.dist-info' not in n} == {'bidirseg'}
    assert 'bidirseg = bidirseg.cli:main' in points
    assert 'Requires-Python: >=3.11' in meta and 'License-Expression: Apache-2.0' in meta


@pytest.fixture(scope='module')
def installed(built, call, tmp_path_factory) -> Path:   # the environment's folder for commands
    "The wheel alone in a new environment; its dependencies are borrowed from the environment of these tests."
    env = tmp_path_factory.mktemp('env')
    call(sys.executable, '-m', 'venv', '--without-pip', env)
    bin, site = env/'bin', env/'lib'/Path(sysconfig.get_path('purelib')).relative_to(Path(sys.prefix)/'lib')
    call(sys.executable, '-m', 'pip', '--python', bin/'python', 'install', '--no-deps', '--no-index', next(built.glob('*.whl')))
    (site/'borrowed.pth').write_text(sysconfig.get_path('purelib') + '\n')   # after the wheel, which therefore wins
    return bin


def test_imported_from_the_wheel(installed, call, tmp_path):
    where = call(installed/'python', '-c', 'import bidirseg; print(bidirseg.__file__)', cwd=tmp_path).strip()
    assert Path(where).is_relative_to(installed.parent), where


def test_command_from_the_wheel(installed, call, tmp_path, root):
    assert 'run' in call(installed/'bidirseg', '--help', cwd=tmp_path)
    printed = call(installed/'bidirseg', 'stages', cwd=tmp_path)
    paths = [Path(w) for w in printed.split() if w.endswith('.ipynb')]
    assert paths, printed
    for p in paths: assert p.is_relative_to(installed.parent) and p.is_file(), p
    assert {p.name for p in paths} <= stages(root)
