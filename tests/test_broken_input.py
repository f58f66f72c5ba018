"""Files as the world has them: torn, empty, misnamed, too large, hostile. Each is refused in one line that names it,
or read."""
import io
import os
import pickle
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings, strategies as st
from PIL import Image

from bidirseg.cli import main
from bidirseg.core import InputError
from bidirseg.data import (
    folder, image_files, open_colors, open_domain, open_ids, open_rgb, read_description, unpack, write_description)
from bidirseg.models import build_backbone, build_model, load_checkpoint, load_published, save_checkpoint
from bidirseg.models.backbones import load_simclr
from bidirseg.pipeline.check import check
from bidirseg.runs import RunConfig, html_table, load_preset, load_run, markdown


def encoded(kind: str) -> bytes:
    "An image of noise, 30 x 24, as a file of some kind."
    pixels = np.random.default_rng(0).integers(0, 255, (24, 30, 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, kind)
    return out.getvalue()


KINDS = {kind: encoded(kind) for kind in ('PNG', 'JPEG', 'WEBP', 'TIFF', 'BMP')}
OPENERS = (open_rgb, open_ids, open_colors)


def put_zeros(path: Path, size: tuple = (16, 16)):
    "Write a grey image of zeros."
    put_grey(path, 0, size)


def put_grey(path: Path, value: int, size: tuple = (16, 16)):
    "Write a grey image of one value."
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full(size, value, np.uint8)).save(path)


def refuses(work, *about: str):
    "The call raises `InputError` of one line that says all of `about`."
    with pytest.raises(InputError) as e:
        work()
    said = str(e.value)
    assert '\n' not in said and said.startswith('Seen: ') and '. Wanted: ' in said and '. Fix: ' in said
    for text in about:
        assert text in said, (text, said)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(sorted(KINDS)), st.data())
def test_any_damage_is_refused_or_read(tmp_path_factory, kind, data):
    "Whatever happens to its bytes, an image is opened as one of its kind or refused by name: no other error, no hang."
    content = bytearray(KINDS[kind])
    if data.draw(st.booleans()):
        content = content[:data.draw(st.integers(0, len(content)))]
    changes = st.lists(st.tuples(st.integers(0, 199), st.integers(0, 255)), max_size=8)
    for position, value in data.draw(changes):
        if position < len(content):
            content[position] = value
    path = tmp_path_factory.getbasetemp()/f'damaged.{kind.lower()}'
    path.write_bytes(content)
    for opener in OPENERS:
        try:
            pixels = np.asarray(opener(path, max_pixels=10**6))
        except InputError as e:
            assert 'damaged' in str(e)
        else:
            assert pixels.ndim == (3 if opener is open_rgb else 2) and pixels.size <= 3 * 10**6


@pytest.mark.parametrize('kind', sorted(KINDS))
def test_empty_and_cut_short(tmp_path, kind):
    path = tmp_path/'x.png'
    for share in (0, .02, .5):
        path.write_bytes(KINDS[kind][:int(share * len(KINDS[kind]))])
        refuses(lambda: open_rgb(path), 'x.png')


def test_wrong_extension_is_read_by_its_content(tmp_path):
    (tmp_path/'x.png').write_bytes(KINDS['JPEG'])
    assert open_rgb(tmp_path/'x.png').size == (30, 24)


def test_a_bomb_is_refused_by_size_and_the_setting_allows_it(tmp_path):
    bomb = tmp_path/'bomb.png'
    Image.new('1', (40_000, 40_000)).save(bomb)   # 1.6 gigapixels, 200 kB
    for opener in OPENERS:
        refuses(lambda: opener(bomb), 'bomb.png', '1,600,000,000 pixels', 'max_pixels')
    (tmp_path/'images').mkdir()
    Image.new('RGB', (20, 20)).save(tmp_path/'images'/'a.png')

    def first_image(max_pixels):
        spec = dict(dataset='folder', root=str(tmp_path), max_pixels=max_pixels)
        return open_domain(spec, None, labelled=False).image(0)

    refuses(lambda: first_image(399), '400 pixels')
    assert first_image(400).size == (20, 20)
    refuses(lambda: first_image('many'), "max_pixels='many'")


