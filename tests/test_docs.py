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


@pytest.fixture(scope='module')
def site(call, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp('site')/'docs'
    call(sys.executable, 'tools/docs.py', out)
    return out


class Page(HTMLParser):
    "Collects what a page names, links to and shows."
    def __init__(self, path: Path):
        super().__init__()
        self.links, self.images, self.ids, self.title, self.within = [], [], set(), '', False
        self.text = path.read_text(encoding='utf-8')
        self.feed(self.text)

    def handle_starttag(self, tag, attrs):
        a = dict(attrs)
        if a.get('id'): self.ids.add(a['id'])
        if tag == 'a' and a.get('href'): self.links.append(a['href'])
        if tag in ('link', 'script') and (a.get('href') or a.get('src')): self.images.append(a.get('href') or a['src'])
        if tag == 'img': self.images.append(a.get('src', ''))
        if tag == 'title': self.within = True

    def handle_data(self, data): self.title += data if self.within else ''
    def handle_endtag(self, tag): self.within = self.within and tag != 'title'


@pytest.fixture(scope='module')
def pages(site) -> dict: return {p.name: Page(p) for p in sorted(site.glob('*.html'))}


def name(notebook: Path) -> str: return re.sub(r'^\d\d[a-z]?_', '', notebook.stem) + '.html'


def test_every_notebook_is_a_page_and_in_the_sidebar(pages, root):
    listed = (root/'_quarto.yml').read_text(encoding='utf-8')
    for nb in (root/'nbs').glob('*.ipynb'):
        assert name(nb) in pages
        assert nb.name in listed, f'{nb.name} is not in the sidebar of _quarto.yml'


def test_titles(pages):
    titles = [p.title.strip() for p in pages.values()]
    assert all(titles) and len(set(titles)) == len(titles), titles


def test_links_and_pictures(pages, site):
    broken = []
    for at, page in pages.items():
        for href in page.links + page.images:
            url = urlsplit(href)
            if url.scheme in ('http', 'https', 'mailto', 'data'): continue
            target = unquote(url.path) or at
            if not (site/target).exists(): broken.append((at, href))
            elif url.fragment and target in pages and unquote(url.fragment) not in pages[target].ids | {'top'}: broken.append((at, href))
    assert not broken, broken
    assert all(not s.startswith('http') for p in pages.values() for s in p.images), 'a page needs the network'


def test_outputs_and_formulas(pages, root):
    for nb in (root/'nbs').glob('*.ipynb'):
        page, source = pages[name(nb)].text, nb.read_text(encoding='utf-8')
        assert page.count('src="data:image/png') >= source.count('"image/png"'), f'{nb.name}: a figure is missing'
        assert not re.search(r'class="math|\\\\[a-z]+\{', re.sub(r'<pre.*?</pre>', '', page, flags=re.S)), f'{nb.name}: a formula was left as TeX'
    assert any('<math' in p.text for p in pages.values())


def test_introductions(pages, root):
    "The first cell's text, below title and description, is on the page."
    for nb in (root/'nbs').glob('[0-9]*.ipynb'):
        lines = ''.join(json.loads(nb.read_text(encoding='utf-8'))['cells'][0]['source']).splitlines()
        words = re.findall(r'[A-Za-z ]{20,}', ' '.join(l for l in lines[1:] if not l.startswith('>')))
        if words: assert words[0].strip() in re.sub(r'\s+', ' ', pages[name(nb)].text), (nb.name, words[0])


def test_readme(call): call(sys.executable, 'tools/readme.py', '--check')


def test_readme_lists_the_deviations_that_explain_prints(root):
    from bidirseg.plan import DEVIATIONS
    text = (root/'README.md').read_text(encoding='utf-8')
    rows = text[text.index('| published code | here | reason |'):].split('\n\n')[0].splitlines()[2:]
    assert [tuple(c.strip() for c in r.strip('|').split('|')) for r in rows] == DEVIATIONS


browser = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)


@pytest.mark.skipif(not browser, reason='no chromium or google-chrome on the PATH: the site is not looked at in a browser')
def test_in_a_browser(site, tmp_path):
    quiet = '--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update --disable-sync'
    def show(*options): return subprocess.run([browser, *quiet.split(), f'--user-data-dir={tmp_path/"profile"}', *options, (site/'prototypes.html').as_uri()],
                                              capture_output=True, text=True, timeout=120)
    seen = show('--virtual-time-budget=5000', '--dump-dom').stdout
    assert re.search(r'<h1[^>]*>\s*Prototypes', seen) and '<math' in seen
    show(f'--screenshot={tmp_path/"page.png"}', '--window-size=1200,1600')
    from PIL import Image
    with Image.open(tmp_path/'page.png') as shot:
        assert shot.size == (1200, 1600) and len(shot.convert('RGB').getcolors(1 << 24)) > 50   # something is drawn
