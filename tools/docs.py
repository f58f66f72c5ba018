"""Builds the site from the notebooks into _docs.

nbdev's filters make the pages, smalldocs the HTML from _quarto.yml; tools/reference.py writes the pages that come from
the code itself. In between, tests and imports fold, and outputs read as a terminal shows them."""
import ast
import html
import json
import re
import shutil
import sys
import tempfile
from functools import lru_cache
from pathlib import Path

from latex2mathml.converter import convert
from nbdev.config import get_config
from nbdev.serve import proc_nbs
from smalldocs import highlight
from smalldocs.site import build

import reference

highlight.css_class = lru_cache(None)(highlight.css_class)   # asked of every token again

PREFIX = re.compile(r'(?<!\w)\d\d_(\w+)(?=\.ipynb|\.html)')   # 03_prototypes.ipynb is the page prototypes.html
DEFINED = re.compile(r'^(?:async )?(?:def|class) (\w+)', re.M)
PROGRESS = re.compile(r'^.*\d+%\|.*\n?', re.M)
TABLE = re.compile(r'^(\|.*\|\n\| ?---.*\|\n(?:\|.*\|(?:\n|\Z))*)', re.M)
MATHS = re.compile(r'<span class="math (inline|display)">\\[(\[](.*?)\\[)\]]</span>', re.S)
FROM_ELSEWHERE = re.compile(r'\s*(?:<script[^>]*katex[^>]*></script>|<link[^>]*katex[^>]*>)', re.I)
LINK = re.compile(r'\]\([^)]+\)|href="[^"]+"')   # files keep their names elsewhere, as in a line of the shell
FONTS = re.compile(r'@import url\(http[^)]*\);?')
MENDED = {   # of what smalldocs writes: what a screen reader cannot make sense of
    'role="navigation" aria-expanded': 'role="button" tabindex="0" aria-expanded',
    ' role="img"></i>': ' aria-hidden="true"></i>'}


def rename(text: str) -> str:
    "Names of notebooks without their numbers."
    return PREFIX.sub(r'\1', text)


def is_test(node: ast.AST) -> bool:
    "Whether a statement holds an assertion or a call of fastcore's test_eq and its like."
    called = [inner.func for inner in ast.walk(node) if isinstance(inner, ast.Call)]
    names = [one.id for one in called if isinstance(one, ast.Name)]
    return any(isinstance(inner, ast.Assert) for inner in ast.walk(node)) or any(map(re.compile('test_').match, names))


def fold_summary(source: str) -> str:   # empty: the cell stays open
    "What a cell is that most readers skip: tests without a definition, or imports alone."
    body = ast.parse(re.sub(r'^[%!].*', '', source, flags=re.M)).body
    kinds = {type(node) for node in body}
    if body and kinds <= {ast.Import, ast.ImportFrom}:
        return 'Imports'
    defines = kinds & {ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef}
    return 'Tests' if body and not defines and is_test(body[-1]) else ''


def fold_options(cell: dict, source: str, fold: bool) -> str:   # lines before the source
    "What tells the site to fold a cell; one that shows something stays open, or its output had no cause."
    summary = 'Source' if fold else '' if cell['outputs'] else fold_summary(source)
    return f'#| code-fold: true\n#| code-summary: {summary}\n' if summary else ''


def anchors(source: str, seen: set) -> list[dict]:   # a cell of text, or none
    "A place to link to for every definition of a cell, where its name comes first."
    names = [name for name in dict.fromkeys(DEFINED.findall(source)) if name not in seen]
    seen.update(names)
    return [reference.text_cell(''.join(f'<div id="{name}"></div>' for name in names))] if names else []


def printed(text: str) -> list[dict]:   # outputs of a notebook
    "Text as a terminal shows it, without progress bars; tables in it are tables."
    text = '\n'.join(line.rsplit('\r', 1)[-1] for line in text.split('\n'))
    parts = TABLE.split(PROGRESS.sub('', text))
    outputs = []
    for i, part in enumerate(parts):
        if i % 2:
            outputs.append(dict(output_type='display_data', metadata={}, data={'text/markdown': part}))
        elif part.strip():
            outputs.append(dict(output_type='stream', name='stdout', text=part.strip('\n') + '\n'))
    return outputs


def tidy(outputs: list[dict]) -> list[dict]:
    "What was printed in pieces is one text."
    tidied, text = [], ''
    for output in [*outputs, {}]:
        if output.get('name') == 'stdout':
            text += ''.join(output['text'])
            continue
        tidied += printed(text)
        text = ''
        if output:
            tidied.append(output)
    return tidied


