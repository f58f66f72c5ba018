"How the public names are used. It is not run: `make test` has mypy read it, and a line that should fail has to."
from pathlib import Path
from typing import assert_type

import numpy as np
import torch

import bidirseg
from bidirseg.core import InputError
from bidirseg.evaluation import confusion_matrix, iou_per_class, mean_iou
from bidirseg.model import build_model
from bidirseg.prototypes import ClassPrototypes, GaussianMixture
from bidirseg.reweighting import fit_centroids, transferability
from bidirseg.self_training import poly_schedule, weighted_cross_entropy

model = bidirseg.load('runs/demo')
assert_type(model.classes, tuple[str, ...])
model.predict('photo.jpg', flip=True)
bidirseg.load(Path('model.pt'), stage=None)
bidirseg.load(3)   # type: ignore[arg-type]
bidirseg.lode('runs/demo')   # type: ignore[attr-defined]
assert_type(bidirseg.__version__, str)

report = bidirseg.run('demo', 'runs/demo', seed=1, warmup=dict(steps=200))
assert_type(report, Path)
bidirseg.run('demo')   # type: ignore[call-arg]

labels = np.zeros((4, 4), np.uint8)
counts = confusion_matrix(labels, labels, 19)
mean_iou(counts, classes=[0, 1])
iou_per_class(counts).tolist()
bidirseg.predict(build_model(backbone='resnet18', num_classes=3), labels)

rows = torch.zeros(100, 8)
GaussianMixture(n_components=2, random_state=0).fit(rows).score_samples(rows)
ClassPrototypes.fit({0: rows, 1: rows}, n_components=2).save('prototypes.pt')
transferability(rows, fit_centroids(rows, n_centroids=4), mean_distance=1.0)
weighted_cross_entropy(rows, rows.argmax(1), rows[:, 0])
poly_schedule(10, 100, 5, 1e-3)

error = InputError('what came', 'what was wanted', 'the way out')
assert_type(error.fix, str)
