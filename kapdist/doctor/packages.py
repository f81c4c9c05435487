"""Python and the packages, found without importing torch: that alone would take longer than all else here."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.metadata
import importlib.util
import platform
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from kapdist.doctor.finding import Finding, judged, note, ok, wrong
from kapdist.environment import package_version

INSTALL = "make setup, or pip install -c constraints.txt -e ."


class Torch(NamedTuple):
    """What lies in an installed torch."""

    folder: Path
    version: str
    cuda: str | None
    """CUDA's version that it is built for."""

    @property
    def release(self) -> tuple[int, ...]:
        return release(self.version)


def release(version: str) -> tuple[int, ...]:
    """Return the first two numbers of a version."""
    return tuple(map(int, re.findall(r"\d+", version)[:2]))


def find_torch() -> Torch | None:
    folder = folder_of("torch")
    if folder is None:
        return None
    text = (folder / "version.py").read_text()
    version = re.search(r"__version__ = '(.+)'", text)
    cuda = re.search(r"^cuda.* = '(.+)'", text, re.MULTILINE)
    return Torch(folder, version[1] if version else "of no version", cuda[1] if cuda else None)


def folder_of(package: str) -> Path | None:
    """Return where a package lies, which is not imported."""
    spec = importlib.util.find_spec(package)
    places = list(spec.submodule_search_locations or []) if spec else []
    return Path(places[0]) if places else None


def python() -> Iterator[Finding]:
    wanted = importlib.metadata.metadata("kapdist")["Requires-Python"] or ""
    yield judged(
        "Python",
        f"{platform.python_version()} ({sys.executable})",
        (not within(platform.python_version(), wanted), "wrong", f"kapdist needs Python {wanted}"),
    )


def within(version: str, wanted: str) -> bool:
    """Return whether a version is one that is wanted; True where nothing here can tell."""
    with contextlib.suppress(ImportError):
        from packaging.specifiers import SpecifierSet

        return SpecifierSet(wanted).contains(version, prereleases=True)
    return True


def requirements() -> Iterator[Finding]:
    """Compare what is installed with what kapdist's own metadata asks for."""
    from packaging.requirements import Requirement

    every = [Requirement(line) for line in importlib.metadata.requires("kapdist") or []]
    needed = [one for one in every if one.marker is None or one.marker.evaluate({"extra": ""})]
    amiss = [told for one in needed if (told := lacking(one.name, str(one.specifier)))]
    found = (
        f"kapdist {package_version('kapdist')}, {len(needed) - len(amiss)} of {len(needed)} packages that it needs"
    )
    if amiss:
        yield wrong("packages", f"{found}; not {', '.join(amiss)}", INSTALL)
    else:
        yield ok("packages", found)


def lacking(name: str, wanted: str) -> str | None:
    """Say what is wrong with an installed package, None where nothing is."""
    version = package_version(name)
    if version is None:
        return name
    return None if within(version, wanted) else f"{name} {version} ({wanted})"


def torch() -> Iterator[Finding]:
    found = find_torch()
    if found is None:
        yield wrong("torch", "not installed", INSTALL)
        return
    library = found.folder / "lib" / ("libtorch_cuda.so" if found.cuda else "libtorch_cpu.so")
    build = f"built for CUDA {found.cuda}" if found.cuda else "built for CPUs"
    yield judged(
        "torch", f"{found.version}, {build}", (not library.exists(), "wrong", f"{library} is missing: {INSTALL}")
    )
    yield nccl(found)


def nccl(found: Torch) -> Finding:
    if found.cuda is None:
        return ok("NCCL", "none, as torch is built for CPUs: ranks meet over gloo")
    folder = folder_of("nvidia.nccl") if folder_of("nvidia") else None
    places = [*(folder.glob("lib/libnccl.so*") if folder else []), *found.folder.glob("lib/libnccl.so*")]
    if not places:
        return note("NCCL", "not found beside torch, which may have it inside")
    version = ctypes.c_int()
    ctypes.CDLL(str(places[0])).ncclGetVersion(ctypes.byref(version))
    return ok("NCCL", nccl_version(version.value))


def nccl_version(code: int) -> str:
    """Return NCCL's version by its number: 22703 is 2.27.3, and before 2.9 2708 is 2.7.8."""
    major = 10_000 if code >= 10_000 else 1000
    return f"{code // major}.{code % major // 100}.{code % 100}"


def decoders() -> Iterator[Finding]:
    """Load FFCV's library, with those that it links to, and take a picture through simplejpeg."""
    told = [ffcv(), simplejpeg()]
    if all(finding.status != "ok" for finding in told):
        told = [finding._replace(status="wrong") for finding in told]
    yield from told


def ffcv() -> Finding:
    remedy = "betons are read with simplejpeg, somewhat slower: install OpenCV and libturbojpeg (tools/setup.sh)"
    folder = folder_of("ffcv")
    libraries = sorted(folder.glob("_libffcv*.so")) if folder else []
    if not libraries:
        return note("FFCV", "not installed" if folder is None else "installed without its library", remedy)
    try:
        ctypes.CDLL(str(libraries[0]))
    except OSError as error:
        return note("FFCV", f"{package_version('ffcv')}, whose library does not load: {error}", remedy)
    return ok("FFCV", f"{package_version('ffcv')}; its library and those that it links to load")


def simplejpeg() -> Finding:
    remedy = f"it decodes where FFCV cannot be had: {INSTALL}"
    try:
        import numpy
        import simplejpeg
    except (ImportError, OSError) as error:
        return note("simplejpeg", str(error), remedy)
    grey = numpy.full((16, 16, 3), 128, numpy.uint8)
    same = abs(int(simplejpeg.decode_jpeg(simplejpeg.encode_jpeg(grey)).mean()) - 128) < 2
    return judged(
        "simplejpeg", f"{package_version('simplejpeg')}", (not same, "wrong", "it decodes to another picture")
    )


def deepspeed() -> Iterator[Finding]:
    version = package_version("deepspeed")
    if version is None:
        yield note("DeepSpeed", "not installed", "engine.name=deepspeed and engine.zero_stage need it")
    else:
        known = " (its fp16 loss scale never falls: kapdist scales the loss itself)" if version == "0.19.8" else ""
        yield ok("DeepSpeed", version + known)
