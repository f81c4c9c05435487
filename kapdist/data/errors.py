"""Failures that the parts of this package tell each other about."""

from __future__ import annotations


class UnreadableImageError(Exception):
    """An image of a source cannot be decoded; the message says why."""


class DamagedImageError(Exception):
    """The stored bytes of an image are not what was written."""

    def __init__(self, image: int) -> None:
        super().__init__(f"image {image}")
        self.image = image


class WriterError(RuntimeError):
    """A writing worker ended, or stopped, before its work was done; the message names the image it was at."""
