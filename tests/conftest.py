"What the tests share: where the repository is, and commands run from elsewhere."
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope='session')
def root() -> Path:
    return ROOT


@pytest.fixture(scope='session')
def call():
    "Run a command, and fail with all it said unless it ends with status 0."
    path = f'{Path(sys.executable).parent}{os.pathsep}{os.environ["PATH"]}'

    def run(*command, cwd=ROOT, **env) -> str:   # what the command printed
        line = [str(part) for part in command]
        done = subprocess.run(line, cwd=cwd, capture_output=True, text=True,
                              env={**os.environ, 'OMP_NUM_THREADS': '1', 'PATH': path, **env})
        said = f"{' '.join(line)} ended with {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        assert done.returncode == 0, said
        return done.stdout
    return run
