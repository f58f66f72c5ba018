"""Label maps read from the coloured JPEG of pix2pix agree with those recovered with care; skipped where there are no
pictures at hand."""
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bidirseg.data.readers import cityscapes_pix2pix


def test_colours_of_a_jpeg_become_classes(root, tmp_path):
    data = Path(os.environ.get('BIDIRSEG_SHARED', root.parent/'shared'))/'data'/'cityscapes_256'
    if not (data/'originals').is_dir():
        pytest.skip(f'no pictures in {data}/originals; set BIDIRSEG_SHARED to the folder that holds data/')
    for path in sorted((data/'originals').glob('*.jpg')):   # train_1.jpg -> train/1.jpg, as in the archive
        split, number = path.stem.split('_')
        (tmp_path/split).mkdir(exist_ok=True)
        shutil.copy(path, tmp_path/split/f'{number}.jpg')
    pairs = cityscapes_pix2pix(tmp_path, split='train+val')
    agreement = []
    for i, key in enumerate(pairs.keys):
        split, number = key.split('__')
        wanted = np.asarray(Image.open(data/'labels'/split/f'{int(number):04d}.png'))
        assert pairs.image(i).size == (256, 256)
        agreement.append((pairs.label(i) == wanted).mean())
    assert len(agreement) == 9 and np.mean(agreement) > .97, agreement
