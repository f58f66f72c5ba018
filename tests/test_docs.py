"The site: every page, link and picture is there, and a browser shows it."
import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from PIL import Image


@pytest.fixture(scope='module')
def site(call, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp('site')/'docs'
    call(sys.executable, 'tools/docs.py', out)
    return out


class Page(HTMLParser):
    "Collects what a page names, links to and shows."
    def __init__(self, path: Path):
        super().__init__()
        self.links, self.images, self.ids = [], [], set()
        self.title, self.in_title = '', False
        self.text = path.read_text(encoding='utf-8')
        self.feed(self.text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if attrs.get('id'):
            self.ids.add(attrs['id'])
        if tag == 'a' and attrs.get('href'):
            self.links.append(attrs['href'])
        if tag in ('link', 'script', 'img'):
            self.images += [attrs[key] for key in ('href', 'src') if attrs.get(key)]
        if tag == 'title':
            self.in_title = True

    def handle_data(self, data):
        if self.in_title:
            self.title += data

    def handle_endtag(self, tag):
        if tag == 'title':
            self.in_title = False


@pytest.fixture(scope='module')
def pages(site) -> dict[str, Page]:   # path inside the site -> page
    return {path.relative_to(site).as_posix(): Page(path) for path in sorted(site.rglob('*.html'))}


def page_name(notebook: Path, root: Path) -> str:
    inside = notebook.relative_to(root/'nbs')
    return (inside.parent/re.sub(r'^\d\d_', '', inside.stem)).as_posix() + '.html'


def notebooks(root: Path) -> list[Path]:
    return sorted((root/'nbs').rglob('*.ipynb'))


def test_every_notebook_is_a_page_and_in_the_sidebar(pages, root):
    listed = (root/'_quarto.yml').read_text(encoding='utf-8')
    for notebook in notebooks(root):
        assert page_name(notebook, root) in pages
        inside = notebook.relative_to(root/'nbs').as_posix()
        assert f'- {inside}\n' in listed, f'{inside} is not in the sidebar of _quarto.yml'


def test_titles(pages):
    titles = [page.title.strip() for page in pages.values()]
    assert all(titles) and len(set(titles)) == len(titles), titles


def is_broken(href: str, at: str, pages: dict[str, Page], site: Path) -> bool:
    "Whether a link of the page `at` leads nowhere."
    url = urlsplit(href)
    if url.scheme in ('http', 'https', 'mailto', 'data'):
        return False
    target = ((site/at).parent/unquote(url.path)).resolve() if url.path else site/at
    if not target.exists():
        return True
    inside = target.relative_to(site.resolve()).as_posix() if url.path else at
    return bool(url.fragment) and inside in pages and unquote(url.fragment) not in pages[inside].ids | {'top'}


def test_links_and_pictures(pages, site):
    broken = [(at, href) for at, page in pages.items() for href in page.links + page.images
              if is_broken(href, at, pages, site)]
    assert not broken, broken
    from_elsewhere = [src for page in pages.values() for src in page.images if src.startswith('http')]
    assert not from_elsewhere, 'a page needs the network'


def test_outputs_and_formulas(pages, root):
    for notebook in notebooks(root):
        page, source = pages[page_name(notebook, root)].text, notebook.read_text(encoding='utf-8')
        assert page.count('src="data:image/png') >= source.count('"image/png"'), f'{notebook.name}: a figure is missing'
        prose = re.sub(r'<pre.*?</pre>|<code.*?</code>', '', page, flags=re.S)
        assert not re.search(r'class="math|\\\\[a-z]+\{', prose), f'{notebook.name}: a formula was left as TeX'
    assert any('<math' in page.text for page in pages.values())


def test_introductions(pages, root):
    "The first cell's text, below title and description, is on the page."
    for notebook in notebooks(root):
        first = ''.join(json.loads(notebook.read_text(encoding='utf-8'))['cells'][0]['source'])
        prose = ' '.join(line for line in first.splitlines()[1:] if not line.startswith('>'))
        words = re.findall(r'[A-Za-z ]{20,}', prose)
        if words:
            page = re.sub(r'\s+', ' ', pages[page_name(notebook, root)].text)
            assert words[0].strip() in page, (notebook.name, words[0])


BROWSER = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)
QUIET = ['--headless', '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run',
         '--disable-background-networking', '--disable-component-update', '--disable-sync']


@pytest.mark.skipif(not BROWSER, reason='no chromium on the PATH: the site is not looked at in a browser')
def test_in_a_browser(site, tmp_path):
    def show(*options) -> str:
        line = [BROWSER, *QUIET, f'--user-data-dir={tmp_path/"profile"}', *options, (site/'prototypes.html').as_uri()]
        return subprocess.run(line, capture_output=True, text=True, timeout=120).stdout

    seen = show('--virtual-time-budget=5000', '--dump-dom')
    assert re.search(r'<h1[^>]*>\s*Prototypes', seen) and '<math' in seen
    show(f'--screenshot={tmp_path/"page.png"}', '--window-size=1200,1600')
    with Image.open(tmp_path/'page.png') as shot:
        colors = shot.convert('RGB').getcolors(1 << 24)
        assert shot.size == (1200, 1600) and len(colors) > 50   # something is drawn
