"""The command line: thin, and quick to say --help, so everything heavy is imported where it is used."""

from __future__ import annotations

import contextlib
import logging
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from kapdist.attack.command import verify
from kapdist.certify.command import certify
from kapdist.doctor.command import doctor
from kapdist.errors import RESUME, InputError, StoppedError, TransientError, one_line
from kapdist.forecast.command import forecast
from kapdist.overview.command import config, options, runs
from kapdist.publish.command import export
from kapdist.run.completion import keys_of
from kapdist.run.installed import extras_named
from kapdist.run.plain_help import PLAIN
from kapdist.run.standard_output import kept_for_the_result, open_standard_streams, result, say, work
from kapdist.study.command import study
from kapdist.topography.command import topography
from kapdist.tracking.command import track

app = typer.Typer(
    **PLAIN,
    callback=options,
    help="Train Kernel Average Pooling ResNets over many nodes, attack them in shards, believe the number.",
    pretty_exceptions_enable=False,
)
data = typer.Typer(**PLAIN, help="Write and check betons, the files that training and attacks read.")
attack = typer.Typer(**PLAIN, help="Attack a model with AutoAttack in shards.")
app.add_typer(data, name="data")
app.add_typer(attack, name="attack")
app.add_typer(study, name="study")
app.add_typer(config, name="config")

INTERRUPTED = 130  # typer's exit code of Ctrl-C
UsageError: Any = typer.BadParameter.__mro__[1]  # of click, which typer brings along and does not export
OVERRIDES = "section.key=value, as many as wanted."
Overrides = Annotated[list[str] | None, typer.Argument(help=OVERRIDES, autocompletion=keys_of("training"))]
Asked = Annotated[list[str] | None, typer.Argument(help=OVERRIDES, autocompletion=keys_of("evaluation"))]
ConfigFile = Annotated[Path, typer.Argument(help="YAML file.")]
Run = Annotated[Path, typer.Argument(help="Run directory; with model.factory=, any directory for the results.")]
ConfigWords = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[CONFIG] [KEY=VALUE]...",
        help="YAML file of an attack, if any; overrides.",
        autocompletion=keys_of("attack"),
    ),
]
AttackDirectory = Annotated[Path, typer.Argument(help="Directory of a planned attack: RUN/attacks/NAME.")]


@data.command("write")
def data_write(
    source: Annotated[
        str,
        typer.Argument(
            help="fashion-mnist, or a path: class folders, ImageNet's tars, Parquet, CIFAR (docs/data.md)."
        ),
    ],
    out: Annotated[Path, typer.Argument(help="The beton to write.")],
    split: Annotated[str | None, typer.Option(help="train, val or test, where the source has splits.")] = None,
    held_out: Annotated[
        float | None,
        typer.Option(help="Class folders without splits: share of every class that is val; the rest is train."),
    ] = None,
    format: Annotated[str | None, typer.Option(help="What the files are, where that is not to be guessed.")] = None,
    image_column: Annotated[str, typer.Option(help="Parquet: column with the images.")] = "image",
    label_column: Annotated[str, typer.Option(help="Parquet: column with the labels.")] = "label",
    max_side: Annotated[int | None, typer.Option(help="Shrink images whose longer side exceeds this.")] = None,
    jpeg_quality: Annotated[
        int | None,
        typer.Option(help="Store JPEG: files that are JPEG as they are, others at this quality; else pixels."),
    ] = None,
    jpeg_share: Annotated[float, typer.Option(help="Share of the images that become JPEG; the rest is raw.")] = 1.0,
    raw_up_to_bytes: Annotated[int, typer.Option(help="Images with so few bytes of pixels stay raw.")] = 0,
    store: Annotated[
        str | None,
        typer.Option(help="raw, jpeg, or ycbcr: planes of YCbCr 4:2:0, half of raw's bytes and as fast to read."),
    ] = None,
    skip_unreadable: Annotated[
        bool, typer.Option("--skip-unreadable", "--skip-bad", help="Leave unreadable images out and record them.")
    ] = False,
    num_workers: Annotated[int, typer.Option(help="Writing processes; 0 takes the usable CPUs.")] = 0,
) -> None:
    """Write a beton and its manifest; the same command again continues what was interrupted."""
    from kapdist.data.beton.write import write
    from kapdist.data.sources import Columns
    from kapdist.run.progress import Progress

    with work(out), Progress(out.name, unit="images") as progress:
        manifest = write(
            source,
            out,
            split=split,
            format=format,
            columns=Columns(image_column, label_column),
            held_out=held_out,
            max_side=max_side,
            jpeg_quality=jpeg_quality,
            jpeg_share=jpeg_share,
            raw_up_to_bytes=raw_up_to_bytes,
            store=store,
            skip_unreadable=skip_unreadable,
            num_workers=num_workers,
            progress=lambda done, total: progress.show(done, total=total),
        )
    say(manifest)


