"From the shell: described folders, the check, the trial, and checkpoints that lie anywhere."
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bidirseg.cli import main
from bidirseg.core import load_run, stage_dir
from bidirseg.data import CITYSCAPES19
from bidirseg.model import PUBLISHED_NAMES, build_model
from bidirseg.pipeline import configure
from bidirseg.scenes import draw_scene

SMALL = ['backbone=resnet10', 'weights=none', 'feature_dim=16', 'height=48', 'width=96', 'device=cpu', 'prototypes.n_components=2', 'reweighting.n_centroids=4', 'warmup.balance=0',
         *(f'{s}.{k}' for s in ('source_only', 'warmup', 'self_training') for k in ('steps=3', 'batch_size=2', 'warmup_steps=0'))]
settings = [x for s in SMALL for x in ('--set', s)]


def put(path: Path, array) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


@pytest.fixture(scope='module')
def folders(tmp_path_factory) -> Path:
    "A source whose labels are colours, and a target without labels, under names that need care."
    at = tmp_path_factory.mktemp('own')
    for i in range(6):
        image, ids = draw_scene('game', i, 48, 96)
        put(at/'game'/'shots'/f'<b>{i}_rgb.png', image), put(at/'game'/'maps'/f'<b>{i}_seg.png', CITYSCAPES19.colorize(ids))
        put(at/'town'/'straße & co'/f'{i} <script>.jpg', draw_scene('camera', i, 48, 96)[0])
    return at


@pytest.fixture(scope='module')
def described(folders, call) -> tuple[Path, Path]:
    said = call('bidirseg', 'init-data', folders/'game'/'shots', folders/'game'/'maps', '--out', folders/'a.toml')
    assert 'colours of cityscapes19' in said and 'names end in rgb.png and seg.png' in said and 'road' in said
    call('bidirseg', 'init-data', folders/'town'/'straße & co', '--out', folders/'b.toml')
    return folders/'a.toml', folders/'b.toml'


def test_check_page_escapes_what_it_shows(described, call, tmp_path):
    said = call('bidirseg', 'check', '--source', described[0], '--target', described[1], '--out', tmp_path/'check')
    assert 'nothing to mend' in said and '| source | game | 6 | 96 x 48 (6) |' in said and '| road |' in said
    page = (tmp_path/'check'/'check.html').read_text()
    assert '6' in page and '<script>' not in page and '<b>' not in page


def test_check_names_what_is_wrong_and_goes_on(folders, described, tmp_path, capsys):
    for i in range(3):
        put(tmp_path/'im'/f'{i}.png', np.zeros((4, 4, 3), np.uint8)), put(tmp_path/'lab'/f'{i}.png', np.full((4, 4), [0, 1, 77][i], np.uint8))
    put(tmp_path/'im'/'alone.png', np.zeros((4, 4, 3), np.uint8))
    (tmp_path/'im'/'1.png').write_bytes((tmp_path/'im'/'1.png').read_bytes()[:40])
    (tmp_path/'x.toml').write_text('dataset = "folder"\nroot = "."\nimages = "im"\nlabels = "lab"\nname = "x"\n[classes."<i>"]\nvalues = [0, 1]\ncolor = [1, 2, 3]\n')
    assert main(['check', '--source', str(tmp_path/'x.toml'), '--target', str(described[1]), '--out', str(tmp_path/'out'), '--workers', '2']) == 1
    said, page = capsys.readouterr().out, (tmp_path/'out'/'check.html').read_text()
    for text in ('1 of 3 cannot be used', '1.png cannot be read', '1 images without a label map', 'alone', '77 on 50.00 % of the pixels'): assert text in said and text in page, text
    assert '<i>' not in page and '&lt;i&gt;' in page


@pytest.fixture(scope='module')
def run_dir(described, call, tmp_path_factory) -> Path:
    out, here = tmp_path_factory.mktemp('runs')/'own', tmp_path_factory.mktemp('here')
    beside = {p: sorted(p.parent.rglob('*')) for p in described}
    call('bidirseg', 'run', '--source', described[0], '--target', described[1], '--run-dir', out, *settings, cwd=here)
    assert not list(here.iterdir()) and not [p for p in out.parent.iterdir() if p != out], 'a run writes outside of its directory'
    assert beside == {p: sorted(p.parent.rglob('*')) for p in described}, 'a run writes beside its data'
    return out


