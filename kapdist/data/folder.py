"""A folder of class folders as a source: any size and kind of image, read as RGB."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from kapdist.data.errors import UnreadableImageError
from kapdist.errors import InputError

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp", ".gif")


class ClassFolder:
    """The images below root/<class name>/, however deep; labels as torchvision's ImageFolder gives them."""

    largest_bytes: int | None = None

    def __init__(self, root: Path) -> None:
        self.name = str(root)
        self.root = root
        self.class_names = class_names(root)
        found = [image_files(root / name) for name in self.class_names]
        empty = [name for name, files in zip(self.class_names, found, strict=True) if not files]
        if empty:
            raise InputError(
                root, f"images ({' '.join(EXTENSIONS)}) in every class folder", f"none in {', '.join(empty)}"
            )
        self.files = [file for files in found for file in files]
        self.labels = np.repeat(np.arange(len(found)), [len(files) for files in found])

    def __len__(self) -> int:
        return len(self.files)

    def item(self, index: int) -> tuple[np.ndarray, int]:
        return read_image(self.root / self.files[index]), int(self.labels[index])

    def image_name(self, index: int) -> str:
        return self.files[index]


def class_folder(path: Path) -> ClassFolder:
    """Return the images of a folder whose first level of folders names the classes, sorted by name.

    Names that begin with a dot are passed over, other kinds of file too; links are followed.

    Raises:
        InputError: no folder, no class folders, or a class folder without images.
    """
    return ClassFolder(Path(path))


def class_names(root: Path) -> tuple[str, ...]:
    if not root.is_dir():
        raise InputError(root, "a folder of class folders", "a file" if root.exists() else "nothing")
    names = sorted(entry.name for entry in os.scandir(root) if entry.is_dir() and not entry.name.startswith("."))
    if not names:
        raise InputError(root, "a folder of class folders", "no folder in it")
    return tuple(names)


def image_files(folder: Path) -> list[str]:
    """Return the paths of the images below a class folder, relative to its parent, in torchvision's order."""
    files = []
    for place, _, names in sorted(os.walk(folder, followlinks=True)):
        for name in sorted(names):
            if name.lower().endswith(EXTENSIONS) and not name.startswith("."):
                files.append(str(Path(place, name).relative_to(folder.parent)))
    return files


def read_image(path: Path) -> np.ndarray:
    """Return an image file as (height, width, 3) uint8 RGB, turned as its EXIF says, alpha over white.

    Pillow decodes; the first frame of an animation. Raises UnreadableImageError with the reason.
    """
    try:
        with Image.open(path) as image:
            image.load()
            return np.asarray(to_rgb(ImageOps.exif_transpose(image)))
    except UnreadableImageError:
        raise
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged bytes
        raise UnreadableImageError(f"{type(error).__name__}: {error}".replace(str(path), path.name)) from error


def to_rgb(image: Image.Image) -> Image.Image:
    """Return an RGB image: alpha over white, 16-bit grey scaled to 8 bits."""
    if image.mode == "F":
        raise UnreadableImageError("pixels are floating-point numbers of an unknown range")
    if image.mode.startswith("I"):
        # Pillow would clip at 255 and leave a white image.
        grey = np.asarray(image).astype(np.int64)
        if grey.min() < 0 or grey.max() > 65535:
            raise UnreadableImageError("pixels of more than 16 bits")
        return Image.fromarray((grey // 257).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")
