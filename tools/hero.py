"""Draws nbs/images/demo.png, the README's picture, from a finished run of the demo.

One scene, not the best one: of all scored scenes the one whose gain over source-only is the median."""
import sys
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

import bidirseg
from bidirseg.data import LabeledImageSet
from bidirseg.evaluation import confusion_matrix, mean_iou
from bidirseg.plots import color_legend, save_figure
from bidirseg.runs import load_run, open_images

PICTURE = Path(__file__).resolve().parent.parent/'nbs'/'images'/'demo.png'


def scene_miou(segmenter, scenes: LabeledImageSet) -> np.ndarray:   # (scenes,) in [0, 1]
    "The mean IoU of every scene on its own."
    found = []
    for i in range(len(scenes)):
        matrix = confusion_matrix(scenes.label(i), segmenter.predict(scenes.image(i)), len(segmenter.space))
        found.append(mean_iou(matrix, np.flatnonzero(matrix.sum(1))))
    return np.array(found)


def draw(pictures: dict[str, np.ndarray], colors: dict[str, tuple]) -> Figure:
    "Two rows of two pictures with names above and a legend below, large enough for a telephone."
    fig = Figure(figsize=(6.4, 3.8), dpi=130, layout='constrained')
    for ax, (name, picture) in zip(fig.subplots(2, 2).flat, pictures.items(), strict=True):
        ax.imshow(picture, interpolation='nearest')
        ax.set_title(name, fontsize=13)
        ax.axis('off')
    color_legend(fig, colors)
    return fig


def main(run_dir: str = 'runs/demo') -> int:
    scenes = open_images(load_run(run_dir), 'evaluation')
    before, after = bidirseg.load(run_dir, 'source_only'), bidirseg.load(run_dir, 'self_training')
    gain = scene_miou(after, scenes) - scene_miou(before, scenes)
    middle = int(np.argsort(gain)[len(gain) // 2])
    image, labels, space = scenes.image(middle), scenes.label(middle), after.space
    pictures = {'target image': image, 'its true labels': space.colorize(labels),
                'source-only': space.colorize(before.predict(image)), 'adapted': space.colorize(after.predict(image))}
    shown = [i for i in np.unique(labels) if i < len(space)]
    save_figure(draw(pictures, {space.classes[i]: space.colors[i] for i in shown}), PICTURE)
    print(f'hero: scene {middle} of {len(scenes)}, {100 * gain[middle]:+.1f} points of mean IoU')
    return 0


if __name__ == '__main__':
    sys.exit(main(*sys.argv[1:]))
