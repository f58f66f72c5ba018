"From the shell: described folders, the check, the trial, and checkpoints that lie anywhere."
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bidirseg.cli import main
from bidirseg.core import load_json
from bidirseg.data import CITYSCAPES19, draw_scene
from bidirseg.models import build_model
from bidirseg.models.checkpoints import PUBLISHED_NAMES
from bidirseg.pipeline.stages import configure
from bidirseg.runs import load_run, stage_dir

SMALL = ['backbone=resnet10', 'weights=none', 'feature_dim=16', 'height=48', 'width=96', 'device=cpu',
         'prototypes.n_components=2', 'reweighting.n_centroids=4', 'training.class_balance=0',
         *(f'{stage}.{change}' for stage in ('source_only', 'warmup', 'self_training')
           for change in ('steps=3', 'batch_size=2', 'warmup_steps=0'))]
SET_SMALL = [word for change in SMALL for word in ('--set', change)]


def put(path: Path, array: np.ndarray):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


@pytest.fixture(scope='module')
def folders(tmp_path_factory) -> Path:
    "A source whose labels are colours, and a target without labels, under names that need care."
    folder = tmp_path_factory.mktemp('own')
    for i in range(6):
        image, ids = draw_scene('game', i, 48, 96)
        put(folder/'game'/'shots'/f'<b>{i}_rgb.png', image)
        put(folder/'game'/'maps'/f'<b>{i}_seg.png', CITYSCAPES19.colorize(ids))
        put(folder/'town'/'straße & co'/f'{i} <script>.jpg', draw_scene('camera', i, 48, 96)[0])
    return folder


@pytest.fixture(scope='module')
def described(folders, call) -> tuple[Path, Path]:
    source, target = folders/'a.toml', folders/'b.toml'
    said = call('bidirseg', 'init-data', folders/'game'/'shots', folders/'game'/'maps', '--out', source)
    for text in ('colours of cityscapes19', 'names end in rgb.png and seg.png', 'road'):
        assert text in said
    call('bidirseg', 'init-data', folders/'town'/'straße & co', '--out', target)
    return source, target


def test_check_page_escapes_what_it_shows(described, call, tmp_path):
    source, target = described
    said = call('bidirseg', 'check', '--source', source, '--target', target, '--out', tmp_path/'check')
    for text in ('nothing to fix', '| source | game | 6 | 96 x 48 (6) |', '| road |'):
        assert text in said
    page = (tmp_path/'check'/'check.html').read_text()
    assert '6' in page and page.count('<script') == 1 and '<b>' not in page   # one is the slider's


WRONG = '''\
dataset = "folder"
root = "."
images = "im"
labels = "lab"
name = "x"
[classes."<i>"]
values = [0, 1]
color = [1, 2, 3]
'''


def test_check_names_what_is_wrong_and_goes_on(described, tmp_path, capsys):
    black = np.zeros((4, 4, 3), np.uint8)
    for i, value in enumerate((0, 1, 77)):
        put(tmp_path/'im'/f'{i}.png', black)
        put(tmp_path/'lab'/f'{i}.png', np.full((4, 4), value, np.uint8))
    put(tmp_path/'im'/'alone.png', black)
    torn = tmp_path/'im'/'1.png'
    torn.write_bytes(torn.read_bytes()[:40])
    (tmp_path/'x.toml').write_text(WRONG)
    argv = ['check', '--source', tmp_path/'x.toml', '--target', described[1], '--out', tmp_path/'out', '--workers', 2]
    assert main([str(word) for word in argv]) == 1
    said, page = capsys.readouterr().out, (tmp_path/'out'/'check.html').read_text()
    for text in ('1 of 3 cannot be used', '1.png cannot be read', '1 images without a label map', 'alone',
                 '77 on 50.00 % of the pixels'):
        assert text in said and text in page, text
    assert '<i>' not in page and '&lt;i&gt;' in page


@pytest.fixture(scope='module')
def run_dir(described, call, tmp_path_factory) -> Path:
    source, target = described
    out, here = tmp_path_factory.mktemp('runs')/'own', tmp_path_factory.mktemp('here')
    beside = sorted(source.parent.rglob('*'))
    call('bidirseg', 'run', '--source', source, '--target', target, '--run-dir', out, *SET_SMALL, cwd=here)
    assert not list(here.iterdir()) and list(out.parent.iterdir()) == [out], 'a run writes outside of its directory'
    assert beside == sorted(source.parent.rglob('*')), 'a run writes beside its data'
    return out


