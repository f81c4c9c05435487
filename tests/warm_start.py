"""Starts processes that find imported what they need: six seconds of CPU less for each of the many of the tests.

Run as `python warm_start.py SOCKET LIFELINE PYTHON`, it imports torch, FFCV and whatever else is slow and starts no
thread, then forks for every request: at SOCKET processes that have this kapdist imported too, at SOCKET.plain ones
that bring their own. A forked process does what `python WORDS` does, where and as who asked would do it, and ends
as the interpreter ends. What it starts by sys.executable is PYTHON, which asks here too (tests/warm_python.py).
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import gc
import importlib
import json
import os
import pathlib
import random
import runpy
import select
import signal
import socket
import sys

# Not pyarrow, deepspeed and what imports them: these start threads, which a fork would lose, or change all.
THEIRS = (
    "cv2",
    "matplotlib.pyplot",
    "omegaconf",
    "PIL.Image",
    "polars",
    "pyautoattack",
    "pydantic",
    "rich.progress",
    "safetensors.torch",
    "scipy.stats",
    "tensorboard.summary.writer.record_writer",
    "torch",
    "torch._dynamo",
    "torch._inductor.compile_fx",
    "torch.distributed.run",
    "torch.nn.parallel",
    "torch.optim.swa_utils",
    "typer",
)
OURS = (
    "kapdist.data.beton.write",
    "kapdist.data.load.decode",
    "kapdist.data.load.pipeline",
    "kapdist.train.events",
    "kapdist.train.evaluate_run",
    "kapdist.train.loop",
    "launch.attack",
    "launch.status.run",
    "launch.status.study",
    "launch.status.table",
    "launch.study",
    "launch.train",
    "rich.console",
)
MOST_BYTES = 1 << 20
NOT_MISSED = {"polars-ooc-clea"}  # threads: this one removes what polars has put on disk for want of memory


def main() -> None:
    place, lifeline, python = sys.argv[1:]
    os.environ["_RJEM_MALLOC_CONF"] = "background_thread:false"  # polars' allocator
    libraries = Libraries()
    threads = NumbaThreads()
    import_all(THEIRS)
    know_types()
    plain = listen(f"{place}.plain")
    if os.fork() == 0:
        request = serve(plain, int(lifeline))
    else:
        plain.close()
        sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))  # launch/ is in the checkout only
        import_all(OURS)
        del sys.path[0]
        sys.modules["kapdist.data.load.decode"].compiled_decode()  # what every loader asks for first
        request = serve(listen(place), int(lifeline))
    if request:
        become(request, python, threads, libraries)


def know_types() -> None:
    """Have numba learn what there is to compile with, a second of CPU for each loader otherwise."""
    sys.modules["numba"].njit("int64(int64)", nogil=True)(lambda number: number)
    check_threads()


def listen(place: str) -> socket.socket:
    """Listen at a place that is there as soon as, and not before, a request has its answer at once."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        listener.bind(f"{place}.new")
    except FileNotFoundError:
        raise SystemExit from None  # the tests have ended meanwhile, and their folder is gone
    listener.listen(100)
    os.rename(f"{place}.new", place)
    return listener


class Libraries:
    """Keeps them from being taken apart at the end, which costs each process 0.6 s of CPU.

    To what ends after them they are gone, as always; other modules and what they made are taken apart as always.
    Where a thread is left that could run into the end of a library in C++, that end comes as always too.
    """

    def __init__(self) -> None:
        self.names: list[str] = []
        self.threads = 0
        atexit.register(self.keep)  # the first of all: the last that is called

    def note(self) -> None:
        own = "__main__", "builtins", "sys"  # the interpreter ends these itself
        self.names = [name for name in sys.modules if name not in own and name.split(".")[0] != "kapdist"]
        self.threads = count_threads()

    def keep(self) -> None:
        kept = {name: sys.modules[name] for name in self.names if name in sys.modules}
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(kept))
        sys.modules.update(dict.fromkeys(kept))
        if count_threads() <= self.threads:
            end_in_c_at_once()


