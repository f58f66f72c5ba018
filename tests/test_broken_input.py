"Files as the world has them: torn, empty, misnamed, too large, hostile. Each is refused in one line that names it, or read."
import io
import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings, strategies as st
from PIL import Image

from bidirseg.cli import main
from bidirseg.core import InputError, RunConfig, load_preset, load_run
from bidirseg.check import check
from bidirseg.data import image_files, open_colors, open_ids, open_rgb
from bidirseg.datasets import folder, open_domain, unpack
from bidirseg.model import build_backbone, build_model, load_checkpoint, load_published, load_simclr, save_checkpoint
from bidirseg.own_data import read_description, write_description
from bidirseg.pages import html_table, markdown


def encoded(kind: str, mode: str = 'RGB') -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (24, 30, 3), np.uint8)).convert(mode).save(out, kind)
    return out.getvalue()


KINDS = {k: encoded(k) for k in ('PNG', 'JPEG', 'WEBP', 'TIFF', 'BMP')}
OPENERS = (open_rgb, open_ids, open_colors)


def refuses(f, *about: str):
    "The call raises `InputError` of one line that says all of `about`."
    with pytest.raises(InputError) as e: f()
    said = str(e.value)
    assert '\n' not in said and said.startswith('Seen: ') and '. Wanted: ' in said and '. Fix: ' in said
    for text in about: assert text in said, (text, said)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(sorted(KINDS)), st.data())
def test_any_damage_is_refused_or_read(tmp_path_factory, kind, data):
    "Whatever happens to the bytes of an image, it is opened as an image of its kind or refused by name: no other error, no hang."
    whole = bytearray(KINDS[kind])
    if data.draw(st.booleans()): whole = whole[:data.draw(st.integers(0, len(whole)))]
    for at, value in data.draw(st.lists(st.tuples(st.integers(0, 199), st.integers(0, 255)), max_size=8)):
        if at < len(whole): whole[at] = value
    path = tmp_path_factory.getbasetemp()/f'damaged.{kind.lower()}'
    path.write_bytes(whole)
    for opener in OPENERS:
        try: a = np.asarray(opener(path, max_pixels=10**6))
        except InputError as e: assert 'damaged' in str(e)
        else: assert a.ndim == (3 if opener is open_rgb else 2) and a.size <= 3 * 10**6


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
    Image.new('1', (40_000, 40_000)).save(tmp_path/'bomb.png')   # 1.6 gigapixels, 200 kB
    for opener in OPENERS: refuses(lambda: opener(tmp_path/'bomb.png'), 'bomb.png', '1,600,000,000 pixels', 'max_pixels')
    (tmp_path/'images').mkdir()
    Image.new('RGB', (20, 20)).save(tmp_path/'images'/'a.png')
    spec = dict(dataset='folder', root=str(tmp_path))
    refuses(lambda: open_domain(dict(spec, max_pixels=399), None, labelled=False).image(0), '400 pixels')
    assert open_domain(dict(spec, max_pixels=400), None, labelled=False).image(0).size == (20, 20)
    refuses(lambda: open_domain(dict(spec, max_pixels='many'), None, labelled=False), "max_pixels='many'")


def test_folders_links_and_names(tmp_path):
    names = ['a b.png', 'zwei\nzeilen.png', '猫 🐈.png', '-rf.png', "quote's \"x\".png", '%s{0}$HOME.png', '.hidden.png']
    for n in names: (tmp_path/n).write_bytes(KINDS['PNG'])
    (tmp_path/'folder.png').mkdir(), (tmp_path/'loop').symlink_to(tmp_path), (tmp_path/'gone.png').symlink_to(tmp_path/'nowhere.png')
    assert len(image_files(tmp_path)) == len(names) - 1
    (tmp_path/'data').mkdir(), (tmp_path/'data'/'images').symlink_to(tmp_path)
    images = folder(tmp_path/'data', labelled=False)
    for k in images.keys: assert k not in ('', '.', '..') and '/' not in k and '\n' not in k and ' ' not in k
    assert [im.size for im in map(images.image, range(len(images)))] == [(30, 24)] * 6


def test_what_may_not_be_read_is_named(tmp_path, monkeypatch):
    (tmp_path/'x.png').write_bytes(KINDS['PNG'])
    def denied(*a, **k): raise PermissionError(13, 'Permission denied', str(tmp_path/'x.png'))
    monkeypatch.setattr(Image, 'open', denied)
    refuses(lambda: open_rgb(tmp_path/'x.png'), 'x.png', 'Permission denied')