def prepare_cells(cells: list[dict], base: str, fold: bool) -> list[dict]:
    "Links between notebooks go to pages; definitions can be linked to, tests and imports fold."
    seen, prepared = set(), []
    for cell in cells:
        source = ''.join(cell['source'])
        if cell['cell_type'] == 'markdown':
            source = LINK.sub(lambda link: rename(link[0]), source).replace(base + '/', '')
        elif cell['cell_type'] == 'code':
            cell['outputs'] = tidy(cell['outputs'])
            prepared += anchors(source, seen)
            source = fold_options(cell, source, fold) + source
        prepared.append({**cell, 'source': source})
    return prepared


def introduction(path: Path) -> list[dict]:
    "What follows title and description in a notebook's first cell: nbdev keeps these two alone."
    first = ''.join(json.loads(path.read_text(encoding='utf-8'))['cells'][0]['source'])
    text = re.sub(r'\A#[^\n]*\s*(?:>[^\n]*\n?)*', '', first).strip()
    return [reference.text_cell(text)] if text else []


def front_matter(source: str, original: Path, config) -> str:
    "A page's title and description, and where its notebook is."
    inside = original.relative_to(config.config_path)
    link = dict(text='View the notebook', href=f'{config.git_url}/blob/{config.branch}/{inside.as_posix()}')
    lines = re.sub(r'^output-file:.*\n', '', source, flags=re.M).strip().removesuffix('---')
    return f'{lines}code-links: [{json.dumps(link)}]\n---\n'


def prepare_page(path: Path, original: Path, out: Path, config):
    "One filtered notebook, ready for the site."
    notebook = json.loads(path.read_text(encoding='utf-8'))
    cells = notebook['cells']
    of_commands = out.stem == 'command_line'
    cells[0]['source'] = front_matter(''.join(cells[0]['source']), original, config)
    cells[1:1] = introduction(original) + (reference.commands() if of_commands else [])
    notebook['cells'] = prepare_cells(cells, config.doc_host + config.doc_baseurl, fold=of_commands)
    out.write_text(json.dumps(notebook), encoding='utf-8')


def prepare(proc: Path, site: Path, config):
    "Copy the filtered notebooks without their numbers, and what lies beside them."
    for path in sorted(proc.rglob('*')):
        inside = path.relative_to(proc)
        if path.is_dir() or inside.parts[0].startswith(config.doc_path.name):
            continue
        out = site/rename(inside.as_posix())
        out.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == '.ipynb':
            prepare_page(path, config.nbs_path/inside, out, config)
        else:
            shutil.copy(path, out)
    shutil.copytree(config.nbs_path/'images', site/'images', dirs_exist_ok=True)
    quarto = (config.config_path/'_quarto.yml').read_text(encoding='utf-8')
    (site/'_quarto.yml').write_text(rename(quarto), encoding='utf-8')
    reference.write_pages(site, config)


def to_mathml(found: re.Match) -> str:
    "Formulas as MathML, which a browser shows without a network."
    tex = html.unescape(found[2]).strip().replace(r'\arg', r'\operatorname{arg}')   # which latex2mathml does not know
    return convert(tex, display='block' if found[1] == 'display' else 'inline')


def finish(docs: Path):
    "Formulas, fonts and search work without a network, and for a page opened as a file."
    for page in docs.rglob('*.html'):
        text = FROM_ELSEWHERE.sub('', MATHS.sub(to_mathml, page.read_text(encoding='utf-8')))
        for bad, good in MENDED.items():
            text = text.replace(bad, good)
        page.write_text(text, encoding='utf-8')
    for theme in (docs/'site_libs'/'themes').glob('*.css'):
        theme.write_text(FONTS.sub('', theme.read_text(encoding='utf-8')), encoding='utf-8')
    index = (docs/'search.json').read_text(encoding='utf-8')
    (docs/'search.js').write_text(f'window.searchIndex = {index}', encoding='utf-8')


def main(out: str = '') -> int:
    config = get_config()
    target = Path(out) if out else config.doc_path
    proc_nbs(n_workers=0, force=True)   # here: a worker would import all of the package again
    with tempfile.TemporaryDirectory() as folder:
        site = Path(folder)/'site'
        prepare(config.config_path/'_proc', site, config)
        built = build(site, quiet=True)
        finish(site/'_docs')
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(site/'_docs', target)
    for warning in built.warnings:
        print(f'docs: {warning}', file=sys.stderr)
    print(f'docs: {len(built.pages)} pages in {target}, start with {target/"index.html"}')
    return int(len(built.warnings) > 0)


if __name__ == '__main__':
    sys.exit(main(*sys.argv[1:]))
