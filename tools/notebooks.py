"""Executes the method's notebooks on a finished run of the demo and keeps what they show.

The pictures and tables that are stored in these notebooks are then those of one whole run, whose fingerprint is
written into the metadata of each. The demo has no round of distillation, so 07_distillation is shown on a copy of the
run that goes on with one. The run's place is a parameter; no path of a machine stays in a notebook. The
README's picture is drawn from the same run."""
import hashlib
import json
import shutil
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import papermill
from nbdev.clean import clean_nb
from execnb.nbio import read_nb, write_nb

from bidirseg.core import load_json
from bidirseg.pipeline.stages import run_stage, stage_spec
from bidirseg.runs import is_finished, load_run, stage_dir, stage_names, start_run

import hero

ROOT = Path(__file__).resolve().parent.parent
ROUND = 'distillation_1'


def run_fingerprint(run_dir: Path) -> str:   # 16 hexadecimal digits
    "What tells a finished run from another: the results of all its stages."
    keys = [load_json(stage_dir(run_dir, name)/'stage.json')['outputs'] for name in stage_names(load_run(run_dir))]
    return hashlib.sha256(json.dumps(keys, sort_keys=True).encode()).hexdigest()[:16]


def stages_by_notebook(run_dir: Path) -> dict[Path, str]:   # notebook -> the stage it shows
    "The last stage of each notebook that is the method's own: 02_warmup shows the warm-up, not a baseline."
    shown = {}
    for name in stage_names(load_run(run_dir)):
        if name not in ('source_only', 'oracle'):
            shown[stage_spec(name).notebook] = name
    return shown


def with_a_round(run_dir: Path) -> Path:   # the copy, beside the run
    "A copy of a finished run that goes on with one round of distillation, by the preset's settings."
    copy = run_dir.with_name(f'{run_dir.name}-round')
    not_copied = shutil.ignore_patterns('*_evaluation', 'report.html', 'run.lock')
    shutil.copytree(run_dir, copy, ignore=not_copied, dirs_exist_ok=True)
    start_run(copy, replace(load_run(run_dir), rounds=1), update=True)
    if not is_finished(copy, ROUND, stage_spec(ROUND).settings):
        run_stage(copy, ROUND)
    return copy


def shown_stages(run_dir: Path) -> list[tuple[Path, str, Path]]:   # notebook, stage, run directory
    "What `main` executes: every notebook of the method, with the stage that it shows and the run that has it."
    shown = [(notebook, stage, run_dir) for notebook, stage in stages_by_notebook(run_dir).items()]
    if not load_run(run_dir).rounds:
        shown.append((stage_spec(ROUND).notebook, ROUND, with_a_round(run_dir)))
    return shown


def execute(notebook: Path, stage: str, run_dir: Path) -> dict:
    "The notebook's cells with the outputs of this run, without the injected parameters."
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)/notebook.name
        parameters = dict(run_dir=str(run_dir), stage=stage, tests=True)
        papermill.execute_notebook(notebook, out, parameters, kernel_name='python3',
                                   cwd=notebook.parent, progress_bar=False, extra_arguments=['--log-level=40'])
        executed = json.loads(out.read_text(encoding='utf-8'))
    text = json.dumps(executed).replace(json.dumps(str(run_dir))[1:-1], 'RUN')
    cells = json.loads(text)['cells']
    return dict(cells=[cell for cell in cells if 'injected-parameters' not in cell['metadata'].get('tags', [])])


def store(notebook: Path, cells: list[dict], fingerprint: str):
    "Put the outputs into the notebook, cleaned as nbdev cleans."
    content = json.loads(notebook.read_text(encoding='utf-8'))
    for cell, executed in zip(content['cells'], cells, strict=True):
        if cell['cell_type'] == 'code':
            cell['outputs'] = [output for output in executed['outputs'] if output.get('name') != 'stderr']
    content['metadata']['demo_run'] = fingerprint
    notebook.write_text(json.dumps(content), encoding='utf-8')
    cleaned = read_nb(notebook)
    clean_nb(cleaned, allowed_metadata_keys=['demo_run'], allowed_cell_metadata_keys=['tags'])
    write_nb(cleaned, notebook)


def main(run_dir: str = 'runs/demo') -> int:
    run_dir = Path(run_dir).resolve()
    fingerprint = run_fingerprint(run_dir)
    for notebook, stage, shown_run in shown_stages(run_dir):
        print(f'{notebook.relative_to(ROOT)}: {stage} of {shown_run.name}', flush=True)
        store(notebook, execute(notebook, stage, shown_run)['cells'], fingerprint)
    print(f'notebooks: outputs of the run {fingerprint}')
    return hero.main(str(run_dir))


if __name__ == '__main__':
    sys.exit(main(*sys.argv[1:]))
