"""`kapdist attack verify` on the command line: its options; imported for every --help, so what is heavy waits."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kapdist.run.standard_output import result, say, work

if TYPE_CHECKING:
    from kapdist.records.bundle import Verified

NAMED = 8  # images that a line names


def verify(
    bundle: Annotated[Path, typer.Argument(help="NAME.zip or NAME.tar of kapdist export --format bundle.")],
    run: Annotated[Path | None, typer.Option(help="Run directory with the attacked weights.")] = None,
    weights: Annotated[
        Path | None, typer.Option(help="The attacked weights; default: those in the bundle.")
    ] = None,
    factory: Annotated[
        str | None,
        typer.Option(help="Your copy of a network by other people, FILE.py:FUNCTION; its sha256 is checked."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Check every checksum of a bundle, predict its images again on a CPU, say which breaks hold; exit code 0."""
    from kapdist.attack.verify import Given, verify

    with work(bundle):
        found = verify(bundle, Given(run, weights, factory))
    with result():
        if as_json:
            say(found.describe())
        else:
            for line in lines(found):
                print(line)


def lines(found: Verified) -> list[str]:
    """Return what is said of a bundle, the conclusion last."""
    total = found.num_images
    said = [
        f"{found.bundle}: {found.attack} on {found.run}, {found.norm} eps {found.eps:.4g}, noise {found.noise}",
        f"{found.num_files} files, every checksum holds",
        f"clean: {found.num_clean_correct} of {total} right, {found.num_clean_correct_claimed} claimed"
        + named(found.clean_differs, "; predicted otherwise"),
        f"breaks: {found.num_breaks} claimed, {found.num_hold} hold, {len(found.do_not_hold)} do not",
    ]
    reasons = (
        ("outside of the ball or of [0, 1]", found.outside),
        ("the model is right on the adversarial image", found.not_fooled),
        ("the model is wrong on the clean image already", found.clean_wrong),
    )
    said += [f"  {why}: image{named(images)}" for why, images in reasons if images]
    said += [f"note: {note}" for note in found.notes]
    least = f"robust accuracy: at most {100 * found.robust_accuracy_at_most.value:.1f}% ({found.num_robust_at_most}"
    claim = f"{100 * found.robust_accuracy_claimed.value:.1f}% ({found.num_robust_claimed}) claimed"
    return [*said, f"{least} of {total}), {claim}: {'confirmed' if found.confirmed else 'NOT confirmed'}"]


def named(images: tuple[int, ...], words: str = "") -> str:
    if not images:
        return ""
    more = f" and {len(images) - NAMED} more" if len(images) > NAMED else ""
    return f"{words} {', '.join(map(str, images[:NAMED]))}{more}"
