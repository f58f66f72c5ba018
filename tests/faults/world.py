"""What all cases start from: a preset, its data on the disk, an undisturbed run, and copies of its beginning."""
import os
import shutil
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from conftest import TINY
from PIL import Image

from bidirseg.runs import load_preset, open_images, stage_names
from bidirseg.runs.stage import own_files

from .child import command, start
from .tap import Tap

REPORT = 'report'   # the last thing a run writes; stands for a stage here


def _draw_data(preset: Path, folder: Path) -> str:   # the tables that describe it
    "The preset's scenes as files of images and label maps."
    tables, config = '', load_preset(str(preset))
    for domain in ('source', 'target', 'evaluation'):
        drawn, place = open_images(config, 'oracle' if domain == 'target' else domain), folder/domain
        for kind in ('images', 'labels'):
            (place/kind).mkdir(parents=True)
        for i, key in enumerate(drawn.keys):
            drawn.image(i).save(place/'images'/f'{key}.png')
            Image.fromarray(drawn.label(i)).save(place/'labels'/f'{key}.png')
        tables += f'[{domain}]\ndataset = "folder"\nroot = "{place}"\n'
    return tables


def make_preset(folder: Path) -> Path:
    "The tiny preset of the tests, on images that lie on the disk."
    preset = folder/'tiny.toml'
    preset.write_text(TINY)
    general, own = TINY.partition('[source]')[0], TINY.partition('[training]')[2]
    preset.write_text(f"{general}{_draw_data(preset, folder/'data')}[training]{own}")
    return preset


@dataclass
class World:
    "A folder with all of it."
    folder: Path
    preset: Path = None
    names: list[str] = field(default_factory=list)           # of stages
    events: dict[str, int] = field(default_factory=dict)     # stage -> writes
    seconds: dict[str, float] = field(default_factory=dict)  # stage -> of its line, usually

    @property
    def reference(self) -> Path:
        return self.folder/'reference'

    def stage_folder(self, run_dir: Path, stage: str) -> Path:
        return run_dir/f'{self.names.index(stage) + 1:02d}_{stage}'

    def line(self, run_dir: Path, stage: str, *more) -> list:
        "The line that runs a stage, those before it being complete."
        until = () if stage == REPORT else ('--until', stage)
        return ['run', self.preset, '--run-dir', run_dir, *until, *more]

    def before(self, stage: str, run_dir: Path) -> Path:
        "A run as it is before a stage: links to the files of the stages before."
        run_dir.mkdir(parents=True)
        for name in ('run.json', 'run.lock'):
            shutil.copy(self.reference/name, run_dir/name)
        count = len(self.names) if stage == REPORT else self.names.index(stage)
        for name in self.names[:count]:
            self.link_stage(name, run_dir)
        return run_dir

    def link_stage(self, name: str, run_dir: Path):
        "Give a run the files of a complete stage that it has not got."
        for path in own_files(self.stage_folder(self.reference, name)):
            target = run_dir/path.relative_to(self.reference)
            target.parent.mkdir(parents=True, exist_ok=True)
            if not target.exists():
                (shutil.copy if path.name.startswith('.') else os.link)(path, target)


def _counted_line(world: World, stage: str) -> int:
    "Run a stage of the reference; how many writes it took goes to a file."
    tap = Tap(world.reference)
    tap.install()
    status = command(world.line(world.reference, stage))
    (world.folder/f'{stage}.count').write_text(str(tap.count))
    return status


def make_world(folder: Path) -> World:
    "Draw the data and make the reference, each stage in a process of its own."
    folder.mkdir(parents=True, exist_ok=True)
    world = World(folder, make_preset(folder))
    world.names = stage_names(load_preset(str(world.preset)))
    for stage in [*world.names, REPORT]:
        began = time.monotonic()
        child = start(partial(_counted_line, world, stage), folder/'reference.txt')
        assert child.wait() == 0, child.said()
        world.seconds[stage] = time.monotonic() - began
        world.events[stage] = int((folder/f'{stage}.count').read_text())
    return world
