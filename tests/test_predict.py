"The command `predict` on files as people have them: nothing of theirs is lost, whatever is asked for."
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bidirseg.cli import main
from bidirseg.core import fingerprint, load_json
from bidirseg.data import CITYSCAPES19, draw_scene
from bidirseg.models import build_model, save_checkpoint


@pytest.fixture(scope='module')
def model(tmp_path_factory) -> Path:
    "A small network with fresh weights."
    path = tmp_path_factory.mktemp('model')/'model.pt'
    classes = list(CITYSCAPES19.classes)
    net = build_model(backbone='resnet10', num_classes=len(classes), feature_dim=8)
    return save_checkpoint(path, net.eval(), label_space='cityscapes19', classes=classes, colors=[], size=[32, 64])


@pytest.fixture
def shots(tmp_path) -> Path:
    "A folder with pictures in two sub-folders, some of one name."
    for i, name in enumerate(['1.jpg', 'monday/1.jpg', 'monday/2.png', 'tuesday/1.webp']):
        path = tmp_path/'shots'/name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw_scene('camera', i, 40, 80)[0]).save(path)
    return tmp_path/'shots'


def predict(model: Path, *words) -> int:   # exit status
    return main(['predict', str(model), *map(str, words)])


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob('*') if path.is_file())


def test_folders_globs_and_files_keep_their_place(model, shots, tmp_path, capsys):
    out = tmp_path/'out'
    assert predict(model, shots/'1.jpg', shots/'*day'/'1.*', shots/'monday', '--out', out) == 0
    names = ['1', '2', 'monday/1', 'tuesday/1']   # the folder by itself has its pictures at the top
    assert capsys.readouterr().out.splitlines() == [f'{out}/{name}.png' for name in ('1', 'monday/1', 'tuesday/1', '2')]
    ours = [f'{name}{ending}.png' for name in names for ending in ('', '_color')]
    assert files(out) == sorted(ours + ['classes.json', 'legend.png'])
    assert [entry['id'] for entry in load_json(out/'classes.json')['classes']] == list(range(19))
    assert predict(model, shots/'1.jpg', shots/'monday', '--out', out) == 2
    assert 'would both be called' in capsys.readouterr().err


def test_results_beside_the_photos(model, shots, capsys):
    "A PNG photo would be overwritten; without it, a second run does the same as the first."
    before = fingerprint(shots)
    assert predict(model, shots, '--out', shots, '--overwrite') == 2
    assert 'would overwrite images' in capsys.readouterr().err and fingerprint(shots) == before
    (shots/'monday'/'2.png').unlink()
    assert predict(model, shots, '--out', shots) == 0
    once = fingerprint(shots)
    capsys.readouterr()
    assert predict(model, shots, '--out', shots) == 0 and fingerprint(shots) == once
    assert 'left out: 7 results' in capsys.readouterr().err
    assert predict(model, shots, '--out', shots, '--skip-existing') == 0
    said = capsys.readouterr()
    assert 'skipped: 3' in said.err and said.out == '' and fingerprint(shots) == once


def test_what_somebody_else_wrote_stays(model, shots, tmp_path, capsys):
    drawn = np.full((40, 80), 3, np.uint8)
    Image.fromarray(drawn).save(shots/'1.png')
    (shots/'classes.json').write_text('["mine"]')
    before = fingerprint(shots)
    assert predict(model, shots/'1.jpg', '--out', shots) == 2
    said = capsys.readouterr().err
    assert '2 of the results exist' in said and '1.png' in said and 'classes.json' in said
    assert fingerprint(shots) == before
    assert predict(model, shots/'1.jpg', '--out', shots, '--overwrite') == 0
    assert (np.asarray(Image.open(shots/'1.png')) != drawn).any()


@pytest.mark.parametrize('link', [os.link, lambda path, to: to.symlink_to(path)])
def test_an_input_behind_a_link_stays(link, model, shots, tmp_path, capsys):
    (tmp_path/'out').mkdir()
    link(shots/'monday'/'2.png', tmp_path/'out'/'2.png')
    before = fingerprint(shots)
    assert predict(model, shots/'monday'/'2.png', '--out', tmp_path/'out', '--overwrite') == 2
    assert 'would overwrite images' in capsys.readouterr().err and fingerprint(shots) == before


