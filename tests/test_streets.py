"Rendered streets from the shell: killed and resumed, refused, the same labels again, and every class."
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bidirseg.cli import main
from bidirseg.core import load_json
from bidirseg.data import CITYSCAPES19, draw_scene, open_domain, read_description
from bidirseg.data.streets import Drive, draw_street, opengl_missing

MISSING = opengl_missing()
needs_opengl = pytest.mark.skipif(bool(MISSING), reason=MISSING or 'OpenGL is here')
FIRST, FRAMES, SIZE = 7, 2, ('--height', '48', '--width', '96')
COVER = (22, 3), (0, 2), (5, 0)   # seeds and frames that show every class together
DRAW = 'draw', 'streets', '--first', str(FIRST), '--frames', str(FRAMES), *SIZE


def files(folder: Path) -> dict[str, bytes]:   # name -> content
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob('*'))
            if path.is_file() and not path.name.startswith('.')}


@pytest.fixture(scope='module')
def drawn(tmp_path_factory) -> Path:
    "Five pictures of three streets, in one go."
    out = tmp_path_factory.mktemp('drawn')
    assert main([*DRAW, '--count', '5', '--out', str(out)]) == 0
    return out


@needs_opengl
def test_killed_and_resumed(drawn, tmp_path):
    command = [sys.executable, '-c', 'import sys; from bidirseg.cli import main; sys.exit(main(sys.argv[1:]))']
    process = subprocess.Popen([*command, *DRAW, '--count', '5', '--out', str(tmp_path)], stdout=subprocess.DEVNULL)
    until = time.time() + 120
    while len(list(tmp_path.glob('labels/s*.png'))) < 2 and process.poll() is None and time.time() < until:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    there = {name: content for name, content in files(tmp_path).items() if name.startswith('labels/')}
    assert 2 <= len(there) < 5, sorted(there)
    assert there.items() <= files(drawn).items(), 'what is there is whole'
    assert main([*DRAW, '--count', '5', '--out', str(tmp_path)]) == 0
    assert files(tmp_path) == files(drawn)


@needs_opengl
def test_the_same_labels_again(drawn):
    for name, seed, frame in (('s008_00', 8, 0), ('s007_01', 7, 1)):
        image, labels = draw_street(seed, frame, 48, 96)
        with Image.open(drawn/'labels'/f'{name}.png') as saved:
            assert np.array_equal(saved, labels)
        with Image.open(drawn/'images'/f'{name}.jpg') as saved:
            assert np.abs(np.asarray(saved, int) - image).mean() < 8   # JPEG


@needs_opengl
def test_other_settings_are_refused(drawn, capsys):
    before = files(drawn)
    for change in (['--width', '128'], ['--first', '8'], ['--set', 'traffic=left']):
        assert main([*DRAW, '--count', '6', '--out', str(drawn), *change]) == 2
        said = capsys.readouterr().err
        assert f"was drawn with another {change[-1].split('=')[0] if '=' in change[-1] else change[0][2:]}" in said
        assert 'streets.json' in said and 'Traceback' not in said
    assert main([*DRAW, '--count', '5', '--out', str(drawn), '--set', 'fog=1']) == 2
    assert 'haze' in capsys.readouterr().err   # the names that there are
    assert files(drawn) == before
    assert load_json(drawn/'streets.json') == dict(first=FIRST, frames=FRAMES, height=48, width=96)


@needs_opengl
def test_the_folder_is_a_data_set(drawn, capsys, tmp_path):
    source = drawn/'streets.toml'
    images = open_domain(dict(read_description(source), skip_missing=True, merge={}), None, True, None)
    assert len(images) == 5 and images.space.classes == CITYSCAPES19.classes
    with Image.open(drawn/'labels'/'s007_00.png') as saved:
        assert np.array_equal(images.label(0), saved)
    target = tmp_path/'target.toml'
    (tmp_path/'images').mkdir()
    Image.fromarray(draw_scene('camera', 0, 48, 96)[0]).save(tmp_path/'images'/'0.png')
    target.write_text('dataset = "folder"\nroot = "."\n', encoding='utf-8')
    out = tmp_path/'check'
    main(['check', '--source', str(source), '--target', str(target), '--out', str(out), '--workers', '0'])
    assert '| source | streets | 5 | 96 x 48 (5) |' in capsys.readouterr().out


@needs_opengl
def test_a_source_that_draws_itself(tmp_path, capsys):
    spec = dict(dataset='streets', root=str(tmp_path), count=1)
    images = open_domain(spec, CITYSCAPES19)
    assert images.keys == ('s000_00',) and images.image(0).size == (512, 256)
    assert '0 of 1 streets are in' in capsys.readouterr().out
    before = files(tmp_path)
    assert open_domain(spec, CITYSCAPES19).fingerprint() == images.fingerprint()
    assert files(tmp_path) == before and not capsys.readouterr().out


@needs_opengl
def test_every_class_occurs():
    seen = set()
    for seed, frame in COVER:
        drive = Drive(seed, 128, 256)
        seen |= set(np.unique(drive.labels(frame)).tolist())
    assert seen == {*range(19), 255}


def test_without_the_package(tmp_path):
    lines = ("import sys; sys.modules['moderngl'] = None", 'from bidirseg.cli import main',
             f"sys.exit(main(['draw', 'streets', '--out', {json.dumps(str(tmp_path/'x'))}]))")
    done = subprocess.run([sys.executable, '-c', '\n'.join(lines)], capture_output=True, text=True)
    assert done.returncode == 2 and 'pip install "bidirseg[streets]"' in done.stderr
    assert not (tmp_path/'x').exists()
