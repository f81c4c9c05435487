"""What else differs between two trainings than what is compared: config keys, by what the runs recorded of them."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from kapdist.config import KEPT, MAY_CHANGE, MAY_MOVE, Config, flatten
from kapdist.report.reading import Run
from kapdist.report.table import Row
from kapdist.run.paths import FACTORY

OF_KAP = frozenset({"kap.pool_size", "kap.layout", "kap.norm_first"})
OF_NOISE = {
    "activation noise": frozenset({"kap.noise_std", "kap.where"}),
    "dropout": frozenset({"model.dropout", "model.dropout_kind", "model.dropout_draws"}),
    "random member": frozenset({"model.random_member"}),
    "input noise": frozenset({"train.input_noise_std"}),
}


def differences(run: Run, other: Run, aside: Collection[str] = OF_KAP) -> tuple[str, ...]:
    """Return the config keys in which two trained runs differ, but for the name and what is put aside."""
    ours, theirs = (flatten(config_of(it)) for it in (run, other))
    never = {"name", *MAY_CHANGE, *aside}
    return tuple(key for key in ours if key not in never and differ(key, ours[key], theirs[key], run, other))


def differ(key: str, ours: Any, theirs: Any, run: Run, other: Run) -> bool:
    """Tell whether two values of a key mean two things.

    A path says less than the fingerprint of the images behind it, and a batch size that nobody wrote less than the
    one that was taken: where both runs recorded these, they decide. A factory's file may change under its name.
    """
    found = [(it.plan or {}).get((MAY_MOVE | KEPT).get(key, "")) for it in (run, other)]
    if None not in found:
        return bool(found[0] != found[1])
    code = [(it.plan or {}).get(FACTORY) if key == "model.factory" else None for it in (run, other)]
    return bool(ours != theirs or (None not in code and code[0] != code[1]))


def outside_noise(row: Row, other: Row) -> tuple[str, ...]:
    """Return the differences between a model with noise and one without, neither with KAP, but for the noise."""
    noises = {*row.noises, *(["input noise"] if row.input_noise_std else [])}
    keys = {key for noise in noises for key in OF_NOISE[noise]}
    return differences(row.run, other.run, aside=OF_KAP | keys)


def config_of(run: Run) -> Config:
    assert run.config is not None, "asked only of a run's own model"
    return run.config
