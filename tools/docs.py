"""Builds the site from the notebooks into _docs.

nbdev's filters make the pages, smalldocs the HTML from _quarto.yml. Quarto, where it is installed,
reads the same file (`nbdev_docs`)."""
import json, re, shutil, sys, tempfile
from pathlib import Path

from latex2mathml.converter import convert
from nbdev.config import get_config
from nbdev.serve import proc_nbs
from smalldocs.site import build

PREFIX = re.compile(r'(?<![\w/])\d\d[a-z]?_(\w+)(?=\.ipynb|\.html)')   # 05_prototypes.ipynb is the page prototypes.html
DEFINED = re.compile(r'^(?:async )?(?:def|class) (\w+)', re.M)
MATHS = re.compile(r'<span class="math (inline|display)">\\[(\[](.*?)\\[)\]]</span>', re.S)
KATEX = re.compile(r'\s*(?:<script[^>]*katex[^>]*></script>|<link[^>]*katex[^>]*>)', re.I)


def stage_cell(cell: dict, base: str, seen: set):
    "Links between notebooks go to pages; a definition gets an anchor of its name."
    source = ''.join(cell['source'])
    if cell['cell_type'] == 'raw': source = re.sub(r'^output-file:.*\n', '', source, flags=re.M)   # Quarto's, the names already are
    if cell['cell_type'] == 'markdown': source = PREFIX.sub(r'\1', source).replace(base + '/', '')
    found = DEFINED.search(source) if cell['cell_type'] == 'code' else None
    if found and found[1] not in seen:
        seen.add(found[1])
        source = f'#| label: {found[1]}\n{source}'
    cell['source'] = source


def introduction(path: Path) -> list:
    "What follows title and description in a notebook's first cell: nbdev keeps these two alone."
    first = ''.join(json.loads(path.read_text(encoding='utf-8'))['cells'][0]['source'])
    text = re.sub(r'\A#[^\n]*\s*(?:>[^\n]*\n?)*', '', first).strip()
    return [dict(cell_type='markdown', metadata={}, source=text)] if text else []


def stage(proc: Path, site: Path, cfg):
    "Copy the filtered notebooks without their numbers, and what lies beside them."
    for path in sorted(proc.rglob('*')):
        rel = path.relative_to(proc)
        if path.is_dir() or rel.parts[0].startswith(cfg.doc_path.name): continue
        to = site/PREFIX.sub(r'\1', rel.as_posix())
        to.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix != '.ipynb': shutil.copy(path, to); continue
        nb, seen = json.loads(path.read_text(encoding='utf-8')), set()
        nb['cells'][1:1] = introduction(cfg.nbs_path/rel)   # after the front matter
        for cell in nb['cells']: stage_cell(cell, cfg.doc_host + cfg.doc_baseurl, seen)
        to.write_text(json.dumps(nb), encoding='utf-8')
    if (cfg.nbs_path/'images').is_dir(): shutil.copytree(cfg.nbs_path/'images', site/'images')
    config = (cfg.config_path/'_quarto.yml').read_text(encoding='utf-8')
    (site/'_quarto.yml').write_text(PREFIX.sub(r'\1', config), encoding='utf-8')


def mathml(found: re.Match) -> str:
    "Formulas as MathML, which a browser shows without a network."
    tex = found[2].replace('&lt;', '<').replace('&gt;', '>').replace('&amp;', '&')
    return convert(tex.strip(), display='block' if found[1] == 'display' else 'inline')


def main(out: str = '') -> int:
    cfg = get_config()
    target = Path(out) if out else cfg.doc_path
    proc_nbs(n_workers=2, force=True)
    with tempfile.TemporaryDirectory() as tmp:
        site = Path(tmp)/'site'
        stage(cfg.config_path/'_proc', site, cfg)
        built = build(site, quiet=True)
        for page in site.joinpath('_docs').rglob('*.html'):
            page.write_text(KATEX.sub('', MATHS.sub(mathml, page.read_text(encoding='utf-8'))), encoding='utf-8')
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(site/'_docs', target)
    for warning in built.warnings: print(f'docs: {warning}', file=sys.stderr)
    print(f'docs: {len(built.pages)} pages in {target}, start with {target/"index.html"}')
    return len(built.warnings) > 0


if __name__ == '__main__': sys.exit(main(*sys.argv[1:]))
