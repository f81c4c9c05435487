"""Whether an attack's number can be believed: checks that tell robustness from a gradient that hides."""

from kapdist import callable_room

callable_room(__name__)