def test_a_folder_that_may_not_be_entered_is_named(tmp_path):
    "As another user where this one may read everything."
    tmp_path.chmod(0o755)
    for p in [tmp_path, *tmp_path.parents][:-2]: p.chmod(p.stat().st_mode | 0o055) if os.access(p, os.W_OK) and p.stat().st_uid == os.getuid() and str(p).startswith('/tmp/pytest') else None
    locked = tmp_path/'locked'
    locked.mkdir(), (locked/'x.png').write_bytes(KINDS['PNG']), locked.chmod(0)
    read, write = os.pipe()
    if (child := os.fork()) == 0:
        try:
            if os.geteuid() == 0: os.setegid(65534), os.seteuid(65534)
            try: image_files(locked); said = 'read'
            except InputError as e: said = str(e)
            except BaseException as e: said = repr(e)
            os.write(write, said.encode())
        finally: os._exit(0)
    os.waitpid(child, 0), os.close(write)
    said = os.read(read, 10_000).decode()
    locked.chmod(0o700)
    assert said.startswith('Seen: ') and 'locked: Permission denied' in said, said


def test_names_that_are_no_text(tmp_path):
    "A file name of any bytes, and a class name with dollars, on the check's page."
    for sub in ('images', 'labels'): (tmp_path/sub).mkdir(), Image.fromarray(np.zeros((16, 16), np.uint8)).save(tmp_path/sub/'a.png')
    Path(os.fsdecode(bytes(tmp_path/'images') + b'/\xff.png')).write_bytes(b'torn'), Path(os.fsdecode(bytes(tmp_path/'labels') + b'/\xff.png')).write_bytes(KINDS['PNG'])
    (tmp_path/'t').mkdir(), Image.fromarray(np.zeros((16, 16), np.uint8)).save(tmp_path/'t'/'b.png')
    spec = dict(dataset='folder', root=str(tmp_path), name='x$')
    config = RunConfig(label_space='x$', classes={'$x_{$ <a>': [1, 2, 3]}, source=dict(spec, classes={'$x_{$ <a>': dict(values=[0], color=[1, 2, 3])}), target=dict(spec, images='t'))
    page, wrong = check(config, tmp_path/'out', workers=0)
    assert len(wrong) == 1 and '1 of 2 cannot be used' in wrong[0][1] and 'udcff.png' in page.read_text() and '$x_{$ &lt;a&gt;' in page.read_text()


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(st.sampled_from(['dataset', 'name', 'root', 'images', 'labels', 'image_end', 'label_end', 'encoding', 'ignore', 'classes', 'take', 'skip_missing', 'max_pixels', 'merge', 'space', 'colour']),
                       st.one_of(st.integers(-9, 999), st.booleans(), st.text(max_size=5), st.lists(st.integers(-3, 300), max_size=3), st.dictionaries(st.text(max_size=3), st.integers(0, 9), max_size=2)), max_size=6))
def test_any_table_of_a_domain_opens_or_is_refused(tmp_path_factory, spec):
    "Unknown keys, wrong types, nonsense: one line each."
    at = tmp_path_factory.getbasetemp()/'any'
    for sub in ('images', 'labels'):
        (at/sub).mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((4, 4), np.uint8)).save(at/sub/'a.png')
    for labelled in (True, False):
        try: open_domain({'dataset': 'folder', 'root': str(at), **spec}, None, labelled)
        except InputError: pass


DOMAINS = '[source]\ndataset = "scenes"\n[target]\ndataset = "scenes"\ndomain = "camera"\n'


def test_settings_files(tmp_path, capsys):
    path = tmp_path/'x.toml'
    for text, what in [('height = "tall"', "height = 'tall'"), ('hieght = 96', 'did you mean height'), ('height = 3', 'at least 16'), ('[warmup]\nsteps = 0', 'steps=0'), ('[warmup]\nsteps = 1.5', 'steps = 1.5'),
                       ('[warmpu]\nsteps = 1', 'did you mean warmup'), ('rounds = -1', 'rounds=-1'), ('device = "gpu"', "device 'gpu'"), ('= 3', 'mend that line'), ('[target]\ndataset = "scenes"\n[source]\ndataset = "camvit"', 'did you mean camvid'), ('classes = 5', 'classes = 5')]:
        path.write_text(text + '\n' + ('' if 'source' in text else DOMAINS))
        assert main(['run', str(path), '--run-dir', str(tmp_path/'run')]) == 2 and what in capsys.readouterr().err, text
    path.write_bytes(b'\xff\xfe\x00')
    refuses(lambda: load_preset(str(path)), 'x.toml')
    assert not (tmp_path/'run').exists(), 'nothing is written for a run that cannot start'


class Evil:
    def __reduce__(self): return os.system, (f'touch {self.mark}',)


