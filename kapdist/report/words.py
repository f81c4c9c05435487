"""How numbers are said: sizes of perturbations, shares, counts."""

from __future__ import annotations

from fractions import Fraction


def as_255ths(eps: float) -> str:
    """Say a size in steps of an 8-bit image: 0.03137 is 8/255."""
    steps = Fraction(eps * 255).limit_denominator(4)
    number = f"{eps * 255:.3g}" if abs(float(steps) - eps * 255) > 1e-4 else f"{float(steps):g}"
    return f"{number}/255"


def eps_text(norm: str, eps: float) -> str:
    """Say a size as papers do: Linf in steps of an 8-bit image, the other norms as a number."""
    return as_255ths(eps) if norm == "Linf" else f"{eps:g}"
