"""Training in several processes: the losses of one, a killed process, and a whole run."""
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from bidirseg.cli import main
from bidirseg.core import load_json
from bidirseg.data import augment
from bidirseg.models import SegmentationOutput, build_backbone, forward_domains, upsample
from bidirseg.runs import open_stage, processes, small_run, stage_dir
from bidirseg.runs.hosts import dismiss, follow, lead
from bidirseg.runs.processes import rank
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


class PlainNetwork(TinyNetwork):
    "The same without batch norm."
    def __init__(self):
        super().__init__()
        self.backbone[1] = self.classifier[1] = nn.Identity()


class NetworkOfTimm(nn.Module):
    "A convolutional network of timm whose batch norm has an activation, with a classifier on its coarse map."
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.backbone = build_backbone('timm/test_efficientnet')
        self.classifier = nn.Conv2d(self.backbone.high_channels, 19, 1)

    def forward(self, images: Tensor) -> SegmentationOutput:
        _, features = self.backbone(images)
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
            labelled=labelled_loss(logits, source, torch.linspace(.5, 1.5, 19, device=logits.device)),
            weighted=weighted_cross_entropy(upsample(logits, SIZE), source['label'].long(), weight),
            symmetric=symmetric_cross_entropy(upsample(of_target, SIZE), target['label']),
            consistency=consistency_loss(of_target, of_teacher, visible),
            distillation=distillation_loss(of_target, of_teacher)))

    def note(self, step: int):
        if rank() == 0:
            with open(self.steps, 'a') as file:
                file.write(f'{step} ')
        elif step == 7 and os.environ['TORCHELASTIC_RESTART_COUNT'] == '0':
            os.kill(os.getpid(), signal.SIGKILL)


def train(run_dir: Path, processes: int, settings: TrainSettings, steps: Path | None = None,
          network: type = TinyNetwork) -> tuple[list, dict]:
    "A training stage on scenes: its history, and the last state of student and teacher."
    with open_stage(run_dir, 'warmup', TrainSettings) as stage:
        stage.settings, stage.config = settings, replace(stage.config, processes=processes)
        change = augment((48, 96), SIZE)
        source, target = stage.samples('source', change), stage.samples('oracle', change)
        student, teacher = network().to(stage.device), network().eval().to(stage.device)
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


def test_a_batch_in_parts_has_the_losses_of_the_whole(tmp_path):
    short = replace(FIFTY, steps=10, batch_size=8)
    alone, state = train(small_run(tmp_path/'1'), 1, short, network=PlainNetwork)
    assert alone[-1]['loss'] < .9 * alone[0]['loss']
    for processes, parts in ((1, 4), (2, 2)):
        run_dir = small_run(tmp_path/f'{processes} {parts}')
        history, other = train(run_dir, processes, replace(short, accumulate=parts), network=PlainNetwork)
        for row, expected in zip(history, alone):
            assert row == pytest.approx(expected, abs=1e-4), (processes, parts)
        for name, value in state.items():
            torch.testing.assert_close(other[name], value, rtol=1e-3, atol=1e-4)


SHORT = replace(FIFTY, steps=10, checkpoint_every=5)


def test_a_network_of_timm_has_the_losses_of_one_process(tmp_path):
    alone, state = train(small_run(tmp_path/'1'), 1, SHORT, network=NetworkOfTimm)
    history, other = train(small_run(tmp_path/'2'), 2, SHORT, network=NetworkOfTimm)
    for row, expected in zip(history, alone, strict=True):
        assert row == pytest.approx(expected, abs=1e-4)
    for name, value in state.items():
        torch.testing.assert_close(other[name], value, rtol=1e-3, atol=1e-4)


@pytest.fixture(scope='module')
def of_two(tmp_path_factory) -> tuple[list, dict]:
    "What two processes of one host make of ten steps."
    return train(small_run(tmp_path_factory.mktemp('of_two')), 2, SHORT)


def check_steps(steps: Path):
    "Process 0 took steps 0 to 6, and then those behind the checkpoint."
    noted = [int(step) for step in steps.read_text().split()]
    assert noted[:7] == [*range(7)] and noted[-5:] == [*range(5, 10)] and 12 <= len(noted) <= 13


