"""ImageNet-A (Hendrycks et al. 2021, arXiv 1907.07174), ImageNet-R (Hendrycks et al. 2021, arXiv 2006.16241) and
ImageNet-V2 (Recht et al. 2019, arXiv 1902.10811), unpacked: class folders of photographs of any size.

A and R have 200 of ILSVRC's classes each, in folders by WordNet id, and their authors take the largest of these 200
logits. V2 has all 1000, in folders 0 to 999, the places of the ids when they are sorted, or by WordNet id.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from kapdist.data.sources.folder import class_folder
from kapdist.data.sources.imagenet import wordnet_ids
from kapdist.data.sources.published import NATURAL, ImageFiles
from kapdist.errors import InputError

HERE = Path(__file__).parent


class Photographs(ImageFiles):
    """Class folders, of which none may be missing and none may be added: they decide which logits count."""

    kinds = (NATURAL,)

    def __init__(self, place: Path, kinds: Sequence[str], severities: Sequence[int]) -> None:
        self.place, found = place, class_folder(place)
        self.class_names, self.all_class_names = self.wnids(), wordnet_ids()
        self.num_classes = len(self.all_class_names)
        number = {name: label for label, name in enumerate(self.folders(found.class_names))}
        for what, others in (
            ("no", set(number) - set(found.class_names)),
            ("also", set(found.class_names) - set(number)),
        ):
            if others:
                expected = f"the {len(number)} class folders of {self.title}"
                raise InputError(place, expected, f"{what} {min(others)} ({len(others)} such folders)")
        self.files = found.files
        self.labels = np.array([number[name] for name in found.class_names], np.int64)[found.labels]

    def folders(self, found: tuple[str, ...]) -> tuple[str, ...]:
        """Return the names of the class folders in the order of `class_names`."""
        return self.wnids()

    def there(self) -> tuple[str, ...]:
        return self.kinds

    def image_name(self, kind: str, severity: int, index: int) -> str:
        return self.files[index]


class ImageNetA(Photographs):
    name, title, published_images, masked = "imagenet-a", "ImageNet-A", 7_500, True

    @classmethod
    def wnids(cls) -> tuple[str, ...]:
        return tuple((HERE / "imagenet_a_synsets.txt").read_text().split())


class ImageNetR(Photographs):
    name, title, published_images, masked = "imagenet-r", "ImageNet-R", 30_000, True

    @classmethod
    def wnids(cls) -> tuple[str, ...]:
        return tuple((HERE / "imagenet_r_synsets.txt").read_text().split())


class ImageNetV2(Photographs):
    name, title, published_images = "imagenet-v2", "ImageNet-V2", 10_000

    @classmethod
    def wnids(cls) -> tuple[str, ...]:
        return wordnet_ids()

    def folders(self, found: tuple[str, ...]) -> tuple[str, ...]:
        numbered = all(name.isdecimal() for name in found)
        return tuple(map(str, range(len(wordnet_ids())))) if numbered else self.wnids()
