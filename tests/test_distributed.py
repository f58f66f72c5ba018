"""Training in several processes: the losses of one, a killed process, and a whole run."""
import os
import signal
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from bidirseg.core import load_json
from bidirseg.data import augment
from bidirseg.models import SegmentationOutput, forward_domains, upsample
from bidirseg.runs import open_stage, small_run, stage_dir
from bidirseg.training import (
    TrainSettings, consistency_loss, distillation_loss, labelled_loss, symmetric_cross_entropy, total_loss, train_stage,
    update_ema, weighted_cross_entropy)

SIZE = 32, 64


class TinyNetwork(nn.Module):
    "Two convolutions with batch norm; no dropout."
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.backbone = nn.Sequential(nn.Conv2d(3, 8, 3, 4, 1), nn.BatchNorm2d(8), nn.ReLU())
        self.classifier = nn.Sequential(nn.Conv2d(8, 8, 3, 1, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 19, 1))

    def forward(self, images: Tensor) -> SegmentationOutput:
        features = self.backbone(images)
        return SegmentationOutput(features, self.classifier(features))


@dataclass
class AllLosses:
    "Every loss of the package in one, with two passes, of which the second leaves the running statistics alone."
    student: nn.Module
    teacher: nn.Module
    steps: Path | None = None   # where process 0 notes its steps; process 1 is killed in step 7, once

    def __call__(self, step: int, source: dict, target: dict) -> dict[str, Tensor]:
        if self.steps:
            self.note(step)
        of_target, logits = forward_domains(self.student, 'target', [target['image'], source['image']])
        with torch.no_grad():
            of_teacher = self.teacher(target['image']).logits
        visible, weight = of_target[:, 0].detach() > 0, source['image'][:, 0].abs()
        return total_loss(dict(
            labelled=labelled_loss(logits, source, torch.linspace(.5, 1.5, 19)),
            weighted=weighted_cross_entropy(upsample(logits, SIZE), source['label'].long(), weight),
            symmetric=symmetric_cross_entropy(upsample(of_target, SIZE), target['label']),
            consistency=consistency_loss(of_target, of_teacher, visible),
            distillation=distillation_loss(of_target, of_teacher)))

    def note(self, step: int):
        if os.environ['RANK'] == '0':
            with open(self.steps, 'a') as file:
                file.write(f'{step} ')
        elif step == 7 and os.environ['TORCHELASTIC_RESTART_COUNT'] == '0':
            os.kill(os.getpid(), signal.SIGKILL)


def train(run_dir: Path, processes: int, settings: TrainSettings, steps: Path | None = None) -> tuple[list, dict]:
    "A training stage on scenes: its history, and the last state of student and teacher."
    with open_stage(run_dir, 'warmup', TrainSettings) as stage:
        stage.settings, stage.config = settings, replace(stage.config, processes=processes)
        change = augment((48, 96), SIZE)
        source, target = stage.samples('source', change), stage.samples('oracle', change)
        student, teacher = TinyNetwork(), TinyNetwork().eval()
        history = train_stage(stage, student, [source, target], AllLosses(student, teacher, steps),
                              others=dict(teacher=teacher), after_step=partial(update_ema, teacher, student, .9))
    of_teacher = {f'teacher {name}': value for name, value in teacher.state_dict().items()}
    return history, {**student.state_dict(), **of_teacher}


FIFTY = TrainSettings(steps=50, batch_size=5, lr=.01, warmup_steps=5, checkpoint_every=20, workers=0)


def test_one_two_and_four_processes_have_the_same_losses(tmp_path):
    alone, state = train(small_run(tmp_path/'1'), 1, FIFTY)
    assert alone[-1]['loss'] < .8 * alone[0]['loss']
    for processes in (2, 4):
        run_dir = small_run(tmp_path/str(processes))
        history, other = train(run_dir, processes, FIFTY)
        assert len(history) == 50
        for row, expected in zip(history, alone):
            assert row == pytest.approx(expected, abs=1e-4), processes
        for name, value in state.items():
            torch.testing.assert_close(other[name], value, rtol=1e-3, atol=1e-4)
        assert load_json(stage_dir(run_dir, 'warmup')/'stage.json')['processes'] == processes


def test_a_killed_process_is_started_again(tmp_path):
    short = replace(FIFTY, steps=10, checkpoint_every=5)
    expected, state = train(small_run(tmp_path/'whole'), 2, short)
    history, other = train(small_run(tmp_path/'killed'), 2, short, tmp_path/'steps.txt')
    steps = [int(step) for step in (tmp_path/'steps.txt').read_text().split()]
    assert steps[:7] == [*range(7)] and steps[-5:] == [*range(5, 10)] and 12 <= len(steps) <= 13
    assert history == expected
    for name, value in state.items():
        assert torch.equal(other[name], value), name
