"The site: every page, link and picture is there, and a browser shows it."
import importlib
import io
import json
import re
import sys
from dataclasses import fields
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from PIL import Image

from bidirseg.cli import make_parser
from bidirseg.pipeline.stages import stage_spec
from bidirseg.runs import RunConfig, load_preset, preset_names, stage_names


@pytest.fixture(scope='module')
def site(call, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp('site')/'docs'
    call(sys.executable, 'tools/docs.py', out)
    return out


class Page(HTMLParser):
    "Collects what a page names, links to and shows."
    def __init__(self, path: Path):
        super().__init__()
        self.links, self.images, self.ids, self.alts = [], [], set(), []
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
        if tag == 'img':
            self.alts.append(attrs.get('alt'))
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
        assert not re.search(r'<m[a-z]+[^>]*>\\', page), f'{notebook.name}: a command of TeX that nobody knew'
    assert any('<math' in page.text for page in pages.values())


def test_every_picture_has_a_text(pages):
    for name, page in pages.items():
        texts = page.alts[1:]   # the first is the logo, whose link has a text beside it
        short = [text for text in texts if len(text or '') < 20]
        assert not short, f'{name}: begin the cell of the picture with a line "#| fig-alt: ...": {short}'


def test_tests_and_imports_fold(pages):
    page = pages['data/labels.html'].text
    assert '<summary>Imports</summary>' in page and page.count('<summary>Tests</summary>') > 5
    shown = re.sub(r'<details.*?</details>', '', page, flags=re.S)
    assert 'LabelSpace' in shown   # definitions stay open


def test_outputs_read_as_in_a_terminal(pages):
    page = pages['tutorials/own_data.html'].text
    assert '%|' not in page and '| --- |' not in page
    assert re.search(r'<td[^>]*>town</td>', page)   # the table that the check prints


def test_introductions(pages, root):
    "The first cell's text, below title and description, is on the page."
    for notebook in notebooks(root):
        first = ''.join(json.loads(notebook.read_text(encoding='utf-8'))['cells'][0]['source'])
        prose = ' '.join(line for line in first.splitlines()[1:] if not line.startswith('>'))
        words = re.findall(r'[A-Za-z ]{20,}', prose)
        if words:
            page = re.sub(r'\s+', ' ', pages[page_name(notebook, root)].text)
            assert words[0].strip() in page, (notebook.name, words[0])


def in_reading_order(page: Page) -> list[str]:
    "Where previous and next lead."
    found = re.findall(r'href="([^"]*)" class="pagination-link"', page.text)
    return [unquote(href) for href in found]


def test_the_way_around(pages):
    "Sections in reading order, previous and next, the repository, dark mode and a favicon."
    page = pages['prototypes.html']
    assert in_reading_order(page) == ['warmup.html', 'pseudo_labels.html']
    menu = re.findall(r'<span class="menu-text">([^<]*)</span>', page.text)
    places = [menu.index(name) for name in ('Tutorial', 'How-to', 'Explanation', 'Reference')]
    assert places == sorted(places)
    assert 'https://github.com/bidirseg/bidirseg' in page.links
    assert 'https://github.com/bidirseg/bidirseg/blob/main/nbs/03_prototypes.ipynb' in page.links
    assert 'quarto-color-scheme-toggle' in page.text and 'images/favicon.svg' in page.images


def test_nothing_is_loaded_from_elsewhere(site):
    for style in site.rglob('*.css'):
        elsewhere = re.findall(r'(?:@import|url)\W+https?:[^)]*', style.read_text(encoding='utf-8'))
        assert not elsewhere, (style.name, elsewhere)


def exported(root: Path) -> list[tuple[str, str]]:
    "Every module of the package that exports something of its own, and the name."
    found = []
    for path in sorted((root/'bidirseg').rglob('[a-z]*.py')):
        module = '.'.join(path.relative_to(root).with_suffix('').parts)
        for name in getattr(importlib.import_module(module), '__all__', []):
            value = getattr(sys.modules[module], name)
            if callable(value) and getattr(value, '__module__', '') == module:
                found.append((module, name))
    return found


def test_api_tables(pages, root):
    "Every exported definition with its parameters and what they mean."
    for module, name in exported(root):
        package = module.rpartition('.')[0].removeprefix('bidirseg.')
        page = pages[f'api/{package}.html']
        assert name in page.ids, f'{module}.{name} is not in the reference'
    text = pages['api/mixture.html'].text
    rows = re.findall(r'<tr>\s*<td><code>reg_covar</code></td>.*?</tr>', text, re.S)
    assert any('<code>1e-06</code>' in row and 'added to the variances' in row for row in rows)


def test_every_command_says_how_it_is_called(pages):
    text = re.sub(r'<[^>]*>', '', pages['command_line.html'].text).replace('&#x27;', "'").replace('&quot;', '"')
    commands = make_parser()._subparsers._group_actions[0].choices
    assert len(commands) > 10
    for name, parser in commands.items():
        assert f'usage: bidirseg {name}' in text
        examples = re.findall(r'bidirseg .*', parser.epilog)
        assert examples and all(example in text for example in examples)


def test_lines_of_the_shell_name_files_as_they_are(pages):
    assert 'nbs/04_pseudo_labels.ipynb' in re.sub('<[^>]*>', '', pages['tutorials/batches.html'].text)
    assert 'nbs/pseudo_labels.ipynb' not in re.sub('<[^>]*>', '', pages['tutorials/batches.html'].text)


def test_settings_and_presets(pages):
    settings, presets = pages['reference/settings.html'], pages['reference/presets.html']
    classes = {RunConfig, *(stage_spec(name).settings for name in stage_names(RunConfig(oracle=True)))}
    for cls in classes:
        for field in fields(cls):
            assert f'<code>{field.name}</code>' in settings.text
    for name in preset_names():
        assert name in presets.ids and load_preset(name).description in presets.text


def test_every_page_in_a_browser(site, browser, tmp_path):
    "No error, no broken picture, no text outside its box, on a large screen and on a phone; six pages at a time."
    paths, together = sorted(site.rglob('*.html')), tmp_path/'together.html'
    style = '<!doctype html><title>pages</title><style>body { margin: 0 } iframe { width: 100%; border: 0 }</style>'
    faults = []
    for i in range(0, len(paths), 6):
        frames = [f'<iframe src="{path.as_uri()}"></iframe>' for path in paths[i:i + 6]]
        together.write_text(style + ''.join(frames), encoding='utf-8')
        browser.open(together, 1440)
        assert len(browser.page.frames) == 1 + len(frames)
        faults += browser.faults()
        browser.resize(390)
        faults += browser.faults()
    assert not faults, '\n'.join(faults)


@pytest.mark.parametrize('name', ('in_one_page.html', 'command_line.html', 'api/training.html'))
def test_every_kind_of_page_is_accessible(site, browser, name):
    browser.open(site/name, 1440, 'light')
    assert not browser.violations()
    browser.open(site/name, 390, 'dark')
    assert not browser.violations('color-contrast', 'scrollable-region-focusable')


@pytest.mark.parametrize('scheme', ('light', 'dark'))
def test_search_finds(site, browser, scheme):
    browser.open(site/'index.html', 1440, scheme)
    browser.page.fill('input[type=search]', 'GaussianMixture')
    browser.page.wait_for_selector('.search-result')
    found = browser.page.eval_on_selector_all('.search-result', 'results => results.map(one => one.href)')
    assert any(href.endswith('mixture.html#GaussianMixture') for href in found), found
    assert not browser.violations('color-contrast')


def test_a_page_is_drawn(site, browser):
    browser.open(site/'prototypes.html', 1200)
    assert browser.page.inner_text('h1') == 'Prototypes' and browser.page.query_selector('math')
    with Image.open(io.BytesIO(browser.page.screenshot())) as shot:
        colors = shot.convert('RGB').getcolors(1 << 24)
    assert shot.size == (1200, 900) and len(colors) > 50   # something is drawn
