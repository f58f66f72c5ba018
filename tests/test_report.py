"The report and the comparison of runs, made from records that are written by hand: nothing is trained."
import base64
import csv
import io
import re

import pytest
from PIL import Image

from bidirseg.cli import main
from bidirseg.core import fingerprint, save_json
from bidirseg.pipeline.compare import compare
from bidirseg.pipeline.report import report
from bidirseg.runs import load_run, small_run, stage_dir, stage_names

EVIL = '<script>alert("1")</script>'
CLASSES = {'road': [128, 64, 128], EVIL: [1, 2, 3], 'sky': [70, 130, 180]}
SOURCE_ONLY = dict(miou=.3751, iou={'road': .7777, EVIL: .2, 'sky': None})
ADAPTED = dict(miou=.5002, iou={'road': .6543, EVIL: .4, 'sky': None})


def made_by(seconds: float) -> dict:
    return dict(params=dict(steps=7, seed=0), inputs={'source': 'x', EVIL: 'y'}, outputs={EVIL: 'z', '../../x': 'z'},
                seconds=seconds, peak_memory_mb=123, peak_gpu_memory_mb=0, versions={'torch': EVIL}, commit=EVIL,
                device=EVIL, machine=EVIL, threads=1)


def write_scores(folder):
    confusion = [[8, 2, 0], [1, 9, 0], [0, 0, 0]]
    rest = dict(pixel_accuracy=.8, images=EVIL, confusion=confusion)
    scores = {name: dict(found, miou_by_classes={EVIL: found['miou']}, **rest)
              for name, found in (('source_only', SOURCE_ONLY), ('self_training', ADAPTED))}
    save_json(folder/'scores.json', scores)
    save_json(folder/'images.json', dict(names=[EVIL, 'b'], miou=dict(source_only=[.5, .4], self_training=[.45, .6])))


def make_run(folder, scored: bool = True, **changes):
    "A finished run as the stages leave it, with names that are no harmless text."
    run_dir = small_run(folder, label_space=EVIL, classes=CLASSES, description=EVIL, rounds=0, **changes)
    for number, name in enumerate(stage_names(load_run(run_dir)), 1):
        save_json(stage_dir(run_dir, name)/'stage.json', made_by(61.5 * number))
    shares = {name: dict(share=.5, kept=.25) for name in ('road', EVIL)}
    save_json(stage_dir(run_dir, 'pseudo_labels')/'labels.json', shares)
    save_json(stage_dir(run_dir, 'warmup')/'history.json', [dict(loss=2., lr=.1), dict(loss=1., lr=.05)])
    evaluation = stage_dir(run_dir, 'evaluation')
    save_json(evaluation/'scores.json', {})
    if scored:
        write_scores(evaluation)
    return run_dir


def make_pictures(run_dir, secret):
    "Two models' maps of an image, one reached through a link, and names that lead out of the run."
    folder = stage_dir(run_dir, 'evaluation')
    (folder/'pictures').mkdir()
    for name, color in dict(image=(9, 9, 9), labels=(128, 64, 128), first=(1, 2, 3), last=(128, 64, 128)).items():
        Image.new('RGB', (4, 2), color).save(folder/'pictures'/f'{name}.png')
    Image.new('RGB', (4, 2), (250, 1, 1)).save(secret)
    (folder/'pictures'/'link.png').symlink_to(secret)
    files = {'image': 'image.png', 'labels': 'labels.png', 'source only': 'first.png', 'self training': 'last.png',
             'link': 'link.png', 'away': f'../../../{secret.name}', 'whole': str(secret)}
    save_json(folder/'pictures.json', [dict(name=EVIL, files=files)])


