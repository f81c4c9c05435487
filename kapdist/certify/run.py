"""`kapdist certify`: plan, all units here or in processes of this machine, merge; or one of these alone."""

from __future__ import annotations

import sys
from pathlib import Path

from kapdist.attack.plan import config_of
from kapdist.attack.units import do_all
from kapdist.certify.merge import merge
from kapdist.certify.plan import check_written, plan_certificate
from kapdist.certify.shard import Units, run_shard
from kapdist.config.certify import CertifyConfig
from kapdist.records.certificate import CertificatePlan, CertificateSummary, read_plan
from kapdist.run.asked import ended_by_sigterm
from kapdist.run.files import check_outputs
from kapdist.run.lock import locked
from kapdist.run.paths import CertificateDir, RunDir
from kapdist.tracking.sender import tell


def run_certify(run: Path, config: CertifyConfig) -> CertificateSummary:
    """Certify a run's model, or with model.factory any one, smoothed by noise; what is done is kept.

    Args:
        run: a run directory; with model.factory any directory, made if need be.

    Raises:
        InputError: wrong input, or a directory of another plan.
        RuntimeError: a process failed; its last lines are in the message.
        TimeoutError: config.timeout_minutes went by. What is done is kept.
    """
    directory = directory_of(run, config)
    with locked(directory.lock), ended_by_sigterm():
        plan = planned(run, config, directory)
        units = Units(directory, plan)
        do_all(units, config.num_shards, config.timeout_minutes, here=config.num_shards == 1)
        summary = merge(directory, plan)
    tell([run])
    return summary


def plan_alone(run: Path, config: CertifyConfig) -> CertificatePlan:
    """Plan, for shards that other processes do (`run_shard`) and a merge after them.

    Raises:
        InputError: as `run_certify`.
    """
    directory = directory_of(run, config)
    with locked(directory.lock):
        return planned(run, config, directory)


def merge_alone(run: Path, config: CertifyConfig) -> CertificateSummary:
    """Add up what the shards did.

    Raises:
        InputError: there is no plan, a number that is written is not the plan's, or units are missing.
    """
    directory, plan = as_planned(run, config)
    with locked(directory.lock):
        summary = merge(directory, plan)
    tell([run])
    return summary


def shard_alone(run: Path, config: CertifyConfig, shard: int, num_shards: int) -> None:
    """Do one shard of what was planned.

    Raises:
        InputError: as `run_shard`, or a number that is written is not the plan's.
    """
    run_shard(as_planned(run, config)[0].root, shard, num_shards)


def as_planned(run: Path, config: CertifyConfig) -> tuple[CertificateDir, CertificatePlan]:
    directory = directory_of(run, config)
    plan = read_plan(directory)
    check_written(directory, plan, config)
    return directory, plan


def directory_of(run: Path, config: CertifyConfig) -> CertificateDir:
    """Return where the results belong; a mistyped run is refused before a lock makes its directory."""
    config_of(run, config.subject())
    return RunDir(run).certified(config.name)


def planned(run: Path, config: CertifyConfig, directory: CertificateDir) -> CertificatePlan:
    check_outputs(directory.plan, directory.summary, directory.table, directory.chunk(0))
    plan = plan_certificate(run, config, directory)
    for note in plan.notes:
        print(f"note: {note}", file=sys.stderr, flush=True)
    return plan
