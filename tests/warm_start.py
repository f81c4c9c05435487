"""Starts processes that find torch imported: three seconds of CPU less for each of the many that tests start.

Run as `python warm_start.py SOCKET`, it imports what is not ours and not a thread's, then forks for every request.
A forked process imports kapdist itself and ends as the interpreter ends; nothing of kapdist is shared.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import random
import runpy
import socket
import sys

# Not ffcv, polars and deepspeed: these start threads, which a fork would lose, or change the process.
PACKAGES = (
    "numba.typed",
    "omegaconf",
    "PIL.Image",
    "pydantic",
    "rich.progress",
    "safetensors.torch",
    "torch",
    "torch._dynamo",
    "torch.nn.parallel",
    "torch.optim.swa_utils",
    "torch.utils.tensorboard",
    "typer",
)


def main() -> None:
    for name in PACKAGES:
        importlib.import_module(name)
    gc.freeze()  # a collection in a forked process would touch, and so copy, every object
    assert len(os.listdir("/proc/self/task")) == 1, "a fork would lose a thread"
    requests, guards = socket.socket(fileno=int(sys.argv[1])), 0
    while True:
        request, files, _, _ = socket.recv_fds(requests, 1 << 20, 2)
        if not request:
            return
        output, answers = files
        if os.fork() == 0:
            requests.close()
            if guard(output, answers):
                break
            os._exit(0)
        os.close(output)
        os.close(answers)
        guards += 1
        while guards and os.waitpid(-1, os.WNOHANG)[0]:
            guards -= 1
    become(json.loads(request))


def guard(output: int, answers: int) -> bool:
    """Return True in a new process; in its parent tell its id and, once it has ended, how."""
    os.setsid()
    child = os.fork()
    if child == 0:
        os.close(answers)
        os.setsid()
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.close(output)
        return True
    os.write(answers, f"{child}\n".encode())
    _, status = os.waitpid(child, 0)
    with contextlib.suppress(BrokenPipeError):  # nobody wants to know
        os.write(answers, f"{os.waitstatus_to_exitcode(status)}\n".encode())
    return False


def become(request: dict) -> None:
    """Do what `python WORDS` does."""
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["environment"])
    random.seed()
    sys.modules["numpy"].random.seed()
    words = request["words"]
    if words[0] == "-m":
        sys.argv, sys.path[0] = words[1:], os.getcwd()
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv, sys.path[0] = words, os.path.dirname(os.path.abspath(words[0]))
        runpy.run_path(words[0], run_name="__main__")


if __name__ == "__main__":
    main()
