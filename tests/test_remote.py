"""Images in a store that speaks S3 and in tar files: the same bytes as from a folder here, and one line for each way to
fail."""
import io
import tarfile
import threading
from contextlib import redirect_stdout
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Iterator

import numpy as np
import pytest
from PIL import Image

from bidirseg.cli import main
from bidirseg.core import InputError, fingerprint
from bidirseg.data import CITYSCAPES19, draw_scene, open_domain
from bidirseg.data.loading import Samples, read_batches
from bidirseg.data.remote import _fetch
from bidirseg.models import build_model, save_checkpoint
from bidirseg.pipeline.stages import configure, stage_spec
from bidirseg.runs import stage_dir, start_run

moto = pytest.importorskip('moto.server', reason='no store is tested: no moto')
fsspec = pytest.importorskip('fsspec', reason='no store is tested: no fsspec')
ENDINGS = dict(images='.jpg', labels='.png')


@pytest.fixture(scope='module')
def town(tmp_path_factory) -> Path:
    "A folder with images and label maps, and the same in two tars."
    root = tmp_path_factory.mktemp('town')
    for number in range(6):
        image, ids = draw_scene('camera', number, 48, 96)
        for kind, array in dict(images=image, labels=ids).items():
            path = root/kind/f'{number % 2}'/f'{number}{ENDINGS[kind]}'
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(path)
    for number in range(2):
        with tarfile.open(root/f'town-{number:03d}.tar', 'w') as tar:
            for kind in ENDINGS:
                tar.add(root/kind/f'{number}', f'{number}')
    return root


@pytest.fixture(scope='module')
def server():
    "A local server that speaks S3."
    running = moto.ThreadedMotoServer(port=0)
    with redirect_stdout(io.StringIO()):
        running.start()
    host, port = running.get_host_and_port()
    yield f'http://{host}:{port}'
    running.stop()


@pytest.fixture
def store(server, monkeypatch, tmp_path) -> str:
    "The address of the server, for everything that is started from here."
    for name, value in dict(AWS_ENDPOINT_URL=server, AWS_ACCESS_KEY_ID='a', AWS_SECRET_ACCESS_KEY='b',
                            AWS_DEFAULT_REGION='us-east-1', XDG_CACHE_HOME=str(tmp_path/'cache')).items():
        monkeypatch.setenv(name, value)
    fsspec.get_filesystem_class('s3').clear_instance_cache()
    yield server
    fsspec.get_filesystem_class('s3').clear_instance_cache()


@pytest.fixture
def bucket(store, town) -> str:   # its URL
    "The town in a bucket."
    system = fsspec.filesystem('s3')
    if not system.exists('town'):
        system.mkdir('town')
        system.put(f'{town}/', 'town/photos/', recursive=True)
    return 's3://town/photos'


@pytest.fixture(params=['a folder of a store', 'tars here', 'tars in a store'])
def spec(request, town, bucket) -> dict:
    "A description of the town elsewhere."
    if request.param == 'a folder of a store':
        return dict(dataset='folder', root=bucket, exif='upright')
    root = str(town) if request.param == 'tars here' else bucket
    return dict(dataset='shards', root=root, files='town-{000..001}.tar', exif='upright')


def here(town: Path) -> dict:
    return dict(dataset='folder', root=str(town), exif='upright')


def test_the_same_images_and_labels(town, spec):
    local, far = (open_domain(each, CITYSCAPES19) for each in (here(town), spec))
    assert far.keys == local.keys
    for i in range(len(local)):
        assert np.array_equal(local.image(i), far.image(i)) and np.array_equal(local.label(i), far.label(i))
    assert far.fingerprint() == open_domain(spec, CITYSCAPES19).fingerprint()
    assert far.file_stamps() == open_domain(spec, CITYSCAPES19).file_stamps()
    unlabelled = open_domain(spec, CITYSCAPES19, labelled=False)
    assert unlabelled.keys == local.keys and not hasattr(unlabelled, 'label')


def test_workers_read_from_a_store(town, bucket):
    "A data worker is a copy of a process that has already spoken to the store."
    spec = dict(dataset='folder', root=bucket, exif='upright')
    local, far = (Samples(open_domain(each, CITYSCAPES19), (48, 96)) for each in (here(town), spec))
    for one, other in zip(read_batches(local, range(6), workers=0), read_batches(far, range(6), workers=2)):
        assert all(np.array_equal(one[name], other[name]) for name in one)


def data_stage(folder: Path, preset: Path, spec: dict) -> str:   # fingerprint of what it wrote
    "The data stage of a tiny run with one half of the town as its target and the other to evaluate on."
    described = {}
    for domain, part in dict(target=':3', evaluation='3:').items():
        described[domain] = folder/f'{domain}.toml'
        lines = [f'{name} = "{value}"\n' for name, value in dict(spec, slice=part, name='town').items()]
        described[domain].write_text(''.join(lines))
    run_dir = start_run(folder/'run', configure(str(preset), [], described))
    stage_spec('data').run(run_dir, 'data')
    (stage_dir(run_dir, 'data')/'stage.json').unlink()   # says when
    (stage_dir(run_dir, 'data')/'.key').unlink()
    return fingerprint(stage_dir(run_dir, 'data'))


