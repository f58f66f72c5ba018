"A run works where people run it: odd folders, strange kernels, no home, very small images."
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bidirseg.core import InputError, load_json
from bidirseg.data import draw_scene
from bidirseg.pipeline.stages import check_config, configure, stage_spec
from bidirseg.runs import stage_dir, start_run

ONE_STAGE = '''
import sys
from bidirseg.pipeline.stages import run_stage
from bidirseg.runs import small_run
run_stage(small_run(sys.argv[1]), 'data')
'''


def test_a_stage_runs_whatever_its_surroundings(tmp_path, call):
    "A run directory that papermill would fill in, somebody else's python3 kernel, start-up files, and no home."
    kernel = tmp_path/'jupyter'/'kernels'/'python3'/'kernel.json'
    kernel.parent.mkdir(parents=True)
    kernel.write_text(json.dumps(dict(argv=['false', '{connection_file}'], display_name='other', language='python')))
    start_up = tmp_path/'ipython'/'profile_default'/'startup'/'00.py'
    start_up.parent.mkdir(parents=True)
    start_up.write_text(f'open({str(tmp_path/"was_here")!r}, "w")')
    (tmp_path/'file').touch()
    run_dir = tmp_path/'''a {x} {0} {} {run_dir} "q" 'p' 100% # $y ü 猫'''
    places = dict.fromkeys(('XDG_CACHE_HOME', 'XDG_CONFIG_HOME', 'XDG_DATA_HOME', 'MPLCONFIGDIR', 'TORCH_HOME'), '')
    call('python', '-c', ONE_STAGE, run_dir, HOME=str(tmp_path/'file'/'home'), JUPYTER_PATH=str(tmp_path/'jupyter'),
         IPYTHONDIR=str(tmp_path/'ipython'), **places)
    folder = stage_dir(run_dir, 'data')
    assert load_json(folder/'stage.json')['stage'] == 'data' and (folder/'notebook.ipynb').is_file()
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {'jupyter', 'ipython', 'file', run_dir.name}, 'nothing is written elsewhere'


def described(folder: Path, pixels: int) -> dict[str, str]:
    "A labelled source and a target of one image each, as small as this."
    files = {}
    for name, style in dict(source='game', target='camera').items():
        image, ids = draw_scene(style, 0, 48, 96)
        for sub, array in dict(images=image, labels=ids).items():
            (folder/name/sub).mkdir(parents=True)
            Image.fromarray(np.ascontiguousarray(array[20:20 + pixels, :pixels])).save(folder/name/sub/'0.png')
        files[name] = str(folder/f'{name}.toml')
        Path(files[name]).write_text(f'dataset = "folder"\nname = "{name}"\nroot = "{name}"\n')
    return files


TINY = ['backbone=resnet10', 'weights=none', 'feature_dim=8', 'device=cpu', 'height=16', 'width=16',
        'training.batch_size=2', 'warmup.warmup_steps=0', 'warmup.steps=3',
        'self_training.steps=2', 'self_training.batch_size=1', 'self_training.bn_mode=joint',
        'self_training.warmup_steps=0',
        'prototypes.n_components=2', 'reweighting.n_centroids=4']


def test_one_image_of_ten_pixels(tmp_path):
    "Coarse maps of one pixel, and batches that hold the same image twice."
    config = configure('own', TINY, described(tmp_path, 10))
    check_config(config)
    run_dir = start_run(tmp_path/'run', config)
    for name in ('warmup', 'prototypes', 'pseudo_labels', 'reweighting', 'self_training'):
        stage_spec(name).run(run_dir, name)
    assert load_json(stage_dir(run_dir, 'self_training')/'stage.json')['outputs'].keys() >= {'model.pt'}


@pytest.mark.parametrize('stage', ['warmup', 'training', 'self_training'])
def test_a_batch_of_one_is_refused_before_anything_runs(stage, tmp_path):
    changes = [*TINY, 'warmup.batch_size=2', 'self_training.bn_mode=target', 'self_training.batch_size=2']
    if stage == 'training':
        changes = [change for change in changes if '.batch_size' not in change]
    with pytest.raises(InputError) as e:
        configure('own', [*changes, f'{stage}.batch_size=1'], described(tmp_path, 10))
    assert e.value.fix == f'set {stage}.batch_size=2'
