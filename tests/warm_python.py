"""Is `python` for what a script, a job or another process starts: asks tests/warm_start.py for a warm process.

It stands for that process: passes on its files and the signals that it gets, ends as it ends, and takes it along
when it is killed. What is no module and no file, such as `python -c`, it does itself, cold.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from typing import NoReturn

PASSED_ON = signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2


def main(place: str, root: str) -> NoReturn:
    words = sys.argv[2:] if sys.argv[1:2] == ["-u"] else sys.argv[1:]
    if not words or not (words[0] == "-m" or os.path.isfile(words[0])):
        os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
    control = ask(place, root, words, os.getcwd(), os.environ, [0, 1, 2])
    for number in PASSED_ON:
        signal.signal(number, lambda number, frame: control.send(str(number).encode()))
    control.recv(100)  # its id
    code = int(control.recv(100) or 1)
    if code < 0:
        if -code != signal.SIGKILL:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)


def ask(
    place: str, root: str, words: Sequence[str], cwd: str, environment: Mapping[str, str], files: Sequence[int]
) -> socket.socket:
    """Have `python WORDS` run; return what tells its id and, in the end, its exit code; takes signals for it."""
    control = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    control.connect(f"{place}.plain" if brings_a_kapdist(words, cwd, environment, root) else place)
    request = {"words": list(words), "cwd": cwd, "environment": dict(environment)}
    request |= {"pid": os.getpid(), "affinity": sorted(os.sched_getaffinity(0))}
    socket.send_fds(control, [json.dumps(request).encode()], files)
    return control


def brings_a_kapdist(words: Sequence[str], cwd: str, environment: Mapping[str, str], root: str) -> bool:
    """Return whether a process would import another kapdist than the one in root, such as a job's snapshot."""
    first = cwd if words[0] == "-m" else os.path.dirname(os.path.realpath(os.path.join(cwd, words[0])))
    folders = [first, os.path.dirname(first), *environment.get("PYTHONPATH", "").split(os.pathsep)]
    found = [folder for folder in folders if folder and os.path.exists(f"{folder}/kapdist/__init__.py")]
    return any(not os.path.samefile(f"{folder}/kapdist", f"{root}/kapdist") for folder in found)
