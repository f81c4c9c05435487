"""What a reader needs to check a run: (name, value) pairs, "not recorded" where a file is missing."""

from __future__ import annotations

from typing import Any

from kapdist.records.summary import Summary
from kapdist.report.reading import Attack, Run
from kapdist.report.words import MISSING, duration, eps_in_full, plural
from kapdist.report.worst import rescored_lines

Facts = list[tuple[str, str]]


def run_facts(run: Run) -> Facts:
    """Return what is known of a training run."""
    environment, plan, end = run.environment or {}, run.plan or {}, run.metrics.end or {}
    facts = [
        ("Directory", run.dir.root.as_posix()),
        ("State", run.status),
        ("Git commit", git_text(environment.get("git"))),
        ("Packages", packages_text({"python": environment.get("python"), **(environment.get("packages") or {})})),
        ("Ranks", said(plan.get("world_size"))),
        ("Steps", said(plan.get("total_steps"))),
        ("Training time, last attempt", duration(end.get("seconds"))),
        ("Peak memory per rank", memory_text(end.get("peak_memory_bytes"))),
        ("Weights sha256", said(run.weights_sha256)),
    ]
    if run.metrics.withstood:
        facts.append(("Robust validation", robust_text(run)))
    if run.unmerged:
        facts.append(("Attacks without a summary", ", ".join(run.unmerged)))
    if run.planned_anew:
        facts.append(("Attacks planned anew and not merged since", ", ".join(run.planned_anew)))
    if run.metrics.num_unreadable:
        facts.append(("Metrics", f"{plural(run.metrics.num_unreadable, 'line')} could not be read"))
    return facts


def attack_facts(attack: Attack) -> Facts:
    """Return what is known of one attack."""
    summary = attack.summary
    return [
        ("Plan fingerprint", summary.plan_fingerprint),
        ("Attacked weights sha256", said(summary.weights_sha256)),
        ("Device", said(summary.device)),
        ("Packages", packages_text(summary.packages)),
        ("Passes", passes_text(summary)),
        ("Time", duration(summary.seconds)),
        ("Largest perturbation", f"{summary.max_norm:.6g}"),
        *rescored_lines(attack),
    ]


def passes_text(summary: Summary) -> str:
    own = f"{summary.forwards:,} forward, {summary.backwards:,} backward"
    return f"{own}; the library's own: {summary.library_forwards:,}, {summary.library_backwards:,}"


def robust_text(run: Run) -> str:
    """Return the attack of robust validation, and how the best and the last of them ended."""
    *_, last = lines = run.metrics.withstood
    best = max(lines, key=lambda line: line["accuracy"])
    numbers = f"best {best['accuracy']:.1%} at epoch {best['epoch']:g}, last {last['accuracy']:.1%}"
    return f"{validation_attack(last)}: {numbers}"


def validation_attack(line: dict[str, Any]) -> str:
    """Return the attack of a line of robust validation."""
    norm = line.get("norm")
    eps = eps_in_full(norm, line["eps"]) if norm else f"{line['eps']:.4g}"
    attack = f"PGD of {line['attack_steps']} steps, {norm or MISSING} eps {eps}"
    draws = f", mean of {line['draws']} draws" if line.get("draws", 1) > 1 else ""
    return f"{attack}, {line['num_images']:,} images, noise {line.get('noise', MISSING)}{draws}"


def said(value: object) -> str:
    return MISSING if value is None or value == "" else str(value)


def git_text(git: Any) -> str:
    if not isinstance(git, dict) or not git.get("commit"):
        return MISSING
    changed = len([line for line in git.get("diff", "").splitlines() if line.startswith("diff ")])
    return f"{git['commit']}, with uncommitted changes in {plural(changed, 'file')}" if changed else git["commit"]


def packages_text(packages: dict[str, str | None]) -> str:
    return ", ".join(f"{name} {version}" for name, version in packages.items() if version) or MISSING


def memory_text(peaks: Any) -> str:
    if not isinstance(peaks, list) or not peaks:
        return MISSING
    return ", ".join(f"{peak / 2**20:,.0f} MiB" for peak in peaks)