def test_a_run_between_described_folders_needs_no_target_label(run_dir, folders):
    config = load_run(run_dir)
    assert config.evaluation == {} and 'labels' not in config.target and list(config.classes)[0] == 'road'
    assert json.loads((stage_dir(run_dir, 'evaluation')/'scores.json').read_text()) == {}
    assert 'no scores' in (run_dir/'report.html').read_text() and (stage_dir(run_dir, 'evaluation')/'before_after.png').exists()


def test_its_model_labels_and_is_scored(run_dir, folders, described, call, tmp_path, capsys):
    model = stage_dir(run_dir, 'self_training')/'model.pt'
    image = folders/'town'/'straße & co'/'0 <script>.jpg'
    for who in (run_dir, model):                    # a run, or its checkpoint alone
        call('bidirseg', 'predict', who, image, '--out', tmp_path/'labels')
        assert np.asarray(Image.open(tmp_path/'labels'/'0 <script>.png')).shape == (48, 96)
        r = json.loads(call('bidirseg', 'evaluate', who, '--dataset', described[0], '--json'))
        assert r['images'] == 6 and 0 <= r['miou'] <= 1
    assert main(['evaluate', str(run_dir)]) == 2 and 'names no labelled images' in capsys.readouterr().err


def test_a_second_description_does_not_overwrite_the_first(folders, described, capsys):
    assert main(['init-data', str(folders/'game'/'shots'), '--out', str(described[0])]) == 2
    assert 'exists' in capsys.readouterr().err


def test_dry_run_tries_every_stage_and_leaves_nothing(described, tmp_path, capsys):
    argv = ['run', '--source', str(described[0]), '--target', str(described[1]), '--run-dir', str(tmp_path/'run'), '--dry-run', *settings]
    assert main(argv) == 0
    said = capsys.readouterr().out
    table = {c[0]: c for line in said.splitlines() if line.startswith('| ') and (c := [x.strip() for x in line.strip('|').split('|')])}
    assert {'data', 'source_only', 'warmup', 'prototypes', 'reweighting', 'self_training', 'evaluation', 'together'} < table.keys()
    assert table['warmup'][1] == '3' and float(table['warmup'][2]) > 0 and int(table['warmup'][4].replace(',', '')) > 100 and int(table['together'][6]) > 0
    assert 'GB needed' in said and not (tmp_path/'run').exists()


def test_a_published_checkpoint_is_scored_without_a_run(tmp_path, call):
    "Fresh weights under the published names: the score says nothing, the way there is what is tested."
    theirs = {ours: name for name, ours in PUBLISHED_NAMES.items()}
    rename = lambda k: next((name + k[len(ours):] for ours, name in theirs.items() if k.startswith(ours)), k)
    model = build_model(backbone='resnet101')
    torch.save({'DeepLabV3_plus': {'model_state': {'module.' + rename(k): v for k, v in model.state_dict().items()}}}, tmp_path/'official.pkl')
    put(tmp_path/'Cityscapes'/'leftImg8bit'/'val'/'ulm'/'ulm_0_leftImg8bit.png', np.zeros((32, 64, 3), np.uint8))
    put(tmp_path/'Cityscapes'/'gtFine'/'val'/'ulm'/'ulm_0_gtFine_labelIds.png', np.full((32, 64), 7, np.uint8))
    said = call('bidirseg', 'evaluate', tmp_path/'official.pkl', '--dataset', 'cityscapes', '--root', tmp_path, '--split', 'val', '--size', '64', '128')
    assert re.search(r'official.pkl on 1 images of cityscapes: mIoU [\d.]+ \(cityscapes19\), [\d.]+ \(cityscapes16\), [\d.]+ \(cityscapes13\)', said)
    assert '| BiSMAP (the paper) | ResNet-101 | 61.2 |' in said


@pytest.mark.parametrize('given, size, source', [([], (64, 96), None), (['height = 32'], (32, 64), None), (['width=192'], (96, 192), None), (['height=48', 'width=80'], (48, 80), None), (['source_height=64', 'source_width=128'], (64, 96), (64, 128))])
def test_sizes_that_are_given_stay(given, size, source, described):
    config = configure('own', given, dict(source=str(described[0]), target=str(described[1])))
    assert config.size == size and (source is None or config.source_size == source)
