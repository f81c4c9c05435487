"""Certificates by randomized smoothing: an L2 radius within which the smoothed model keeps its class."""

from kapdist import callable_room

callable_room(__name__)
