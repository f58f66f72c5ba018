"What the tests share: where the repository is, commands run from elsewhere, and a browser."
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from browser import Browser

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


CHROMIUM = ('chromium', 'chromium-browser', 'google-chrome')
QUIET = ['--no-sandbox', '--disable-gpu', '--disable-background-networking', '--disable-component-update']


@pytest.fixture(scope='session')
def browser():
    "A headless Chromium without a network; where it cannot be had, what needs it is skipped with a word why."
    why = 'no page is looked at in a browser: '
    playwright = pytest.importorskip('playwright.sync_api', reason=f'{why}no playwright')
    axe = pytest.importorskip('axe_playwright_python', reason=f'{why}no axe-playwright-python')
    chromium = next(filter(None, map(shutil.which, CHROMIUM)), None)
    if not chromium:
        pytest.skip(f'{why}no chromium on the PATH')
    with playwright.sync_playwright() as running:
        process = running.chromium.launch(executable_path=chromium, args=QUIET)
        page = process.new_context(offline=True, reduced_motion='reduce').new_page()
        page.set_default_timeout(240_000)   # milliseconds: other tests run at the same time
        yield Browser(page, (Path(axe.__file__).parent/'axe.min.js').read_text(encoding='utf-8'))
        process.close()
