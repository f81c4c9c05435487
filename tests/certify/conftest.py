"""The attacked world, and the linear model in it, for the tests of this room."""

from attack_world import make_plan, one_thread, short, tiny, world  # noqa: F401
from certify.linear import linear, no_wait_for_the_disk  # noqa: F401