def test_a_run_between_described_folders_needs_no_target_label(run_dir):
    config, scored = load_run(run_dir), stage_dir(run_dir, 'evaluation')
    assert config.evaluation == {} and 'labels' not in config.target and list(config.classes)[0] == 'road'
    assert load_json(scored/'scores.json') == {}
    assert 'no scores' in (run_dir/'report.html').read_text() and (scored/'before_after.png').exists()


def test_its_model_labels_and_is_scored(run_dir, folders, described, call, tmp_path, capsys):
    image = folders/'town'/'straße & co'/'0 <script>.jpg'
    for model in (run_dir, stage_dir(run_dir, 'self_training')/'model.pt'):   # a run, or its checkpoint alone
        call('bidirseg', 'predict', model, image, '--out', tmp_path/'labels')
        assert np.asarray(Image.open(tmp_path/'labels'/'0 <script>.png')).shape == (48, 96)
        scores = json.loads(call('bidirseg', 'evaluate', model, '--dataset', described[0], '--json'))
        assert scores['images'] == 6 and 0 <= scores['miou'] <= 1
    assert main(['evaluate', str(run_dir)]) == 2 and 'names no labelled images' in capsys.readouterr().err


def test_a_second_description_does_not_overwrite_the_first(folders, described, capsys):
    assert main(['init-data', str(folders/'game'/'shots'), '--out', str(described[0])]) == 2
    assert 'exists' in capsys.readouterr().err


def read_table(said: str) -> dict[str, list[str]]:   # first cell -> cells of its row
    rows = [line.strip('|').split('|') for line in said.splitlines() if line.startswith('| ')]
    return {row[0].strip(): [cell.strip() for cell in row] for row in rows}


def test_dry_run_tries_every_stage_and_leaves_nothing(described, tmp_path, capsys):
    source, target = map(str, described)
    run_dir = tmp_path/'run'
    argv = ['run', '--source', source, '--target', target, '--run-dir', str(run_dir), '--dry-run', *SET_SMALL]
    assert main(argv) == 0
    said = capsys.readouterr().out
    table = read_table(said)
    assert {'data', 'source_only', 'warmup', 'prototypes', 'pseudo_labels', 'reweighting', 'self_training',
            'evaluation', 'together'} < table.keys()
    warmup = table['warmup']
    assert warmup[1] == '3' and float(warmup[2]) > 0 and int(warmup[4].replace(',', '')) > 100
    assert int(table['together'][6]) > 0
    assert 'GB needed' in said and not run_dir.exists()


def published_name(name: str) -> str:
    "What the authors' files call one of our weights."
    for theirs, ours in PUBLISHED_NAMES.items():
        if name.startswith(ours):
            return theirs + name[len(ours):]
    return name


def test_a_published_checkpoint_is_scored_without_a_run(tmp_path, call):
    "Fresh weights under the published names: the score says nothing, the way there is what is tested."
    state = build_model(backbone='resnet101').state_dict()
    state = {f'module.{published_name(name)}': value for name, value in state.items()}
    torch.save({'DeepLabV3_plus': {'model_state': state}}, tmp_path/'official.pkl')
    tree = tmp_path/'Cityscapes'
    put(tree/'leftImg8bit'/'val'/'ulm'/'ulm_0_leftImg8bit.png', np.zeros((32, 64, 3), np.uint8))
    put(tree/'gtFine'/'val'/'ulm'/'ulm_0_gtFine_labelIds.png', np.full((32, 64), 7, np.uint8))
    said = call('bidirseg', 'evaluate', tmp_path/'official.pkl', '--dataset', 'cityscapes', '--root', tmp_path,
                '--split', 'val', '--size', '64', '128')
    assert re.search(r'official.pkl on 1 images of cityscapes: mIoU [\d.]+ \(cityscapes19\), '
                     r'[\d.]+ \(cityscapes16\), [\d.]+ \(cityscapes13\)', said)
    assert '| BiSMAP (the paper) | ResNet-101 | 61.2 |' in said


@pytest.mark.parametrize('given, size, source', [
    ([], (64, 96), None),
    (['height = 32'], (32, 64), None),
    (['width=192'], (96, 192), None),
    (['height=48', 'width=80'], (48, 80), None),
    (['source_height=64', 'source_width=128'], (64, 96), (64, 128))])
def test_sizes_that_are_given_stay(given, size, source, described):
    config = configure('own', given, dict(source=str(described[0]), target=str(described[1])))
    assert config.size == size and (source is None or config.source_size == source)
