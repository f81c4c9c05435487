"""`kapdist topography` on the command line: its options; imported for every --help, so what is heavy waits."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kapdist.run.standard_output import result, say, work


def topography(
    run: Annotated[Path, typer.Argument(help="Run directory.")],
    beside: Annotated[
        list[Path] | None, typer.Option(help="Another run, on the same images and sheet; as often as wanted.")
    ] = None,
    images: Annotated[int | None, typer.Option(min=2, help="Images of the run's validation beton (512).")] = None,
    permutations: Annotated[int, typer.Option(min=199, help="Of the kernels, for the p-values.")] = 1999,
    seed: Annotated[int, typer.Option(min=0, help="Images, permutations and noise follow from it.")] = 0,
    draws: Annotated[int, typer.Option(min=0, help="Of each noise, at least 2; 0 leaves the noise out.")] = 3,
    noisy_images: Annotated[int, typer.Option(min=2, help="Images under noise.")] = 16,
    name: Annotated[str, typer.Option(help="Name of the result: RUN/topography/NAME/.")] = "topography",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Look whether neighbouring kernels have become alike, and what the average does to noise."""
    from kapdist.topography.run import Asked, run_topography
    from kapdist.topography.view import print_topography

    asked = Asked(name, images, permutations, seed, draws, noisy_images, device)
    with work(run):
        found = run_topography(run, beside or [], asked)
    with result():
        if as_json:
            say(found.describe())
        else:
            print_topography(found)