def end_in_c_at_once() -> None:
    libc = ctypes.CDLL(None)
    libc.on_exit(libc._exit, None)  # the last registered is called first, with the exit code
    libc.__cxa_atexit(libc.fflush, None, None)


def count_threads() -> int:
    return len(os.listdir("/proc/self/task"))


class NumbaThreads:
    """FFCV's import sets numba's number of threads, which starts them: done in the forked process instead."""

    def __init__(self) -> None:
        import numba.typed

        self.set, self.number, typed = numba.set_num_threads, 1, numba.typed.Dict
        numba.set_num_threads, numba.typed.Dict = self.later, dict  # the dict as in kapdist/data/load/ffcv.py
        importlib.import_module("ffcv.loader")
        numba.typed.Dict = typed

    def later(self, number: int) -> None:
        self.number = number

    def now(self) -> None:
        for module in (sys.modules["numba"], sys.modules["ffcv.pipeline.compiler"]):
            module.set_num_threads = self.set
        self.set(self.number)


def import_all(names: tuple[str, ...]) -> None:
    for name in names:
        importlib.import_module(name)
    check_threads()


def check_threads() -> None:
    """See to it that a fork loses no thread."""
    others = set(os.listdir("/proc/self/task")) - {str(os.getpid())}
    names = {pathlib.Path(f"/proc/self/task/{thread}/comm").read_text().strip() for thread in others}
    assert names <= NOT_MISSED, names


def serve(listener: socket.socket, lifeline: int) -> dict | None:
    """Fork for every request, and return it in the new process; None once nobody is left to ask."""
    gc.freeze()  # a collection in a forked process would touch, and so copy, every object
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # guards are nobody's to wait for
    while lifeline not in select.select([listener, lifeline], [], [])[0]:
        control, _ = listener.accept()
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            listener.close()
            os.close(lifeline)
            request, files, _, _ = socket.recv_fds(control, MOST_BYTES, 3)
            if request and guard(control, files):
                return json.loads(request)
            os._exit(0)
        control.close()
    return None


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
        os.setsid()
        for number in (control.detach(), woken, waking):
            os.close(number)
        for number, file in enumerate(files):
            os.dup2(file, number)
            os.close(file)
        return True
    for file in files:
        os.close(file)
    with contextlib.suppress(OSError):  # who asked is gone: the next line will see
        control.send(str(child).encode())
    while woken not in select.select([control, woken], [], [])[0]:
        number = control.recv(100)
        os.kill(child, int(number or signal.SIGKILL))
        if not number:
            break
    _, status = os.waitpid(child, 0)
    with contextlib.suppress(OSError):
        control.send(str(os.waitstatus_to_exitcode(status)).encode())
    return False


def become(request: dict, python: str, threads: NumbaThreads, libraries: Libraries) -> None:
    """Do what `python WORDS` does where it was asked for."""
    enter(request["pid"])
    os.sched_setaffinity(0, request["affinity"])
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["environment"])
    threads.now()
    libraries.note()
    sys.modules["torch"].set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or len(request["affinity"])))
    random.seed()
    sys.modules["numpy"].random.seed()
    words = request["words"]
    folder = os.getcwd() if words[0] == "-m" else os.path.dirname(os.path.realpath(words[0]))
    sys.path[:1] = [folder, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    sys.executable = python
    if words[0] == "-m":
        sys.argv = words[1:]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = words
        runpy.run_path(words[0], run_name="__main__")


def enter(pid: int) -> None:
    """Enter the namespaces of who asked: a node of tests/slurm has a network, a name and /etc/hosts of its own."""
    libc = ctypes.CDLL(None, use_errno=True)
    for kind in ("uts", "net", "mnt"):
        theirs = f"/proc/{pid}/ns/{kind}"
        if os.readlink(theirs) == os.readlink(f"/proc/self/ns/{kind}"):
            continue
        file = os.open(theirs, os.O_RDONLY)
        if libc.setns(file, 0):
            raise OSError(ctypes.get_errno(), f"setns {kind}")
        os.close(file)


if __name__ == "__main__":
    main()
