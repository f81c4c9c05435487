"""One chunk of images under the attacks of a plan, attack after attack on those that are left.

As the library's own run_standard_evaluation does it, but for: its state file (resuming from it always raises), its
check for dynamic models (it ends with sys.settrace(None), which kills coverage and debuggers), targets that do not
exist, and the caller's random state, which is given back.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from pyautoattack import AutoAttack
from torch import Tensor, nn

from kapdist.attack.averaged import AveragedModel
from kapdist.attack.ball import Ball, drop_rounding
from kapdist.attack.counted import CountedModel
from kapdist.attack.forms import Forms, is_ours_alone, rounding_of
from kapdist.attack.judged import check_state_kept, finite_logits, place_of, predict
from kapdist.attack.kept import Kept
from kapdist.attack.known import equal_rows
from kapdist.attack.own.fmn import FastMinimumNorm
from kapdist.attack.own.others import Others
from kapdist.attack.rescore import Votes, cast_votes
from kapdist.attack.stock import of_library, perturb, stock_library
from kapdist.attack.watch import Border, WatchedModel, passes_of_a_run, turned
from kapdist.errors import InputError
from kapdist.kap import noise
from kapdist.records.attack_plan import SCREEN, AttackPlan, Stage, is_library
from kapdist.rng import derive_seed

NO_OTHERS = Others()


@dataclass(frozen=True)
class AttackOutcome:
    """One attack at one eps on a chunk of B images; tensors are (B,), meaningless where `attacked` is False."""

    name: str
    eps: float
    attacked: Tensor
    broke: Tensor
    norm: Tensor
    """Of the image that the attack handed back, float64; 0 where it gave up."""
    prediction: Tensor
    forwards: int
    """Images that passed forward through the network (and a surrogate), those that decide the verdict included."""
    backwards: int
    library_forwards: int
    """What the library asked for: its own passes on these images, had nothing been left out; 0 of our attacks."""
    library_backwards: int
    seconds: float


@dataclass(frozen=True)
class ChunkOutcome:
    """All attacks on a chunk."""

    clean_prediction: Tensor
    attacks: tuple[AttackOutcome, ...]
    adversarial: Tensor
    """(B, 3, height, width): the image that broke the model, else the clean one."""
    smallest: Tensor
    """(B,), float64: norm of the smallest perturbation known to change the class; 0 of a wrong image, else inf."""
    clean_votes: Votes | None
    adversarial_votes: Votes | None
    """Of the image that broke the model, else of the hardest point that an attack saw, else of the clean one."""
    rescore_forwards: int
    seconds: float


@dataclass
class Search:
    """Where the attacks on a chunk stand."""

    images: Tensor
    labels: Tensor
    logits: Tensor
    """(B, classes), of the images as they are."""
    right: Tensor
    """(B,) bool: classified correctly as it is."""
    robust: Tensor
    prediction: Tensor
    """(B,) of the image that broke the model, else of the clean one."""
    adversarial: Tensor
    hardest: Tensor
    margins: Tensor
    screened: Tensor
    """(B,) bool: fell in the screen that went before; the next attack's batch still has their places."""
    smallest: Tensor
    """As the outcome has it."""
    nearest: Nearest | None = None
    """None: not looked for yet."""
    border: Border | None = None
    """What FAB with targets found at a smaller eps; None where it has not run."""


@dataclass(frozen=True)
class Nearest:
    """The nearest point of another class that was found without a ball, for each of B images."""

    points: Tensor
    prediction: Tensor


