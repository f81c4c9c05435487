"""`kapdist doctor` on the command line; every --help imports it, so what is heavy waits."""

from __future__ import annotations

from typing import Annotated

import typer

from kapdist.run.standard_output import result, say


def doctor(
    seconds: Annotated[
        float | None,
        typer.Option(min=0.1, max=86400.0, help="Longest wait for any answer (2; 120 if thorough)."),
    ] = None,
    thorough: Annotated[
        bool, typer.Option("--thorough", help="Import torch too and compute on every device.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Look at what a run needs of this machine: what is wrong, what to do; exit code 1 if anything is wrong."""
    from kapdist.doctor.bounded import examine
    from kapdist.doctor.examinations import EXAMINATIONS, THOROUGH

    every = (*EXAMINATIONS, THOROUGH) if thorough else EXAMINATIONS
    found = examine(every, seconds or (120.0 if thorough else 2.0))
    num_wrong = sum(finding.status == "wrong" for finding in found)
    if as_json:
        say({"wrong": num_wrong, "findings": [finding._asdict() for finding in found]})
    else:
        from kapdist.doctor.view import print_findings

        with result():
            print_findings(found)
    raise typer.Exit(bool(num_wrong))