def test_kinds_of_pictures(model, tmp_path, capsys):
    "Each gets a label map of its upright size; torn ones are named and the others are not lost."
    folder, out = tmp_path/'kinds', tmp_path/'out'
    folder.mkdir()
    rgb = Image.fromarray(draw_scene('camera', 0, 40, 80)[0])
    on_its_side = Image.Exif()
    on_its_side[274] = 6
    rgb.save(folder/'turned.jpg', exif=on_its_side)
    rgb.convert('CMYK').save(folder/'cmyk.jpg')
    rgb.convert('P').save(folder/'palette.png', transparency=0)
    rgb.convert('RGBA').save(folder/'alpha.webp')
    Image.fromarray(np.asarray(rgb.convert('L')).astype(np.uint16) * 257).save(folder/'deep.png')
    for name in ('moving.gif', 'moving2.webp', 'moving3.png'):
        rgb.save(folder/name, save_all=True, append_images=[rgb.rotate(180)])
    for name in ('torn.jpg', 'empty.png'):
        (folder/name).write_bytes((folder/'cmyk.jpg').read_bytes()[:300] if name == 'torn.jpg' else b'')
    assert predict(model, folder, '--out', out, '--overlay', '--confidence', '--batch', 3) == 1
    said = capsys.readouterr()
    sizes = {Path(line).stem: Image.open(line).size for line in said.out.splitlines()}
    assert sizes.pop('turned') == (40, 80)
    assert len(sizes) == 7 and set(sizes.values()) == {(80, 40)}
    assert said.err.count('the first is labelled') == 3
    for text in ('torn.jpg cannot be read', 'empty.png cannot be read', '2 of the images', 'the other 8 are labelled'):
        assert text in said.err
    confidence = np.asarray(Image.open(out/'deep_confidence.png'))
    assert confidence.dtype == np.uint16 and confidence.min() >= 65535 // 19
    assert Image.open(out/'turned_overlay.png').size == (40, 80)


def test_tiles_scales_and_mirror_images(model, tmp_path):
    Image.fromarray(draw_scene('camera', 1, 48, 100)[0]).save(tmp_path/'large.png')
    one, many = tmp_path/'one', tmp_path/'many'
    views = ['--tiles', '--flip', '--scales', '0.75', '1']
    assert predict(model, tmp_path/'large.png', '--out', one, *views) == 0
    assert predict(model, tmp_path/'large.png', '--out', many, *views, '--batch', 5) == 0
    assert np.asarray(Image.open(one/'large.png')).shape == (48, 100)
    assert (np.asarray(Image.open(one/'large.png')) == np.asarray(Image.open(many/'large.png'))).all()
    assert predict(model, tmp_path/'large.png', '--out', one, '--scales', 'nan') == 2


def test_a_video_becomes_a_folder(model, tmp_path, capsys, monkeypatch):
    av = pytest.importorskip('av')
    with av.open(str(tmp_path/'film.mp4'), 'w') as film:
        stream = film.add_stream('mpeg4', rate=5)
        stream.width, stream.height = 80, 40
        for i in range(7):
            film.mux(stream.encode(av.VideoFrame.from_ndarray(draw_scene('camera', i, 40, 80)[0])))
        film.mux(stream.encode())
    out = tmp_path/'out'
    assert predict(model, tmp_path/'film.mp4', '--out', out, '--every', 3, '--batch', 2) == 0
    assert files(out/'film') == [f'00000{i}{ending}.png' for i in (0, 3, 6) for ending in ('', '_color')]
    (tmp_path/'torn.mp4').write_bytes((tmp_path/'film.mp4').read_bytes()[:100])
    assert predict(model, tmp_path/'*.mp4', '--out', out, '--every', 3, '--skip-existing') == 1
    assert 'torn.mp4 cannot be decoded' in capsys.readouterr().err
    assert predict(model, tmp_path/'film.mp4', '--out', out, '--skip-existing', '--flip') == 2
    assert f'{out}/film/000000.png' in capsys.readouterr().err
    Image.new('L', (80, 40)).save(out/'film'/'000003.png')
    assert predict(model, tmp_path/'film.mp4', '--out', out) == 2
    assert '000003.png' in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, 'av', None)
    assert predict(model, tmp_path/'film.mp4', '--out', tmp_path/'new') == 2
    assert 'pip install "bidirseg[video]"' in capsys.readouterr().err and not (tmp_path/'new').exists()