def attack_chunk(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    plan: AttackPlan,
    chunk: int,
    others: Others = NO_OTHERS,
) -> ChunkOutcome:
    """Attack one chunk; the outcome is a function of the arguments alone.

    Args:
        model: in eval mode, frozen; on the device of the images.
        images: (batch, 3, height, width), float32 in [0, 1].
        labels: (batch,), int64.
        others: the surrogates, each like `model`, and the user's functions that the plan's attacks name.

    Raises:
        InputError: the model's logits are not finite, or it changed its own state; it is declared deterministic
            and a verdict does not repeat; a function of the user's broke the rules (own/user.py).
        RuntimeError: an adversarial image that would count leaves the ball, [0, 1] or the finite numbers.
    """
    started = time.perf_counter()
    images = images.contiguous()  # the library calls .view on them, and channels-last would round otherwise
    devices = [images.device] if images.device.type == "cuda" else []
    noise_seed = derive_seed(plan.seed, "noise", chunk)
    before = Kept(model)
    silent, own = others.silent(), noise(model, plan.noise, seed=noise_seed)
    with torch.random.fork_rng(devices=devices), silent, own, torch.no_grad():
        counted = counted_model(model, images.device, plan, chunk)
        watched = watched_model(counted, plan, chunk)
        surrogates = counted_surrogates(others.surrogates, images.device, plan, chunk)
        logits = finite_logits(watched, images, plan, chunk)
        search, prediction = new_search(images, labels, logits), logits.argmax(1)
        networks, others = (counted, *surrogates.values()), Others(surrogates, others.functions)
        outcomes = attack_at_every_eps(watched, networks, others, search, plan, chunk)
        if plan.deterministic:
            check_repeats(counted, search, prediction, plan)
        attacked = counted.forwards
        votes = rescore(counted, search, plan, chunk)
    check_state_kept(before, plan)
    return ChunkOutcome(
        clean_prediction=prediction,
        attacks=tuple(outcomes),
        adversarial=search.adversarial,
        smallest=search.smallest,
        clean_votes=votes[0],
        adversarial_votes=votes[1],
        rescore_forwards=counted.forwards - attacked,
        seconds=time.perf_counter() - started,
    )


def counted_model(model: nn.Module, device: torch.device, plan: AttackPlan, chunk: int) -> CountedModel:
    model = model if isinstance(model, Forms) or plan.precision == "fp32" else Forms(model, plan.precision)
    ours = is_ours_alone(plan)
    seed, graphs = derive_seed(plan.seed, "model", chunk), isinstance(model, Forms) and model.graphs_to > 0
    return CountedModel(model, device, seed, inference=ours and not graphs, drawless=ours)


def watched_model(counted: CountedModel, plan: AttackPlan, chunk: int) -> WatchedModel:
    """Return the model that the attacks see: averaged over draws where the plan says so."""
    model: nn.Module = counted
    if plan.eot > 1:
        seed = derive_seed(plan.seed, "eot", chunk)
        model = AveragedModel(counted, plan.eot, plan.images_per_pass, seed, plan.draws_together)
    rough = plan.precision != "fp32"
    return WatchedModel(model, plan.norm, plan.compact, bool(plan.rescore), plan.eot, rough)


def counted_surrogates(
    surrogates: Mapping[str, nn.Module], device: torch.device, plan: AttackPlan, chunk: int
) -> dict[str, CountedModel]:
    seed = derive_seed(plan.seed, "surrogate", chunk)
    return {attack: CountedModel(surrogate, device, seed) for attack, surrogate in surrogates.items()}


def passes_through(networks: tuple[CountedModel, ...]) -> tuple[int, int]:
    """Return the images that passed forward and backward so far."""
    return sum(network.forwards for network in networks), sum(network.backwards for network in networks)


def new_search(images: Tensor, labels: Tensor, logits: Tensor) -> Search:
    margins, prediction = torch.full(labels.shape, torch.inf, device=images.device), logits.argmax(1)
    nothing = torch.zeros_like(labels, dtype=torch.bool)
    right = prediction == labels
    smallest = torch.where(right, torch.inf, 0.0).double()
    points = images.clone(), images.clone()
    before = images, labels, logits, right
    return Search(*before, right.clone(), prediction.clone(), *points, margins, nothing, smallest)


def attack_at_every_eps(
    watched: WatchedModel,
    networks: tuple[CountedModel, ...],
    others: Others,
    search: Search,
    plan: AttackPlan,
    chunk: int,
) -> list[AttackOutcome]:
    seed = derive_seed(plan.seed, "attack", chunk)
    outcomes = []
    for eps in plan.sweep:
        library = stock_library(watched, plan, eps, seed, search.images.device, others)
        for stage in plan.stages:
            if stage.eps == eps:
                outcomes.append(attack_survivors(library, networks, stage, search, plan, chunk))
    return outcomes


