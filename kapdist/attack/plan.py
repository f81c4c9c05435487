"""From a run and a config to an attack plan; the model is built and checked once, before anything is queued."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import kapdist.attack.images as images_of
from kapdist.attack.balance import chunk_costs
from kapdist.attack.choice import choose_images
from kapdist.attack.classifier import (
    check_batches,
    check_batches_of_noise,
    check_classifier,
    check_deterministic,
    check_evaluation_mode,
    check_seeded,
    noise_differs_by_row,
)
from kapdist.attack.devices import check_precision, device_kind, refuse_auto_elsewhere
from kapdist.attack.fill import rows_of
from kapdist.attack.images import ImageSet
from kapdist.attack.model import can_fold, check_network, file_sha256_of, load_model, state_sha256
from kapdist.attack.notes import (
    notes_on_classes,
    notes_on_eps,
    notes_on_factory,
    notes_on_functions,
    notes_on_noise,
    notes_on_precision,
    notes_on_size,
)
from kapdist.attack.own.bpda import KEY as GRADIENT_OF
from kapdist.attack.own.bpda import StraightThrough
from kapdist.attack.own.others import load_attacked, load_functions, sha256_of_functions
from kapdist.attack.own.trial import try_functions
from kapdist.attack.stock import resolve
from kapdist.config import AttackConfig, AttackedModelConfig, Config
from kapdist.config.surrogates import SurrogateConfig, transfers
from kapdist.environment import package_versions, usable_cpus
from kapdist.errors import InputError
from kapdist.kap import noise
from kapdist.models import zoo
from kapdist.models.factory import factory_sha256, find_factory
from kapdist.models.imported import place_of as factory_place
from kapdist.models.zoo import check_weights_named, packages_of
from kapdist.records.attack_plan import (
    PACKAGES,
    AttackPlan,
    OwnSettings,
    PlannedModel,
    read_plan,
    write_plan,
)
from kapdist.run.files import check_outputs, fingerprint
from kapdist.run.lock import locked
from kapdist.run.paths import AttackDir, RunDir


def plan_attack(run: Path, config: AttackConfig) -> AttackPlan:
    """Plan an attack and write RUN/attacks/<name>/plan.json; an equal plan that is there already is kept.

    Raises:
        InputError: the model cannot be attacked, there are too few images, another plan is there, or somebody
            else is at work in the directory; device=auto would fix the CPU for a run trained on a GPU.
    """
    attack = attack_dir_of(run, config)
    refuse_auto_elsewhere(run, config)
    with locked(attack.lock):
        check_outputs(attack.plan)
        return write_new_plan(run, config, attack)


def attack_dir_of(run: Path, config: AttackConfig) -> AttackDir:
    """Return where the attack belongs; a mistyped run is refused before a lock makes its directory."""
    config_of(run, config)
    return RunDir(run).attack(config.name)


def write_new_plan(run: Path, config: AttackConfig, attack: AttackDir) -> AttackPlan:
    """Plan without taking the lock, for a caller that holds it."""
    plan = make_plan(run, config, attack)
    write_plan(attack, plan)
    return plan


def make_plan(run: Path, config: AttackConfig, attack: AttackDir, *, examined: bool = False) -> AttackPlan:
    """Return the plan without writing it.

    Args:
        examined: the model will be examined, and what no attack should be trusted on is a finding: a model that
            is noisy though declared deterministic, or in training mode, is not refused.
    """
    run_config = config_of(run, config)
    image_set = image_set_of(run, config, run_config)
    model = plan_model(run, config, run_config, image_set)
    protocol = protocol_of(config)
    eps = protocol.eps
    attacks, settings, notes = resolve(config.version, config.listed, config.norm, eps, model.num_classes)
    functions = sha256_of_functions(attacks, config.gradient_of)
    choice = choose_images(config, image_set)
    images = choice.images
    check_precision(config)
    before = read_plan(attack) if attack.plan.exists() else None
    chunk_size, images_per_pass = rows_of(config, before, model, run, image_set.data.resolution)
    plan = AttackPlan(
        name=config.name,
        run=RunDir(run).name,
        model=model,
        data=image_set.data,
        norm=config.norm,
        eps=eps,
        smaller_eps=protocol.sweep[:-1],
        version=config.version,
        attacks=attacks,
        settings=settings,
        own_settings=own_settings(config, model, image_set),
        gradient_of=config.gradient_of,
        functions=functions,
        noise=config.noise,
        precision=config.precision,
        screen=protocol.screen,
        compact=protocol.compact,
        eot=protocol.eot,
        images_per_pass=images_per_pass,
        rescore=protocol.rescore,
        seed=config.seed,
        chunk_size=chunk_size,
        threads=resolve_threads(config, before),
        device=device_kind(config.device),
        keep_adversarial=config.keep_adversarial,
        packages=package_versions((*PACKAGES, *packages_of(model.by_others))),
        num_images=len(images),
        images_sha256=fingerprint(list(images)),
        chosen=choice.chosen,
        list_sha256=choice.list_sha256,
        notes=(
            *(*notes, *notes_on_noise(config, protocol.eot), *notes_on_eps(config.norm, eps, image_set)),
            *(*notes_on_functions(functions, config.gradient_of), *notes_on_size(config, image_set.data)),
            *notes_on_classes(run_config, model, image_set),
        ),
        costs=costs_of(run, before, model, image_set, images, chunk_size),
        images=images,
    )
    return checked(plan, run, examined)


def image_set_of(run: Path, config: AttackConfig, run_config: Config | None) -> ImageSet:
    """Return the beton of an attack, and how its images come to the model's size."""
    factory = config.model.factory
    said = zoo.stated(factory) if factory is not None else None
    return images_of.describe_images(config.data, run_config, run, said)


