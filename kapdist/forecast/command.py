"""`kapdist forecast` on the command line: its options; imported for every --help, so what is heavy waits."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kapdist.run.completion import keys_of
from kapdist.run.standard_output import result, say, work


def forecast(
    config: Annotated[Path, typer.Argument(help="YAML file of a training run or of an attack.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="section.key=value, as many as wanted.", autocompletion=keys_of("training")),
    ] = None,
    nodes: Annotated[int | None, typer.Option(help="Nodes of the job (1).")] = None,
    gpus_per_node: Annotated[int | None, typer.Option(help="GPUs per node, one rank or shard each (1).")] = None,
    num_images: Annotated[int | None, typer.Option(help="Images there are; default: those of the beton.")] = None,
    run: Annotated[
        Path | None, typer.Option(help="Run with measured costs; of an attack: the attacked one.")
    ] = None,
    images_per_second_per_rank: Annotated[float | None, typer.Option(help="Training: rate to count with.")] = None,
    shards: Annotated[int | None, typer.Option(help="Attack: shards that share the chunks.")] = None,
    passes_per_second: Annotated[float | None, typer.Option(help="Attack: rate of a shard to count with.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what a training run or an attack will ask of a machine that need not be there."""
    from kapdist.forecast.gather import Question, answer
    from kapdist.forecast.training import Forecast
    from kapdist.forecast.view import show_attack, show_forecast

    question = Question(
        config=config,
        overrides=overrides or (),
        nodes=nodes,
        gpus_per_node=gpus_per_node,
        num_images=num_images,
        run=run,
        images_per_second_per_rank=images_per_second_per_rank,
        shards=shards,
        passes_per_second=passes_per_second,
    )
    with work(config):
        found = answer(question)
    with result():
        if as_json:
            say(found.describe())
        elif isinstance(found, Forecast):
            show_forecast(found)
        else:
            show_attack(found)
