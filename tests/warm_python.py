"""Is `python` for what tests start by a script or by sys.executable: asks tests/warm_start.py for a warm process.

It stands for that process: passes on its files and the signals that it gets, ends as it ends, and takes it along when
killed. What is no module and no file, such as `python -c`, it does itself, cold.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from typing import NoReturn

PASSED_ON = signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2


def main(place: str) -> NoReturn:
    words = sys.argv[2:] if sys.argv[1:2] == ["-u"] else sys.argv[1:]  # nothing of ours minds a buffered output
    if not words or not (words[0] == "-m" or os.path.isfile(words[0])) or not os.path.exists(place):
        os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
    control = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    control.connect(place)
    request = {"words": words, "cwd": os.getcwd(), "environment": dict(os.environ)}
    socket.send_fds(control, [json.dumps(request).encode()], [0, 1, 2])
    control.recv(1 << 10)
    for number in PASSED_ON:
        signal.signal(number, lambda number, frame: control.send(str(number).encode()))
    code = int(control.recv(1 << 10) or -signal.SIGKILL)
    if code < 0:
        signal.signal(-code, signal.SIG_DFL) if code != -signal.SIGKILL else None
        os.kill(os.getpid(), -code)
    os._exit(code)
