"""Whether an attack's number can be believed: checks that tell robustness from a gradient that hides."""

import kapdist

kapdist.callable_room(__name__)