def costs_of(
    run: Path,
    before: AttackPlan | None,
    model: PlannedModel,
    image_set: ImageSet,
    images: tuple[int, ...],
    chunk_size: int,
) -> tuple[float, ...]:
    """Return the expected work of each chunk; a plan that is there keeps its own, or shards would deal anew."""
    if before is not None and before.images == images and before.chunk_size == chunk_size:
        return before.costs
    return chunk_costs(run, model, image_set.data, images, chunk_size)


def checked(plan: AttackPlan, run: Path, examined: bool) -> AttackPlan:
    """Build the model as a shard will, show it a few images, and return the plan."""
    network = load_attacked(plan, run)
    place = place_of(plan.model, run)
    if isinstance(network, StraightThrough):
        whose = f"{GRADIENT_OF}={plan.gradient_of}"
        check_classifier(network.smooth, whose, plan.model.num_classes, plan.data.resolution, True)
        check_seeded(network.smooth, whose, plan.data.resolution)
    with noise(network, plan.noise, seed=plan.seed):
        dtype = check_classifier(
            network, place, plan.model.num_classes, plan.data.resolution, plan.passes_gradients
        )
        notes = *plan.notes, *notes_on_precision(dtype), *notes_on_factory(plan.model, network)
        plan = plan.model_copy(update={"notes": notes})
        if not examined:
            check_evaluation_mode(network, place)
        if plan.deterministic:
            if not examined:
                check_deterministic(network, place, plan.data.resolution)
                check_batches(network, place, plan.data.resolution)
        elif plan.model.by_others:  # of kapdist's own layers each row draws for itself
            if not examined:
                check_seeded(network, place, plan.data.resolution)
                check_batches_of_noise(network, place, plan.data.resolution)
            together = noise_differs_by_row(network, plan.data.resolution, plan.images_per_pass)
            plan = plan.model_copy(update={"draws_together": together})
    try_functions(plan, network, load_functions(plan))
    return plan


def place_of(model: PlannedModel, run: Path) -> str:
    return factory_place(model.factory) if model.factory else str(run)


def config_of(run: Path, config: AttackConfig) -> Config | None:
    """Return the run's config; with a factory the run need not be one."""
    if config.model.factory is not None and not RunDir(run).config.exists():
        return None
    return RunDir(run).load_config()


def plan_model(run: Path, config: AttackConfig, run_config: Config | None, image_set: ImageSet) -> PlannedModel:
    factory = config.model.factory
    if factory is not None:
        find_factory(factory)  # what is wrong with it is said before anything is hashed
        check_weights_named(factory, config.model.weights)
    said = zoo.stated(factory) if factory is not None else None
    weights = config.model.weights.resolve() if config.model.weights else None
    num_classes = config.num_classes or (run_config.model.num_classes if run_config else image_set.num_classes)
    architecture, of_the_run = None, None
    if factory is None:
        assert run_config is not None
        of_the_run = run_config.model.factory
        check_network(RunDir(run), of_the_run)
        architecture = {
            "model": run_config.model.model_dump(mode="json", exclude={"weights", "new_head"}),
            "kap": run_config.kap.model_dump(mode="json"),
        }
    by_others = factory or of_the_run
    planned = PlannedModel(
        factory=factory,
        factory_sha256=factory_sha256(by_others) if by_others else None,
        arguments=config.model.arguments,
        mean=said.mean if said else None,
        std=said.std if said else None,
        architecture=architecture,
        weights=weights,
        weights_sha256="",
        num_classes=num_classes,
        folded=factory is None and config.fold and config.noise == "off",
    )
    planned = planned.model_copy(update={"weights_sha256": sha256_of_weights(planned, run)})
    if planned.folded and of_the_run is not None and not can_fold(planned, run, image_set.data.resolution):
        return planned.model_copy(update={"folded": False})
    return planned


