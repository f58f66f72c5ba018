"""The package at the lowest and at the highest versions that the package index serves, on several Pythons.

uv builds one environment at a time from the requirements of settings.ini alone, wheels only; notebooks with their tests
run in it by papermill; it is removed; a table says what was tested. `--python` takes versions, or paths where uv cannot
fetch an interpreter; `--override torch==2.13.0+cpu torchvision==0.28.0` takes these builds whatever the ranges say, for
a machine that has no room for the CUDA builds."""
import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from configparser import ConfigParser
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PYTHONS, RESOLUTIONS = ['3.11', '3.12', '3.13'], ['lowest-direct', 'highest']
NOTEBOOKS = ['11_core', '12_plots', 'mixture/01_em', 'models/01_deeplab', 'data/01_images', 'runs/02_stage',
             '05_reweighting', '10_command_line']
SHOWN = ['torch', 'torchvision', 'numpy', 'scipy', 'scikit-learn', 'matplotlib', 'pillow', 'papermill', 'ipykernel',
         'fastcore']


def requirements() -> list[str]:
    "What settings.ini asks for, and what the tests in the notebooks take besides."
    config = ConfigParser(delimiters=['='])
    config.read(ROOT/'settings.ini', encoding='utf-8')
    own = config['DEFAULT']
    return [*own['requirements'].split(), *own['timm_requirements'].split(), 'nbformat>=5']


def last_line(text: str) -> str:
    return (text.strip().splitlines() or ['nothing said'])[-1][:160]


class Environment:
    "A folder with a Python of some version and the package's requirements at one end of their ranges."

    def __init__(self, folder: Path, python: str, resolution: str, uv: str):
        self.folder, self.python, self.resolution, self.uv = folder, python, resolution, uv

    def call(self, *command) -> subprocess.CompletedProcess:
        env = {**os.environ, 'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1', 'MPLBACKEND': 'agg',
               'IPYTHONDIR': str(self.folder/'ipython'), 'PATH': f"{self.folder/'bin'}{os.pathsep}{os.environ['PATH']}"}
        return subprocess.run([str(part) for part in command], env=env, cwd=ROOT, capture_output=True, text=True)

    def build(self, overrides: list[str]) -> str:   # what went wrong; empty if nothing did
        (self.folder/'overrides.txt').write_text('\n'.join(overrides))
        links = [word for link in os.environ.get('PIP_FIND_LINKS', '').split() for word in ('--find-links', link)]
        for line in (['venv', '--allow-existing', '--python', self.python, self.folder],
                     ['pip', 'install', '--python', self.folder/'bin'/'python', '--resolution', self.resolution,
                      '--no-build', *links, '--override', self.folder/'overrides.txt', *requirements()]):
            done = self.call(self.uv, *line)
            if done.returncode:
                return last_line(done.stderr)
        return ''

    def versions(self) -> list[str]:   # of Python, then of SHOWN
        code = 'import platform; from importlib.metadata import version as v; ' \
               f'print(platform.python_version(), *map(v, {SHOWN}))'
        return self.call(self.folder/'bin'/'python', '-c', code).stdout.split()

    def failures(self, notebooks: list[str]) -> list[str]:   # 'notebook: error'
        "Run notebooks with their tests; the kernel is this environment's."
        python, failed = self.folder/'bin'/'python', []
        self.call(python, '-m', 'ipykernel', 'install', '--prefix', self.folder, '--name', 'python3')
        for name in notebooks:
            notebook, out = ROOT/'nbs'/f'{name}.ipynb', self.folder/'out.ipynb'
            done = self.call(python, '-m', 'papermill', '--no-progress-bar', '-k', 'python3',
                             '--cwd', notebook.parent, notebook, out)
            if done.returncode:
                failed.append(f'{name}: {last_line(done.stderr)}')
                print(done.stderr[-3000:], file=sys.stderr, flush=True)
        return failed


def row(environment: Environment, args: argparse.Namespace) -> list[str]:
    "What came of an environment."
    wrong = environment.build(args.override)
    if wrong:
        return [environment.python, environment.resolution, *['' for _ in SHOWN], f'not built: {wrong}']
    failed = environment.failures(args.notebooks)
    result = '; '.join(failed) or f'{len(args.notebooks)} notebooks pass'
    python, *versions = environment.versions()
    return [python, environment.resolution, *versions, result]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--python', nargs='+', default=PYTHONS, metavar='VERSION')
    parser.add_argument('--resolution', nargs='+', default=RESOLUTIONS, choices=RESOLUTIONS)
    parser.add_argument('--override', nargs='+', default=[], metavar='REQUIREMENT')
    parser.add_argument('--notebooks', nargs='+', default=NOTEBOOKS)
    parser.add_argument('--uv', default='uv', help='where uv is')
    args = parser.parse_args()
    if not shutil.which(args.uv):
        parser.error('uv is not there; pip install uv, or say where it is with --uv')
    print('| python | resolution |', ' | '.join(SHOWN), '| result |')
    print('|' + '---|' * (len(SHOWN) + 3), flush=True)
    rows = []
    for python in args.python:
        for resolution in args.resolution:
            with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
                rows.append(row(Environment(Path(folder), python, resolution, args.uv), args))
            print('|', ' | '.join(rows[-1]), '|', flush=True)
    return int(any(not cells[-1].endswith('notebooks pass') for cells in rows))


if __name__ == '__main__':
    sys.exit(main())