def test_a_killed_process_is_started_again(of_two, tmp_path):
    history, state = train(small_run(tmp_path), 2, SHORT, tmp_path/'steps.txt')
    check_steps(tmp_path/'steps.txt')
    assert history == of_two[0]
    for name, value in of_two[1].items():
        assert torch.equal(state[name], value), name


def test_a_run_goes_on_with_fewer_processes(of_two, tmp_path, monkeypatch):
    run_dir = small_run(tmp_path)
    monkeypatch.setattr(processes, '_RESTARTS', 0)
    with pytest.raises(ChildFailedError):
        train(run_dir, 4, SHORT, tmp_path/'steps.txt')
    history, state = train(run_dir, 2, SHORT)
    assert len(history) == 10
    for row, expected in zip(history, of_two[0]):
        assert row == pytest.approx(expected, abs=1e-4)
    for name, value in of_two[1].items():
        torch.testing.assert_close(state[name], value, rtol=1e-3, atol=1e-4)
    assert load_json(stage_dir(run_dir, 'warmup')/'stage.json')['processes'] == 2


@pytest.fixture
def two_hosts():
    "Two network namespaces, joined by a cable: name, interface and address of each."
    hosts = [(f'bidirseg{os.getpid()}{k}', f'v{os.getpid()}{k}', f'10.213.7.{k}') for k in (1, 2)]
    (first, cable, _), (second, other_end, _) = hosts
    lines = [f'netns add {first}', f'netns add {second}',
             f'link add {cable} netns {first} type veth peer name {other_end} netns {second}']
    for name, interface, address in hosts:
        lines += [f'-n {name} addr add {address}/24 dev {interface}', f'-n {name} link set {interface} up',
                  f'-n {name} link set lo up']
    try:
        for line in lines:
            subprocess.run(['ip', *line.split()], check=True, capture_output=True)
        yield hosts
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f'no network namespaces here, so no two hosts: {error}')
    finally:
        for name, _, _ in hosts:
            subprocess.run(['ip', 'netns', 'del', name], capture_output=True)


def on_host(host: tuple, function: str, *args) -> subprocess.Popen:
    "A function of this file on one of the hosts."
    name, interface, _ = host
    line = f'import test_distributed; test_distributed.{function}(*{args!r})'
    return subprocess.Popen(['ip', 'netns', 'exec', name, sys.executable, '-c', line], cwd=Path(__file__).parent,
                            env={**os.environ, 'GLOO_SOCKET_IFNAME': interface, 'OMP_NUM_THREADS': '1'})


def train_on_hosts(endpoint: str, folder: str):
    "Lead two hosts, or follow."
    folder, store = Path(folder), lead(endpoint, '2')
    if store is None:
        sys.exit(follow(endpoint, None))
    torch.save(train(small_run(folder), 1, SHORT, folder/'steps.txt'), folder/'result.pt')
    dismiss(store, 0)


def test_two_hosts_have_the_losses_of_one(two_hosts, of_two, tmp_path):
    "A worker of the second host is killed on the way."
    endpoint = f'{two_hosts[0][2]}:29500'
    running = [on_host(host, 'train_on_hosts', endpoint, str(tmp_path)) for host in reversed(two_hosts)]
    assert [process.wait(300) for process in running] == [0, 0]
    history, state = torch.load(tmp_path/'result.pt')
    check_steps(tmp_path/'steps.txt')
    assert history == of_two[0]
    for name, value in of_two[1].items():
        assert torch.equal(state[name], value), name


def test_the_same_line_on_two_hosts(preset, tmp_path, monkeypatch):
    "Here both are this process; the line that comes first leads."
    monkeypatch.setenv('BIDIRSEG_NNODES', '1')   # is taken back behind the test
    with socket.socket() as free:
        free.bind(('localhost', 0))
        place = free.getsockname()
    line = ['run', str(preset), '--run-dir', str(tmp_path/'run'), '--until', 'source_only', '--set', 'training.steps=2',
            '--nnodes', '2', '--rdzv-endpoint', f'localhost:{place[1]}']
    statuses = []

    def second_host():
        while socket.socket().connect_ex(place):   # nobody leads yet
            time.sleep(.1)
        statuses.append(main(line))

    second = threading.Thread(target=second_host)
    second.start()
    statuses.append(main(line))
    second.join()
    assert statuses == [0, 0]
    assert load_json(stage_dir(tmp_path/'run', 'source_only')/'stage.json')['processes'] == 2