def test_a_checkpoint_that_is_none_or_carries_code(tmp_path):
    mark = tmp_path/'was_here'
    Evil.mark = mark
    files = dict(empty=b'', text=b'hello', image=KINDS['PNG'], pickled=pickle.dumps(Evil()))
    for name, content in files.items(): (tmp_path/name).write_bytes(content)
    torch.save(dict(format='bidirseg.model/1', build={}, state={}, extra=Evil()), tmp_path/'evil')
    torch.save([1, 2], tmp_path/'list'), torch.save(dict(format='bidirseg.model/9'), tmp_path/'later')
    with zipfile.ZipFile(tmp_path/'zip', 'w') as z: z.writestr('data.pkl', 'x')
    net, backbone = build_model(backbone='resnet10', num_classes=3, feature_dim=8), build_backbone('resnet18')
    for name in [*files, 'evil', 'list', 'later', 'zip', 'nowhere']:
        for read in (load_checkpoint, lambda p: load_published(net, p), lambda p: load_simclr(backbone, p)): refuses(lambda: read(tmp_path/name), name)
        assert main(['evaluate', str(tmp_path/name)]) == 2 and main(['predict', str(tmp_path/name), 'x.png', '--out', str(tmp_path/'out')]) == 2
    assert not mark.exists(), 'code in a checkpoint was run'


def test_a_checkpoint_without_its_extras(tmp_path, capsys):
    save_checkpoint(tmp_path/'m.pt', build_model(backbone='resnet10', num_classes=3, feature_dim=8))
    assert main(['predict', str(tmp_path/'m.pt'), 'x.png', '--out', str(tmp_path/'out')]) == 2 and 'does not say classes' in capsys.readouterr().err


def test_places_that_cannot_be_written(tmp_path, capsys):
    (tmp_path/'file').touch(), (tmp_path/'im').mkdir(), Image.new('RGB', (20, 20)).save(tmp_path/'im'/'a.png')
    assert main(['init-data', str(tmp_path/'im'), '--out', str(tmp_path/'file'/'x.toml')]) == 2
    assert 'Seen: ' in capsys.readouterr().err
    for line in (['check', 'demo', '--workers', '-1'], ['evaluate', 'x', '--size', '0', '0']):
        with pytest.raises(SystemExit): main(line)
        assert 'no whole number' in capsys.readouterr().err


def test_a_checkpoint_of_ours_with_wrong_insides(tmp_path):
    torch.save(dict(format='bidirseg.model/1'), tmp_path/'a'), torch.save(dict(format='bidirseg.model/1', build=dict(backbone='resnet10', wheels=4), state={}, extra={}), tmp_path/'b')
    torch.save(dict(format='bidirseg.model/1', build=dict(backbone='resnet10', num_classes=3), state={}, extra={}), tmp_path/'c')
    for name in 'abc': refuses(lambda: load_checkpoint(tmp_path/name), name)


def test_run_directories_of_another_version(tmp_path):
    for name, text in dict(later='{"format": 2, "config": {}}', older='{"config": {}}', torn='{"format": 1, "con', other='[1]', strange='{"format": 1, "config": {"wheels": 4}}', none='{"format": 1}').items():
        (tmp_path/name).mkdir()
        (tmp_path/name/'run.json').write_text(text)
        refuses(lambda: load_run(tmp_path/name))
        assert main(['report', str(tmp_path/name)]) == 2


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=30))
@example('-')
def test_pages_escape_whatever_they_show(text):
    bare = lambda page: page.replace(' class="n"', '')   # cells that look like numbers stand to the right; `-` is one of them
    page, plain = bare(html_table([text], [[text, 1.]])), bare(html_table(['x'], [['x', 1.]]))
    assert page.count('<') == plain.count('<') and page.count('>') == plain.count('>') and page.count('"') == plain.count('"')
    assert len(markdown([text], [[text]]).splitlines()) == 3


@settings(max_examples=60, deadline=None)
@given(st.text(st.characters(exclude_categories=['Cs']), min_size=1, max_size=12), st.lists(st.integers(0, 70_000), min_size=1, max_size=4, unique=True))
def test_any_description_is_read_back(tmp_path_factory, name, values):
    path = tmp_path_factory.getbasetemp()/'again.toml'
    path.unlink(missing_ok=True)
    spec = dict(dataset='folder', name=name, root=str(path.parent.resolve()), images=name, labels='x', encoding='ids', ignore=[255], classes={name: dict(values=values, color=[1, 2, 3])})
    assert read_description(write_description(spec, path)) == spec


def test_archives_stay_in_their_folder(tmp_path):
    inside = tmp_path/'in'
    inside.mkdir()
    for n, name in enumerate(['../out.png', str(tmp_path/'out.png'), 'a/../../out.png']):
        with zipfile.ZipFile(inside/f'{n}.zip', 'w') as z: z.writestr(name, 'x')
        refuses(lambda: unpack(inside), 'outside of')
        (inside/f'{n}.zip').unlink()
    assert sorted(p.name for p in tmp_path.iterdir()) == ['in']
