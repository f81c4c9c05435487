"""Published sets by name, and which of them a folder is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from kapdist.data.sources.cifar_c import LABELS, Cifar10C, Cifar100C, fits_ten
from kapdist.data.sources.corruption_folders import ImageNet3DCC, ImageNetC, TinyImageNetC
from kapdist.data.sources.folder import class_names, image_files, read_bytes
from kapdist.data.sources.image import UnreadableImageError, decode_image
from kapdist.data.sources.imagenet import wordnet_ids
from kapdist.data.sources.imagenet_variants import ImageNetA, ImageNetR, ImageNetV2
from kapdist.data.sources.published import PublishedSet
from kapdist.errors import InputError

PUBLISHED: dict[str, type[PublishedSet]] = {
    "imagenet-c": ImageNetC,
    "tiny-imagenet-c": TinyImageNetC,
    "imagenet-3dcc": ImageNet3DCC,
    "cifar-10-c": Cifar10C,
    "cifar-100-c": Cifar100C,
    "imagenet-a": ImageNetA,
    "imagenet-r": ImageNetR,
    "imagenet-v2": ImageNetV2,
}
BY_NAME = "corruptions.published_set names it"


def open_published(
    place: Path, name: str | None = None, kinds: Sequence[str] = (), severities: Sequence[int] = (1, 2, 3, 4, 5)
) -> PublishedSet:
    """Return the published set in a folder; what is there is checked without reading its images.

    Args:
        name: of PUBLISHED; None: as the layout tells.
        kinds: corruptions that will be asked for; none: all of the set's mean that are there.

    Raises:
        InputError: no folder, none of these layouts, or one that lacks what its set has.
    """
    if not place.is_dir():
        raise InputError(place, f"the folder of a published set ({', '.join(PUBLISHED)})", "no folder")
    found = PUBLISHED[name or recognised(place)]
    unknown = [kind for kind in kinds if kind not in (*found.kinds, *found.extra)]
    if unknown:
        known = ", ".join((*found.kinds, *found.extra))
        raise InputError("corruptions.published_kinds", f"corruptions of {found.title} ({known})", unknown[0])
    return found(place, kinds, severities)


def recognised(place: Path) -> str:
    """Return the name of the set whose layout a folder has.

    Raises:
        InputError: it has none, or one that several sets share.
    """
    if (place / LABELS).is_file():
        return "cifar-10-c" if fits_ten(place) else "cifar-100-c"
    folders = class_names(place)
    if set(folders) == set(wordnet_ids()):
        raise InputError(
            place, f"a layout that one set alone has ({BY_NAME})", "class folders of all of ILSVRC's ids"
        )
    if all(name.isdecimal() for name in folders):
        return "imagenet-v2"
    for name in ("imagenet-a", "imagenet-r"):
        if set(folders) == set(PUBLISHED[name].wnids()):
            return name
    if set(folders) & set(ImageNet3DCC.kinds):
        return "imagenet-3dcc"
    if corrupted := [kind for kind in (*ImageNetC.kinds, *ImageNetC.extra) if kind in folders]:
        return of_its_size(place, corrupted[0])
    raise InputError(
        place, f"the layout of {', '.join(PUBLISHED)} ({BY_NAME})", f"folders {', '.join(folders[:3])}"
    )


def of_its_size(place: Path, kind: str) -> str:
    """Tell ImageNet-C from Tiny ImageNet-C, whose layout is the same, by the first image."""
    images = (name for severity in class_names(place / kind) for name in image_files(place / kind / severity, {}))
    first = next(images, None)
    if first is None:
        raise InputError(place / kind, "images in severity/WordNet id/", "none")
    try:
        side = len(decode_image(read_bytes(place / kind / first)))
    except UnreadableImageError as error:
        raise InputError(place / kind / first, "an image", str(error)) from None
    for name in ("imagenet-c", "tiny-imagenet-c"):
        if PUBLISHED[name].side == side:
            return name
    raise InputError(place / kind / first, "224 pixels (ImageNet-C) or 64 (Tiny ImageNet-C)", f"{side} pixels")
