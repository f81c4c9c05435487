"""Robust validation: the PGD that it says, the same on any number of ranks, in the log, in `best`, in a resume."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from in_memory import CLASSES
from outside import Caching
from results import numbers
from robust_images import SEED, config_of, found_by, learnt, network, validation_of
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from kapdist import kap
from kapdist.config import Config
from kapdist.config.file import load_config
from kapdist.engine import Ranks
from kapdist.errors import InputError, StoppedError
from kapdist.plan.robust import plan_robust
from kapdist.records.metrics import read_metrics
from kapdist.rng import derive_seed
from kapdist.run.paths import RunDir
from kapdist.train import job as job_module
from kapdist.train import loop
from kapdist.train.alarms import Watched
from kapdist.train.evaluate import evaluate
from kapdist.train.robust import RobustAccuracy


def by_hand(
    model: nn.Module, images: Tensor, labels: Tensor, ids: list[int], eps: float, steps: int
) -> list[float]:
    """How many are right, stay right, and the loss after Madry's PGD in float64, an image at a time, noise off."""
    exact = copy.deepcopy(model).double().eval()
    counts = [0.0, 0.0, 0.0]
    for index in ids:
        image, label = images[index : index + 1].double(), labels[index : index + 1]
        seed = derive_seed(derive_seed(SEED, "robust validation"), "adversarial start", 0, index)
        start = torch.empty(images.shape[1:]).uniform_(-1, 1, generator=torch.Generator().manual_seed(seed))
        points = (image + eps * start).clamp(0, 1)
        with kap.noise(exact, "off"):
            for _ in range(steps):
                points.requires_grad_()
                (gradient,) = torch.autograd.grad(F.cross_entropy(exact(points), label), points)
                points = points.detach() + 2.5 * eps / steps * gradient.sign()
                points = points.clamp(image - eps, image + eps).clamp(0, 1)
            logits = exact(points)
            right = bool(exact(image).argmax() == label)
        counts[0] += right
        counts[1] += right and bool(logits.argmax() == label)
        counts[2] += F.cross_entropy(logits, label).item()
    return counts


def test_it_is_pgd_on_the_images_of_the_seed_and_leaves_the_model_alone() -> None:
    model = network()
    loader, labels = learnt(model)
    validation = validation_of(config_of(), loader)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    streams = kap.noise_state(model), torch.get_rng_state()
    found = validation.withstood(model, lambda: False)
    assert found is not None

    ids = [image for batch in loader.asked for image in batch]
    assert ids == sorted(set(ids))
    assert len(ids) == 30
    assert list(map(len, loader.asked)) == [4] * 7 + [2]
    clean, robust, loss = by_hand(model, loader.images, labels, ids, 0.02, 3)
    assert (found.num_images, found.num_clean, found.num_robust) == (30, clean, robust)
    assert found.loss_sum == pytest.approx(loss, rel=1e-4)
    assert 0 < robust < clean < 30
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(module.training for module in model.modules())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), streams[1])
    assert all(torch.equal(streams[0][name], value) for name, value in kap.noise_state(model).items())


def test_a_network_that_keeps_what_it_makes_at_its_first_call_is_attacked_after_an_evaluation() -> None:
    """As the moving average of a network by others is, or any after a resume: its first call is an evaluation's."""

    model = Caching(network()).train()
    loader, _ = learnt(model.network)
    found = evaluate(model, loader, 40, CLASSES, 8, Ranks(), lambda: False)  # type: ignore[arg-type]
    assert found is not None
    attacked = validation_of(config_of(), loader).withstood(model, lambda: False)
    assert attacked is not None
    assert attacked.num_images == 30


def test_two_and_three_ranks_find_what_one_does(run_ranks: Callable) -> None:
    """With noise too, of which a batch's draws are its own; to the last bit of the loss."""
    expected = {noise: found_by(Ranks(), noise).describe() for noise in ("off", "fresh")}
    assert expected["fresh"] != expected["off"]
    program = Path(__file__).with_name("robust_program.py")
    for world_size in (2, 3):
        ends = run_ranks([str(program)], world_size, timeout=120)
        assert all(end.code == 0 for end in ends), "\n".join(end.output for end in ends)
        (line,) = [line for line in ends[0].output.splitlines() if line.startswith("found ")]
        assert json.loads(line.removeprefix("found ")) == expected


