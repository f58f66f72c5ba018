"""Writes README.md from nbs/index.ipynb; with --check it only says whether README.md is up to date.

Pictures are files in nbs/images that the notebook's text refers to as images/NAME.png: the same line
then works in the notebook, on the site and, with nbs/ put in front here, in README.md."""
import re, sys
from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter

root = Path(__file__).resolve().parent.parent
HIDDEN = re.compile(r'^#\|\s*(?:hide|export|default_exp|include:\s*false)', re.M)
RELATIVE = re.compile(r'(\]\(|src="|href=")(?=images/|[\w-]+\.ipynb)')


def readme(path: Path) -> str:   # Markdown as README.md should hold it
    if not path.exists(): sys.exit(f'readme: Seen: no {path}. Wanted: the notebook that README.md is made of. Fix: restore it.')
    nb = nbformat.read(path, as_version=4)
    nb.cells = [c for c in nb.cells if not HIDDEN.search(c.source)]
    for c in nb.cells:
        c.source = re.sub(r'^#\|.*\n?', '', c.source, flags=re.M)
        if any(mime.startswith('image/') for out in c.get('outputs', []) for mime in out.get('data', {})):
            sys.exit(f'readme: Seen: {path.name} shows a picture as the output of "{c.source[:40]}...". Wanted: a file in nbs/images. '
                     'Fix: save it there and refer to it in a text cell as ![...](images/NAME.png).')
    text, _ = MarkdownExporter().from_notebook_node(nb)
    text = re.sub(r'[ \t]+$', '', text, flags=re.M)
    return RELATIVE.sub(r'\1nbs/', re.sub(r'\n{3,}', '\n\n', text).strip() + '\n')


def main(check: bool) -> int:
    text, path = readme(root/'nbs'/'index.ipynb'), root/'README.md'
    old = path.read_text(encoding='utf-8') if path.exists() else ''
    if not check: path.write_text(text, encoding='utf-8')
    elif old != text: print('readme: README.md is not what nbs/index.ipynb gives; run `make readme`')
    if not check: print('readme: README.md ' + ('is up to date' if old == text else 'written from nbs/index.ipynb'))
    return int(check and old != text)


if __name__ == '__main__': sys.exit(main('--check' in sys.argv[1:]))
