"The sdist, the wheel made from it, and the wheel in an environment that holds nothing else of the repository."
import re
import shutil
import sys
import sysconfig
import tarfile
import zipfile
from configparser import ConfigParser
from pathlib import Path

import pytest
import yaml

NOT_COPIED = '.venv', '.git', 'runs', '_docs', '_proc', '_site', 'build', '*.egg-info'


def ignored(folder: str, names: list[str]) -> set[str]:
    "What a copy of the repository leaves out: at its top only, since the package has a folder called runs."
    at_top = (Path(folder)/'settings.ini').exists()
    return shutil.ignore_patterns(*NOT_COPIED)(folder, names) if at_top else set()


@pytest.fixture(autouse=True)
def no_other_path(monkeypatch):
    "A checkout that the environment names would come before the wheel."
    monkeypatch.delenv('PYTHONPATH', raising=False)


@pytest.fixture(scope='module')
def built(root, call, tmp_path_factory) -> Path:   # a folder with the sdist and the wheel
    "`python -m build` without a network, on a copy so that the repository stays as it is."
    source, out = tmp_path_factory.mktemp('source')/'bidirseg', tmp_path_factory.mktemp('dist')
    shutil.copytree(root, source, symlinks=True, ignore=ignored)
    call(sys.executable, '-m', 'build', '--no-isolation', '--outdir', out, cwd=source)
    return out


def notebooks(root: Path) -> set[str]:
    return {path.relative_to(root).as_posix() for path in (root/'nbs').rglob('[0-9]*.ipynb')}


def modules(root: Path) -> set[str]:
    return {path.relative_to(root).as_posix() for path in (root/'bidirseg').rglob('*.py')}


def test_sdist(built, root):
    with tarfile.open(next(built.glob('*.tar.gz'))) as tar:
        names = {name.split('/', 1)[1] for name in tar.getnames() if '/' in name}
    assert {'settings.ini', 'constraints.txt', 'LICENSE', 'setup.py', 'nbs/_quarto.yml'} <= names
    assert notebooks(root) | modules(root) <= names


def test_wheel(built, root):
    with zipfile.ZipFile(next(built.glob('*.whl'))) as wheel:
        names = set(wheel.namelist())
        points = wheel.read(next(name for name in names if name.endswith('entry_points.txt'))).decode()
        meta = wheel.read(next(name for name in names if name.endswith('dist-info/METADATA'))).decode()
        for name in notebooks(root):
            assert wheel.read(f'bidirseg/{name}') == (root/name).read_bytes()
    for kind in ('presets', 'templates'):
        assert {f'bidirseg/{kind}/{path.name}' for path in (root/'bidirseg'/kind).iterdir()} <= names
    assert modules(root) | {'bidirseg/py.typed', 'bidirseg/__init__.pyi'} <= names
    assert {name.split('/')[0] for name in names if '.dist-info' not in name} == {'bidirseg'}
    assert 'bidirseg = bidirseg.cli:main' in points
    assert 'Requires-Python: >=3.11' in meta and 'License-Expression: Apache-2.0' in meta


@pytest.fixture(scope='module')
def installed(built, call, tmp_path_factory) -> Path:   # the environment's folder for commands
    "The wheel alone in a new environment; its dependencies are borrowed from the environment of these tests."
    env = tmp_path_factory.mktemp('env')
    call(sys.executable, '-m', 'venv', '--without-pip', env)
    inside = Path(sysconfig.get_path('purelib')).relative_to(Path(sys.prefix)/'lib')
    wheel = next(built.glob('*.whl'))
    call(sys.executable, '-m', 'pip', '--python', env/'bin'/'python', 'install', '--no-deps', '--no-index', wheel)
    borrowed = env/'lib'/inside/'borrowed.pth'   # read after the wheel, which therefore wins
    borrowed.write_text(sysconfig.get_path('purelib') + '\n')
    return env/'bin'


def test_imported_from_the_wheel(installed, call, tmp_path):
    where = call(installed/'python', '-c', 'import bidirseg; print(bidirseg.__file__)', cwd=tmp_path).strip()
    assert Path(where).is_relative_to(installed.parent), where


