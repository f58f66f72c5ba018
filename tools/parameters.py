"""Writes the parameter cell of every stage's notebook from the dataclass of its settings; --check only compares.

A setting is declared once, in the dataclass: name, type, default, meaning. papermill wants a cell that lists the
parameters, so that cell is made: each is None, which means "as in the run"."""
import inspect
import json
import re
import sys
from dataclasses import fields
from pathlib import Path

from bidirseg.pipeline.stages import stage_spec

ROOT = Path(__file__).resolve().parent.parent
STAGES = ('data', 'warmup', 'prototypes', 'pseudo_labels', 'reweighting', 'self_training', 'distillation_1',
          'evaluation', 'judgement')
HEAD = """run_dir: str = None   # a run directory; None: a small run on the embedded scenes
from_run: str = None   # another run; run_dir becomes a run of its own, which takes over what still holds
stage: str = {stage!r}   # which stage of the run; the settings below are its own, None: as in the run"""
TAIL = "tests: bool = False   # also run the tests and examples of the definitions"
FIELD = re.compile(r'^    (\w+): .*?  # (.*)$', re.M)


def comments(cls: type) -> dict[str, str]:
    "What the source says behind every field, of base classes too."
    found = {}
    for base in reversed(cls.__mro__):
        if hasattr(base, '__dataclass_fields__'):
            found |= dict(FIELD.findall(inspect.getsource(base)))
    return found


def parameter_cell(stage: str) -> str:
    "The source of the parameter cell of a stage's notebook."
    cls = stage_spec(stage).settings
    says = comments(cls)
    lines = [HEAD.format(stage=stage)]
    for field in fields(cls):
        kind = str(getattr(field.type, '__name__', field.type)).split(' |')[0]
        comment = f'   # {says[field.name]}' if field.name in says else ''
        lines.append(f'{field.name}: {kind} = None{comment}')
    return '\n'.join([*lines, TAIL])


def main(check: bool) -> int:
    stale = []
    for stage in STAGES:
        path = stage_spec(stage).notebook
        notebook = json.loads(path.read_text(encoding='utf-8'))
        cell = next(c for c in notebook['cells'] if 'parameters' in c['metadata'].get('tags', []))
        wanted = parameter_cell(stage)
        if ''.join(cell['source']) == wanted:
            continue
        stale.append(path.name)
        if not check:
            cell['source'] = wanted.splitlines(keepends=True)
            text = json.dumps(notebook, indent=1, ensure_ascii=False, sort_keys=True)
            path.write_text(text + '\n', encoding='utf-8')
    verb = 'differ from the settings; run tools/parameters.py' if check else 'written'
    print(f"parameters: {', '.join(stale) or 'nothing'} {verb if stale else 'to do'}")
    return int(check and bool(stale))


if __name__ == '__main__':
    sys.exit(main('--check' in sys.argv[1:]))
