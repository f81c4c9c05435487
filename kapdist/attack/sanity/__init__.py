"""Whether an attack's number can be believed: checks that tell robustness from a gradient that hides."""

from kapdist.attack.sanity.ball import Ball
from kapdist.attack.sanity.examine import examine
from kapdist.attack.sanity.run import run_sanity

__all__ = ["Ball", "examine", "run_sanity"]
