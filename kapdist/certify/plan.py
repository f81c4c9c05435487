"""What is certified, with which noise and how many draws, fixed before it starts: certificates/<name>/plan.json."""

from __future__ import annotations

from pathlib import Path

from kapdist.attack.choice import num_available
from kapdist.attack.plan import config_of, image_set_of, make_plan
from kapdist.config import AttackConfig, Config
from kapdist.config.certify import CertifyConfig
from kapdist.config.noises import described, noises_of
from kapdist.errors import InputError
from kapdist.records.attack_plan import AttackPlan, first_difference
from kapdist.records.certificate import CertificatePlan, read_plan
from kapdist.records.sealed import write_json
from kapdist.run.paths import AttackDir, CertificateDir
from kapdist.statistics.binomial import least_draws, looks
from kapdist.statistics.smoothing import largest_radius

CERTIFIED_IMAGES = 500  # as Cohen et al. 2019 take of each test set
UNKNOWN = "whatever the factory's model draws"
OF_PLAN = ("selection_draws", "draws", "alpha", "stop_radius", "unit_draws")
OF_SUBJECT = ("seed", "num_images", "noise", "images_per_pass", "chunk_size")
OF_THE_RUN = {"sigma": (None,), "num_images": (None, 0)}
"""Values of keys that stand for what the run or the data say."""


def plan_certificate(run: Path, config: CertifyConfig, directory: CertificateDir) -> CertificatePlan:
    """Plan and write plan.json; an equal plan that is there already is kept.

    Raises:
        InputError: no sigma is known, there are too few draws for any radius, the model or the images cannot be
            had, or another plan is there.
    """
    sigmas = sigmas_of(run, config)
    check_draws(config, sigmas)
    before = read_plan(directory) if directory.plan.exists() else None
    plan = new_plan(run, config, sigmas, directory, before)
    if before and (difference := first_difference(before.identity(), plan.identity())):
        key, planned, now = difference
        raise InputError(directory.root, f"{key} = {planned} as this was planned (or another name=)", now)
    write_json(directory.plan, plan.model_dump(mode="json"))
    return plan


def new_plan(
    run: Path,
    config: CertifyConfig,
    sigmas: tuple[float, ...],
    directory: CertificateDir,
    before: CertificatePlan | None,
) -> CertificatePlan:
    asked = subject_of(run, config, before)
    subject = make_plan(run, asked, AttackDir(directory.chunks))
    return CertificatePlan(
        subject=subject.model_copy(update={"attacks": (), "costs": (), "notes": ()}),
        sigmas=sigmas,
        selection_draws=config.selection_draws,
        draws=config.draws,
        alpha=config.alpha,
        stop_radius=config.stop_radius,
        unit_draws=config.unit_draws,
        own_noise=own_noise_of(subject),
        notes=tuple(notes_on(subject, sigmas, config_of(run, asked))),
    )


def subject_of(run: Path, config: CertifyConfig, before: CertificatePlan | None) -> AttackConfig:
    """Return the model and the images as an attack's config, with what is not written filled in."""
    asked = config.subject()
    update: dict[str, int] = {}
    if config.num_images is None:
        found = image_set_of(run, asked, config_of(run, asked))
        available = num_available(asked, found.num_images)
        update["num_images"] = CERTIFIED_IMAGES if available is None else min(CERTIFIED_IMAGES, available)
    if config.threads == 0 and before:  # those of the plan that is there, so that shards may be dealt anew
        update["threads"] = before.subject.threads
    return asked.model_copy(update=update)


def check_written(directory: CertificateDir, plan: CertificatePlan, config: CertifyConfig) -> None:
    """Refuse numbers that are written for a shard or a merge and are others than were planned.

    What is not written is the plan's, and so is which model and which data: to find these out again takes long.

    Raises:
        InputError: names the first key that differs.
    """
    planned = {"sigma": plan.sigmas, "images": plan.subject.chosen}
    planned |= {key: getattr(plan, key) for key in OF_PLAN}
    planned |= {key: getattr(plan.subject, key) for key in OF_SUBJECT}
    written = {key: getattr(config, key) for key in planned if key in config.model_fields_set}
    written = {key: value for key, value in written.items() if value not in OF_THE_RUN.get(key, ())}
    if "sigma" in written:
        written["sigma"] = config.sigmas
    if ":" in config.images:  # a file may be named in several ways
        written.pop("images", None)
    for key, now in written.items():
        if now != planned[key]:
            expected = f"{key} = {planned[key]!r} as this was planned (or another name=)"
            raise InputError(directory.root, expected, repr(now))


def sigmas_of(run: Path, config: CertifyConfig) -> tuple[float, ...]:
    """Return all sigma, ascending: those of the config, else that of the run's training."""
    trained = config_of(run, config.subject())
    if config.sigmas:
        return config.sigmas
    if trained and trained.train.input_noise_std:
        return (trained.train.input_noise_std,)
    found = "none, and the run was trained without input noise" if trained else "none, and no run's config tells"
    raise InputError("sigma", "the standard deviation of the noise, such as sigma=0.25", found)


def check_draws(config: CertifyConfig, sigmas: tuple[float, ...]) -> None:
    """Refuse numbers of draws with which no image could get a radius, or none as large as is waited for.

    Raises:
        InputError: says how many draws it takes.
    """
    schedule = looks(config.draws) if config.stop_radius is not None else (config.draws,)
    alpha, least = config.alpha / len(schedule), least_draws(config.alpha / len(schedule))
    if config.draws < least:
        expected = f"at least {least}, as with fewer no image gets any radius at alpha = {config.alpha:g}"
        raise InputError("draws", expected, str(config.draws))
    for sigma in sigmas:
        largest = largest_radius(config.draws, alpha, sigma)
        if config.stop_radius is not None and config.stop_radius > largest:
            expected = f"at most {largest:.4g}, the radius of {config.draws} draws that agree, at sigma = {sigma:g}"
            raise InputError("stop_radius", expected, f"{config.stop_radius:g}")


def own_noise_of(subject: AttackPlan) -> str:
    """Say what the model draws by itself in every pass."""
    if subject.noise != "fresh":
        return ""
    found = noises_of(subject.model.architecture)
    return UNKNOWN if found is None else described(found)


def notes_on(subject: AttackPlan, sigmas: tuple[float, ...], trained: Config | None) -> list[str]:
    """Say what a reader of the numbers should know."""
    notes = []
    found = noises_of(subject.model.architecture)
    if own := own_noise_of(subject):
        notes.append(f"the model's own noise is a part of the smoothed model, drawn anew in every draw: {own}")
    elif found:
        notes.append(f"{subject.noise} is {described(found)}: this says nothing about the model with its noise on")
    if trained is not None and subject.model.factory is None:
        std = trained.train.input_noise_std
        if not std:
            notes.append(
                "the model was trained without input noise (train.input_noise_std = 0): noisy images are new "
                "to it, so it will abstain or be wrong on many"
            )
        elif others := [f"{sigma:g}" for sigma in sigmas if sigma > std]:
            notes.append(
                f"the model was trained with input noise of {std:g}, and is certified at {', '.join(others)}"
            )
    if len(sigmas) > 1:
        notes.append(
            "each sigma is another smoothed model: the best of them for each image is no model with a certificate"
        )
    return notes
