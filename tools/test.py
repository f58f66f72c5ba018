"""Every check of the project: exported, clean, each notebook, each test. Ends with `N passed, N failed`.

A name or several as arguments run only the notebooks and test files whose path contains one of them."""
import hashlib, os, subprocess, sys, tempfile, time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from xml.etree import ElementTree

root, bin = Path(__file__).resolve().parent.parent, Path(sys.executable).parent
env = {**os.environ, 'OMP_NUM_THREADS': '1', 'MPLBACKEND': 'agg',
       'PATH': f"{bin}{os.pathsep}{os.environ['PATH']}"}
env.setdefault('PYDEVD_DISABLE_FILE_VALIDATION', '1')


def report(ok: bool, what: str, since: float, output: str = '') -> bool:
    print(f"{'ok  ' if ok else 'FAIL'} {time.time()-since:6.1f} s  {what}", flush=True)
    if not ok: print(output.rstrip()[-8000:], flush=True)
    return ok


def leaves_alone(what: str, command: str, folder: str, pattern: str) -> bool:
    "The command has to find nothing to change in the folder."
    def prints(): return {p: hashlib.sha256(p.read_bytes()).digest() for p in (root/folder).glob(pattern)}
    since, before = time.time(), prints()
    done = subprocess.run([bin/command], cwd=root, env=env, capture_output=True, text=True)
    after = prints()
    changed = sorted(p.name for p in {*before, *after} if before.get(p) != after.get(p))
    text = done.stdout + done.stderr
    if changed: text += f"\nSeen: {command} changed {', '.join(changed)}. Wanted: {what}. Fix: it is done now; look at it and commit."
    return report(done.returncode == 0 and not changed, what, since, text)


def notebook(path: Path) -> bool:
    since = time.time()
    done = subprocess.run([bin/'nbdev_test', '--path', path, '--n_workers', '0'], cwd=root, env=env, capture_output=True, text=True)
    return report(done.returncode == 0, f'{path.relative_to(root)}', since, done.stdout + done.stderr)


def tests(files: list) -> tuple[int, int]:   # passed, failed
    with tempfile.TemporaryDirectory() as tmp:
        xml = Path(tmp)/'tests.xml'
        code = subprocess.run([bin/'python', '-m', 'pytest', '-q', '-rs', '--durations=5', f'--junitxml={xml}', *files], cwd=root, env=env).returncode
        if not xml.exists(): return 0, 1
        n = {k: sum(int(s.get(k)) for s in ElementTree.parse(xml).iter('testsuite')) for k in ('tests', 'failures', 'errors', 'skipped')}
    failed = n['failures'] + n['errors']
    return n['tests'] - failed - n['skipped'], failed or int(code not in (0, 5))   # 5: no test there


def main(only: list) -> int:
    wanted = lambda p: not only or any(o in str(p.relative_to(root)) for o in only)
    done = [] if only else [
        leaves_alone('the modules are what the notebooks export', 'nbdev_export', 'bidirseg', '*.py'),
        leaves_alone('the notebooks are clean', 'nbdev_clean', 'nbs', '*.ipynb')]
    notebooks = [p for p in sorted((root/'nbs').glob('*.ipynb')) if wanted(p)]
    with ThreadPoolExecutor(2) as pool: done += pool.map(notebook, notebooks)
    files = [p for p in sorted((root/'tests').glob('test_*.py')) if wanted(p)]
    passed, failed = tests(files) if files else (0, 0)
    passed, failed = passed + sum(done), failed + len(done) - sum(done)
    print(f'{passed} passed, {failed} failed')
    return int(failed > 0 or passed == 0)


if __name__ == '__main__': sys.exit(main(sys.argv[1:]))