def attack_survivors(
    library: AutoAttack,
    networks: tuple[CountedModel, ...],
    stage: Stage,
    search: Search,
    plan: AttackPlan,
    chunk: int,
) -> AttackOutcome:
    """Run one attack on the images that are left, from their clean form, and note what it found."""
    started, watched = time.perf_counter(), library.model
    passes = passes_through(networks)
    asked = watched.asked_forwards, watched.asked_backwards
    attacked, found = search.robust.clone(), search.images.clone()
    prediction = torch.zeros_like(search.labels)
    ball = Ball(plan.norm, stage.eps)
    if stage.attack == "fab-t" and search.border is not None:
        found, prediction = beyond_smaller_eps(library, search.border, ball, search, plan, chunk)
    elif stage.attack == "fmn":
        found, prediction = nearest_inside(watched, ball, search, plan, chunk)
    elif attacked.any():
        found[attacked] = attack_batch(library, stage, search)[attacked]
        prediction[attacked] = search.labels[attacked]
        judged = attacked & ~(equal_rows(found, search.images) & (plan.compact and of_library(stage)))
        watched.asked_forwards += (attacked.sum() - judged.sum()).item() * watched.passes_each
        if judged.any():
            prediction[judged] = predict(watched, found[judged], plan, chunk, judged)
    count_screened(library, stage, search)
    broke = attacked & (prediction != search.labels)
    ball.check(stage.name, found[broke], search.images[broke])
    search.adversarial[broke] = found[broke]
    search.prediction[broke] = prediction[broke]
    norm = ball.distance(found, search.images)
    search.smallest[broke] = search.smallest[broke].minimum(norm[broke].clamp(max=stage.eps))
    search.robust &= ~broke
    search.screened = broke if stage.attack == SCREEN else torch.zeros_like(broke)
    forwards, backwards = passes_through(networks)
    librarys = 1 if is_library(stage.attack) else 0
    return AttackOutcome(
        name=stage.name,
        eps=stage.eps,
        attacked=attacked,
        broke=broke,
        norm=norm,
        prediction=prediction,
        forwards=forwards - passes[0],
        backwards=backwards - passes[1],
        library_forwards=librarys * (watched.asked_forwards - asked[0]),
        library_backwards=librarys * (watched.asked_backwards - asked[1]),
        seconds=time.perf_counter() - started,
    )


def attack_batch(library: AutoAttack, stage: Stage, search: Search) -> Tensor:
    """Return what an attack finds for all images of the chunk, those that it was not given unchanged."""
    watched = library.model
    rows = (search.robust | places_kept(watched, stage, search)).nonzero().squeeze(1)
    images, labels = search.images[rows], search.labels[rows]
    found = search.images.clone()
    # Functions of the user's and attacks of our own ask what they ask.
    clean = search.logits[rows] if of_library(stage) else None
    fallen, border = (~search.robust[rows], search.adversarial[rows]), None
    if stage.attack == "fab-t" and watched.compact and not watched.rough:
        far = torch.full((len(rows), library.fab.n_target_classes), torch.inf, dtype=torch.float64)
        border = Border(images.clone(), far.to(images.device))
    with watched.given(images, labels, stage.eps, *fallen, clean, border) as batch, rounding_of(watched):
        adversarial = drop_rounding(perturb(library, stage.attack, images, labels).detach())
        adversarial = Ball(watched.norm, stage.eps).pull_back(adversarial, images)
        adversarial[batch.broken] = batch.found[batch.broken]
        found[rows] = adversarial
    if border is not None:
        search.border = border.among(rows, search.images)
    harder = batch.margins < search.margins[rows]
    search.hardest[rows[harder]] = batch.hardest[harder]
    search.margins[rows[harder]] = batch.margins[harder]
    return found


def beyond_smaller_eps(
    library: AutoAttack, border: Border, ball: Ball, search: Search, plan: AttackPlan, chunk: int
) -> tuple[Tensor, Tensor]:
    """Return what FAB with targets finds at another eps than the smallest: what it found there, if that is near.

    Without random starts its way does not depend on eps, which only says whether its nearest find counts.
    """
    watched, attacked = library.model, search.robust
    near = attacked & ball.inside(border.points, search.images)
    found = torch.where(near.view(-1, 1, 1, 1), border.points, search.images)
    prediction = search.labels.clone()
    if near.any():
        prediction[near] = predict(watched, found[near], plan, chunk, near)
    # The library goes from target to target until one of them is near enough.
    reached = border.distances <= ball.largest_distance(search.images[0].numel())
    targets = (reached.cumsum(1) == 0).sum(1).add(1).clamp(max=reached.shape[1])[attacked].sum().item()
    library.fab.targeted = True
    forwards, backwards = passes_of_a_run(library.fab, plan.model.num_classes)
    watched.asked_forwards += int(2 * attacked.sum() - near.sum() + targets * (forwards + 1))
    watched.asked_backwards += int(targets * backwards)
    return found, prediction


