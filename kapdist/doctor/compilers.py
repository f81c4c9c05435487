"""What compiles: C++ for torch.compile on CPUs and for FFCV's installation, triton for GPUs."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

from kapdist.doctor.bounded import answer
from kapdist.doctor.finding import Finding, note, ok
from kapdist.doctor.packages import find_torch
from kapdist.environment import package_version


def compilers() -> Iterator[Finding]:
    cxx = os.environ.get("CXX", "g++")
    said = answer(cxx, "--version")
    if said is None:
        remedy = "install g++ (or set CXX): engine.compile=true, triton's kernels and FFCV's installation need one"
        yield note("C++", f"{cxx} is not there", remedy)
    else:
        yield ok("C++", (said.splitlines() or [cxx])[0])
    torch, triton = find_torch(), package_version("triton")
    for_gpus = torch is not None and torch.cuda is not None
    found = f"triton {triton}" if triton else "no triton"
    nvcc = re.search(r"release ([\d.]+)", answer("nvcc", "--version") or "")
    found += f", nvcc {nvcc[1]}" if nvcc else ", no nvcc, which nothing here needs"
    if for_gpus and not triton:
        yield note(
            "GPU code", found, "install triton: noise and averages on GPUs, and torch.compile, are faster with it"
        )
    else:
        yield ok("GPU code", found if for_gpus else f"{found}; torch is built for CPUs")
