"""python on_accelerator.py PRESET FOLDER: a run on the CPU, and the same run on the pretended accelerator.

In a process of its own, since the device stays; on it the commands that load a model follow, and the benches. Prints
how often operators ran there.
"""
import filecmp
import json
import sys
from pathlib import Path

import torch

import accelerator
from bidirseg import load
from bidirseg._compat import v2
from bidirseg.data import STYLES, RandomStyleTransfer, Samples, TrainLoader, TwoViews, augment, measure_styles
from bidirseg.data.readers import scenes
from bidirseg.pipeline.export import export
from bidirseg.pipeline.predict import evaluate_run, predict_files
from bidirseg.pipeline.stages import configure, stage_spec
from bidirseg.runs import load_run, open_images, stage_dir, stage_names, start_run
from bidirseg.studies import speed

_geometry = v2.functional._geometry
draw_dropout = torch.nn.Dropout.forward


def in_one_order(layer, x):
    "Dropout draws in the order of memory, which pretended tensors do not keep as those of the CPU do."
    return draw_dropout(layer, x.contiguous())


torch.nn.Dropout.forward = in_one_order
_geometry._do_native_uint8_resize_on_cpu = lambda how: False    # by which the CPU rounds otherwise than a device
torch.Tensor.pin_memory = lambda self: self                     # this device has no memory to pin
speed._measure_rates = lambda device: speed.Rates(1e12, 1e11)   # its matrices are a GPU's, and take a minute here


def transform():
    "What both devices make of samples: the same."
    images, size, crop = scenes(domain='game', count=4, height=48, width=96), (48, 96), (32, 64)
    transforms = [augment(size, crop), TwoViews(augment(size, crop), .2)]
    for style in STYLES.keys() - {'none'}:
        measured = measure_styles(Samples(images, size), style, torch.device('cpu'))
        transforms.append(RandomStyleTransfer(measured, style, 1., 1.))
    for change in transforms:
        samples = Samples(images, size, transform=change, weights=lambda i, label: label // 2)
        for workers, *part in ((0, 0, 1), (1, 1, 2)):
            loaders = [TrainLoader(samples, 4, 0, 8, workers, device, *part)
                       for device in (torch.device('cpu'), accelerator.DEVICE)]
            for here, there in zip(*loaders, strict=True):
                assert here.keys() == there.keys() >= {'image', 'label', 'weight', 'index'}
                assert there['weight'].device == there['image'].device == accelerator.DEVICE
                assert all(torch.equal(here[name], there[name].cpu()) for name in here), change


def run(preset: str, run_dir: Path, device: str):
    config = configure(preset, [f'device={device}', 'training.rare_class_temperature=0.01',
                                'training.lr=1e-4'])   # by which steps amplify no last bits
    start_run(run_dir, config)
    for name in stage_names(config):
        stage_spec(name).run(run_dir, name)


def use(run_dir: Path):
    image = open_images(load(run_dir).config, 'target').image(0)
    image.save(run_dir/'photo.png')
    assert next(load(run_dir).model.parameters()).device == accelerator.DEVICE
    load(run_dir).predict(image)
    predict_files(run_dir, [str(run_dir/'photo.png')], run_dir/'labels')
    evaluate_run(run_dir)
    export(run_dir, torch_file=run_dir/'model.pt2')


def compare(run_dir: Path, photo: Path, out: Path):
    "A network of the CPU's run labels and scores alike on both devices; a checkpoint file is loaded to an accelerator."
    stage, domain = 'distillation_1', load_run(run_dir).evaluation
    trained = stage_dir(run_dir, stage)/'model.pt'
    for name, segmenter in dict(here=load(run_dir, stage), there=load(trained)).items():
        predict_files(segmenter, [str(photo)], out/name, confidence=True)
    assert next(segmenter.model.parameters()).device == accelerator.DEVICE
    files = [path.name for path in (out/'here').iterdir()]
    assert len(files) == 5 and filecmp.cmpfiles(out/'here', out/'there', files, shallow=False)[0] == files
    here, there = evaluate_run(run_dir, stage), evaluate_run(trained, spec=domain)
    assert here['confusion'] == there['confusion']


SMALL = ('height=48', 'width=96', 'source_height=56', 'source_width=112', 'crop_height=none', 'crop_width=none',
         'backbone=resnet10', 'output_stride=32', 'training.batch_size=2')


def bench(name: str):
    "What is measured on a device, small; `check` and `scale` are about processors alone."
    speed.bench_prototypes(name, step_rows=500, fit_rows=500, height=64, width=128)
    speed.bench_training(name, steps=2, batch_size=2, turns=1)
    speed.bench_modes(name, 1, 2, 1, 'demo', ('channels_last', 'bf16'))
    speed.bench_predict(name, 2, 1, 1, 48, 96, 'demo')
    speed.bench_passes(name, 1, 48, 96, 48, 96, SMALL)
    speed.bench_networks(name, ('resnet10',), SMALL, 1)


if __name__ == '__main__':
    preset, folder = sys.argv[1], Path(sys.argv[2])
    transform()
    run(preset, folder/'cpu', 'cpu')
    run(preset, folder/accelerator.NAME, accelerator.NAME)
    use(folder/accelerator.NAME)
    compare(folder/'cpu', folder/accelerator.NAME/'photo.png', folder/'labels')
    bench(accelerator.NAME)
    print(json.dumps(accelerator.CALLS))
