"""Inputs as people really have them: one folder of each kind, where the corpus lies beside the repository."""
import shutil
from pathlib import Path

import numpy as np
import pytest

from bidirseg.cli import main
from bidirseg.core import InputError
from bidirseg.data import guess_description, open_domain, read_description, unpack, write_description


@pytest.fixture(scope='module')
def inputs(root) -> Path:
    "The corpus."
    folder = root.parent/'shared'/'inputs'
    if not folder.is_dir():
        pytest.skip(f'no corpus of inputs in {folder}')
    return folder


def described(folder: Path, images: str = 'images', labels: str | None = 'masks') -> tuple[dict, str]:
    "The description of a folder, and what was said."
    spec, seen = guess_description(folder/images, folder/labels if labels else None)
    return spec, '\n'.join(seen)


def refused(folder: Path, *about: str, **where):
    "The folder is refused in one line that says all of `about`."
    with pytest.raises(InputError) as e:
        described(folder, **where)
    assert all(text in str(e.value) for text in about), str(e.value)


def test_classes_of_a_simulator_are_kept(inputs):
    spec, said = described(inputs/'01_known_palette_drops_classes'/'a')
    assert len(spec['classes']) == 15 and 'road line' in spec['classes'] and not spec['ignore'] and 'carla22' in said


def test_camvid_has_all_its_classes(inputs):
    spec, said = described(inputs/'02_camvid_official_colours'/'a')
    assert len(spec['classes']) == 11 and {'pedestrian', 'sidewalk'} < spec['classes'].keys()
    assert 'ignored: [0, 0, 0]' in said


def test_a_tools_colour_map_names_nothing(inputs, tmp_path):
    folder = inputs/'03_voc_palette_named_camvid'/'a'
    spec, said = described(folder, 'JPEGImages', 'SegmentationClassPNG')
    assert list(spec['classes']) == ['class 0', 'class 1', 'class 2', 'class 3', 'class 7']
    assert 'voc21' in said and 'they could be' in said
    for sub in ('JPEGImages', 'SegmentationClassPNG'):
        shutil.copytree(folder/sub, tmp_path/sub)
    names = ['__ignore__', '_background_', 'road', 'car', 'tree', 'w', 'x', 'y', 'house']
    (tmp_path/'class_names.txt').write_text('\n'.join(names))
    spec, said = described(tmp_path, 'JPEGImages', 'SegmentationClassPNG')
    assert list(spec['classes']) == ['background', 'road', 'car', 'tree', 'house'] and 'class_names.txt' in said


def test_one_value_is_one_class_in_both_domains(inputs):
    folder = inputs/'04_class_names_by_rank'/'a'
    source, _ = described(folder/'source')
    scored, _ = described(folder/'scored')
    assert list(scored['classes']) == ['class 0', 'class 1', 'class 3', 'class 4']
    assert all(source['classes'][name]['values'] == scored['classes'][name]['values'] for name in scored['classes'])


def test_255_among_grey_levels_is_a_class(inputs):
    spec, _ = described(inputs/'05_grey_levels_255_is_a_class'/'a')
    assert [entry['values'] for entry in spec['classes'].values()] == [[0], [127], [255]] and not spec['ignore']


def test_what_is_no_label_map_is_refused(inputs):
    refused(inputs/'06_antialiased_masks'/'a', 'fill no area', 'nearest pixel')
    refused(inputs/'28_mixed_mask_modes'/'a', 'masks/1.png', 'masks/0.png')
    refused(inputs/'29_masks_in_alpha'/'a', 'transparent')
    refused(inputs/'33_one_mask_per_class'/'a', 'car, road')


def test_palettes_of_their_own_are_read_by_colour(inputs):
    folder = inputs/'07_palette_per_file'/'a'
    spec, _ = described(folder)
    images = open_domain(spec, None)
    for i, key in enumerate(images.keys):
        truth = np.load(folder/'truth'/f'{key}.npy')
        pairs = set(zip(images.label(i).ravel().tolist(), truth.ravel().tolist()))
        if i == 0:
            same = dict(pairs)
        assert all(same.setdefault(a, b) == b for a, b in pairs)


