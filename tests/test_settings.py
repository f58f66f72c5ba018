"What a user sets is obeyed, or refused in one line whose advice works when it is followed."
import itertools
import re
import shlex
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bidirseg import cli
from bidirseg.core import InputError
from bidirseg.data import CITYSCAPES19, draw_scene
from bidirseg.pipeline import stages
from bidirseg.pipeline.stages import check_settings, configure, stage_spec
from bidirseg.runs import RunConfig, label_space, load_preset, load_run, make_settings, open_images, stage_settings

STAGES = ('data', 'source_only', 'warmup', 'prototypes', 'pseudo_labels', 'reweighting', 'self_training',
          'distillation', 'evaluation', 'judgement')
RUN = [('', f.name) for f in fields(RunConfig) if f.name not in ('preset', 'settings')]
SETTINGS = RUN + [(stage, f.name) for stage in STAGES for f in fields(stage_spec(stage).settings)]


@pytest.mark.parametrize('stage, name', SETTINGS)
def test_the_example_of_a_message_is_accepted(stage, name):
    "A wrong value, then what the message proposes: as it stands, as a shell hands it on, and as a preset says it."
    key = f'{stage}.{name}' if stage else name
    cls = stage_spec(stage).settings if stage else RunConfig

    def take(value):
        return make_settings(cls, {name: value}, {name: key})

    with pytest.raises(InputError) as e:
        take([] if 'dict' in str(cls.__annotations__.get(name)) else {})
    example = re.fullmatch(r'for instance (\S+)', e.value.fix)[1]
    shell, = shlex.split(example)
    assert example.startswith(f'{key}=')
    presets = ('demo', 'gta5-cityscapes')
    if key == 'pseudo_labels.score':   # density; the demo's network has none, and says so, see below
        presets = presets[1:]
    for preset, text in itertools.product(presets, (example, shell)):
        config = load_preset(preset, [text])
        if stage:
            stage_settings(cls, config, stage)


def put(path: Path, array: np.ndarray):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


@pytest.fixture(scope='module')
def files(tmp_path_factory) -> dict[str, str]:
    "Descriptions of three domains; one source image lacks its labels."
    folder, paths = tmp_path_factory.mktemp('described'), {}
    for name, style in dict(source='game', target='camera', evaluation='camera').items():
        for i in range(4):
            image, ids = draw_scene(style, i + 10 * len(paths), 48, 96)
            put(folder/name/'images'/f'{i}.png', image)
            if name != 'target':
                put(folder/name/'labels'/f'{i}.png', CITYSCAPES19.colorize(ids))
        paths[name] = str(folder/f'{name}.toml')
        Path(paths[name]).write_text(f'dataset = "folder"\nname = "{name}"\nroot = "{name}"\nencoding = "colors"\n')
    (folder/'source'/'labels'/'3.png').unlink()
    return paths


ON_TOP = ['source.skip_missing=true', 'target.slice="1:"', 'evaluation.slice=":2"', 'classes.road=[9, 9, 9]',
          'backbone=resnet10', 'weights=none', 'device=cpu']
SET = [word for change in ON_TOP for word in ('--set', change)]


def is_obeyed(config: RunConfig) -> bool:
    sizes = [len(open_images(config, domain)) for domain in ('source', 'target', 'evaluation')]
    space = label_space(config)
    return sizes == [3, 3, 2] and space.classes == CITYSCAPES19.classes and space.colors[0] == (9, 9, 9)


def test_settings_apply_on_top_of_described_data_sets(files, tmp_path, monkeypatch, capsys):
    "Of `run`, `run --dry-run` and `check` alike."
    domains = [word for name, path in files.items() for word in (f'--{name}', path)]
    configs, run_dir = [], tmp_path/'run'
    for name in ('_resume', '_finish'):   # nothing runs
        monkeypatch.setattr(stages, name, lambda *_: None)
    monkeypatch.setattr('bidirseg.pipeline.estimate.dry_run', lambda config, _: configs.append(config) or ([], [], []))
    monkeypatch.setattr('bidirseg.pipeline.check.check', lambda config, *_: configs.append(config) or ('page', []))
    assert cli.main(['run', *domains, '--run-dir', str(run_dir)]) == 2
    assert 'set skip_missing=true' in capsys.readouterr().err and not run_dir.exists()
    for command in (['run', '--run-dir', str(run_dir)], ['run', '--dry-run'], ['check']):
        assert cli.main([*command, *domains, *SET]) == 0
    assert is_obeyed(load_run(run_dir)) and all(map(is_obeyed, configs)) and len(configs) == 2


def test_a_label_space_and_an_oracle_of_the_users_own(files):
    domains = dict(files, evaluation=None)
    config = configure('own', ['source.skip_missing=true', 'label_space=camvid11', 'oracle=true'], domains)
    assert config.label_space == 'camvid11' and config.classes == {} and config.oracle
    config = configure('own', ['source.skip_missing=true'], domains)
    assert config.label_space == 'cityscapes19' and not config.oracle and config.evaluation == {}


def test_sizes_of_a_preset_of_the_users_own_stay(files, tmp_path):
    (tmp_path/'mine.toml').write_text('base = "own"\nheight = 64\ncrop_width = 32\n')
    config = configure(str(tmp_path/'mine.toml'), ['source.skip_missing=true'], files)
    assert config.size == (64, 128) and config.crop == (64, 32)


REFUSED = {   # what is set -> what the message says
    'training.steps=foo': "training.steps = 'foo' (str). Wanted: int. Fix: for instance training.steps=500.",
    'source_only.lr=abc': "source_only.lr = 'abc' (str). Wanted: float.",
    'warmup.scale=(0.5,1.5)': 'Fix: for instance warmup.scale=[0.5,1.5].',
    'warmup.scale=[0.5,1.5': 'a value as TOML writes it',
    'training.scale=[3]': 'Seen: training.scale=[3].',
    'training.steps=0': 'training.steps=0',
    'warmup.stpes=1': "unknown setting of warmup 'stpes'",
    'training.stpes=1': "unknown setting of training 'stpes'",
    'distillation.stpes=1': "unknown setting of distillation 'stpes'",
    'training.optimizer=sdg': "unknown training.optimizer 'sdg'",
    'training.lr=nan': 'training.lr = nan',
    'pseudo_labels.label_source=both pseudo_labels.score=density': 'Fix: set pseudo_labels.score=margin.',
    'description=2024': """put it in quotes; in a shell: --set 'description="2024"'""",
    'weights=': 'set weights=none to set nothing',
    'warmup=5': 'warmup is a table',
    'seed=1 seed.x=5': 'set seed itself'}


@pytest.mark.parametrize('changes, says', REFUSED.items())
def test_a_message_names_what_the_user_wrote(changes, says):
    with pytest.raises(InputError) as e:
        check_settings(load_preset('demo', changes.split()))
    assert says in str(e.value)
