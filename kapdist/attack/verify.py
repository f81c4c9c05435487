"""`kapdist attack verify`: an attack that somebody else ran, predicted again on a CPU from what a bundle holds."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import polars as pl
import torch
from torch import Tensor, nn

from kapdist.attack.averaged import AveragedModel
from kapdist.attack.ball import Ball
from kapdist.attack.counted import CountedModel
from kapdist.attack.forms import is_ours_alone
from kapdist.attack.judged import predict
from kapdist.attack.merge import read_chunk_files
from kapdist.attack.model import load_model
from kapdist.environment import package_versions
from kapdist.errors import InputError
from kapdist.kap import noise
from kapdist.records.attack_plan import PACKAGES, AttackPlan, PlannedModel, read_plan
from kapdist.records.bundle import WEIGHTS, Bundle, Verified, reading
from kapdist.records.sealed import read_array
from kapdist.records.summary import Summary, read_summary, summarise
from kapdist.rng import derive_seed
from kapdist.run.paths import AttackDir, RunDir
from kapdist.run.progress import Progress
from kapdist.statistics.intervals import wilson

COUNTED = ("num_images", "num_clean_correct", "clean_accuracy", "num_robust", "robust_accuracy", "sweep")
ROWS = pl.Schema(
    {"label": pl.Int64, "clean_prediction": pl.Int64, "broken_by": pl.String, "broken_eps": pl.Float64}
)
DRAWS = 100  # of a noisy model whose attack scored no image again


@dataclass(frozen=True)
class Given:
    """What the user names beside the bundle: the code that is run is theirs."""

    run: Path | None = None
    weights: Path | None = None
    factory: str | None = None


@dataclass
class Found:
    """What holds, by image."""

    clean_correct: int = 0
    robust: int = 0
    breaks: int = 0
    hold: int = 0
    clean_differs: list[int] = field(default_factory=list)
    outside: list[int] = field(default_factory=list)
    not_fooled: list[int] = field(default_factory=list)
    clean_wrong: list[int] = field(default_factory=list)


def verify(path: Path, given: Given) -> Verified:
    """Check every checksum of a bundle and predict its images again; what is found is a result, never an error.

    Raises:
        InputError: the file is no bundle, is damaged or does not add up to what it claims; the model cannot be
            built from what is given, or is another one.
    """
    bundle = Bundle(path)
    with tempfile.TemporaryDirectory(prefix="kapdist-verify-") as folder:
        attack = small_files(bundle, Path(folder))
        plan = read_plan(attack)
        check_same(bundle, "plan", bundle.manifest.plan_fingerprint, plan.fingerprint)
        check_same(bundle, "weights", bundle.manifest.weights_sha256, plan.model.weights_sha256)
        records, again = added_up(bundle, attack, plan)
        summary = claimed(bundle, attack, again)
        model = load_model(*planned_here(bundle, plan, given, Path(folder)))
        found = scored(bundle, attack, plan, records, model)
    return verdict(bundle, plan, summary, found)


def small_files(bundle: Bundle, folder: Path) -> AttackDir:
    """Write what is no image to a folder as an attack's directory; a bundle has no name that leads out of it."""
    attack = AttackDir(folder / "attack")
    for name in bundle.names():
        if name.endswith((".json", ".parquet")) or name == WEIGHTS:
            place = attack.root / name
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(bundle.read(name))
    return attack


def check_same(bundle: Bundle, what: str, listed: str, planned: str) -> None:
    if listed != planned:
        raise InputError(bundle.place("manifest.json"), f"the {what} of plan.json ({planned[:12]})", listed[:12])


def added_up(bundle: Bundle, attack: AttackDir, plan: AttackPlan) -> tuple[pl.DataFrame, Summary]:
    """Return the rows of all chunks and what they add up to; whatever strange columns lead to is wrong input."""
    with reading(bundle.place("chunks"), "chunks that can be added up"):
        records = read_chunk_files(sorted(attack.chunks.glob("*.parquet")), plan, attack)
        return records.cast(ROWS).select("chunk", "image", *ROWS), summarise(records, plan)


def claimed(bundle: Bundle, attack: AttackDir, again: Summary) -> Summary:
    """Return the summary, which must be what the chunks add up to."""
    summary = read_summary(attack.summary)
    for name in COUNTED:
        if getattr(summary, name) != getattr(again, name):
            raise InputError(bundle.place("summary.json"), f"the {name} that the chunks add up to", "another")
    return summary


