"""`kapdist export` on the command line: its options; imported for every --help, so what is heavy waits."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from kapdist.errors import InputError
from kapdist.run.standard_output import result, work

NETWORK = {"hub", "onnx"}  # formats of a run's network; the others are of its attacks


Directories = Annotated[
    list[Path], typer.Argument(metavar="ATTACK_DIR | RUN", help="Merged attacks; of hub and onnx one run.")
]
Formats = Annotated[
    list[str] | None,
    typer.Option(
        "--format",
        help="model-info, csv, parquet or latex, once each (all that apply); or bundle; or a run's network: "
        "hub, onnx, or both.",
    ),
]
Dataset = Annotated[
    str | None, typer.Option(help="cifar10, cifar100 or imagenet, if the beton cannot tell; of hub OWNER/NAME.")
]
ModelId = Annotated[str | None, typer.Option(help="File name at RobustBench: <Name><Year><FirstWordOfTheTitle>.")]
AdditionalData = Annotated[
    bool | None,
    typer.Option("--additional-data/--no-additional-data", help="More than the training images was used."),
]
ForwardPasses = Annotated[int | None, typer.Option(min=1, help="Of one prediction; 1 for a run's own model.")]
Unfolded = Annotated[bool, typer.Option("--unfolded", help="hub: with the kernels' averages, to train on.")]
Push = Annotated[
    str | None, typer.Option(metavar="OWNER/NAME", help="hub: bring the folder to Hugging Face's hub.")
]


def export(
    directories: Directories,
    out: Annotated[Path, typer.Option(help="Folder for the files; of a bundle NAME.zip or NAME.tar; NAME.onnx.")],
    formats: Formats = None,
    dataset: Dataset = None,
    model_id: ModelId = None,
    name: Annotated[str | None, typer.Option(help="Title of the paper.")] = None,
    authors: Annotated[str | None, typer.Option(help="Authors, with commas.")] = None,
    link: Annotated[str | None, typer.Option(help="Address of the paper.")] = None,
    venue: Annotated[str | None, typer.Option(help='Such as "ICML 2020" or "Unpublished".')] = None,
    architecture: Annotated[str | None, typer.Option(help="Default: as the run's config has it.")] = None,
    additional_data: AdditionalData = None,
    number_forward_passes: ForwardPasses = None,
    footnote: Annotated[str | None, typer.Option(help="Said before what the attack itself has to say.")] = None,
    with_weights: Annotated[bool, typer.Option("--with-weights", help="A bundle with the weights in it.")] = False,
    weights: Annotated[str, typer.Option(help="hub, onnx: final or best.")] = "final",
    unfolded: Unfolded = False,
    license: Annotated[str | None, typer.Option(help="hub: mit, apache-2.0, cc-by-4.0, ...")] = None,
    push: Push = None,
    private: Annotated[bool, typer.Option("--private", help="A new repository there is private.")] = False,
) -> None:
    """Write attacks for RobustBench, tables or a reviewer; or a run's network for the hub, for timm, as ONNX."""
    wanted, words = list(formats or ()), (license, dataset, push)
    of_authors: dict[str, Any] = {
        "model_id": model_id,
        "name": name,
        "authors": authors,
        "link": link,
        "venue": venue,
        "architecture": architecture,
        "additional_data": additional_data,
        "number_forward_passes": number_forward_passes,
        "footnote": footnote,
    }
    if NETWORK & {*wanted}:
        if with_weights:
            raise InputError("--with-weights", "--format bundle", ", ".join(wanted))
        if idle := [f"--{key.replace('_', '-')}" for key, value in of_authors.items() if value is not None]:
            raise InputError(", ".join(idle), "--format model-info", ", ".join(wanted))
        network(directories, out, wanted, words, weights, unfolded, private)
        return
    if push or private or unfolded or license or weights != "final":
        names = "--push, --private, --unfolded, --license, --weights"
        raise InputError(names, "--format hub", ", ".join(wanted) or "none")
    from kapdist.attack.stock import standard_list
    from kapdist.report.export.robustbench import Entry
    from kapdist.report.export.run import export

    entry = Entry(dataset=dataset, **of_authors)
    with work(out):
        exported = export(directories, out, wanted, entry, standard=standard_list, with_weights=with_weights)
    show([*map(str, exported.files)], exported.remarks)


def network(
    directories: Sequence[Path],
    out: Path,
    formats: Sequence[str],
    words: tuple[str | None, str | None, str | None],
    weights: str,
    unfolded: bool,
    private: bool,
) -> None:
    """Write the network of one run."""
    from kapdist.publish.card import Card
    from kapdist.publish.run import publish

    if len(directories) != 1:
        raise InputError(" and ".join(formats), "one run", str(len(directories)))
    with work(out):
        done = publish(directories[0], out, formats, Card(*words), weights, unfolded, private)
    show([*map(str, done.files), *([done.address] if done.address else [])], done.remarks)


def show(lines: Sequence[str], remarks: Sequence[str]) -> None:
    with result():
        for line in lines:
            print(line)
    for remark in remarks:
        print(remark, file=sys.stderr)
