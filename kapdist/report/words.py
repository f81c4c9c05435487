"""How things are said: sizes of perturbations, shares, counts, times, lists."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction

from kapdist.config.attack import is_function
from kapdist.statistics.intervals import Proportion

MISSING = "not recorded"


def as_255ths(eps: float) -> str:
    """Say a size in steps of an 8-bit image: 8/255 is 8/255, and 0.03137, a little less, is 7.99935/255."""
    steps = Fraction(eps * 255).limit_denominator(4)
    number = eps * 255 if abs(float(steps) - eps * 255) > 1e-4 else float(steps)
    return f"{number:.6g}/255"


def eps_text(norm: str, eps: float) -> str:
    """Say a size as papers do: Linf in steps of an 8-bit image, the other norms as a number."""
    return as_255ths(eps) if norm == "Linf" else f"{eps:g}"


def eps_in_full(norm: str, eps: float) -> str:
    """Say a size as a number and, where that is how it is known, in steps of an 8-bit image."""
    return f"{eps:.4g} ({as_255ths(eps)})" if norm == "Linf" else f"{eps:.6g}"


def percent(share: float) -> str:
    return f"{100 * share:.1f}"


def accuracy_text(share: Proportion, sign: str = "%") -> str:
    """Say a share with its interval: 93.1% [92.5, 93.6]."""
    return f"{percent(share.value)}{sign} [{percent(share.low)}, {percent(share.high)}]"


def points(share: float) -> str:
    # Rounded first: -0.04 points would be shown as "-0.0".
    rounded = round(100 * share, 1) + 0.0
    return f"{rounded:+.1f} points".replace("-", "−")


def p_text(p: float, level: float) -> str:
    """Say a p-value in two digits, or in as many as show whether it is below a level."""
    if p < 1e-4:
        return "p < 0.0001"
    rounded = (f"{p:.{digits}g}" for digits in range(2, 18))
    return f"p = {next(text for text in rounded if (float(text) < level) == (p < level))}"


def plural(count: int, word: str) -> str:
    return f"{count} {word}" if count == 1 else f"{count} {word}s"


def short(count: int) -> str:
    """Say a large count with three digits: 1910000 is 1.91M."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= 0.9995 * size:
            return f"{count / size:.3g}{unit}"
    return str(count)


def duration(seconds: float | None) -> str:
    """Say a time in the two largest units that it has: 3725 s is 1 h 2 min."""
    if seconds is None:
        return MISSING
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def attack_text(attack: str, functions: Mapping[str, str | None] | None = None) -> str:
    """Name an attack, or a stage of one; a function of the user's is said to be, with the file that it lies in.

    Args:
        functions: the sha256 of each function's file, where they are known.
    """
    if not is_function(attack):
        return attack
    known = functions or {}
    sha256 = known.get(attack, known.get(attack.rpartition("@")[0]))
    return f"{attack} (the user's own{f', sha256 {sha256[:12]}' if sha256 else ''})"


def enumeration(words: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))
