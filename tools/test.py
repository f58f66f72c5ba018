"""Every check of the project: exported, clean, style, each notebook, each test. Ends with `N passed, N failed`.

A name or several as arguments run only the notebooks and test files whose path contains one of them."""
import hashlib
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


def run_notebook(path: Path) -> bool:
    "A notebook's cells, from the first to the last."
    return succeeds(str(path.relative_to(ROOT)), 'nbdev_test', '--path', path, '--n_workers', '0')


def run_tests(files: list[Path]) -> tuple[int, int]:   # passed, failed
    "pytest, which prints for itself."
    with tempfile.TemporaryDirectory() as folder:
        xml = Path(folder)/'tests.xml'
        line = [BIN/'python', '-m', 'pytest', '-q', '-rs', '--durations=5', f'--junitxml={xml}', *files]
        status = subprocess.run(line, cwd=ROOT, env=ENV).returncode
        if not xml.exists():
            return 0, 1
        suites = list(ElementTree.parse(xml).iter('testsuite'))
    count = {key: sum(int(suite.get(key)) for suite in suites) for key in ('tests', 'failures', 'errors', 'skipped')}
    failed = count['failures'] + count['errors']
    return count['tests'] - failed - count['skipped'], failed or int(status not in (0, NO_TESTS))


def check_everywhere() -> list[bool]:
    "What is about all files at once."
    return [
        changes_nothing('the modules are what the notebooks export', 'nbdev_export', 'bidirseg', '*.py'),
        changes_nothing('the notebooks are clean', 'nbdev_clean', 'nbs', '*.ipynb'),
        succeeds('parameter cells list the settings', 'python', 'tools/parameters.py', '--check'),
        succeeds('the code reads well (ruff)', 'ruff', 'check', '--output-format=concise', '.')]


def main(only: list[str]) -> int:
    def wanted(path: Path) -> bool:
        return not only or any(name in str(path.relative_to(ROOT)) for name in only)

    done = [] if only else check_everywhere()
    notebooks = [path for path in sorted((ROOT/'nbs').rglob('*.ipynb')) if wanted(path)]
    with ThreadPoolExecutor(2) as pool:
        done += pool.map(run_notebook, notebooks)
    files = [path for path in sorted((ROOT/'tests').glob('test_*.py')) if wanted(path)]
    passed, failed = run_tests(files) if files else (0, 0)
    passed, failed = passed + sum(done), failed + len(done) - sum(done)
    print(f'{passed} passed, {failed} failed')
    return int(failed > 0 or passed == 0)


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
