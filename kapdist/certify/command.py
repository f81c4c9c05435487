"""`kapdist certify` on the command line: its options; imported for every --help, so what is heavy waits."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kapdist.errors import InputError
from kapdist.run.completion import keys_of
from kapdist.run.standard_output import result, say, work


def certify(
    run: Annotated[Path, typer.Argument(help="Run directory; with model.factory=, any directory for the results.")],
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[CONFIG] [KEY=VALUE]...",
            help="YAML file of a certification, if any; overrides.",
            autocompletion=keys_of("certificate"),
        ),
    ] = None,
    plan: Annotated[bool, typer.Option("--plan", help="Plan alone, for shards elsewhere.")] = False,
    shard: Annotated[int | None, typer.Option(help="Do this shard of the plan alone, from 0.")] = None,
    num_shards: Annotated[int, typer.Option(min=1, help="How many shards share the work.")] = 1,
    merge: Annotated[bool, typer.Option("--merge", help="Add up alone what the shards did.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Certify the L2 radius within which no perturbation changes the class of the model smoothed by noise."""
    if plan + merge + (shard is not None) > 1:
        raise InputError("--plan, --shard, --merge", "one of them", "several")
    words = words or []
    from kapdist.config.certify import CertifyConfig
    from kapdist.config.file import load_config, names_a_file

    named = bool(words) and names_a_file(words[0])
    config = load_config(CertifyConfig, Path(words[0]) if named else None, words[named:])
    from kapdist.certify import run as certifying
    from kapdist.certify.view import print_certificate

    with work(run):
        if plan:
            said = certifying.plan_alone(run, config).describe()
        elif shard is not None:
            certifying.shard_alone(run, config, shard, num_shards)
            return
        else:
            found = certifying.merge_alone(run, config) if merge else certifying.run_certify(run, config)
            said = found.describe()
    if plan or as_json:
        say(said)
    else:
        with result():
            print_certificate(found)
