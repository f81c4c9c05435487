"""`attack sanity`: examine a run's model, or any other, on the images that an attack would take."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

import kapdist.attack.images as images_of
from kapdist.attack.ball import Ball
from kapdist.attack.choice import num_available
from kapdist.attack.devices import computing
from kapdist.attack.images import ImageSet
from kapdist.attack.model import load_model
from kapdist.attack.notes import notes_of_factory
from kapdist.attack.plan import (
    attack_dir_of,
    config_of,
    image_set_of,
    make_plan,
    plan_surrogate,
    protocol_of,
)
from kapdist.config import AttackConfig
from kapdist.config.defaults import EXAMINED_IMAGES
from kapdist.config.noises import described, noises_of
from kapdist.errors import InputError
from kapdist.records.attack_plan import AttackPlan, read_plan
from kapdist.records.chunks import read_chunk
from kapdist.records.sanity import Acted, CheckResult, Sanity, read_sanity
from kapdist.records.sealed import read_array, write_json
from kapdist.run.files import check_outputs
from kapdist.run.paths import AttackDir
from kapdist.run.progress import Progress
from kapdist.run.standard_output import screen, sentence
from kapdist.sanity.certified import broken_certificates
from kapdist.sanity.examine import STEPS, examine
from kapdist.sanity.standing import verdicts_of
from kapdist.sanity.verdict import CAUSES
from kapdist.tracking.sender import tell

if TYPE_CHECKING:  # imported where it is used: rich takes a while
    from rich.console import Console

DONE_AGAIN = "kapdist attack shard does its chunk again"
VACUOUS_LINF = 0.5  # every image can become one grey


def run_sanity(run: Path, config: AttackConfig) -> Sanity:
    """Examine a model and write RUN/attacks/<name>/sanity.json; what is found is a result, never an error.

    Args:
        run: a run directory; with model.factory any directory, made if need be.

    Returns:
        What sanity.json holds.

    Raises:
        InputError: the model or the images cannot be had, the norm is L1, or no image is classified correctly.
    """
    ball = Ball(norm_of(config), protocol_of(config).eps)
    attack = attack_dir_of(run, config)
    check_outputs(attack.sanity)
    image_set = image_set_of(run, config, config_of(run, config))
    plan = plan_of(run, config, attack, image_set)
    with computing(plan) as device:
        surrogates = load_surrogates(config, plan, image_set, device)
        found = examined(run, config, ball, attack, plan, surrogates, device)
    tell([run])
    return found


def examined(
    run: Path,
    config: AttackConfig,
    ball: Ball,
    attack: AttackDir,
    plan: AttackPlan,
    surrogates: list[nn.Module],
    device: torch.device,
) -> Sanity:
    started = time.perf_counter()
    verdicts, remarks = verdicts_of(attack, plan)
    images, labels = (torch.cat(parts).to(device) for parts in zip(*chunks(plan), strict=True))
    with Progress(f"{plan.run}/{plan.name}", STEPS, unit="parts of the report") as progress:
        found = examine(
            load_model(plan.model, run).to(device).eval(),  # folding makes modules anew
            images.contiguous(),
            labels,
            ball,
            config.sanity,
            mode=config.noise,
            seed=config.seed,
            batch_size=config.rows_of_a_chunk,
            surrogates=surrogates,
            stored=stored_violations(attack),
            certified=broken_certificates(run, plan.model, device),
            verdicts=verdicts.to(device) if verdicts else None,
            tick=Ticks(progress),
        )
    values = describe(plan, config, remarks) | found | {"seconds": time.perf_counter() - started}
    write_json(attack.sanity, Sanity.model_validate(values).describe())
    return read_sanity(attack.sanity)


class Ticks:
    """Shows on a progress bar how often it was called."""

    def __init__(self, progress: Progress) -> None:
        self.progress, self.done = progress, 0
        progress.show(0)

    def __call__(self) -> None:
        self.done += 1
        self.progress.show(self.done)


def norm_of(config: AttackConfig) -> Literal["Linf", "L2"]:
    if config.norm == "L1":
        raise InputError("norm", "Linf or L2 (the report's own attacks have no L1)", "L1")
    return config.norm


def plan_of(run: Path, config: AttackConfig, attack: AttackDir, image_set: ImageSet) -> AttackPlan:
    """Plan as an attack by scores alone would: a model without any gradient is a finding here, not wrong input."""
    available = num_available(config, image_set.num_images)
    assert available is not None, "the beton says how many"
    num_images = config.sanity.num_images or min(EXAMINED_IMAGES, available)
    update = {"num_images": num_images, "version": "custom", "attacks": ("square",), "gradient_of": None}
    return make_plan(run, config.model_copy(update=update), attack, examined=True)


def chunks(plan: AttackPlan) -> Iterator[tuple[Tensor, Tensor]]:
    return images_of.read_chunks(plan, range(plan.num_chunks))


def load_surrogates(
    config: AttackConfig, plan: AttackPlan, image_set: ImageSet, device: torch.device
) -> list[nn.Module]:
    """Return the models that the config names, their noise off, their classes those of the images."""
    sources = config.sanity.surrogate
    planned = [plan_surrogate("sanity.surrogate", it, config, plan.model, image_set) for it in sources]
    return [load_model(surrogate, Path()).to(device) for surrogate in planned]


def describe(plan: AttackPlan, config: AttackConfig, remarks: Sequence[str] = ()) -> dict[str, Any]:
    notes = [*notes_of_factory(plan), *remarks]
    if plan.norm == "Linf" and plan.eps >= VACUOUS_LINF:
        notes.append("eps is so large that every image can become the same grey: no model can pass")
    if config.noise == "off" and (found := noises_of(plan.model.architecture)):
        notes.append(f"off is {described(found)}: this says nothing about the model with its noise on")
    return {
        "format": 1,
        "name": plan.name,
        "run": plan.run,
        "norm": plan.norm,
        "eps": plan.eps,
        "noise": plan.noise,
        "seed": plan.seed,
        "iterations": config.sanity.iterations,
        "restarts": config.sanity.restarts,
        "queries": config.sanity.queries,
        "surrogate": ", ".join(map(str, config.sanity.surrogate)) or None,
        "device": plan.device,
        "threads": plan.threads,
        "packages": plan.packages,
        "images_sha256": plan.images_sha256,
        "weights_sha256": plan.model.weights_sha256,
        "factory": plan.model.factory,
        "notes": notes,
    }


def stored_violations(attack: AttackDir) -> float | None:
    """Return the share of stored adversarial images that break the rules; None where none are stored.

    Images that a plan before this one left behind obeyed other rules, and do not count.

    Raises:
        InputError: the plan cannot be read, or images of one of its chunks are damaged.
    """
    if not attack.plan.exists():
        return None
    plan = read_plan(attack)
    done = [chunk for chunk in range(plan.num_chunks) if plan.keep_adversarial and is_done(attack, plan, chunk)]
    pairs = [(attack.adversarial_images(chunk), attack.clean_images(chunk)) for chunk in done]
    ball = Ball(plan.norm, plan.eps)
    broken = [violations(*pair, ball) for pair in pairs if all(path.exists() for path in pair)]
    return float(np.concatenate(broken).mean()) if broken else None


def is_done(attack: AttackDir, plan: AttackPlan, chunk: int) -> bool:
    """Tell whether this plan's records of a chunk are there; they are written behind its images."""
    try:
        return read_chunk(attack, plan, chunk) is not None
    except InputError:
        return False


