"""Every check of the project: exported, clean, style, each notebook, each test. Ends with `N passed, N failed`.

A name or several as arguments run only the notebooks and test files whose path contains one of them."""
import hashlib
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from xml.etree import ElementTree

ROOT, BIN = Path(__file__).resolve().parent.parent, Path(sys.executable).parent
ENV = {**os.environ, 'OMP_NUM_THREADS': '1', 'MPLBACKEND': 'agg', 'PATH': f"{BIN}{os.pathsep}{os.environ['PATH']}"}
ENV.setdefault('PYDEVD_DISABLE_FILE_VALIDATION', '1')
NO_TESTS = 5   # pytest's exit status where a file holds none
PROCESSES = multiprocessing.get_context('forkserver')   # each notebook has a process of its own, with imports done
PRELOAD = ['nbdev.test', 'matplotlib.pyplot', 'sklearn.cluster', 'sklearn.mixture', 'scipy.stats',
           'bidirseg.pipeline.stages', 'bidirseg.studies.ablation', 'bidirseg.studies.speed']


def say(ok: bool, what: str, since: float, output: str = '') -> bool:
    "One line, and what a failure printed."
    print(f"{'ok  ' if ok else 'FAIL'} {time.time() - since:6.1f} s  {what}", flush=True)
    if not ok:
        print(output.rstrip()[-8000:], flush=True)
    return ok


def call(*command) -> subprocess.CompletedProcess:
    "A command of the environment, in the repository."
    return subprocess.run([BIN/command[0], *command[1:]], cwd=ROOT, env=ENV, capture_output=True, text=True)


def succeeds(what: str, *command) -> bool:
    "The command has to end with status 0."
    since, done = time.time(), call(*command)
    return say(done.returncode == 0, what, since, done.stdout + done.stderr)


def hashes(folder: str, pattern: str) -> dict[Path, bytes]:
    "The content of files."
    return {path: hashlib.sha256(path.read_bytes()).digest() for path in (ROOT/folder).rglob(pattern)}


def changes_nothing(what: str, command: str, folder: str, pattern: str) -> bool:
    "The command has to find nothing to change in the folder."
    since, before = time.time(), hashes(folder, pattern)
    done, after = call(command), hashes(folder, pattern)
    changed = sorted(path.name for path in {*before, *after} if before.get(path) != after.get(path))
    text = done.stdout + done.stderr
    if changed:
        text += (f"\nSeen: {command} changed {', '.join(changed)}. Wanted: {what}. "
                 "Fix: it is done now; look at it and commit.")
    return say(done.returncode == 0 and not changed, what, since, text)


def execute(path: Path, log: Path):
    "A notebook's cells, from the first to the last; what they print goes to a file."
    with open(log, 'w') as file:
        os.dup2(file.fileno(), sys.stdout.fileno())
        os.dup2(file.fileno(), sys.stderr.fileno())
    multiprocessing.set_start_method(None, force=True)   # workers of the notebook start as they do anywhere else
    from nbdev.test import nbdev_test
    nbdev_test(path=str(path), n_workers=0)   # exits with status 1 where a cell fails


def run_notebook(path: Path) -> bool:
    "A notebook in a process of its own."
    since = time.time()
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder)/'log.txt'
        process = PROCESSES.Process(target=execute, args=(path, log))
        process.start()
        process.join()
        output = log.read_text(errors='replace') if log.exists() else ''
    return say(process.exitcode == 0, str(path.relative_to(ROOT)), since, output)


def run_tests(path: Path) -> tuple[int, int]:   # passed, failed
    "The tests of a file."
    since = time.time()
    with tempfile.TemporaryDirectory() as folder:
        xml = Path(folder)/'tests.xml'
        done = call('python', '-m', 'pytest', '-q', '-rs', '--durations=5', f'--junitxml={xml}', path)
        suites = list(ElementTree.parse(xml).iter('testsuite')) if xml.exists() else []
    count = {key: sum(int(suite.get(key)) for suite in suites) for key in ('tests', 'failures', 'errors', 'skipped')}
    failed = count['failures'] + count['errors'] or int(done.returncode not in (0, NO_TESTS))
    passed = max(0, count['tests'] - failed - count['skipped'])
    what = f"{path.relative_to(ROOT)}: {passed} passed, {failed} failed, {count['skipped']} skipped"
    say(failed == 0, what, since, done.stdout + done.stderr)
    for line in done.stdout.splitlines():
        if line.startswith('SKIPPED') or ' call ' in line or ' setup ' in line:
            print(f'       {line}', flush=True)
    return passed, failed


def run(path: Path) -> tuple[int, int]:   # passed, failed
    "A notebook, which counts as one test, or the tests of a file."
    if path.suffix == '.py':
        return run_tests(path)
    passed = run_notebook(path)
    return int(passed), int(not passed)


def check_everywhere() -> list[bool]:
    "What is about all files at once."
    return [
        changes_nothing('the modules are what the notebooks export', 'nbdev_export', 'bidirseg', '*.py'),
        changes_nothing('the notebooks are clean', 'nbdev_clean', 'nbs', '*.ipynb'),
        succeeds('parameter cells list the settings', 'python', 'tools/parameters.py', '--check'),
        succeeds('the code reads well (ruff)', 'ruff', 'check', '--output-format=concise', '.'),
        succeeds('the types of the public names hold (mypy)', 'mypy')]


def main(only: list[str]) -> int:
    def wanted(path: Path) -> bool:
        return not only or any(name in str(path.relative_to(ROOT)) for name in only)

    os.chdir(ROOT)
    os.environ.update(ENV)
    PROCESSES.set_forkserver_preload(PRELOAD)
    done = [] if only else check_everywhere()
    files = [path for path in sorted((ROOT/'tests').glob('test_*.py')) if wanted(path)]
    files.sort(key=lambda path: -path.stat().st_size)   # the longest first, so that both cores end together
    notebooks = [path for path in (ROOT/'nbs').rglob('*.ipynb') if wanted(path)]
    notebooks.sort(reverse=True)   # the tutorials first, which take longest
    with ThreadPoolExecutor(2) as pool:
        counts = list(pool.map(run, [*files, *notebooks]))
    passed, failed = (sum(column) for column in zip(*counts)) if counts else (0, 0)
    passed, failed = passed + sum(done), failed + len(done) - sum(done)
    print(f'{passed} passed, {failed} failed')
    return int(failed > 0 or passed == 0)


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
