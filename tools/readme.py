"""Writes README.md from nbs/index.ipynb; with --check it only says whether README.md is up to date.

Pictures are files in nbs/images that the notebook's text refers to as images/NAME.png: the same line
then works in the notebook, on the site and, with nbs/ put in front here, in README.md."""
import re
import sys
from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter

ROOT = Path(__file__).resolve().parent.parent
HIDDEN = re.compile(r'^#\|\s*(?:hide|export|default_exp|include:\s*false)', re.M)
BADGES = {   # what it says -> where it leads; on the site the page itself says so, without a network
    'python-3.11+-blue': 'settings.ini', 'licence-Apache--2.0-blue': 'LICENSE',
    'arXiv-2204.07730-b31b1b': 'https://arxiv.org/abs/2204.07730'}
RELATIVE = re.compile(r'(\]\(|src="|href=")(?=images/|[\w/-]+\.ipynb)')


def stop(seen: str, wanted: str, fix: str):
    "End with one line."
    sys.exit(f'readme: Seen: {seen}. Wanted: {wanted}. Fix: {fix}.')


def shows_picture(cell) -> bool:
    "Whether a cell's output holds an image."
    return any(mime.startswith('image/') for output in cell.get('outputs', []) for mime in output.get('data', {}))


def badges() -> str:
    "A line of small pictures below the title."
    shown = (f'[![{badge.rpartition("-")[0]}](https://img.shields.io/badge/{badge})]({link})'
             for badge, link in BADGES.items())
    return ' '.join(shown)


def readme(path: Path) -> str:   # Markdown as README.md should hold it
    "The README that a notebook gives."
    if not path.exists():
        stop(f'no {path}', 'the notebook that README.md is made of', 'restore it')
    notebook = nbformat.read(path, as_version=4)
    notebook.cells = [cell for cell in notebook.cells if not HIDDEN.search(cell.source)]
    for cell in notebook.cells:
        cell.source = re.sub(r'^#\|.*\n?', '', cell.source, flags=re.M)
        if shows_picture(cell):
            stop(f'{path.name} shows a picture as the output of "{cell.source[:40]}..."', 'a file in nbs/images',
                 'save it there and refer to it in a text cell as ![...](images/NAME.png)')
    text, _ = MarkdownExporter().from_notebook_node(notebook)
    text = re.sub(r'[ \t]+$', '', text, flags=re.M)
    title, _, rest = re.sub(r'\n{3,}', '\n\n', text).strip().partition('\n')
    return '\n'.join([title, '', badges(), RELATIVE.sub(r'\1nbs/', rest), ''])


def main(check: bool) -> int:
    text, path = readme(ROOT/'nbs'/'index.ipynb'), ROOT/'README.md'
    stale = not path.exists() or path.read_text(encoding='utf-8') != text
    if check:
        print(f"readme: README.md is {'not what nbs/index.ipynb gives; run `make readme`' if stale else 'up to date'}")
        return int(stale)
    path.write_text(text, encoding='utf-8')
    print('readme: README.md ' + ('written from nbs/index.ipynb' if stale else 'is up to date'))
    return 0


if __name__ == '__main__':
    sys.exit(main('--check' in sys.argv[1:]))
