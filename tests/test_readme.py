"README.md: made from its notebook, short, and what it says of results is what the repository holds."
import json
import re
import sys

import pytest

from bidirseg.core import load_json
from bidirseg.runs import mean_spread
from bidirseg.studies.ablation import by_variant, gap_over_seeds
from bidirseg.studies.published import DEVIATIONS


@pytest.fixture(scope='module')
def text(root) -> str:
    return (root/'README.md').read_text(encoding='utf-8')


def test_it_is_made_from_its_notebook(call):
    call(sys.executable, 'tools/readme.py', '--check')


def test_it_is_short(text):
    assert len(text.split()) < 850


def test_its_table_is_the_stored_rows(text, root):
    table = text[text.index('| from, to |'):].split('\n\n')[0].splitlines()[2:]
    assert len(table) == 6
    for line in table:
        name, *shown = [cell.strip(' *') for cell in line.strip('|').split('|')]
        rows = by_variant(load_json(root/'nbs'/'results'/f'{name.split("`")[1]}.json'))
        ends = [rows[variant] for variant in ('source_only', 'full', 'oracle')]
        scores = [mean_spread([100 * row['miou'] for row in of_seed.values()]) for of_seed in ends]
        gap = gap_over_seeds(rows['full'], rows['source_only'], rows['oracle'])
        assert shown == [*scores, f'{100 * gap:.0f} %'], name


def test_its_links_lead_somewhere(text, root):
    links = [link for link in re.findall(r'\]\(([^)]+)\)', text) if not link.startswith('http')]
    assert len(links) > 8 and all((root/link).is_file() for link in links), links


def test_the_page_on_the_published_code_lists_the_deviations_that_explain_prints(root):
    cells = json.loads((root/'nbs'/'studies'/'00_published.ipynb').read_text(encoding='utf-8'))['cells']
    shown = [''.join(output.get('data', {}).get('text/markdown', '')) for cell in cells
             for output in cell.get('outputs', [])]
    table = next(text for text in shown if text.startswith('| published code | here |')).splitlines()[2:]
    assert [tuple(cell.strip() for cell in row.strip('|').split('|')) for row in table] == DEVIATIONS