def own_settings(config: AttackConfig, model: PlannedModel, image_set: ImageSet) -> OwnSettings:
    planned = {
        attack: plan_surrogate("transfer_from", source, config, model, image_set)
        for attack, source in (transfers(config.transfer_from) if config.transfer_from else {}).items()
    }
    several = {"surrogates": planned} if len(planned) > 1 else {"surrogate": next(iter(planned.values()), None)}
    return own_settings_of(config).model_copy(update=several)


def plan_surrogate(
    key: str, source: SurrogateConfig, config: AttackConfig, model: PlannedModel, image_set: ImageSet
) -> PlannedModel:
    """Return a model that transfers come from, its noise off and its weights where they lie.

    Args:
        key: of the config, which names the model.

    Raises:
        InputError: it is no finished run, or its classes are not those of the attacked model and of the images; its
            factory's model is no classifier of as many classes.
    """
    place, run = f"{key}={source}", source.run
    if run is None:
        return plan_outside_surrogate(place, source, config, model, image_set)
    run_config = RunDir(run).load_config()
    weights = source.weights or RunDir(run).weights
    update = {"model": AttackedModelConfig(weights=weights), "noise": "off", "num_classes": None}
    surrogate = plan_model(run, config.model_copy(update=update), run_config, image_set)
    if surrogate.num_classes != model.num_classes:
        expected = f"a run with the {model.num_classes} classes of the attacked model"
        raise InputError(place, expected, f"{surrogate.num_classes} classes")
    images_of.check_other_run(place, run, run_config, image_set)
    return surrogate


def plan_outside_surrogate(
    place: str, source: SurrogateConfig, config: AttackConfig, model: PlannedModel, image_set: ImageSet
) -> PlannedModel:
    """Return a factory's model, which has to tell as many classes apart; which ones, nobody can ask it."""
    outside = AttackedModelConfig(factory=source.factory, weights=source.weights)
    update = {"model": outside, "noise": "off", "num_classes": model.num_classes}
    here = Path()  # where no run is
    surrogate = plan_model(here, config.model_copy(update=update), None, image_set)
    network, side = load_model(surrogate, here), image_set.data.resolution
    check_classifier(network, place, model.num_classes, side, True)
    check_seeded(network, place, side)
    return surrogate


def sha256_of_weights(planned: PlannedModel, run: Path) -> str:
    path = planned.weights_file(run)
    return state_sha256(load_model(planned, run)) if path is None else file_sha256_of(path)


def resolve_threads(config: AttackConfig, before: AttackPlan | None) -> int:
    """Return the threads of a shard; 0 keeps those of the plan that is there, so that shards may be re-dealt."""
    if config.threads == 0 and before is not None:
        return before.threads
    return config.threads or usable_cpus(config.num_shards)


EOT_STANDARD_DRAWS = 20


@dataclass(frozen=True)
class Protocol:
    """How the list of attacks is run."""

    sweep: tuple[float, ...]
    """Every eps, ascending; the last is the one that the accuracy is stated for."""
    eot: int
    """Draws averaged inside the model; 1: none are."""
    screen: int
    """Steps of the short attack that goes first; 0: none."""
    compact: bool
    rescore: int
    """Fresh draws that stored images are scored under; 0: none are."""

    @property
    def eps(self) -> float:
        return self.sweep[-1]


def protocol_of(config: AttackConfig) -> Protocol:
    """Return the protocol; verdicts of single noisy draws get no screen, as one more attack would break more."""
    noisy = config.noise == "fresh"
    draws = config.eot or (EOT_STANDARD_DRAWS if config.version == "eot-standard" else 1)
    return Protocol(
        sweep=config.eps if isinstance(config.eps, tuple) else (config.eps,),
        eot=draws,
        screen=0 if noisy and draws == 1 else config.screen,
        compact=config.compact and not noisy,
        rescore=config.rescore if noisy else 0,
    )


def own_settings_of(config: AttackConfig) -> OwnSettings:
    """Return what our own attacks in the list are given, without the surrogate; of others the plan has no trace."""
    return OwnSettings(
        random_draws=config.random_draws if "random-noise" in config.attacks else 0,
        hard_label_queries=config.hard_label_queries if "hard-label" in config.attacks else 0,
        fmn_steps=config.fmn_steps if "fmn" in config.attacks else 0,
    )
