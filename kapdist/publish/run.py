"""`kapdist export RUN --format hub|onnx`: everything is worked out before the first file is written."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from kapdist.errors import InputError
from kapdist.publish.card import Card, check_words
from kapdist.publish.folder import write_folder
from kapdist.publish.form import Form, Which, form_of
from kapdist.publish.onnx_file import FILE, onnx_bytes
from kapdist.publish.push import check_push, push
from kapdist.publish.timm_layout import timm_layout
from kapdist.report.export.run import Files, write
from kapdist.run.files import check_outputs

FORMATS = {"hub", "onnx"}


@dataclass(frozen=True)
class Published:
    """The files that were written, where they lie on the hub, and what a reader should be told about them."""

    files: tuple[Path, ...]
    address: str | None
    remarks: tuple[str, ...]


def publish(
    path: Path,
    out: Path,
    formats: Sequence[str],
    card: Card,
    weights: str = "final",
    unfolded: bool = False,
    private: bool = False,
) -> Published:
    """Write the network of a run: a folder (hub), with ONNX in it where both are asked for, or a file (onnx).

    Args:
        card: with a `repo` the folder is brought there as well.
        weights: final or best.
        private: a repository that is made for it.

    Raises:
        InputError: wrong words, no such weights, a place that cannot be written, a package that is missing, ONNX
            that computes something else, or a hub that refuses the folder.
        TransientError: the hub is away; the folder is written.
    """
    check(out, formats, card, weights, unfolded, private)
    token = check_push(card.repo) if card.repo else None
    form = form_of(path, "best" if weights == "best" else "final", unfolded)
    content, difference = onnx_bytes(form) if "onnx" in formats else (b"", None)
    if "hub" in formats:
        more: Files = {FILE: content} if content else {}
        files = write_folder(form, out, card, more)
    else:
        files = write({out.name: content}, out.parent)
    remarks = tuple(remarks_on(form, card if "hub" in formats else None, difference))
    if card.repo is None or token is None:
        return Published(files, None, remarks)
    return Published(files, push(out, [file.name for file in files], card.repo, token, private), remarks)


def check(out: Path, formats: Sequence[str], card: Card, weights: str, unfolded: bool, private: bool) -> None:
    """Raise InputError for words that do not go together, and for a place that cannot be written."""
    if not set(formats) <= FORMATS:
        raise InputError(
            "--format", "hub, onnx or both of a run's network, and no other with them", ", ".join(formats)
        )
    if weights not in get_args(Which):
        raise InputError("--weights", "final or best", weights)
    if "hub" not in formats and (card.repo or card.license or card.dataset or unfolded or private):
        words = "--push, --private, --unfolded, --license, --dataset"
        raise InputError(words, "--format hub", ", ".join(formats))
    if "hub" not in formats and out.suffix != ".onnx":
        raise InputError("--out", "a file NAME.onnx", str(out))
    check_words(card)
    check_outputs(out / FILE if "hub" in formats else out, keep_folders=False)


def remarks_on(form: Form, card: Card | None, difference: float | None) -> Iterator[str]:
    """Yield what a reader should know.

    Args:
        card: None where there is none.
    """
    if form.why_unfolded:
        yield f"the kernels' averages are not folded: {form.why_unfolded}"
    if card and timm_layout(form) is None:
        yield "timm has no such network: kapdist.models.from_pretrained loads the folder"
    if card and card.license is None:
        yield "the card states no licence (--license mit, apache-2.0, ...)"
    if difference is not None:
        yield f"onnxruntime's logits differ from torch's by {difference:.2g} at most"