@pytest.fixture(scope='module')
def page(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp('report')
    run_dir = make_run(folder/'run')
    make_pictures(run_dir, folder/'secret.png')
    return report(run_dir).read_text()


def tables_of(page: str) -> dict[str, list]:   # CSV files inside of a page
    found = {}
    for name, content in re.findall(r'download="([^"]*)\.csv" href="data:text/csv;charset=utf-8;base64,([^"]*)"', page):
        found[name] = list(csv.reader(io.StringIO(base64.b64decode(content).decode())))
    return found


def test_the_answer_is_what_was_scored(page):
    assert 'rises from 37.5 (source only) to 50.0 % (self training). 1 of 2 classes gain, 1 loses.' in page
    table = tables_of(page)['iou']
    assert [table[0][1:], table[1]] == [['source only', 'self training'], ['mean', '37.51', '50.02']]
    assert table[2:] == [[EVIL, '20.0', '40.0'], ['road', '77.77', '65.43'], ['sky', '-', '-']]
    assert 'road: 77.8 to 65.4, -12.3' in page and '−12.3' in page, 'a loss is said in words and drawn'


def test_every_number_comes_from_a_record(page):
    seconds = [row[1] for row in tables_of(page)['time'][1:]]
    assert seconds == [str(round(61.5 * number / 60, 6)) for number in range(1, 9)]
    assert 'The stages worked 36 min 54 s.' in page and page.count('at most 123 MB of memory') == 8
    assert tables_of(page)['warmup-history'] == [['step', 'loss', 'lr'], ['1', '2.0', '0.1'], ['2', '1.0', '0.05']]
    assert tables_of(page)['pseudo-labels'][1:] == [['road', '25.0'], [EVIL, '25.0']]
    assert '1 of 2 images got worse' in page
    assert tables_of(page)['images-that-got-worse'][1] == [EVIL, '50.0', '45.0', '-5.0']
    assert tables_of(page)['confusion'][1] == ['road', '8', '2', '0']


def test_what_came_from_outside_is_text(page):
    assert EVIL not in page and 'alert("1")' not in page
    assert page.count('&lt;script&gt;alert(&#34;1&#34;)&lt;/script&gt;') > 15
    assert page.count('<script>') == 1   # ours, of the slider


def test_only_files_of_the_run_are_shown(page):
    pictures = [base64.b64decode(part) for part in re.findall(r'src="data:image/png;base64,([^"]*)"', page)]
    colors = [Image.open(io.BytesIO(picture)).getpixel((0, 0)) for picture in pictures]
    assert sorted(colors) == [(1, 2, 3), (9, 9, 9), (128, 64, 128), (128, 64, 128)]
    assert '0.0 % of its pixels were right before, 100.0 % are after' in page
    assert '&lt;/script&gt;: mIoU falls from 50.0 to 45.0' in page
    assert page.count('type="range"') == 1


def test_the_page_needs_no_network_and_no_mouse(page):
    addresses = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert addresses and all(address.startswith(('data:', '#')) for address in addresses)
    anchors = re.findall(r'href="#([^"]*)"', page)
    assert all(page.count(f'id="{anchor}"') == 1 for anchor in anchors) and 'stage-self_training' in anchors
    assert all(' alt="' in tag for tag in re.findall('<img [^>]*>', page))
    assert page.count('<svg') == page.count('role="img" aria-label="')


def test_no_record_is_read_through_a_link(tmp_path):
    run_dir = make_run(tmp_path/'run')
    scores = stage_dir(run_dir, 'evaluation')/'scores.json'
    scores.rename(tmp_path/'secret.json')
    scores.symlink_to(tmp_path/'secret.json')
    assert main(['report', str(run_dir)]) == 2 and not (run_dir/'report.html').exists()
    folder = stage_dir(run_dir, 'warmup')
    folder.rename(tmp_path/'elsewhere')
    folder.symlink_to(tmp_path/'elsewhere')
    scores.unlink()
    (tmp_path/'secret.json').rename(scores)
    assert 'id="stage-warmup"' not in report(run_dir).read_text()


def test_links_lead_to_files_beside_the_page(tmp_path):
    run_dir = make_run(tmp_path/'run')
    folder = stage_dir(run_dir, 'warmup')
    (folder/'notebook.ipynb').touch()
    (folder/'a & b #1').mkdir()
    save_json(folder/'stage.json', made_by(1.) | dict(outputs={'a & b #1': '', 'gone.pt': '', '../../../x': ''}))
    links = [link for link in re.findall('href="([^"]*)"', report(run_dir).read_text()) if link[0] not in 'd#']
    assert links == ['03_warmup/notebook.ipynb', '03_warmup/a%20%26%20b%20%231']
    save_json(folder/'stage.json', made_by(1.) | dict(outputs={}, notebook='0123456789abcdef'))
    assert 'notebook.ipynb (not as it was executed)' in report(run_dir).read_text()


def test_changed_settings_are_marked(tmp_path):
    run_dir = make_run(tmp_path/'run', seed=3, settings=dict(warmup=dict(steps=7)))
    page = report(run_dir).read_text()
    assert '<td>warmup.steps</td>' in page and 'changed; the preset has null' in page


def test_a_run_without_scores_says_what_is_known(tmp_path, capsys):
    page = report(make_run(tmp_path/'run', scored=False)).read_text()
    assert 'there are no scores' in page and 'mIoU on the target' not in page and 'pseudo-labels' in tables_of(page)


def test_the_quality_of_pseudo_labels_is_said_where_it_is_known(tmp_path):
    run_dir = make_run(tmp_path/'run')
    known = stage_dir(run_dir, 'evaluation')/'pseudo_labels.json'
    save_json(known, dict(miou=.6, kept=.5, iou={'road': .7, EVIL: .5, 'sky': None}))
    page = report(run_dir).read_text()
    head, *rows = tables_of(page)['pseudo-labels']
    assert head[1:] == ['kept, %', 'IoU of the kept, %'] and rows == [['road', '25.0', '70.0'], [EVIL, '25.0', '50.0']]
    assert 'mIoU 60.0 with the true labels' in page and '25.0 % of the pixels of the target' in page
    save_json(known, dict(miou=None, kept=0.))
    assert 'no pseudo label was kept' in report(run_dir).read_text()


@pytest.mark.parametrize('broken', ['[]', '{"seconds": 1}', '{"params": 3}', 'torn'])
def test_records_of_another_version_are_one_line(tmp_path, capsys, broken):
    run_dir = make_run(tmp_path/'run')
    (stage_dir(run_dir, 'warmup')/'stage.json').write_text(broken)
    if broken == '[]':   # as if the stage had not run
        assert main(['report', str(run_dir)]) == 0
        return
    assert main(['report', str(run_dir)]) == 2
    said = capsys.readouterr().err
    assert said.startswith('bidirseg: Seen: ') and said.count('\n') == 1 and not (run_dir/'report.html').exists()


def test_compare_shows_every_run(tmp_path, capsys):
    runs = [make_run(tmp_path/'a'), make_run(tmp_path/'b', seed=1), make_run(tmp_path/'c', scored=False),
            small_run(tmp_path/'new <b>')]
    report(runs[0])
    out = tmp_path/'pages'/'all.html'
    assert main(['compare', *map(str, runs), '--out', str(out)]) == 0 and str(out) in capsys.readouterr().out
    page = out.read_text()
    rows = {row[0]: row for row in tables_of(page)['table'][1:]}
    assert rows['a'][3:8] == ['37.51', '50.02', '12.51', '25.0', '-'] and rows['b'][2] == '1'
    assert rows['c'][3:5] == ['-', '-'] and rows['c'][-1] == 'done; no labelled target images'
    assert rows['new <b>'][-1].startswith('to do: data, source_only') and 'new <b>' not in page
    assert tables_of(page)['runs'][1:] == [['a', '37.51', '50.02'], ['b', '37.51', '50.02']]
    assert '50.0 ± 0.0' in page and 'href="../a/report.html"' in page and EVIL not in page
    assert not re.findall('(?:src|href)="(?!data:|#|[.][.]/a/report)', page)


def test_compare_refuses_in_one_line(tmp_path, capsys):
    run_dir, mine = make_run(tmp_path/'a'), tmp_path/'mine.html'
    mine.write_text('my page')
    for runs, out in (([tmp_path], tmp_path/'x.html'), ([run_dir], mine), ([run_dir], tmp_path)):
        assert main(['compare', *map(str, runs), '--out', str(out)]) == 2
        said = capsys.readouterr().err
        assert said.startswith('bidirseg: Seen: ') and said.count('\n') == 1
    assert mine.read_text() == 'my page' and not (tmp_path/'x.html').exists()
    page = compare([run_dir], tmp_path/'x.html')
    assert compare([run_dir], page) == page   # its own page is written again


def test_numbers_that_are_not_the_recorded_ones_are_refused(tmp_path, capsys):
    "Neither page shows scores that were changed, nor says that there are none where they are gone."
    run_dir = make_run(tmp_path/'a')
    scores = stage_dir(run_dir, 'evaluation')/'scores.json'
    save_json(scores.parent/'stage.json', made_by(1) | dict(outputs={'scores.json': fingerprint(scores)}))
    commands = ['report', str(run_dir)], ['compare', str(run_dir), '--out', str(tmp_path/'x.html')]
    assert [main(command) for command in commands] == [0, 0]
    scores.write_text(scores.read_text().replace('"miou": 0.', '"miou": 1.'))
    assert [main(command) for command in commands] == [2, 2]
    assert capsys.readouterr().err.count('scores.json is another file than its stage wrote') == 2
    scores.unlink()
    assert [main(command) for command in commands] == [2, 2]
    assert capsys.readouterr().err.count('scores.json. Wanted: what an earlier stage writes') == 2


def test_compare_has_an_example(capsys):
    with pytest.raises(SystemExit):
        main(['compare', '--help'])
    assert 'example: bidirseg compare ' in ' '.join(capsys.readouterr().out.split())


@pytest.mark.parametrize('width, scheme', [(390, 'dark'), (1440, 'light')])
def test_pages_hold_in_a_browser(browser, tmp_path, width, scheme):
    run_dir = make_run(tmp_path/'run')
    make_pictures(run_dir, tmp_path/'secret.png')
    for path in (report(run_dir), compare([run_dir, make_run(tmp_path/'other', scored=False)], tmp_path/'all.html')):
        browser.open(path, width, scheme)
        assert not browser.faults() and not browser.violations()


def test_the_slider_moves_by_the_keyboard(browser, tmp_path):
    run_dir = make_run(tmp_path/'run')
    make_pictures(run_dir, tmp_path/'secret.png')
    browser.open(report(run_dir))
    browser.page.locator('input[type=range]').focus()
    browser.page.keyboard.press('End')
    clip = "getComputedStyle(document.querySelector('.after img')).clipPath"
    assert '100%' in browser.page.evaluate(clip)
    browser.page.keyboard.press('Home')
    assert '100%' not in browser.page.evaluate(clip)
