"""Builds the site from the notebooks into _docs.

nbdev's filters make the pages, smalldocs the HTML from _quarto.yml. Quarto, where it is installed,
reads the same file (`nbdev_docs`)."""
import json
import re
import shutil
import sys
import tempfile
from pathlib import Path

from latex2mathml.converter import convert
from nbdev.config import get_config
from nbdev.serve import proc_nbs
from smalldocs.site import build

PREFIX = re.compile(r'(?<!\w)\d\d_(\w+)(?=\.ipynb|\.html)')   # 03_prototypes.ipynb is the page prototypes.html
DEFINED = re.compile(r'^(?:async )?(?:def|class) (\w+)', re.M)
MATHS = re.compile(r'<span class="math (inline|display)">\\[(\[](.*?)\\[)\]]</span>', re.S)
KATEX = re.compile(r'\s*(?:<script[^>]*katex[^>]*></script>|<link[^>]*katex[^>]*>)', re.I)


def rename(text: str) -> str:
    "Names of notebooks without their numbers."
    return PREFIX.sub(r'\1', text)


def prepare_cell(cell: dict, base: str, seen: set):
    "Links between notebooks go to pages; a definition gets an anchor of its name."
    source = ''.join(cell['source'])
    if cell['cell_type'] == 'raw':   # Quarto's, the names already are
        source = re.sub(r'^output-file:.*\n', '', source, flags=re.M)
    if cell['cell_type'] == 'markdown':
        source = rename(source).replace(base + '/', '')
    found = DEFINED.search(source) if cell['cell_type'] == 'code' else None
    if found and found[1] not in seen:
        seen.add(found[1])
        source = f'#| label: {found[1]}\n{source}'
    cell['source'] = source


def introduction(path: Path) -> list[dict]:
    "What follows title and description in a notebook's first cell: nbdev keeps these two alone."
    first = ''.join(json.loads(path.read_text(encoding='utf-8'))['cells'][0]['source'])
    text = re.sub(r'\A#[^\n]*\s*(?:>[^\n]*\n?)*', '', first).strip()
    return [dict(cell_type='markdown', metadata={}, source=text)] if text else []


def prepare_page(path: Path, original: Path, out: Path, base: str):
    "One filtered notebook, ready for the site."
    notebook, seen = json.loads(path.read_text(encoding='utf-8')), set()
    notebook['cells'][1:1] = introduction(original)   # after the front matter
    for cell in notebook['cells']:
        prepare_cell(cell, base, seen)
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
            prepare_page(path, config.nbs_path/inside, out, config.doc_host + config.doc_baseurl)
        else:
            shutil.copy(path, out)
    if (config.nbs_path/'images').is_dir():
        shutil.copytree(config.nbs_path/'images', site/'images', dirs_exist_ok=True)
    quarto = (config.config_path/'_quarto.yml').read_text(encoding='utf-8')
    (site/'_quarto.yml').write_text(rename(quarto), encoding='utf-8')


def to_mathml(found: re.Match) -> str:
    "Formulas as MathML, which a browser shows without a network."
    tex = found[2].replace('&lt;', '<').replace('&gt;', '>').replace('&#x27;', "'").replace('&quot;', '"')
    tex = tex.replace('&#39;', "'").replace('&amp;', '&')
    return convert(tex.strip(), display='block' if found[1] == 'display' else 'inline')


def main(out: str = '') -> int:
    config = get_config()
    target = Path(out) if out else config.doc_path
    proc_nbs(n_workers=2, force=True)
    with tempfile.TemporaryDirectory() as folder:
        site = Path(folder)/'site'
        prepare(config.config_path/'_proc', site, config)
        built = build(site, quiet=True)
        for page in (site/'_docs').rglob('*.html'):
            text = MATHS.sub(to_mathml, page.read_text(encoding='utf-8'))
            page.write_text(KATEX.sub('', text), encoding='utf-8')
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(site/'_docs', target)
    for warning in built.warnings:
        print(f'docs: {warning}', file=sys.stderr)
    print(f'docs: {len(built.pages)} pages in {target}, start with {target/"index.html"}')
    return int(len(built.warnings) > 0)


if __name__ == '__main__':
    sys.exit(main(*sys.argv[1:]))
