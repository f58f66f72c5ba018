"""The layout: which module may import which, and what the notebooks store."""
import ast
import json
import re
from itertools import chain
from pathlib import Path

import pytest

FLOORS = [   # from the ground up; a module imports from its own floor or from below
    {'_compat', 'core', 'plots'},
    {'mixture'},
    {'data', 'models'},
    {'runs'},
    {'training'},
    {'model', 'warmup', 'prototypes', 'pseudo_labels', 'reweighting', 'self_training', 'distillation', 'evaluation',
     'judgement'},
    {'pipeline'},
    {'studies'},
    {'cli'},
]
FLOOR = {name: number for number, names in enumerate(FLOORS) for name in names}
METHOD = [f'0{number}' for number in range(2, 9)]   # 02_warmup ... 08_evaluation


def module_name(path: Path, package: Path) -> tuple[str, ...]:
    parts = path.relative_to(package).with_suffix('').parts
    return parts[:-1] if parts[-1] == '__init__' else parts


def absolute(node: ast.ImportFrom, module: tuple[str, ...], is_package: bool) -> tuple[str, ...] | None:
    "What an import statement imports from, inside the package; None for another package."
    named = tuple(node.module.split('.')) if node.module else ()
    if node.level == 0:
        return named[1:] if named[:1] == ('bidirseg',) else None
    depth = node.level - (1 if is_package else 0)
    return module[:len(module) - depth] + named


@pytest.fixture(scope='module')
def imports(root) -> dict[tuple, set[tuple]]:   # module -> modules it imports from
    package, found = root/'bidirseg', {}
    modules = {module_name(path, package) for path in package.rglob('*.py')}
    for path in package.rglob('*.py'):
        module, targets = module_name(path, package), set()
        for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
            if not isinstance(node, ast.ImportFrom):
                continue
            base = absolute(node, module, path.stem == '__init__')
            if base is None:
                continue
            for alias in node.names:
                deeper = (*base, alias.name)
                targets.add(deeper if deeper in modules else base)
        found[module] = targets - {()}
    return found


def test_every_module_has_a_floor(imports):
    assert {module[0] for module in imports if module and module[0] != '_modidx'} == FLOOR.keys()


def test_no_import_runs_upward(imports):
    upward = [(module, target) for module, targets in imports.items() for target in targets
              if module and module[0] in FLOOR and FLOOR[target[0]] > FLOOR[module[0]]]
    assert not upward, upward


def test_no_import_runs_in_a_circle(imports):
    done, under_way = set(), []

    def visit(module):
        if module in done:
            return
        assert module not in under_way, [*under_way, module]
        under_way.append(module)
        for target in imports.get(module, ()):
            if target != module:
                visit(target)
        under_way.pop()
        done.add(module)

    for module in imports:
        visit(module)


def test_the_design_is_in_the_listing(root):
    "Plain numbers in reading order inside each folder."
    for folder in (root/'nbs', *(path for path in (root/'nbs').iterdir() if path.is_dir())):
        numbers = [path.name[:2] for path in sorted(folder.glob('[0-9]*.ipynb'))]
        assert len(set(numbers)) == len(numbers), (folder.name, numbers)
        assert all(re.match(r'\d\d_[a-z_]+\.ipynb$', path.name) for path in folder.glob('[0-9]*.ipynb'))


def cells_of(path: Path) -> list[dict]:
    return [cell for cell in json.loads(path.read_text(encoding='utf-8'))['cells'] if cell['cell_type'] == 'code']


def method_notebooks(root: Path) -> list[Path]:
    return [path for path in sorted((root/'nbs').glob('[0-9]*.ipynb')) if path.name[:2] in METHOD]


def test_every_figure_of_the_method_is_stored(root):
    draws = re.compile(r'^\s*(?:thumbnail\(|image_grid\(|fig, ax)', re.M)
    for path in method_notebooks(root):
        for cell in cells_of(path):
            source = ''.join(cell['source'])
            if draws.search(source) and not source.startswith(('#| export', '#| hide')):
                assert cell['outputs'], f'{path.name} stores no output of:\n{source}\nrun: make notebooks'


def test_the_method_shows_one_run(root):
    runs = {path.name: json.loads(path.read_text(encoding='utf-8'))['metadata'].get('demo_run')
            for path in method_notebooks(root)}
    assert None not in runs.values() and len(set(runs.values())) == 1, f'{runs}; run: make notebooks'


def test_notebooks_are_small(root):
    for path in (root/'nbs').rglob('*.ipynb'):
        assert path.stat().st_size < 300 * 1024, f'{path.name}: {path.stat().st_size // 1024} KB'


def test_no_stored_output_is_a_warning(root):
    "Standard error holds warnings, with paths of the machine that ran the notebook."
    for path in (root/'nbs').rglob('*.ipynb'):
        for output in chain.from_iterable(cell.get('outputs', []) for cell in cells_of(path)):
            text = ''.join(output.get('text', []))
            assert output.get('name') != 'stderr', f'{path.name} stores {text[:80]!r}; take it out'


def assigned(source: str) -> set[str]:   # names that a cell assigns at its top level
    tree = ast.parse('\n'.join(line for line in source.splitlines() if not line.startswith('%')))
    inner = (ast.FunctionDef, ast.ClassDef, ast.Lambda, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)

    def names(node):
        if not isinstance(node, inner):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                yield node.id
            for child in ast.iter_child_nodes(node):
                yield from names(child)

    return set(names(tree))


def test_no_cell_overwrites_a_setting(root):
    "A stage reads its settings from the notebook's names: a loop variable of that name would change the stage."
    for path in method_notebooks(root):
        settings, others = set(), set()
        for cell in cells_of(path):
            is_parameters = 'parameters' in cell['metadata'].get('tags', [])
            (settings if is_parameters else others).update(assigned(''.join(cell['source'])))
        assert len(settings) > 2, f'{path.name} has no parameters'
        overwritten = settings & others - {'run_dir'}   # a reader without a run gets a small one
        assert not overwritten, f'{path.name} assigns {overwritten}'