def test_the_same_stage(town, spec, preset, tmp_path):
    for name in ('here', 'there'):
        (tmp_path/name).mkdir()
    assert data_stage(tmp_path/'here', preset, here(town)) == data_stage(tmp_path/'there', preset, spec)


@pytest.fixture(scope='module')
def model(tmp_path_factory) -> Path:
    "A small network with fresh weights."
    path, classes = tmp_path_factory.mktemp('model')/'model.pt', list(CITYSCAPES19.classes)
    net = build_model(backbone='resnet10', num_classes=len(classes), feature_dim=8)
    return save_checkpoint(path, net.eval(), label_space='cityscapes19', classes=classes, colors=[], size=[32, 64])


def test_the_same_predictions(model, town, bucket, tmp_path, capsys):
    words = [str(town/'images'), f'{bucket}/images', f'{bucket}/town-{{000..001}}.tar', f'{town}/town-{{000..001}}.tar']
    for number, word in enumerate(words):
        assert main(['predict', str(model), word, '--out', str(tmp_path/str(number))]) == 0, capsys.readouterr().err
    assert len(list((tmp_path/'0').rglob('*.png'))) == 13
    assert len({fingerprint(tmp_path/str(number)) for number in range(len(words))}) == 1


def test_somebody_writes_to_the_store(bucket):
    images = open_domain(dict(dataset='folder', root=bucket), CITYSCAPES19, labelled=False)
    before, system = images.file_stamps(), fsspec.filesystem('s3')
    content = system.cat_file('town/photos/images/0/0.jpg')
    try:
        system.pipe_file('town/photos/images/0/0.jpg', content + b' ')
        assert images.file_stamps() != before
        changed = open_domain(dict(dataset='folder', root=bucket), CITYSCAPES19, labelled=False)
        assert changed.fingerprint() != images.fingerprint()
    finally:
        system.pipe_file('town/photos/images/0/0.jpg', content)
    assert images.file_stamps() == before


class Breaking(BaseHTTPRequestHandler):
    "A server whose connections end in the middle of an answer."
    def do_GET(self):
        self.send_response(200)
        self.send_header('Content-Length', '1000')
        self.end_headers()
        self.wfile.write(b'x' * 10)
        self.close_connection = True

    def log_message(self, *words): pass


@pytest.fixture
def breaking(monkeypatch) -> Iterator[None]:
    "From here on every connection to the store breaks."
    server = ThreadingHTTPServer(('127.0.0.1', 0), Breaking)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv('AWS_ENDPOINT_URL', f'http://127.0.0.1:{server.server_port}')
    monkeypatch.setenv('AWS_MAX_ATTEMPTS', '1')
    monkeypatch.setattr(fsspec.get_filesystem_class('s3'), 'retries', 2)
    fsspec.get_filesystem_class('s3').clear_instance_cache()
    _fetch.cache_clear()
    yield
    server.shutdown()
    server.server_close()


def assert_one_line(error: InputError, words: str):
    assert words in str(error) and '\n' not in error.seen, error


def test_a_connection_that_breaks(bucket, model, tmp_path, capsys, request):
    images = open_domain(dict(dataset='folder', root=bucket), CITYSCAPES19, labelled=False)
    request.getfixturevalue('breaking')
    with pytest.raises(InputError) as error:
        images.image(4)
    assert_one_line(error.value, 'photos/images/1/3.jpg cannot be read')
    assert main(['predict', str(model), f'{bucket}/images', '--out', str(tmp_path/'out')]) == 2
    said = capsys.readouterr().err
    assert 'cannot be read' in said and 'Traceback' not in said


def test_what_is_not_there(bucket, monkeypatch):
    for root, words in (('s3://no-such-bucket/photos', 'no folder s3://no-such-bucket/photos'),
                        (f'{bucket}/none', 'no folder'), ('nostore://photos', 'nostore')):
        with pytest.raises(InputError) as error:
            open_domain(dict(dataset='folder', root=root), CITYSCAPES19)
        assert_one_line(error.value, words)
    with pytest.raises(InputError) as error:
        open_domain(dict(dataset='shards', root=bucket, files='none.tar'), CITYSCAPES19)
    assert_one_line(error.value, 'nothing at s3://town/photos/none.tar')
    monkeypatch.setattr(type(fsspec.filesystem('s3')), 'find', refuse)
    with pytest.raises(InputError) as error:
        open_domain(dict(dataset='folder', root=bucket), CITYSCAPES19)
    assert_one_line(error.value, 'access to s3://town/photos')


def refuse(*words, **options):
    raise PermissionError('Access Denied')
