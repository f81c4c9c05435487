"""Certificates by randomized smoothing: an L2 radius within which the smoothed model keeps its class."""

import kapdist

kapdist.callable_room(__name__)