def test_fresh_noise_averages_probabilities_over_draws_of_every_pass() -> None:
    """Three steps, then the pass that says which images are right: the fourth."""
    model = network()
    loader, labels = learnt(model)
    found = validation_of(config_of("fresh", num_images=4)).attacked(
        model.eval(), next(loader.batches([np.arange(4)])), 0
    )
    probabilities = []
    images = loader.images[:4]
    for draw in range(2):
        with kap.noise(model, "fresh", derive_seed(SEED, "robust validation noise", 0, 4, draw)), torch.no_grad():
            probabilities.append(model(images).double().softmax(1))
    mean = torch.stack(probabilities).mean(0)
    assert found[0] == (mean.argmax(1) == labels[:4]).sum()


def test_a_stop_is_heard_after_the_batch_and_leaves_no_result() -> None:
    model = network()
    loader, _ = learnt(model)
    asked: list[int] = []
    found = validation_of(config_of(), loader).withstood(model, lambda: asked.append(1) or len(asked) == 3)
    assert found is None
    assert (len(asked), len(loader.asked)) == (3, 3)
    assert model.training


def test_sizes_are_those_of_the_training_unless_they_are_written() -> None:
    def planned(adversarial: dict, robust: dict) -> tuple[str, float, float]:
        config = config_of(**{"eps": None} | robust)
        config = config.model_copy(update={"adversarial": type(config.adversarial)(**adversarial)})
        plan = plan_robust(config, 40, 4)
        assert plan is not None
        return plan.norm, plan.eps, plan.step_size

    assert planned({"mode": "fast", "eps": 0.1}, {}) == ("Linf", 0.1, pytest.approx(0.25 / 3))
    assert planned({"norm": "L2"}, {}) == ("L2", 3.0, pytest.approx(2.5))
    assert planned({"eps": 0.1}, {"norm": "L2"}) == ("L2", 3.0, pytest.approx(2.5))
    assert planned({"eps": 0.1}, {"eps": 0.2, "step_size": 0.03}) == ("Linf", 0.2, 0.03)
    assert plan_robust(config_of(every_epochs=0), 40, 4) is None
    plan = plan_robust(config_of(every_epochs=3, num_images=99), 40, 4)
    assert plan is not None
    assert plan.images == tuple(range(40)), "all there are"
    assert [step for step in range(1, 17) if plan.is_due(step)] == [12, 16]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["train.best=robust", "robust.every_epochs=0"], "train.best robust with robust.every_epochs above 0 only"),
        (
            ["robust.every_epochs=1", "train.evaluate_every_epochs=2"],
            "a multiple of train.evaluate_every_epochs = 2",
        ),
        (["robust.every_epochs=-1"], "greater than or equal to 0"),
        (["robust.draws=3", "robust.noise=off"], "draws with noise fresh only"),
        (["robust.images=8"], "robust"),
    ],
)
def test_wrong_input_is_one_line(tiny_config: Path, words: list[str], expected: str) -> None:
    with pytest.raises(InputError) as caught:
        load_config(Config, tiny_config, words)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_size_that_takes_images_anywhere_is_refused() -> None:
    with pytest.raises(InputError, match=r"robust.eps: expected at most 1 with Linf .*, found 8"):
        plan_robust(config_of(eps=8), 70, 7)
    assert plan_robust(config_of(eps=8, norm="L2"), 70, 7) is not None


def test_noise_that_no_model_has_is_refused(tiny_config: Path) -> None:
    words = ["robust.every_epochs=1", "robust.draws=3", "kap.noise_std=0"]
    config = load_config(Config, tiny_config, words)
    assert config.robust.noise == "fresh", "of several draws"
    with pytest.raises(InputError, match=r"robust.noise=fresh: expected a model with activation noise"):
        plan_robust(config, 70, 7)


ROBUST = [
    "robust.every_epochs=1",
    "robust.num_images=20",
    "robust.batch_size=8",
    "robust.steps=2",
    "robust.eps=2/255",
]
FAST = ["train.epochs=3", "train.best=robust", "train.checkpoint_every_steps=3", "train.keep_checkpoints=9"]


