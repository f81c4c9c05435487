"""`kapdist study` on the command line; imported for every --help, so what is heavy waits."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kapdist.errors import InputError
from kapdist.run.completion import keys_of
from kapdist.run.plain_help import PLAIN
from kapdist.run.standard_output import result, say, work

study = typer.Typer(**PLAIN, help="Settings times seeds: trained, attacked, and what is claimed of them decided.")

File = Annotated[Path, typer.Argument(help="The study: a YAML file (docs/study.md).")]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="key=value, as many as wanted.", autocompletion=keys_of("study"))
]


@study.command("plan")
def study_plan(
    file: File,
    overrides: Overrides = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what a study consists of, and what of it is done; nothing is written."""
    from kapdist.study.design import make_design
    from kapdist.study.frozen import as_frozen
    from kapdist.study.view import described, print_plan

    design = make_design(file, overrides or [])
    as_frozen(design)  # raises what a run would be refused for
    if as_json:
        say(described(design))
    else:
        with result():
            print_plan(design)


@study.command("status")
def study_status(
    place: Annotated[Path, typer.Argument(metavar="STUDY", help="The study's directory, or its file.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say how far a study is: settings times seeds, hours used, lost and left; nothing is written."""
    from kapdist.study.status import find_design, read_study_status

    found = read_study_status(find_design(place))
    if as_json:
        say(found.describe())
        return
    from kapdist.study.view import print_status

    with result():
        print_status(found)


@study.command("run")
def study_run(
    file: File,
    overrides: Overrides = None,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Commands at one time, instead of at_once or one for each GPU.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Also where that is more than most_runs trainings.")] = False,
) -> None:
    """Do all that is missing on this machine, then write the page; killed anywhere, it may be run again."""
    from kapdist.study.design import check_size, make_design
    from kapdist.study.page import write_study_report
    from kapdist.study.run import run_study

    at_once = [] if jobs is None else [f"at_once={jobs}"]
    design = make_design(file, [*(overrides or []), *at_once])
    check_size(file, design, yes)
    with work(design.root):
        try:
            run_study(design)
        except InputError:  # another study's place, or somebody is at work there: nothing was done
            raise
        except BaseException:
            write_study_report(design)
            raise
        page = write_study_report(design)
    with result():
        print(page)


@study.command("report")
def study_report(file: File, overrides: Overrides = None) -> None:
    """Write the page of what there is so far; print where it is."""
    from kapdist.study.design import make_design
    from kapdist.study.page import write_study_report

    design = make_design(file, overrides or [])
    with work(design.root):
        page = write_study_report(design)
    with result():
        print(page)


@study.command("pack")
def study_pack(
    file: File,
    overrides: Overrides = None,
    out: Annotated[Path, typer.Option(help="The zip to write.")] = Path("records.zip"),
) -> None:
    """Write the page, and all that it is made of but weights as one file, from which others can write it again."""
    from kapdist.study.design import make_design
    from kapdist.study.pack import pack_study

    design = make_design(file, overrides or [])
    with work(design.root):
        pack_study(design, out)
    with result():
        print(out)
