"""`kapdist --version`, `config` and `runs` on the command line; every --help imports it, so what is heavy waits."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kapdist.run.completion import keys_of
from kapdist.run.plain_help import PLAIN
from kapdist.run.standard_output import result, say

config = typer.Typer(**PLAIN, help="What a config comes to, and where each value comes from.")

Place = Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML file, or a run directory.")]
Kind = Annotated[
    str | None,
    typer.Option(help="training, attack, evaluation, certificate or study, where its keys do not tell."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def say_version(asked: bool) -> None:
    if asked:
        from kapdist.environment import version_in_words

        with result():
            print(version_in_words())
        raise typer.Exit


def options(
    version: Annotated[
        bool, typer.Option("--version", callback=say_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Take the options of kapdist itself."""


@config.command("show")
def config_show(
    place: Place,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...",
            help="section.key=value, as many as wanted.",
            autocompletion=keys_of("training"),
        ),
    ] = None,
    kind: Kind = None,
    as_json: AsJson = False,
) -> None:
    """Print a config as a command would have it, with the file and line of each value, or why it is so."""
    from kapdist.overview.configs import as_yaml, resolve

    found = resolve(place, overrides or [], kind)
    if as_json:
        say(found.describe())
        return
    with result():
        for line in as_yaml(found):
            print(line)


@config.command("diff")
def config_diff(
    first: Annotated[Path, typer.Argument(metavar="A", help="YAML file, or a run directory.")],
    second: Annotated[Path, typer.Argument(metavar="B", help="Another.")],
    kind: Kind = None,
    as_json: AsJson = False,
) -> None:
    """Print the keys whose values differ, the name aside; the exit code is diff's: 0 if there is none, else 1."""
    from kapdist.overview.configs import differences, resolve

    one, other = resolve(first, kind=kind), resolve(second, kind=kind)
    found = differences(one, other)
    if as_json:
        say([difference.describe() for difference in found])
    else:
        from kapdist.overview.differences_view import print_differences

        with result():
            print_differences(one, other, found)
    raise typer.Exit(bool(found))


def runs(
    folder: Annotated[Path, typer.Argument(metavar="[DIR]", help="Where to look, some folders deep.")] = Path(
        "runs"
    ),
    sort: Annotated[str, typer.Option(help="name, state, clean, robust, hours or changed.")] = "name",
    as_json: AsJson = False,
) -> None:
    """List all runs below a folder: state, step, accuracy clean and under attack, sanity, hours."""
    from kapdist.overview.runs import read_runs

    found = read_runs(folder, sort)
    if as_json:
        say([run.describe() for run in found])
        return
    from kapdist.overview.runs_view import print_runs

    with result():
        print_runs(folder, found)