def test_folders_links_and_names(tmp_path):
    names = ['a b.png', 'zwei\nzeilen.png', '猫 🐈.png', '-rf.png', "quote's \"x\".png", '%s{0}$HOME.png',
             '.hidden.png']
    for name in names:
        (tmp_path/name).write_bytes(KINDS['PNG'])
    (tmp_path/'folder.png').mkdir()
    (tmp_path/'loop').symlink_to(tmp_path)
    (tmp_path/'gone.png').symlink_to(tmp_path/'nowhere.png')
    assert len(image_files(tmp_path)) == len(names) - 1
    (tmp_path/'data').mkdir()
    (tmp_path/'data'/'images').symlink_to(tmp_path)
    images = folder(tmp_path/'data', labelled=False)
    for key in images.keys:
        assert key not in ('', '.', '..') and not set('/\n ') & set(key)
    assert [images.image(i).size for i in range(len(images))] == [(30, 24)] * 6


def test_what_may_not_be_read_is_named(tmp_path, monkeypatch):
    path = tmp_path/'x.png'
    path.write_bytes(KINDS['PNG'])

    def denied(*args, **more):
        raise PermissionError(13, 'Permission denied', str(path))

    monkeypatch.setattr(Image, 'open', denied)
    refuses(lambda: open_rgb(path), 'x.png', 'Permission denied')


def let_others_enter(path: Path):
    "Open pytest's own folders above a path to other users."
    for above in [path, *path.parents][:-2]:
        ours = os.access(above, os.W_OK) and above.stat().st_uid == os.getuid()
        if ours and str(above).startswith('/tmp/pytest'):
            above.chmod(above.stat().st_mode | 0o055)


def said_by_another_user(work) -> str:
    "How a call ends in a child process, which is another user where this one may read everything."
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            if os.geteuid() == 0:
                os.setegid(65534)
                os.seteuid(65534)
            try:
                said = f'returned {work()}'
            except InputError as e:
                said = str(e)
            except BaseException as e:
                said = repr(e)
            os.write(write, said.encode())
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    os.close(write)
    return os.read(read, 10_000).decode()


def test_a_folder_that_may_not_be_entered_is_named(tmp_path):
    tmp_path.chmod(0o755)
    let_others_enter(tmp_path)
    locked = tmp_path/'locked'
    locked.mkdir()
    (locked/'x.png').write_bytes(KINDS['PNG'])
    locked.chmod(0)
    said = said_by_another_user(lambda: image_files(locked))
    locked.chmod(0o700)
    assert said.startswith('Seen: ') and 'locked: Permission denied' in said, said


def test_names_that_are_no_text(tmp_path):
    "A file name of any bytes, and a class name with dollars, on the check's page."
    for path, value in (('images/a.png', 90), ('labels/a.png', 0), ('t/b.png', 90)):
        put_grey(tmp_path/path, value)
    for sub, content in (('images', b'torn'), ('labels', KINDS['PNG'])):
        Path(os.fsdecode(bytes(tmp_path/sub) + b'/\xff.png')).write_bytes(content)
    spec = dict(dataset='folder', root=str(tmp_path), name='x$')
    source = dict(spec, classes={'$x_{$ <a>': dict(values=[0], color=[1, 2, 3])})
    config = RunConfig(label_space='x$', classes={'$x_{$ <a>': [1, 2, 3]}, source=source, target=dict(spec, images='t'))
    page, wrong = check(config, tmp_path/'out', workers=0)
    assert len(wrong) == 1 and '1 of 2 cannot be used' in wrong[0][1]
    shown = page.read_text()
    assert 'udcff.png' in shown and '$x_{$ &lt;a&gt;' in shown


KEYS = ['dataset', 'name', 'root', 'images', 'labels', 'image_end', 'label_end', 'encoding', 'ignore', 'classes',
        'slice', 'skip_missing', 'max_pixels', 'merge', 'label_space', 'bits', 'exif', 'colour']
VALUES = st.one_of(st.integers(-9, 999), st.booleans(), st.text(max_size=5),
                   st.lists(st.integers(-3, 300), max_size=3),
                   st.dictionaries(st.text(max_size=3), st.integers(0, 9), max_size=2))


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=6))
def test_any_table_of_a_domain_opens_or_is_refused(tmp_path_factory, spec):
    "Unknown keys, wrong types, nonsense: one line each."
    root = tmp_path_factory.getbasetemp()/'any'
    for sub in ('images', 'labels'):
        put_zeros(root/sub/'a.png', (4, 4))
    for labelled in (True, False):
        try:
            open_domain({'dataset': 'folder', 'root': str(root), **spec}, None, labelled)
        except InputError:
            pass


