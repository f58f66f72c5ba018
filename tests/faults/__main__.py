"""Break the small pipeline, hundreds of times; see the package's description."""
import argparse
import itertools
import json
import os
import platform
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import Iterator

import matplotlib.pyplot   # noqa: F401  these four: what the copies would import one by one
import scipy.ndimage   # noqa: F401
import sklearn.cluster   # noqa: F401
import sklearn.decomposition   # noqa: F401
import torch

from bidirseg.core import commit

from .case import Case, Missed
from .kinds import KINDS, CannotBeDone
from .lines import LINE_KINDS
from .world import REPORT, World, make_world

ALL = {**KINDS, **LINE_KINDS}   # in this order: those of the shell take longest
TRAINED = ('source_only', 'warmup', 'self_training', 'distillation_1', 'oracle')
MOST = max(about.often for about in ALL.values())
ATTEMPTS = 5   # at a case whose stage ended before its fault


def stages_of(kind: str, names: list[str]) -> list[str]:
    return dict(all=names, report=[*names, REPORT], training=TRAINED, complete=[REPORT])[ALL[kind].stages]


def plan(names: list[str], only: str | None) -> Iterator[tuple[str, str, int]]:   # kind, stage, number
    "All cases there are, in rounds of several turns in which each kind comes."
    numbers = Counter()
    for turn in itertools.count():
        for place, (kind, about) in enumerate(ALL.items()):
            if only not in (None, kind) or turn % MOST not in range(about.turn, about.turn + about.often):
                continue
            number, stages = numbers[kind], stages_of(kind, names)
            numbers[kind] += 1
            yield kind, stages[(number + place) % len(stages)], number


def carry_out(world: World, kind: str, stage: str, number: int, seed: int, attempt: int) -> Case:
    "Break once and check; raises `AssertionError` where it was not survived."
    place = world.folder/'case'
    shutil.rmtree(place, ignore_errors=True)
    case, then = Case(world, kind, stage, number, seed, place, attempt), ALL[kind].then
    try:
        ALL[kind].does(case)
        if then == 'again':
            case.goes_on()
        elif then == 'rebuilt':
            case.start_again()
            case.finished()
        elif not case.is_over:
            case.finished()
    finally:
        case.end_all()
    return case


def one(world: World, kind: str, stage: str, number: int, seed: int) -> dict:
    "A case as a row of the results."
    row, began = dict(kind=kind, stage=stage, number=number, seed=seed), time.monotonic()
    try:
        for attempt in range(ATTEMPTS):
            try:
                case = carry_out(world, kind, stage, number, seed, attempt)
                said = [text.replace(str(world.folder), 'DIR') for text in case.said]
                row |= dict(result='survived', about=case.about, said=said)
                break
            except Missed:
                row |= dict(result='missed')
    except CannotBeDone as why:
        row |= dict(result='skipped', why=str(why))
    except Exception as error:
        row |= dict(result='failed', why=f'{type(error).__name__}: {error}'.replace(str(world.folder), 'DIR'))
    return row | dict(seconds=round(time.monotonic() - began, 2))


def summary(rows: list[dict], seed: int, seconds: float) -> dict:
    "The table of kinds and stages, and where it comes from."
    table = {}
    for row in rows:
        entry = table.setdefault((row['kind'], row['stage']), dict(injected=0, survived=0, seconds=0., said=[]))
        entry['injected'] += row['result'] in ('survived', 'failed')
        entry['survived'] += row['result'] == 'survived'
        entry['seconds'] = round(entry['seconds'] + row['seconds'], 1)
        new = [text for text in row.get('said', []) if text not in entry['said']]
        entry['said'] += new[:2 - len(entry['said'])]
    lines = [dict(kind=kind, what=ALL[kind].what, stage=stage, **entry)
             for (kind, stage), entry in sorted(table.items())]
    machine = f'{platform.system()} {platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}'
    return dict(seed=seed, commit=commit(), machine=machine, seconds=round(seconds),
                injected=sum(line['injected'] for line in lines), survived=sum(line['survived'] for line in lines),
                skipped=sorted({row['why'] for row in rows if row['result'] == 'skipped'}),
                failed=[{name: row[name] for name in ('kind', 'stage', 'number', 'why')}
                        for row in rows if row['result'] == 'failed'], table=lines)


def say(row: dict, done: int, count: int, seconds: float):
    "How far it is; of a failure what it was, and how to repeat it."
    left = seconds / done * (count - done)
    print(f"{done}/{count} {row['result']} {row['kind']} {row['stage']} {row['number']}: {row['seconds']:.1f} s; "
          f"{done / seconds * 60:.1f} a minute, {left / 60:.1f} minutes left", flush=True)
    if row['result'] == 'failed':
        name = f"{row['kind']}/{row['stage']}/{row['number']}"
        print(f"    {row['why'][-1500:]}")
        print(f"    alone: cd tests && python -m faults --seed {row['seed']} --case {name}", flush=True)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog='python -m faults', description=__doc__)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--count', type=int, default=520, help='how many cases')
    parser.add_argument('--only', choices=list(ALL), metavar='KIND', help=f"one of {', '.join(ALL)}")
    parser.add_argument('--each', action='store_true', help='each kind once, without lines of the shell')
    parser.add_argument('--case', metavar='KIND/STAGE/NUMBER', help='one case alone')
    parser.add_argument('--out', type=Path, help='a JSON file for the table')
    return parser.parse_args()


def chosen(args: argparse.Namespace, names: list[str]) -> list[tuple[str, str, int]]:   # kind, stage, number
    "The cases that the options name."
    if args.case:
        kind, stage, number = args.case.split('/')
        return [(kind, stage, int(number))]
    planned = plan(names, args.only)
    if args.each:
        return [next(planned) for _ in KINDS]
    return [next(planned) for _ in range(args.count)]


def main() -> int:
    args, began, rows = parse(), time.monotonic(), []
    warnings.simplefilter('ignore')
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))   # and the folder goes with it
    torch.set_num_threads(1)
    os.environ.update(OMP_NUM_THREADS='1', PYTHONWARNINGS='ignore')
    with tempfile.TemporaryDirectory(prefix='faults_') as folder:
        world = make_world(Path(folder))
        print(f'the undisturbed run: {time.monotonic() - began:.0f} s', flush=True)
        cases = chosen(args, world.names)
        since = time.monotonic()
        for kind, stage, number in cases:
            rows.append(one(world, kind, stage, number, args.seed))
            say(rows[-1], len(rows), len(cases), time.monotonic() - since)
            if args.out:
                args.out.write_text(json.dumps(summary(rows, args.seed, time.monotonic() - began), indent=1) + '\n')
    results = Counter(row['result'] for row in rows)
    print(f"{results['survived'] + results['failed']} injected, {results['survived']} survived, "
          f"{results['missed']} came too late, {results['skipped']} cannot be done here")
    return int(results['failed'] > 0)


if __name__ == '__main__':
    sys.exit(main())
