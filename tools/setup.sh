#!/usr/bin/env bash
# Sets up what kapdist needs on a fresh machine: system libraries, data package, .venv. Safe to run again.
#   tools/setup.sh          to use kapdist
#   tools/setup.sh --test   with what the tests need besides (a browser, photographs)
set -euo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-python3}
missing=()                                   # Debian's package names
need() { local package=$1; shift; "$@" >/dev/null 2>&1 || missing+=("$package"); }

need g++ command -v g++
need python3-venv "$python" -c 'import ensurepip, venv'
need python3-dev "$python" -c 'import os, sysconfig; os.stat(sysconfig.get_path("include") + "/Python.h")'
need pkg-config command -v pkg-config
need libopencv-dev pkg-config --exists opencv4
need libturbojpeg0-dev pkg-config --exists libturbojpeg
need dataset-fashion-mnist test -e /usr/share/datasets/fashion-mnist/train-images-idx3-ubyte.gz
if [ "${1:-}" = "--test" ]; then
    need chromium command -v chromium
    need tuxpaint-stamps-default test -d /usr/share/tuxpaint/stamps
    # The Slurm of tests/slurm (tools/slurm_sandbox.py); the daemons lie outside a plain user's PATH.
    daemon() { PATH="$PATH:/usr/sbin:/sbin" command -v "$1"; }
    need slurm-wlm daemon slurmctld
    need slurmdbd daemon slurmdbd
    need munge daemon munged
    need mariadb-server daemon mariadbd
    need iproute2 daemon ip
fi

as_root=()
[ "$(id -u)" = 0 ] || as_root=(sudo)
if [ ${#missing[@]} -gt 0 ]; then
    if command -v apt-get >/dev/null && { [ "$(id -u)" = 0 ] || command -v sudo >/dev/null; }; then
        echo "setup: installing ${missing[*]}"
        "${as_root[@]}" apt-get update -qq
        DEBIAN_FRONTEND=noninteractive "${as_root[@]}" apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
    else
        echo "setup: missing on this machine (Debian's names): ${missing[*]}" >&2
        echo "setup: install them with your package manager and run this again" >&2
        # The data package can be replaced by a download (kapdist data write fashion-mnist does it); the rest cannot.
        [ "${missing[*]}" = dataset-fashion-mnist ] || exit 2
    fi
fi

if ! "$python" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))'; then
    echo "setup: kapdist needs Python 3.10 to 3.13, found $("$python" --version); set PYTHON=/path/to/python3.11" >&2
    exit 2
fi
# Every group of pyproject.toml but `zoo`: torchvision has to be of torch's very build.
wanted=$(cat pyproject.toml constraints.txt | cksum)
if [ "$(cat .venv/.kapdist-installed 2>/dev/null)" != "$wanted" ]; then
    echo "setup: installing Python packages into .venv"
    [ -x .venv/bin/python ] || "$python" -m venv .venv
    .venv/bin/pip install -q --disable-pip-version-check --no-compile -c constraints.txt -e '.[dev]'
    # pip would compile on one core. Some packages bring templates that are no Python.
    .venv/bin/python -m compileall -qq -j 0 .venv/lib || true
    echo "$wanted" >.venv/.kapdist-installed
fi