@data.command("check")
def data_check(path: Annotated[Path, typer.Argument(help="The beton to check.")]) -> None:
    """Verify manifest and checksums, decode every image; print JSON."""
    from kapdist.data.beton.check import check_beton
    from kapdist.run.progress import Progress

    with work(path), Progress(path.name, unit="images") as progress:
        found = check_beton(path, progress=lambda done, total: progress.show(done, total=total))
    say(found)


@app.command()
def train(config: ConfigFile, overrides: Overrides = None) -> None:
    """Train, or continue: one process, or one rank under torchrun or srun."""
    from kapdist.config import Config
    from kapdist.config.file import load_config

    resolved = load_config(Config, config, overrides or [])
    from kapdist.run.files import NO_ROOM
    from kapdist.train.loop import train

    try:
        with kept_for_the_result():
            train(resolved)
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        raise TransientError(str(error)) from error  # the run's log has where; room can be made, nothing is wrong


@app.command()
def evaluate(
    run: Annotated[Path, typer.Argument(help="Run directory.")],
    overrides: Asked = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Count what a trained run gets right, per class too, and how calibrated it is; on one or several ranks."""
    from kapdist.config.evaluation import EvaluationConfig
    from kapdist.config.file import load_config

    resolved = load_config(EvaluationConfig, None, overrides or [])
    from kapdist.forecast.view import show
    from kapdist.train.evaluate_run import evaluate_run, table

    with work(run):
        found = evaluate_run(run, resolved)
    if found is None:
        return  # rank 0 says it
    if as_json:
        say(found.describe())
    else:
        with result():
            show(f"{run}: evaluation {resolved.name}", table(found))


app.command()(certify)
app.command()(forecast)
app.command()(topography)
app.command()(track)
app.command()(doctor)
app.command()(runs)


@attack.command("run")
def attack_run(run: Run, words: ConfigWords = None) -> None:
    """Plan, attack all shards in local processes, merge."""
    resolved = attack_config(words, name="attack")
    from kapdist.attack.run import run_attack
    from kapdist.records.worst import write_worst_case

    with work(run):
        found = run_attack(run, resolved).describe() | {"worst_case": write_worst_case(run).describe()["cases"]}
    say(found)


@attack.command("plan")
def attack_plan(run: Run, words: ConfigWords = None) -> None:
    """Fix what is attacked and how; prints the directory's plan."""
    resolved = attack_config(words, name="attack")
    from kapdist.attack.plan import plan_attack

    with work(run):
        found = plan_attack(run, resolved)
    say(found.describe())


@attack.command("shard")
def attack_shard(
    directory: AttackDirectory,
    shard: Annotated[int, typer.Option(help="Number of this shard, from 0.")] = 0,
    num_shards: Annotated[int, typer.Option(help="How many shards share the work.", min=1)] = 1,
) -> None:
    """Attack one shard's chunks; chunks that are done are skipped."""
    from kapdist.attack.shard import run_shard

    with work(directory):
        run_shard(directory, shard, num_shards)


@attack.command("merge")
def attack_merge(directory: AttackDirectory) -> None:
    """Check that every chunk is there once, add them up, write the summary."""
    from kapdist.attack.merge import merge
    from kapdist.records.worst import write_worst_case

    with work(directory):
        summary = merge(directory).describe()
        worst = write_worst_case(directory.resolve().parent.parent).describe()
    say(summary | {"worst_case": worst["cases"]})


@attack.command("worst")
def attack_worst(run: Run) -> None:
    """Unite all merged attacks of a run: what withstood everything tried, and what broke what first."""
    from kapdist.records.worst import write_worst_case

    with work(run):
        found = write_worst_case(run)
    say(found.describe())


@attack.command("norms")
def attack_norms(
    directories: Annotated[
        list[Path], typer.Argument(metavar="ATTACK_DIR", help="Merged attacks, of several norms.")
    ],
) -> None:
    """Robust accuracy per norm and of the union over norms: what no attack of any norm broke."""
    from kapdist.records.norms import read_across

    with work(directories[0]):
        found = read_across(directories)
    say(found.describe())


attack.command()(verify)


app.command("export")(export)
attack.command("export")(export)


@attack.command("sanity")
def attack_sanity(run: Run, words: ConfigWords = None) -> None:
    """Examine whether an attack on the model can be believed; verdicts are results, the exit code is 0."""
    resolved = attack_config(words, name="sanity")
    from kapdist.sanity.run import print_report, run_sanity

    with work(run):
        found = run_sanity(run, resolved)
    with result():
        print_report(found)


@attack.command("corruptions")
def attack_corruptions(run: Run, words: ConfigWords = None) -> None:
    """Measure the accuracy under 15 common corruptions at 5 severities, and under random noise."""
    resolved = attack_config(words, name="corruptions")
    from kapdist.corruptions.run import run_corruptions
    from kapdist.corruptions.view import print_summary

    with work(run):
        found = run_corruptions(run, resolved)
    with result():
        print_summary(found)


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="Run directories.")],
    out: Annotated[Path, typer.Option(help="Directory of the page.")] = Path("report"),
) -> None:
    """Write tables, plots and one HTML page that compares runs."""
    from kapdist.report import comparison, write_report

    with work(out):
        page = write_report(runs, out)
        compared = comparison(runs)
    with result():
        compared.print()
        print(page.resolve())