DOMAINS = '[source]\ndataset = "scenes"\n[target]\ndataset = "scenes"\ndomain = "camera"\n'
WRONG_SETTINGS = {   # what a preset says -> what the message says
    'height = "tall"': "height = 'tall'",
    'hieght = 96': 'did you mean height',
    'height = 3': 'at least 16',
    '[warmup]\nsteps = 0': 'steps=0',
    '[warmup]\nsteps = 1.5': 'steps = 1.5',
    '[warmpu]\nsteps = 1': 'did you mean warmup',
    'rounds = -1': 'rounds=-1',
    'device = "gpu"': "device 'gpu'",
    '= 3': 'fix that line',
    '[target]\ndataset = "scenes"\n[source]\ndataset = "camvit"': 'did you mean camvid',
    'classes = 5': 'classes = 5'}


def test_settings_files(tmp_path, capsys):
    path, run_dir = tmp_path/'x.toml', tmp_path/'run'
    for text, message in WRONG_SETTINGS.items():
        path.write_text(text + '\n' + ('' if 'source' in text else DOMAINS))
        assert main(['run', str(path), '--run-dir', str(run_dir)]) == 2, text
        assert message in capsys.readouterr().err, text
    path.write_bytes(b'\xff\xfe\x00')
    refuses(lambda: load_preset(str(path)), 'x.toml')
    assert not run_dir.exists(), 'nothing is written for a run that cannot start'


class Evil:
    "Runs a command where it is unpickled."
    def __reduce__(self):
        return os.system, (f'touch {self.mark}',)


def write_bad_checkpoints(root: Path) -> list[str]:   # their names
    "Files that are no checkpoint, and one that is not even there."
    files = dict(empty=b'', text=b'hello', image=KINDS['PNG'], pickled=pickle.dumps(Evil()))
    for name, content in files.items():
        (root/name).write_bytes(content)
    torch.save(dict(format='bidirseg.model/1', build={}, state={}, extra=Evil()), root/'evil')
    torch.save([1, 2], root/'list')
    torch.save(dict(format='bidirseg.model/9'), root/'later')
    with zipfile.ZipFile(root/'zip', 'w') as archive:
        archive.writestr('data.pkl', 'x')
    return [*files, 'evil', 'list', 'later', 'zip', 'nowhere']


def test_a_checkpoint_that_is_none_or_carries_code(tmp_path):
    Evil.mark = tmp_path/'was_here'
    net, backbone = build_model(backbone='resnet10', num_classes=3, feature_dim=8), build_backbone('resnet18')
    readers = (load_checkpoint, lambda path: load_published(net, path), lambda path: load_simclr(backbone, path))
    for name in write_bad_checkpoints(tmp_path):
        path = tmp_path/name
        for read in readers:
            refuses(lambda: read(path), name)
        assert main(['evaluate', str(path)]) == 2
        assert main(['predict', str(path), 'x.png', '--out', str(tmp_path/'out')]) == 2
    assert not Evil.mark.exists(), 'code in a checkpoint was run'


def test_a_checkpoint_without_its_extras(tmp_path, capsys):
    path = tmp_path/'m.pt'
    save_checkpoint(path, build_model(backbone='resnet10', num_classes=3, feature_dim=8))
    assert main(['predict', str(path), 'x.png', '--out', str(tmp_path/'out')]) == 2
    assert 'does not say classes' in capsys.readouterr().err
    sizes = [64], ['a', 'b'], [64.5, 128], None
    for wrong in (*(dict(size=size) for size in sizes), dict(colors=[[0, 0, 0]])):
        extra = dict(label_space='own', classes=['a', 'b', 'c'], colors=[[i, 0, 0] for i in range(3)], size=[64, 128])
        save_checkpoint(path, build_model(backbone='resnet10', num_classes=3, feature_dim=8), **extra | wrong)
        assert main(['predict', str(path), 'x.png', '--out', str(tmp_path/'out')]) == 2
        assert 'Wanted: a model.pt that a stage wrote' in capsys.readouterr().err, wrong


