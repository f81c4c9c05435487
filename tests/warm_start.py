"""Starts processes that find imported what they need: six seconds of CPU less for each of the many that tests start.

Run as `python warm_start.py SOCKET LIFELINE PYTHON [MODULE ...]`, it imports torch, this kapdist and whatever else is
slow and starts no thread, then forks for every request. A forked process does what `python WORDS` does and ends as
the interpreter ends; what it starts by sys.executable is PYTHON, which asks here too (tests/warm_python.py). One that
would find another kapdist, in its folder or by PYTHONPATH, starts cold after all.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import importlib.machinery
import json
import os
import random
import runpy
import select
import signal
import socket
import sys

# Not polars, pyarrow and what imports them: these start threads, which a fork would lose.
MODULES = (
    "cv2",
    "matplotlib.pyplot",
    "numba.typed",
    "omegaconf",
    "PIL.Image",
    "pyautoattack",
    "pydantic",
    "rich.progress",
    "safetensors.torch",
    "torch",
    "torch._dynamo",
    "torch.distributed.run",
    "torch.nn.parallel",
    "torch.optim.swa_utils",
    "typer",
    "kapdist.data.beton.write",
    "kapdist.train.events",
    "kapdist.train.evaluate_run",
    "kapdist.train.loop",
)
MOST_BYTES = 1 << 20


def main() -> None:
    place, lifeline, python, *more = sys.argv[1:]
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(f"{place}.new")
    listener.listen(100)  # who comes before all is imported waits
    os.rename(f"{place}.new", place)
    threads = NumbaThreads()
    for name in (*MODULES, *more):
        importlib.import_module(name)
    compile_decoders()
    gc.freeze()  # a collection in a forked process would touch, and so copy, every object
    assert len(os.listdir("/proc/self/task")) == 1, "a fork would lose a thread"
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # guards are nobody's to wait for
    while int(lifeline) not in (ready := select.select([listener, int(lifeline)], [], [])[0]):
        assert ready
        control, _ = listener.accept()
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            listener.close()
            os.close(int(lifeline))
            request, files, _, _ = socket.recv_fds(control, MOST_BYTES, 3)
            if guard(control, files):
                break
            os._exit(0)
        control.close()
    else:
        return
    become(json.loads(request), python, threads)


class NumbaThreads:
    """FFCV's import sets numba's number of threads, which starts them: done in the forked process instead."""

    def __init__(self) -> None:
        import numba

        self.set, self.number = numba.set_num_threads, 1
        numba.set_num_threads = self.later

    def later(self, number: int) -> None:
        self.number = number

    def now(self) -> None:
        for module in (sys.modules["numba"], sys.modules["ffcv.pipeline.compiler"]):
            module.set_num_threads = self.set
        self.set(self.number)


def compile_decoders() -> None:
    """Have in machine code what every loader asks for first."""
    from kapdist.data.load.decode import compiled_decode

    compiled_decode()


def guard(control: socket.socket, files: list[int]) -> bool:
    """Return True in a new process; in its parent tell its id and, once it has ended, how.

    Meanwhile a number that comes is a signal for it; when who asked is gone, it is killed.
    """
    os.setsid()
    woken, waking = os.pipe()
    os.set_blocking(waking, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(waking)
    child = os.fork()
    if child == 0:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for number in (control.detach(), woken, waking):
            os.close(number)
        os.setsid()
        for number, file in enumerate(files):
            os.dup2(file, number)
            os.close(file)
        return True
    for file in files:
        os.close(file)
    control.send(str(child).encode())
    while woken not in select.select([control, woken], [], [])[0]:
        number = control.recv(MOST_BYTES)
        os.kill(child, int(number or signal.SIGKILL))
        if not number:
            break
    _, status = os.waitpid(child, 0)
    with contextlib.suppress(OSError):  # nobody wants to know
        control.send(str(os.waitstatus_to_exitcode(status)).encode())
    return False


def become(request: dict, python: str, threads: NumbaThreads) -> None:
    """Do what `python WORDS` does."""
    os.chdir(request["cwd"])
    before = os.environ.get("PYTHONPATH")
    os.environ.clear()
    os.environ.update(request["environment"])
    words = request["words"]
    folder = os.getcwd() if words[0] == "-m" else os.path.dirname(os.path.realpath(words[0]))
    if another_kapdist(folder) or os.environ.get("PYTHONPATH") != before:
        os.execv(sys.executable, [sys.executable, *words])
    threads.now()
    sys.modules["torch"].set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or len(os.sched_getaffinity(0))))
    random.seed()
    sys.modules["numpy"].random.seed()
    sys.path[0], sys.executable = folder, python
    if words[0] == "-m":
        sys.argv = words[1:]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = words
        runpy.run_path(words[0], run_name="__main__")


def another_kapdist(folder: str) -> bool:
    """Return whether a process that looks into a folder first finds another kapdist there than this one."""
    found = importlib.machinery.PathFinder.find_spec("kapdist", [folder])
    return found is not None and found.origin != sys.modules["kapdist"].__file__


if __name__ == "__main__":
    main()
