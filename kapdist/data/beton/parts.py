"""The unfinished beton: a folder beside it with the images so far and the journal of what they are."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from kapdist.data.beton import container
from kapdist.data.beton.board import OPEN, WRITTEN, Board, fork
from kapdist.data.beton.checksum import checksums, compiled_checksum
from kapdist.data.beton.encode import Encoding
from kapdist.data.beton.journal import Journal
from kapdist.data.beton.layout import stored_bytes
from kapdist.data.beton.writer import Job, Progress, Watch
from kapdist.data.sources.base import FileSource, Source
from kapdist.environment import package_versions

# A part is what a killed writer loses per worker, and what each worker holds a few of in memory.
PART_IMAGES, PARTS, PART_BYTES = 256, 256, 1 << 25
USUAL_IMAGE_BYTES, JPEG_RATIO = 1 << 20, 8  # for want of better knowledge, and only for the parts' size
PACKAGES = ("numpy", "opencv-python", "pillow", "simplejpeg")  # other versions may encode otherwise


def part_images(source: Source, encoding: Encoding) -> int:
    """Return how many images make a part: a function of what is written, not of who writes it."""
    bounds = [bound for bound in (source.largest_bytes, encoding.max_side and 3 * encoding.max_side**2) if bound]
    usual = min(bounds, default=USUAL_IMAGE_BYTES)
    if encoding.quality is not None:
        usual = -(-usual // JPEG_RATIO)
    return max(1, min(PART_IMAGES, PART_BYTES // usual, -(-len(source) // PARTS)))


def identity(source: Source, encoding: Encoding, images: int, page_size: int) -> dict[str, Any]:
    """Return what must be the same for a writer to go on with what another one left."""
    names = hashlib.sha256()
    for index in range(len(source)):
        names.update(source.image_name(index).encode(errors="surrogateescape") + b"\0")
    return {
        "source": source.name,
        "class_names": list(source.class_names),
        "num_images": len(source),
        "image_names": names.hexdigest(),
        "column": source.column if isinstance(source, FileSource) else None,
        "labels": hashlib.sha256(labels_of(source)).hexdigest(),
        "encoding": repr(encoding),
        "part_images": images,
        "page_size": page_size,
        "packages": package_versions(PACKAGES),
    }


def labels_of(source: Source) -> bytes:
    """Return the labels of a source that has them in memory, as all that kapdist opens; nothing of another."""
    return np.array(getattr(source, "labels", ()), np.int64).tobytes()


class Parts:
    """All images of a source on their way into one file."""

    def __init__(self, source: Source, encoding: Encoding, folder: Path) -> None:
        self.source, self.encoding = source, encoding
        self.path = folder / "beton"
        page_size, images = encoding.page_size(source), part_images(source, encoding)
        self.start = container.data_start(len(source), page_size)
        self.journal = Journal(folder / "journal", identity(source, encoding, images, page_size))
        self.board = Board(len(source), images, page_size)
        self.noted: set[int] = set()  # parts that the journal has
        self.images_before = 0  # in the parts that an earlier writer left

    def write(self, num_workers: int, timeout_seconds: float, progress: Progress | None) -> dict[int, str]:
        """Encode and place what is not yet there; return {index: reason} of images that could not be read."""
        compiled_checksum()  # once, and not in every worker
        board, kept = self.board, self.intact(self.journal.read())
        if not kept:
            container.begin(self.path, len(self.source), board.page_size)
        self.journal.begin(kept)
        for part, (_, records) in kept.items():
            board.part_records(part)[:] = records
            board.states[part] = WRITTEN
        board.advance()
        self.noted, self.images_before = set(kept), sum(len(records) for _, records in kept.values())
        bad: dict[int, str] = {}
        while (board.states != WRITTEN).any():
            bad |= self.run(num_workers, timeout_seconds, progress)
            # Where an image that could not be read can be read now, what came behind it has moved.
            moved = [part for part, (begin, _) in kept.items() if begin != board.begins[part]]
            board.states[moved] = OPEN
            self.noted, kept = self.noted - set(moved), {}
        return bad

    def run(self, num_workers: int, timeout_seconds: float, progress: Progress | None) -> dict[int, str]:
        """Let workers write the parts that are open."""
        board = self.board
        board.begin(min(num_workers, int((board.states == OPEN).sum())))
        job = Job(self.source, self.encoding, board, self.path, self.start, fork.SimpleQueue())
        before = sum(len(board.images(part)) for part in np.flatnonzero(board.states == WRITTEN).tolist())

        def poll() -> None:
            for part in np.flatnonzero(board.states == WRITTEN).tolist():
                # Parts with unreadable images are not kept: the images may be mended, or left out.
                if part not in self.noted and (board.part_records(part)["size"] > 0).all():
                    self.journal.note(part, int(board.begins[part]), board.part_records(part))
                    self.noted.add(part)
            if progress:
                progress(before + int(board.done.sum()), board.num_images)

        watch = Watch(job, timeout_seconds)
        watch.run(poll)
        return watch.unreadable

    def finish(self) -> None:
        """Make a beton of the file."""
        board = self.board
        begins = np.empty(board.num_images, np.int64)
        for part in range(board.num_parts):
            images, sizes = board.images(part), board.part_records(part)["size"]
            begins[images.start : images.stop], _ = container.place(int(board.begins[part]), sizes, board.page_size)
        container.finish(self.path, board.records, begins, int(board.begins[-1]), self.start, board.page_size)

    def intact(self, parts: dict[int, tuple[int, np.ndarray]]) -> dict[int, tuple[int, np.ndarray]]:
        """Return the parts whose bytes are in the file."""
        if not parts or not self.path.exists():
            return {}
        data, good = stored_bytes(self.path), {}
        for part, (begin, records) in parts.items():
            begins, end = container.place(begin, records["size"], self.board.page_size)
            if self.start + end <= len(data) and len(records) == len(self.board.images(part)):
                sums = checksums(data, self.start + begins, records["size"])
                if np.array_equal(sums, records["checksum"]):
                    good[part] = begin, records
        return good
