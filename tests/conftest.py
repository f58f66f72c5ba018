"What the tests share: where the repository is, commands run from elsewhere, a tiny preset, and a browser."
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


SCENES = 'dataset = "scenes"\nheight = 48\nwidth = 96\n'
TINY = f'''
label_space = "cityscapes19"
height = 48
width = 96
backbone = "resnet10"
output_stride = 32
feature_dim = 16
rounds = 1
oracle = true
device = "cpu"
[source]
count = 8
{SCENES}
[target]
domain = "camera"
count = 6
{SCENES}
[evaluation]
domain = "camera"
first = 1000000
count = 4
{SCENES}
[training]
steps = 6
batch_size = 2
warmup_steps = 1
checkpoint_every = 2
lr = 0.01
[warmup]
style = "fourier"
brightness_match = true
[prototypes]
n_components = 2
[reweighting]
n_centroids = 8
[self_training]
class_mix = true
bn_mode = "joint"
output_model = "ema"
ramp_steps = 2
'''


@pytest.fixture(scope='session')
def preset(tmp_path_factory) -> Path:
    "A preset whose whole run takes half a minute."
    path = tmp_path_factory.mktemp('preset')/'tiny.toml'
    path.write_text(TINY)
    return path


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