def nearest_inside(
    watched: WatchedModel, ball: Ball, search: Search, plan: AttackPlan, chunk: int
) -> tuple[Tensor, Tensor]:
    """Return each image's nearest point of another class and its prediction; beyond eps, the image and its label.

    It is looked for once, at the first eps, for all images that are right, as its distance is of interest whoever
    has broken the image.
    """
    nearest = search.nearest or find_nearest(watched, search, plan, chunk)
    search.nearest = nearest
    inside = ball.inside(nearest.points, search.images)
    points = torch.where(inside.view(-1, 1, 1, 1), nearest.points, search.images)
    return points, torch.where(inside, nearest.prediction, search.labels)


def find_nearest(watched: WatchedModel, search: Search, plan: AttackPlan, chunk: int) -> Nearest:
    points, prediction, right = search.images.clone(), search.labels.clone(), search.right
    if right.any():
        fmn = FastMinimumNorm(watched, plan.norm, plan.own_settings.fmn_steps)
        points[right] = fmn.search(search.images[right], search.labels[right])
        prediction[right] = predict(watched, points[right], plan, chunk, right)
    fallen = prediction != search.labels
    distance = Ball(plan.norm, plan.eps).distance(points, search.images)
    search.smallest[fallen] = search.smallest[fallen].minimum(distance[fallen])
    return Nearest(points, prediction)


def places_kept(watched: WatchedModel, stage: Stage, search: Search) -> Tensor:
    """Return the screened images that stay in the batch, uncomputed, so that the others start as without it."""
    if watched.compact and stage.attack.startswith("apgd"):
        return search.screened
    return torch.zeros_like(search.screened)


def count_screened(library: AutoAttack, stage: Stage, search: Search) -> None:
    """Add to what the library asks for what it would have asked for the screen's images, and was not asked."""
    watched = library.model
    kept = int(places_kept(watched, stage, search).sum()) * watched.passes_each
    if not kept:
        return
    watched.asked_forwards += kept  # the verdict's
    if not search.robust.any():  # it was not called at all
        attack = library.apgd_targeted if stage.attack == "apgd-t" else library.apgd
        forwards, backwards = passes_of_a_run(attack, 0)
        watched.asked_forwards += kept * (1 + (stage.attack == "apgd-t") + forwards)
        watched.asked_backwards += kept * backwards


def check_repeats(counted: CountedModel, search: Search, clean: Tensor, plan: AttackPlan) -> None:
    """Predict the clean images and those that broke the model again, each kind as one batch.

    Two passes of a few images, when the attack was planned, do not show a model that is noisy now and then; attacks
    of thousands of passes find the one that is wrong, and would call it broken.

    Raises:
        InputError: an image is in another class than before, by more than rounding.
    """
    another = turned(counted(search.images).to(counted.dtype), clean)
    broken = ((clean == search.labels) & ~search.robust).nonzero().squeeze(1)
    if len(broken):
        logits = counted(search.adversarial[broken]).to(counted.dtype)
        another[broken] |= turned(logits, search.prediction[broken])
    if another.any():
        expected = "verdicts that repeat, as the model is declared deterministic (else noise=fresh)"
        found = f"{int(another.sum())} of {len(another)} images in another class when predicted again"
        raise InputError(place_of(plan), expected, found)


def rescore(
    counted: CountedModel, search: Search, plan: AttackPlan, chunk: int
) -> tuple[Votes, Votes] | tuple[None, None]:
    """Score the clean and the adversarial images under fresh draws, each with draws of its own."""
    if not plan.rescore:
        return None, None
    unbroken = (search.adversarial == search.images).flatten(1).all(1)
    adversarial = torch.where(unbroken[:, None, None, None], search.hardest, search.adversarial)
    return (
        cast_votes(counted, search.images, plan, derive_seed(plan.seed, "rescore clean", chunk)),
        cast_votes(counted, adversarial, plan, derive_seed(plan.seed, "rescore adversarial", chunk)),
    )
