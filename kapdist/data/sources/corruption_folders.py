"""ImageNet-C, Tiny ImageNet-C (Hendrycks & Dietterich 2019, arXiv 1903.12261) and ImageNet-3DCC (Kar et al. 2022,
arXiv 2203.01441), unpacked: corruption/severity/WordNet id/*.JPEG.

The images of ImageNet-C and ImageNet-3DCC are 224 pixels, cut from the middle of the validation images when they
were made, those of Tiny ImageNet-C 64 pixels. Labels are the WordNet ids, sorted, as torchvision's ImageFolder has
them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from kapdist.config.fields import CORRUPTIONS
from kapdist.data.sources.folder import class_folder
from kapdist.data.sources.imagenet import wordnet_ids
from kapdist.data.sources.published import EXTRA, ImageFiles
from kapdist.errors import InputError

LAYOUT = "corruption/severity/WordNet id/*.JPEG"


class CorruptionFolders(ImageFiles):
    """A folder for each corruption; the images are those of the first that is asked for."""

    def __init__(self, place: Path, kinds: Sequence[str], severities: Sequence[int]) -> None:
        self.place = place
        asked = kinds or self.counted_there()
        for kind in asked:
            for severity in severities:
                if not self.folder(kind, severity).is_dir():
                    expected = f"{kind}/{severity}/, as {self.title} has it ({LAYOUT})"
                    raise InputError(place, expected, "no such folder")
        first = class_folder(self.folder(asked[0], severities[0]))
        self.class_names, self.labels, self.files = first.class_names, first.labels, first.files
        self.all_class_names = self.order(first.class_names)
        self.num_classes = len(self.all_class_names)

    def order(self, found: tuple[str, ...]) -> tuple[str, ...]:
        """Return the data set's classes in its own order."""
        return wordnet_ids()

    def folder(self, kind: str, severity: int) -> Path:
        return self.place / kind / str(severity)

    def there(self) -> tuple[str, ...]:
        return tuple(kind for kind in (*self.kinds, *self.extra) if (self.place / kind).is_dir())

    def image_name(self, kind: str, severity: int, index: int) -> str:
        return f"{kind}/{severity}/{self.files[index]}"


class ImageNetC(CorruptionFolders):
    name, title, published_images, side = "imagenet-c", "ImageNet-C", 50_000, 224
    kinds, extra = CORRUPTIONS, EXTRA


class TinyImageNetC(CorruptionFolders):
    name, title, published_images, side = "tiny-imagenet-c", "Tiny ImageNet-C", 10_000, 64
    kinds, extra = CORRUPTIONS, EXTRA

    def order(self, found: tuple[str, ...]) -> tuple[str, ...]:
        return found


class ImageNet3DCC(CorruptionFolders):
    name, title, published_images, side = "imagenet-3dcc", "ImageNet-3DCC", 50_000, 224
    kinds = (
        "near_focus",
        "far_focus",
        "fog_3d",
        "flash",
        "color_quant",
        "low_light",
        "xy_motion_blur",
        "z_motion_blur",
        "iso_noise",
        "bit_error",
        "h265_abr",
        "h265_crf",
    )