def planned_here(bundle: Bundle, plan: AttackPlan, given: Given, folder: Path) -> tuple[PlannedModel, Path]:
    """Return the model with the weights and the factory that lie here, and the run that it is looked for in.

    Raises:
        InputError: code or weights that only the user can name are not named.
    """
    planned = plan.model
    if (factory := planned.by_others) is not None:
        if given.factory is None:
            expected = f"the function that returns the network, as no code of a bundle is run (it was {factory})"
            raise InputError("--factory", f"{expected}, FILE.py:FUNCTION or PACKAGE.MODULE:FUNCTION", "none")
        planned = with_factory(planned, given.factory)
    own = planned.factory is not None and planned.weights is None
    weights = given.weights
    if weights is None and given.run is not None:
        weights = given.run / planned.weights.name if planned.weights else RunDir(given.run).weights
    if weights is None and WEIGHTS in bundle.names():
        weights = folder / "attack" / WEIGHTS
    if weights is None and not own:
        expected = f"weights (--weights FILE or --run RUN) of sha256 {planned.weights_sha256}"
        raise InputError(bundle.path, expected, "none in the bundle")
    return planned.model_copy(update={"weights": None if own else weights}), folder


def with_factory(planned: PlannedModel, factory: str) -> PlannedModel:
    """Return the model with the user's own factory, whose file must have the sha256 of that which was attacked."""
    if planned.factory is not None:
        return planned.model_copy(update={"factory": factory})
    assert planned.architecture is not None
    network = planned.architecture["model"] | {"factory": factory}
    return planned.model_copy(update={"architecture": planned.architecture | {"model": network}})


def scored(bundle: Bundle, attack: AttackDir, plan: AttackPlan, records: pl.DataFrame, model: nn.Module) -> Found:
    found = Found()
    with torch.no_grad(), Progress(f"{plan.run}/{plan.name}", plan.num_images, unit="images") as progress:
        progress.show(0)
        for chunk in range(plan.num_chunks):
            rows = records.filter(pl.col("chunk") == chunk)
            clean, adversarial = (
                images_of(bundle, attack, plan, path, len(rows))
                for path in (attack.clean_images(chunk), attack.adversarial_images(chunk))
            )
            score_chunk(found, model, plan, chunk, rows, clean, adversarial)
            progress.show(plan.chunk_size * chunk + len(rows))
    return found


def images_of(bundle: Bundle, attack: AttackDir, plan: AttackPlan, path: Path, count: int) -> Tensor:
    """Return the images of a chunk, (count, 3, side, side) float32.

    Raises:
        InputError: there are none, or they are of another shape or type.
    """
    name, side = f"adversarial/{path.name}", plan.data.resolution
    if name not in bundle.names():
        raise InputError(bundle.path, f"the images of every chunk ({name})", "none")
    shape = (count, 3, side, side)
    if bundle.sizes[name] > 4 * int(np.prod(shape)) + BEYOND_VALUES:
        raise InputError(bundle.place(name), f"float32 {shape}", f"{bundle.sizes[name]} bytes")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bundle.read(name))
    array = read_array(path)
    path.unlink()
    if array.shape != shape or array.dtype != np.float32:
        raise InputError(bundle.place(name), f"float32 {shape}", f"{array.dtype} {array.shape}")
    return torch.from_numpy(array)


BEYOND_VALUES = 1024  # bytes of the header and of the seal


def score_chunk(
    found: Found,
    model: nn.Module,
    plan: AttackPlan,
    chunk: int,
    rows: pl.DataFrame,
    clean: Tensor,
    adversarial: Tensor,
) -> None:
    """Predict the clean images of a chunk, and those that are said to have broken the model."""
    labels = torch.from_numpy(rows["label"].to_numpy().astype(np.int64))
    recorded = torch.from_numpy(rows["clean_prediction"].to_numpy().astype(np.int64))
    broken = torch.from_numpy(rows["broken_by"].is_not_null().to_numpy().copy())
    images = np.array(rows["image"])
    with answering(model, plan, chunk) as answer:
        prediction = predict(answer, clean, plan, chunk)
        fooled = torch.zeros_like(broken)
        if broken.any():
            fooled[broken] = predict(answer, adversarial[broken], plan, chunk, broken) != labels[broken]
    inside = inside_of(plan, rows, clean, adversarial)
    right = prediction == labels
    holds = broken & right & inside & fooled
    found.clean_correct += int(right.sum())
    found.robust += int((right & ~holds).sum())
    found.breaks += int(broken.sum())
    found.hold += int(holds.sum())
    found.clean_differs += images[(prediction != recorded).numpy()].tolist()
    found.outside += images[(broken & ~inside).numpy()].tolist()
    found.not_fooled += images[(broken & inside & ~fooled).numpy()].tolist()
    found.clean_wrong += images[(broken & inside & fooled & ~right).numpy()].tolist()


