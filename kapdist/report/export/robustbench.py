"""An attack as RobustBench's leaderboard takes it: model_info/<dataset>/<threat model>/<Name>.json.

Fields, their order and their types are those of https://github.com/RobustBench/robustbench (folder model_info):
strings, but for `additional_data`, `number_forward_passes` and `unreliable`; accuracies are percent, two decimals.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from kapdist.config import ModelConfig
from kapdist.config.noises import described, noises_of
from kapdist.errors import InputError
from kapdist.records.attack_plan import ROBUSTBENCH_LIST_SHA256, AttackPlan, Norm, PlannedModel, Settings
from kapdist.records.summary import notes_on_square
from kapdist.report.export.dataset import dataset_of
from kapdist.report.export.merged import Merged
from kapdist.statistics.intervals import wilson

FILL_IN = "TO BE FILLED IN"
Standard = Callable[[Norm, float, int], tuple[tuple[str, ...], Settings]]


@dataclass(frozen=True)
class Leaderboard:
    """What all entries of a leaderboard have in common."""

    dataset: str
    norm: Norm
    eps: float
    eps_text: str
    num_classes: int
    num_images: int
    side: int | None = None
    """Of its images, pixels; None: a model may bring them to any size of its own."""
    fixed_list: bool = False
    """The images are a list of RobustBench's own, not the whole test set."""


LEADERBOARDS = (
    Leaderboard("cifar10", "Linf", 8 / 255, "8/255", 10, 10_000, 32),
    Leaderboard("cifar10", "L2", 0.5, "0.5", 10, 10_000, 32),
    Leaderboard("cifar100", "Linf", 8 / 255, "8/255", 100, 10_000, 32),
    Leaderboard("imagenet", "Linf", 4 / 255, "4/255", 1000, 5_000, fixed_list=True),
)
SPELLED = {
    "resnet10": "ResNet-10",
    "resnet18": "ResNet-18",
    "resnet34": "ResNet-34",
    "resnet50": "ResNet-50",
    "resnet101": "ResNet-101",
    "cnn": "CNN of 3 convolutions",
    "preact_resnet18": "PreActResNet-18",
    "wide_resnet28_10": "WideResNet-28-10",
    "wide_resnet34_10": "WideResNet-34-10",
}
DATASETS = tuple(dict.fromkeys(board.dataset for board in LEADERBOARDS))


@dataclass(frozen=True)
class Entry:
    """What only the authors know; None: to be filled in, unless the plan tells."""

    model_id: str | None = None
    """Name of the file, <Name><Year><FirstWordOfTheTitle>; default: the run's."""
    dataset: str | None = None
    name: str | None = None
    """Title of the paper."""
    authors: str | None = None
    link: str | None = None
    venue: str | None = None
    architecture: str | None = None
    additional_data: bool | None = None
    """More data than the data set's training images were used."""
    number_forward_passes: int | None = None
    """Of one prediction; default of a run's own model: 1."""
    footnote: str | None = None


@dataclass(frozen=True)
class ModelInfo:
    """The file: where below the folder of the export, its values, and which of them are still to be filled in."""

    path: str
    values: dict[str, Any]

    @property
    def unknown(self) -> list[str]:
        return [name for name, value in self.values.items() if value in (None, FILL_IN)]


def model_info(attack: Merged, entry: Entry, standard: Standard) -> ModelInfo:
    """Return an attack's entry for the leaderboard.

    Args:
        standard: says the library's standard list and its settings, of a norm, an eps and a number of classes.

    Raises:
        InputError: the leaderboard would not take it, and why.
    """
    check_deterministic(attack)
    board = leaderboard_of(attack, dataset_of(attack.plan, entry.dataset, DATASETS))
    check_standard(attack, board, standard)
    check_images(attack, board)
    robust = next(at.num_robust for at in attack.summary.sweep if is_eps(at.eps, board))
    total = attack.summary.num_images
    values: dict[str, Any] = {
        "link": entry.link or FILL_IN,
        "name": entry.name or FILL_IN,
        "authors": entry.authors or FILL_IN,
        "additional_data": entry.additional_data,
        "number_forward_passes": entry.number_forward_passes or forward_passes(attack.plan.model),
        "dataset": board.dataset,
        "venue": entry.venue or FILL_IN,
        "architecture": entry.architecture or architecture_of(attack.plan.model),
        "eps": board.eps_text,
        "clean_acc": percent(attack.summary.num_clean_correct, total),
        "reported": percent(robust, total),
        "autoattack_acc": percent(robust, total),
    }
    footnote = " ".join([*([entry.footnote] if entry.footnote else []), *footnotes(attack, board, robust)])
    values |= {"footnote": footnote} if footnote else {}
    values["unreliable"] = bool(attack.doubt or notes_on_square(list(attack.summary.attacks), total))
    return ModelInfo(f"model_info/{board.dataset}/{board.norm}/{file_name(attack, entry)}.json", values)


def check_deterministic(attack: Merged) -> None:
    """Raise InputError unless one deterministic function was attacked."""
    plan = attack.plan
    expected = "a deterministic model, as RobustBench takes no other (attack it with noise=off)"
    if plan.noise == "fresh":
        raise InputError(attack.dir.root, expected, "noise=fresh")
    # The noise is fixed within a chunk, and another one in the next: no single model.
    if plan.noise == "fixed" and noises_of(plan.model.architecture) != {}:
        raise InputError(attack.dir.root, expected, "noise=fixed, which is drawn for each chunk of images")