def trained(tiny: Path, *words: str) -> RunDir:
    known = dict(word.split("=") for word in [*ROBUST, *FAST, f"runs_dir={tiny.parent / 'runs'}", *words])
    config = load_config(Config, tiny, [f"{key}={value}" for key, value in known.items()])
    loop.train(config)
    return RunDir(config.runs_dir / config.name)


def same_bits(one: Path, other: Path) -> bool:
    first, second = load_file(one), load_file(other)
    return all(torch.equal(first[name], second[name]) for name in first)


def test_a_collapse_is_said_once_and_the_best_weights_are_those_before_it(
    tiny_config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Robust accuracies are planted, best after the first epoch and then gone; steps and losses are real."""
    planted = {7: 0.65, 14: 0.6, 21: 0.05}
    real = job_module.withstood

    def plant(job: job_module.Job, step: int) -> RobustAccuracy | None:
        found = real(job, step)
        assert found is not None
        return RobustAccuracy(1000, 900, round(1000 * planted[step]), found.loss_sum)

    monkeypatch.setattr(loop, "withstood", plant)
    whole = trained(tiny_config, "name=whole", "kap.noise_std=0")  # under which the loss of so few steps goes down
    lines = read_metrics(whole.metrics)
    assert [line["accuracy"] for line in lines.withstood] == list(planted.values())
    assert [(line["step"], line["name"]) for line in lines.alarm] == [(21, "catastrophic overfitting")]
    log = whole.rank_log(1, 0).read_text()
    assert log.count("catastrophic overfitting") == 1
    assert not same_bits(whole.weights, whole.best_weights)


def test_a_run_is_continued_bit_by_bit_and_one_without_validation_learns_the_same(
    tiny_config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = trained(tiny_config, "name=whole")
    lines = [line for line in numbers(whole) if line["kind"] == "robust"]
    assert [line["step"] for line in lines] == [7, 14, 21]
    assert all(
        line["num_images"] == 20 and line["training_loss"] > 0 and line["weights"] == "ema" for line in lines
    )
    assert all(line["accuracy"] <= line["clean_accuracy"] for line in lines)
    best = max(lines, key=lambda line: line["accuracy"])
    assert same_bits(whole.weights, whole.best_weights) == (best["step"] == 21)
    without = trained(tiny_config, "name=without", "robust.every_epochs=0", "train.best=clean")
    assert same_bits(whole.weights, without.weights)

    cut = RunDir(whole.root.parent / "cut")  # what a kill after step 12 leaves
    shutil.copytree(whole.root, cut.root)
    for path in (cut.done, cut.weights, cut.best_weights, cut.config):
        path.unlink()
    shutil.rmtree(cut.checkpoint(15))
    shutil.rmtree(cut.checkpoint(18))
    shutil.copy(whole.best_weights, cut.best_weights)
    assert numbers(trained(tiny_config, "name=cut")) == numbers(whole)
    assert same_bits(whole.weights, cut.weights)

    stop_in_the_attack_after(14, monkeypatch)
    with pytest.raises(StoppedError):
        trained(tiny_config, "name=asked")
    asked = RunDir(whole.root.parent / "asked")
    kinds = [(line["kind"], line["step"]) for line in numbers(asked)]
    assert ("robust", 7) in kinds
    assert not {("robust", 14), ("evaluate", 14)} & set(kinds)
    monkeypatch.undo()
    assert numbers(trained(tiny_config, "name=asked")) == numbers(whole)
    assert same_bits(whole.weights, asked.weights)
    assert same_bits(whole.best_weights, asked.best_weights)


def stop_in_the_attack_after(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a signal come while the model is attacked after this step."""
    real = job_module.withstood

    def withstood(job: job_module.Job, at: int) -> RobustAccuracy | None:
        if at == step:
            job.stop.asked_by = "SIGTERM"
        return real(job, at)

    monkeypatch.setattr(loop, "withstood", withstood)


def test_the_history_is_state() -> None:
    one, other = validation_of(config_of()), validation_of(config_of())
    one.history = [Watched(1.0, 0.5, 2.0), Watched(2.0, 0.4, None)]
    other.load_state(one.state())
    assert other.history == one.history
    other.load_state(None)
    assert other.history == [], "of a checkpoint of before there was any"