def violations(adversarial: Path, clean: Path, ball: Ball) -> np.ndarray:
    found, images = (torch.from_numpy(read_array(path, DONE_AGAIN)) for path in (adversarial, clean))
    return (~ball.inside(found, images)).numpy()


def print_report(report: Sanity) -> None:
    """Print the checks as a table, then what they name, on standard output."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from kapdist.run.tables import print_table

    title = f"{report.run}/{report.name}: {report.norm} eps {report.eps:.4g}, noise {report.noise}"
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    for column in ("", "Check", "Number", "Fails", ""):
        table.add_column(column, justify="right" if column in ("Number", "Fails") else "left")
    colours = {"pass": "green", "warn": "yellow", "fail": "red bold", "not asked": "dim"}
    for check in report.checks:
        status = Text(check.status, style=colours[check.status])
        table.add_row(str(check.group), check.title, said(check.value), limit(check), status)
    console = screen()
    print_table(console, table)
    for cause in report.causes:
        sentence(console, f"fail: {cause}: {CAUSES[cause]}", "red")
    for cause in report.suspected:
        sentence(console, f"warn: {cause}: {CAUSES[cause]}", "yellow")
    if report.acted:
        print_remedies(console, report.acted)
    sentence(console, f"verdict: {report.verdict}", "bold")


def print_remedies(console: Console, acted: Acted) -> None:
    for remedy in acted.remedies:
        broke = f"skipped: {remedy.skipped}" if remedy.skipped else f"broke {remedy.num_broken}"
        line = f"done: {remedy.attack}, on {remedy.num_attacked} images: {broke}"
        sentence(console, line + (f" ({remedy.how})" if remedy.how else ""))
    style = "" if acted.believed else "red bold"
    sentence(console, f"{acted.in_words()}.", style)
    if not acted.believed:
        sentence(console, "That number is not to be believed.", style)


def said(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"


def limit(check: CheckResult) -> str:
    sign = ">" if check.worse == "above" else "<"
    return "–" if check.fail is None else f"{sign} {check.fail:g}"