def file_and_overrides(words: list[str], name: str) -> tuple[Path | None, list[str]]:
    """Tell a config file from the overrides that follow it; without a file the config is called `name`."""
    from kapdist.config.file import names_a_file

    if words and names_a_file(words[0]):
        return Path(words[0]), words[1:]
    named = any(word.startswith("name=") for word in words)
    return None, words if named else [f"name={name}", *words]


def attack_config(words: list[str] | None, name: str) -> Any:
    from kapdist.config import AttackConfig
    from kapdist.config.file import load_config

    path, overrides = file_and_overrides(words or [], name)
    return load_config(AttackConfig, path, overrides)


def main() -> None:
    """Run the command line. Exit codes: 0 done; 75 stopped, to be continued; 2 wrong input; 1 all else."""
    open_standard_streams()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        run_command()
    except (StoppedError, InputError, TransientError) as end:
        tell(end)
        sys.exit(RESUME if isinstance(end, StoppedError) else 2 if isinstance(end, InputError) else 1)
    except FloatingPointError as end:  # a training that diverged; FAILED has where
        tell(one_line(str(end)))
        sys.exit(1)


def run_command() -> None:
    """Run the command that the words name; what it leaves to be printed, as the help, may not find room."""
    with result():
        try:
            with extras_named():
                code = app(standalone_mode=False)
        except SystemExit as end:
            code = end.code
        except UsageError as error:
            code, message = 2, error.format_message()
            if message == error.ctx.get_help():  # there was no word at all
                print(message)
            else:
                root, command = error.ctx.find_root().command_path, error.ctx.command_path
                place = command.removeprefix(root).strip() or "command"
                tell(f"{place}: {one_line(message)} (--help tells more)")
    if code == INTERRUPTED:
        tell("stopped by Ctrl-C; the same command again goes on from what is done")
    sys.exit(0 if code is None else code)


def tell(end: object) -> None:
    """Say in one line how it ended; where the terminal is gone, the exit code says it alone."""
    with contextlib.suppress(OSError):
        print(f"kapdist: {end}", file=sys.stderr)


if __name__ == "__main__":
    main()
