#!/usr/bin/env bash
# Makes .venv and installs the package, editable, with its development tools under constraints.txt.
# Called by `make setup`; safe to repeat. PYTHON names the interpreter to try first.
set -uo pipefail
cd "$(dirname "$0")/.."
log=.venv/setup.log
torch_index=https://download.pytorch.org/whl/cpu

say()  { echo "setup: $*"; }
stop() { printf 'setup: Seen: %s. Wanted: %s. Fix: %s.\n' "$1" "$2" "$3" >&2; exit 1; }
offline='connection (refused|reset|broken)|failed to establish|name resolution|name or service|unreachable|timed out'
offline+='|dns error|error sending request|tunnel connection|ProxyError|SSLError|certificate'
no_index() {   # did the installer fail for want of an index? The line that says so, and the way out
    line=$(grep -iE "$offline" <<< "$1" | tail -n 1)
    [ -z "$line" ] && return
    echo "$line" >&2
    stop "the package index did not answer" "a network, or an index that can be reached" \
         "connect (or set HTTPS_PROXY, or PIP_INDEX_URL, with uv UV_DEFAULT_INDEX, for another index) and repeat; what is installed is kept"
}
recent() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

# --- the interpreter: the first of these that is 3.11 or later
uv=$(command -v uv || true)
python=
for name in "${PYTHON:-python3}" python3.13 python3.12 python3.11 python3.14; do
    recent "$name" && { python=$name; break; }
done
if [ -z "$python" ] && [ -z "$uv" ]; then
    stop "$("${PYTHON:-python3}" --version 2>&1 | head -n 1)" "Python 3.11 or later" \
         "install one and run 'make setup PYTHON=/path/to/python3.11', or install uv, which brings its own"
fi

# --- the environment
if recent .venv/bin/python; then
    say "using .venv ($(.venv/bin/python --version))"
else
    say "creating .venv with ${uv:-$python -m venv}"
    if [ -n "$uv" ]; then made=$("$uv" venv --clear --seed --python "${python:-3.13}" .venv 2>&1)
    else made=$("$python" -m venv --clear .venv 2>&1); fi || {
        rm -rf .venv
        no_index "$made"
        echo "$made" | tail -n 5 >&2
        if [ -n "$uv" ]; then
            stop "uv could not make .venv" "Python 3.11 or later and pip" "mend what uv names above and repeat"
        fi
        stop "'$python -m venv' failed" "Python's venv and ensurepip modules" \
             "install them (on Debian and Ubuntu: apt install python3-venv) or install uv, and repeat"
    }
fi

# --- the installer: uv does not read pip's configuration, so it is told where pip would look
options=(-c constraints.txt)
if [ -n "$uv" ]; then
    pip=("$uv" pip install --python .venv/bin/python)
    links=${PIP_FIND_LINKS-$(.venv/bin/python -m pip config list 2>/dev/null | sed -n "s/.*\.find-links='\(.*\)'/\1/p")}
    for link in $links; do
        case $link in *://*) options+=(--find-links "$link");; *) [ -e "$link" ] && options+=(--find-links "$link");; esac
    done
else
    pip=(.venv/bin/python -m pip install --progress-bar off --retries 2)
fi

# --- torch and torchvision: the CPU builds are a tenth of the others, so they are looked for where no GPU is. Both have
# to come from one place: a torchvision built for CUDA does not import beside a CPU torch
wanted=$(sed -n 's/^torch==//p' constraints.txt)
pair() { .venv/bin/python -c "from importlib.metadata import version as v; print('torch', v('torch'), 'and torchvision', v('torchvision'))"; }
belong_together() { .venv/bin/python -c 'import torch, torchvision' 2>/dev/null; }
has_torch() { [[ $(pair 2>/dev/null) == "torch $wanted"[+\ ]* ]] && belong_together; }
has_gpu() { command -v nvidia-smi >/dev/null || [ -e /dev/nvidia0 ]; }
local_cpu() { "${pip[@]}" "${options[@]}" --dry-run --no-index --no-deps torch 2>&1 | grep '+cpu' >/dev/null; }
answers() { .venv/bin/python -c "from urllib.request import urlopen; urlopen('$torch_index/torch/', timeout=5)" 2>/dev/null; }
if [ "$(uname -s)" = Linux ] && ! has_gpu && ! has_torch; then
    if answers; then
        say "no NVIDIA GPU here: taking the CPU builds of torch and torchvision from $torch_index"
        options+=(--extra-index-url "$torch_index")
        [ -n "$uv" ] && options+=(--index-strategy unsafe-best-match)
        .venv/bin/python -m pip uninstall -q -y torch torchvision >/dev/null 2>&1   # builds that are no pair stay otherwise
    elif local_cpu; then
        say "no NVIDIA GPU here: taking the CPU build of torch that lies on this machine"
    else
        say "no CPU build of torch found ($torch_index does not answer): the ordinary one is a download of several GB"
    fi
fi

# --- the packages
install() {
    "${pip[@]}" "${options[@]}" "$@" 2>&1 | tee -a "$log" | grep --line-buffered -E 'Downloading .*[0-9] ?(M|G)i?B'
    [ "${PIPESTATUS[0]}" -eq 0 ] && return
    if grep -q 'No space left' "$log"; then
        stop "the disk is full" "about 3 GB for .venv" "make room and repeat; what is installed is kept"
    fi
    no_index "$(cat "$log")"
    tail -n 15 "$log" >&2
    stop "the installer failed, see $log" "the packages of settings.ini under constraints.txt" "mend what it names above and repeat"
}
: > "$log"
say "installing bidirseg and its development tools (a few minutes the first time; details in $log)"
install setuptools
install --no-build-isolation -e '.[dev]'
.venv/bin/python -c 'import bidirseg' || stop "bidirseg does not import" "a whole installation" "rm -r .venv and repeat"
say "installed $(pair), bidirseg $(.venv/bin/python -c 'import bidirseg; print(bidirseg.__version__)')"
if ! belong_together; then
    say "torchvision is of another build than torch; bidirseg declares the operators that it lacks, so all works here."
    say "for a pair from one place: 'touch setup.py; make setup' when $torch_index answers"
fi
exit 0
