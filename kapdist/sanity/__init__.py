"""Whether an attack's number can be believed: checks that tell robustness from a gradient that hides."""

from kapdist.sanity.ball import Ball
from kapdist.sanity.examine import examine
from kapdist.sanity.run import run_sanity

__all__ = ["Ball", "examine", "run_sanity"]