def inside_of(plan: AttackPlan, rows: pl.DataFrame, clean: Tensor, adversarial: Tensor) -> Tensor:
    """Tell which images lie in [0, 1], the clean ones too, and in the ball of the eps that they fell at."""
    inside = torch.zeros(len(rows), dtype=torch.bool)
    for eps in plan.sweep:
        at = torch.from_numpy((rows["broken_eps"] == eps).fill_null(value=False).to_numpy().copy())
        inside[at] = Ball(plan.norm, eps).inside(adversarial[at], clean[at])
    flat = clean.flatten(1)
    return inside & (flat >= 0).all(1) & (flat <= 1).all(1)


def draws_of(plan: AttackPlan) -> int:
    """Return how many fresh draws decide a prediction; 1 of a deterministic model."""
    return 1 if plan.deterministic else max(plan.rescore or DRAWS, plan.eot)


@contextlib.contextmanager
def answering(model: nn.Module, plan: AttackPlan, chunk: int) -> Iterator[nn.Module]:
    """Give the model in the plan's noise mode: fixed noise from the recorded seed, fresh noise averaged anew."""
    cpu = torch.device("cpu")
    with torch.random.fork_rng(devices=[]), noise(model, plan.noise, seed=derive_seed(plan.seed, "noise", chunk)):
        seed = derive_seed(plan.seed, "model", chunk)
        counted = CountedModel(model, cpu, seed, inference=is_ours_alone(plan))
        if plan.deterministic:
            yield counted
        else:
            seed = derive_seed(plan.seed, "verify", chunk)
            yield AveragedModel(counted, draws_of(plan), plan.images_per_pass, seed, plan.draws_together)


def verdict(bundle: Bundle, plan: AttackPlan, summary: Summary, found: Found) -> Verified:
    total = plan.num_images
    return Verified(
        bundle=bundle.path.name,
        run=plan.run,
        attack=plan.name,
        norm=plan.norm,
        eps=plan.eps,
        noise=plan.noise,
        num_draws=draws_of(plan),
        num_files=len(bundle.names()) + 1,
        num_images=total,
        num_clean_correct_claimed=summary.num_clean_correct,
        num_clean_correct=found.clean_correct,
        clean_differs=tuple(found.clean_differs),
        num_breaks=found.breaks,
        num_hold=found.hold,
        outside=tuple(found.outside),
        not_fooled=tuple(found.not_fooled),
        clean_wrong=tuple(found.clean_wrong),
        num_robust_claimed=summary.num_robust,
        num_robust_at_most=found.robust,
        robust_accuracy_claimed=summary.robust_accuracy,
        robust_accuracy_at_most=wilson(found.robust, total),
        confirmed=(found.clean_correct, found.robust) == (summary.num_clean_correct, summary.num_robust),
        notes=tuple(notes_on(plan)),
    )


def notes_on(plan: AttackPlan) -> Iterator[str]:
    """Say what a reader of the numbers should know."""
    if plan.noise == "fresh":
        yield (
            f"the noise is fresh: a break holds where the mean probability over {draws_of(plan)} draws, others "
            "than the attack's, is highest for a wrong class"
        )
    if plan.noise == "fixed":
        yield "the noise is fixed, drawn from the seed in the plan" + (
            "" if plan.device == "cpu" else f"; {plan.device} drew other numbers from it than a CPU does"
        )
    if plan.device != "cpu":
        yield f"attacked on {plan.device}, predicted here on a CPU: rounding may turn an image at the border"
    for name, version in package_versions(PACKAGES).items():
        if plan.packages.get(name) != version:
            yield f"attacked with {name} {plan.packages.get(name)}, predicted here with {version}"