def test_places_that_cannot_be_written(tmp_path, capsys):
    (tmp_path/'file').touch()
    (tmp_path/'im').mkdir()
    Image.new('RGB', (20, 20)).save(tmp_path/'im'/'a.png')
    assert main(['init-data', str(tmp_path/'im'), '--out', str(tmp_path/'file'/'x.toml')]) == 2
    assert 'Seen: ' in capsys.readouterr().err
    for argv in (['check', 'demo', '--workers', '-1'], ['evaluate', 'x', '--size', '0', '0']):
        with pytest.raises(SystemExit):
            main(argv)
        assert 'no whole number' in capsys.readouterr().err


def test_a_checkpoint_of_ours_with_wrong_insides(tmp_path):
    ours, nothing = dict(format='bidirseg.model/1'), dict(state={}, extra={})
    torch.save(ours, tmp_path/'a')
    torch.save(dict(ours, build=dict(backbone='resnet10', wheels=4), **nothing), tmp_path/'b')
    torch.save(dict(ours, build=dict(backbone='resnet10', num_classes=3), **nothing), tmp_path/'c')
    for name in 'abc':
        refuses(lambda: load_checkpoint(tmp_path/name), name)


def test_run_directories_of_another_version(tmp_path):
    texts = dict(later='{"format": 4, "config": {}}', earlier='{"format": 2, "config": {}}', older='{"config": {}}',
                 torn='{"format": 3, "con', other='[1]', strange='{"format": 3, "config": {"wheels": 4}}',
                 none='{"format": 3}')
    for name, text in texts.items():
        (tmp_path/name).mkdir()
        (tmp_path/name/'run.json').write_text(text)
        refuses(lambda: load_run(tmp_path/name))
        assert main(['report', str(tmp_path/name)]) == 2


def without_alignment(page: str) -> str:
    "Cells that look like numbers stand to the right; `-` is one of them."
    return str(page).replace(' class="n"', '')


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=30))
@example('-')
def test_pages_escape_whatever_they_show(text):
    page = without_alignment(html_table([text], [[text, 1.]]))
    harmless = without_alignment(html_table(['x'], [['x', 1.]]))
    for mark in '<>"':
        assert page.count(mark) == harmless.count(mark)
    assert len(markdown([text], [[text]]).splitlines()) == 3


NAMES = st.text(st.characters(exclude_categories=['Cs']), min_size=1, max_size=12)


@settings(max_examples=60, deadline=None)
@given(NAMES, st.lists(st.integers(0, 70_000), min_size=1, max_size=4, unique=True))
def test_any_description_is_read_back(tmp_path_factory, name, values):
    path = tmp_path_factory.getbasetemp()/'again.toml'
    path.unlink(missing_ok=True)
    spec = dict(dataset='folder', name=name, root=str(path.parent.resolve()), images=name, labels='x', encoding='ids',
                ignore=[255], classes={name: dict(values=values, color=[1, 2, 3])})
    assert read_description(write_description(spec, path)) == spec


def test_archives_stay_in_their_folder(tmp_path):
    inside = tmp_path/'in'
    inside.mkdir()
    for i, name in enumerate(['../out.png', str(tmp_path/'out.png'), 'a/../../out.png']):
        path = inside/f'{i}.zip'
        with zipfile.ZipFile(path, 'w') as archive:
            archive.writestr(name, 'x')
        refuses(lambda: unpack(inside), 'outside of')
        path.unlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == ['in']


def test_archives_make_no_links_replace_no_file_and_are_no_bombs(tmp_path, capsys, monkeypatch):
    (tmp_path/'b.txt').write_text('mine')
    with tarfile.open(tmp_path/'a.tar', 'w') as archive:
        link = tarfile.TarInfo('etc')
        link.type, link.linkname = tarfile.SYMTYPE, '/etc'
        archive.addfile(link)
        for name in ('b.txt', 'c.txt'):
            archive.addfile(tarfile.TarInfo(name), io.BytesIO())
    monkeypatch.setattr('bidirseg.data.archives._MOST_FILES', 2)
    refuses(lambda: unpack(tmp_path), 'a.tar unpacks to 3 files or more')
    assert sorted(path.name for path in tmp_path.iterdir()) == ['a.tar', 'b.txt']
    monkeypatch.undo()
    assert unpack(tmp_path) == {'a.tar': 1}
    assert '1 links or devices are left out, such as etc' in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == ['a.tar', 'b.txt', 'c.txt']
    assert (tmp_path/'b.txt').read_text() == 'mine'