def test_command_from_the_wheel(installed, call, tmp_path):
    assert 'run' in call(installed/'bidirseg', '--help', cwd=tmp_path)
    printed = call(installed/'bidirseg', 'stages', cwd=tmp_path)
    paths = [Path(path) for path in re.findall(r'papermill (\S+\.ipynb)', printed)]
    assert len(paths) >= 8, printed
    for path in paths:
        assert path.is_relative_to(installed.parent) and path.is_file(), path


CHANGED_NOTEBOOK = """
import json
from bidirseg.core import load_json, save_json
from bidirseg.pipeline.stages import run_stage, stage_spec
from bidirseg.runs import copy_notebooks, is_finished, small_run
run_dir, settings = small_run('run', notebooks='mine'), stage_spec('data').settings
path = next(copy for copy in copy_notebooks('mine') if copy.name == '00_check.ipynb')

def change(remark):
    notebook = load_json(path)
    cell = next(cell for cell in notebook['cells'] if 'stage' in cell['metadata'].get('tags', []))
    cell['source'] = [f'print({remark!r})', chr(10), *cell['source']]
    save_json(path, notebook)

change('mine')
run_stage(run_dir, 'data')
assert is_finished(run_dir, 'data', settings)
assert len(load_json('run/01_data/stage.json')['inputs']['changed notebook']) == 16
change('another')
assert not is_finished(run_dir, 'data', settings)
print("print('mine')" in json.dumps(load_json('run/01_data/notebook.ipynb')))
"""


def test_the_wheel_executes_changed_notebooks(installed, call, tmp_path):
    "The record says so, the notebook beside it is the changed one, and another change is noticed."
    assert call(installed/'python', '-c', CHANGED_NOTEBOOK, cwd=tmp_path).endswith('True\n')


def test_project_files_agree(root):
    "One version in all of them, hooks that are the tools of `make test`, and links that lead somewhere."
    config = ConfigParser(delimiters=['='])
    config.read(root/'settings.ini', encoding='utf-8')
    settings = config['DEFAULT']
    cited = yaml.safe_load((root/'CITATION.cff').read_text(encoding='utf-8'))
    assert (cited['version'], cited['repository-code']) == (settings['version'], settings['git_url'])
    assert [author['name'] for author in cited['authors']] == [settings['author']]
    newest = re.search(r'^## \[(.+?)\]', (root/'CHANGELOG.md').read_text(encoding='utf-8'), re.M)[1]
    assert newest == settings['version']
    hooks = yaml.safe_load((root/'.pre-commit-config.yaml').read_text(encoding='utf-8'))['repos'][0]['hooks']
    assert [hook['entry'].split()[0] for hook in hooks] == ['nbdev_export', 'nbdev_clean', 'ruff']
    for name in ('CONTRIBUTING.md', 'SECURITY.md', 'CHANGELOG.md'):
        for path in re.findall(r'\]\((?!http)(.+?)\)', (root/name).read_text(encoding='utf-8')):
            assert (root/path).exists(), f'{name}: {path}'


HEAVY = {'torch', 'torchvision', 'sklearn', 'scipy', 'matplotlib', 'papermill', 'IPython', 'jinja2'}
HELP = """
from contextlib import suppress
from bidirseg.cli import EXAMPLES, main
for line in (['--version'], ['--help'], *([name, '--help'] for name in EXAMPLES)):
    with suppress(SystemExit):
        main(line)
"""


@pytest.mark.parametrize('code', ['import bidirseg\ndir(bidirseg)', HELP], ids=['import', 'help'])
def test_neither_the_import_nor_help_waits_for_torch(call, code):
    "How long it takes depends on the machine; what is loaded does not."
    printed = call(sys.executable, '-c', f'{code}\nimport sys\nprint(*sys.modules)')
    loaded = set(printed.splitlines()[-1].split())
    assert 'bidirseg' in loaded and not HEAVY & loaded, HEAVY & loaded