def leaderboard_of(attack: Merged, dataset: str) -> Leaderboard:
    """Return the leaderboard of a data set and the attack's norm; its eps must be among those attacked."""
    plan = attack.plan
    boards = [board for board in LEADERBOARDS if board.dataset == dataset]
    for board in boards:
        if board.norm == plan.norm and any(is_eps(eps, board) for eps in plan.sweep):
            return board
    expected = " or ".join(f"{board.norm} eps {board.eps_text}" for board in boards)
    found = ", ".join(f"{eps:.6g}" for eps in plan.sweep)
    raise InputError(attack.dir.root, f"{expected}, as RobustBench has for {dataset}", f"{plan.norm} eps {found}")


def is_eps(eps: float, board: Leaderboard) -> bool:
    return math.isclose(eps, board.eps, rel_tol=1e-6)


def check_standard(attack: Merged, board: Leaderboard, standard: Standard) -> None:
    """Raise InputError unless the attack is AutoAttack's standard one, with the library's own settings."""
    plan = attack.plan
    if plan.version != "standard":
        raise InputError(attack.dir.root, "version=standard, as RobustBench evaluates with", plan.version)
    if plan.model.num_classes != board.num_classes:
        expected = f"a model of {board.dataset}'s {board.num_classes} classes"
        raise InputError(attack.dir.root, expected, f"{plan.model.num_classes}")
    if plan.gradient_of:
        raise InputError(attack.dir.plan, "the model's own gradient", f"that of {plan.gradient_of}")
    attacks, settings = standard(plan.norm, plan.eps, plan.model.num_classes)
    if plan.attacks != attacks or plan.settings != settings:
        found = f"{', '.join(plan.attacks)} with {plan.settings}"
        raise InputError(attack.dir.plan, f"the standard list ({', '.join(attacks)}) as the library sets it", found)


def check_images(attack: Merged, board: Leaderboard) -> None:
    """Raise InputError unless these may be the leaderboard's images, as they are: eps is a size at theirs."""
    data = attack.plan.data
    if board.side is not None and (data.resolution != board.side or (data.crop != "none" and data.crop_ratio < 1)):
        expected = f"whole images of {board.dataset}'s {board.side} pixels a side"
        crop = "" if data.crop == "none" else f", the centre crop {data.crop_ratio:.4g}"
        raise InputError(attack.dir.plan, expected, f"{data.resolution} pixels{crop}")
    if not board.fixed_list and attack.summary.num_images > board.num_images:
        expected = f"at most the {board.num_images:,} test images of {board.dataset}"
        raise InputError(attack.dir.root, expected, f"{attack.summary.num_images:,}")


def footnotes(attack: Merged, board: Leaderboard, num_robust: int) -> list[str]:
    """Return what a reader of the number should know, a sentence each."""
    plan, said = attack.plan, []
    listed = plan.list_sha256 == ROBUSTBENCH_LIST_SHA256
    if plan.num_images != board.num_images or (board.fixed_list and not listed):
        share = wilson(num_robust, plan.num_images)
        which = "the fixed list of " if board.fixed_list else "the "
        said.append(
            f"Evaluated on {plan.num_images:,} images {chosen_in_words(plan)}, not on {which}"
            f"{board.num_images:,} that RobustBench evaluates on: 95% interval of the robust accuracy "
            f"{100 * share.low:.2f} to {100 * share.high:.2f}."
        )
    if plan.precision != "fp32":
        said.append(f"The attacks' passes were in {plan.precision}, verdicts in fp32.")
    if plan.screen:
        said.append(f"A {plan.screen}-step APGD before the standard list counts too.")
    if any(eps < board.eps and not is_eps(eps, board) for eps in plan.sweep):
        said.append("Images that fell at a smaller eps were not attacked again.")
    if plan.noise == "off" and (found := noises_of(plan.model.architecture)):
        said.append(f"Switched off is the noise of training: {described(found)}.")
    notes = filter(None, [attack.doubt, *attack.summary.notes])
    return [*said, *(f"{note[:1].upper()}{note[1:]}." for note in notes)]


def chosen_in_words(plan: AttackPlan) -> str:
    if plan.list_sha256 == ROBUSTBENCH_LIST_SHA256:
        return "at the head of its list"
    if plan.list_sha256 is not None:
        return f"of a list with sha256 {plan.list_sha256}"
    return "at the head of the beton" if plan.chosen == "first" else f"chosen by seed {plan.seed}"


def forward_passes(model: PlannedModel) -> int | None:
    """Return the passes of one prediction: one of each member of a run's own model; a factory's may have any."""
    return None if model.architecture is None else model.architecture["model"].get("members", 1)


def architecture_of(model: PlannedModel) -> str:
    """Return what a run's config calls its model, in RobustBench's spelling."""
    if model.architecture is None:
        return FILL_IN
    network, kap = model.architecture["model"], model.architecture["kap"]
    section = ModelConfig(**network)
    words = [section.in_words()]
    if section.factory is None:
        words = [words[0].replace(section.name, SPELLED[section.name], 1)]
    if kap["pool_size"] > 1:
        order = ", norm first" if kap.get("norm_first") else ""
        words.append(f"KAP {kap['pool_size']} ({kap['layout']}{order})")
    return ", ".join(words)


def percent(count: int, total: int) -> str:
    return f"{100 * count / total:.2f}"


def file_name(attack: Merged, entry: Entry) -> str:
    name = entry.model_id or attack.plan.run
    if not re.fullmatch(r"[\w.-]*\w[\w.-]*", name):
        raise InputError("--model-id", "a file name of letters, digits, '-', '_' and '.'", name)
    return name