def test_pictures_beside_ids_are_left_out(inputs):
    spec, said = described(inputs/'08_colour_pictures_beside_ids'/'a', labels='labels')
    assert spec['encoding'] == 'ids' and '4 pictures beside the label maps are left out' in said


def test_masks_are_no_target_images(inputs):
    spec, said = described(inputs/'09_masks_beside_images_as_target'/'a', 'train', None)
    assert len(open_domain(spec, None, False)) == 4 and '4 pictures beside the images are left out' in said
    spec, said = described(inputs/'09_masks_beside_images_as_target'/'a', 'train', 'train')
    assert list(spec['classes']) == ['background', 'car', 'road'] and '_classes.csv' in said
    assert len(open_domain(spec, None)) == 4


def test_gif_masks_are_read(inputs):
    spec, _ = described(inputs/'12_gif_and_pgm_masks'/'a')
    assert len(open_domain(spec, None)) == 3 and list(spec['classes']) == ['class 0', 'class 1']


def test_a_zip_from_windows_becomes_folders(inputs, tmp_path):
    archive = inputs/'13_zip_with_backslashes'/'a'/'camvid.zip'
    (tmp_path/'camvid.zip').write_bytes(archive.read_bytes())
    unpack(tmp_path)
    assert len(list((tmp_path/'camvid'/'train').iterdir())) == 2


def test_one_name_in_two_forms_is_one_name(inputs):
    spec, said = described(inputs/'17_unicode_nfd_nfc'/'a')
    images = open_domain(spec, None)
    assert len(images) == 10 and not images.missing
    assert [int(images.label(i)[0, 0]) for i in range(4)] == [0, 1, 2, 0]


def test_void_labels_are_refused_as_source_and_for_scores(inputs, tmp_path, capsys):
    root = inputs/'20_all_void_labels'/'a'
    target = 'dataset = "cityscapes"\nsplit = "val"\n'
    (tmp_path/'target.toml').write_text(f'root = "{root}"\n{target}')
    (tmp_path/'void.toml').write_text(f'root = "{root}"\ndataset = "cityscapes"\nsplit = "test"\n')
    (tmp_path/'good.toml').write_text(f'root = "{root}"\ndataset = "cityscapes"\nsplit = "train"\n')
    for roles in (dict(source='void', target='target'), dict(source='good', target='target', evaluation='void')):
        argv = [word for role, name in roles.items() for word in (f'--{role}', str(tmp_path/f'{name}.toml'))]
        assert main(['check', *argv, '--out', str(tmp_path/'check'), '--workers', '0']) == 1
        assert 'no pixel has a class' in capsys.readouterr().out
        assert main(['run', *argv, '--run-dir', str(tmp_path/'run'), '--dry-run']) == 2
        assert 'no pixel has a class' in capsys.readouterr().err


def test_sixteen_bits_are_scaled_to_what_is_there(inputs):
    spec, said = described(inputs/'22_sixteen_bit_images'/'a', '.', None)
    assert spec['bits'] == 12 and 'divided by 16' in said
    assert np.asarray(open_domain(spec, None, False).image(0)).max() == 255


def test_turned_images_and_their_masks_lie_alike(inputs):
    spec, said = described(inputs/'23_exif_and_flips'/'a')
    assert spec['exif'] == 'stored' and 'turned by their EXIF notes' in said
    images = open_domain(spec, None)
    for i in range(len(images)):
        bright = np.asarray(images.image(i).convert('L')) > 100
        labels = images.label(i, bright.shape)
        assert len({*labels[bright].tolist()}) == len({*labels[~bright].tolist()}) == 1


def test_upright_and_lying_pictures_are_said(inputs):
    _, said = described(inputs/'24_portrait_and_landscape'/'a', '.', None)
    assert '3 of 4 images are higher than wide' in said


def test_small_ids_are_nobodys(inputs, tmp_path):
    spec, said = described(inputs/'31_carla_tags_taken_for_cityscapes'/'a')
    assert all(name.startswith('class ') for name in spec['classes']) and 'carla22' in said
    told = {name: entry for name, entry in spec.items() if name not in ('classes', 'ignore')}
    path = write_description(told | dict(label_space='carla22'), tmp_path/'told.toml')
    assert open_domain(read_description(path), None).space.classes[6] == 'road'
