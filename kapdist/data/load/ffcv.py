"""The one door to FFCV: imports it without what its import does to the rest of the process."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numba.typed
import torch


@contextlib.contextmanager
def torch_threads_kept() -> Iterator[None]:
    """Give torch its number of threads back: every FFCV set_num_threads sets torch's too."""
    threads = torch.get_num_threads()
    try:
        yield
    finally:
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)


@contextlib.contextmanager
def plain_dict() -> Iterator[None]:
    """Let FFCV keep its two image modes in a dict: numba's takes 3 s to compile, and no jitted code reads it."""
    typed = numba.typed.Dict
    numba.typed.Dict = dict
    try:
        yield
    finally:
        numba.typed.Dict = typed


try:
    with torch_threads_kept(), plain_dict():
        import ffcv.loader.loader
        from ffcv.fields.rgb_image import RGBImageField, SimpleRGBImageDecoder
        from ffcv.libffcv import lib
        from ffcv.loader import Loader as FFCVLoader
        from ffcv.loader import OrderOption
        from ffcv.loader.epoch_iterator import EpochIterator
        from ffcv.memory_managers.os_cache import OSCacheContext, OSCacheManager
        from ffcv.memory_managers.process_cache.schedule import compute_schedule
        from ffcv.pipeline.allocation_query import AllocationQuery
        from ffcv.pipeline.compiler import Compiler
        from ffcv.pipeline.state import State
        from ffcv.reader import Reader

    WHY_NOT = None
except (ImportError, OSError) as error:  # not installed, or a library that it links to is not
    WHY_NOT = f"{type(error).__name__}: {error}"
    lib = None  # without FFCV nobody asks for it
    OSCacheManager = object


def why_no_ffcv() -> str | None:
    """Return why FFCV cannot be imported, None where it can."""
    return WHY_NOT


class FileCache(OSCacheManager):
    """FFCV's memory map of the file, without the tables and the reader that our decoder does not use.

    For ImageNet the tables take seconds and half a gigabyte per process. The reader's type is worse: it marks
    numba's one and only uint8[::1] as read-only for everybody in the process.
    """

    def __init__(self, reader: Reader) -> None:
        self.reader = reader
        self.ptrs = self.sizes = None
        self.context = OSCacheContext(self)

    def compile_reader(self) -> None:
        return None


@contextlib.contextmanager
def nothing_compiled() -> Iterator[None]:
    """Build an FFCV loader around a decoder that is compiled already: no reader, no wrapping."""
    enabled, cache = Compiler.is_enabled, ffcv.loader.loader.OSCacheManager
    Compiler.set_enabled(False)
    ffcv.loader.loader.OSCacheManager = FileCache
    try:
        yield
    finally:
        Compiler.set_enabled(enabled)
        ffcv.loader.loader.OSCacheManager = cache


__all__ = [
    "AllocationQuery",
    "Compiler",
    "EpochIterator",
    "FFCVLoader",
    "OrderOption",
    "RGBImageField",
    "Reader",
    "SimpleRGBImageDecoder",
    "State",
    "compute_schedule",
    "lib",
    "nothing_compiled",
    "torch_threads_kept",
    "why_no_ffcv",
]
