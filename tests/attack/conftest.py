"""The attacked world, for the tests of this room."""

from attack_world import make_plan, one_thread, short, tiny, world  # noqa: F401
from zoos import zoos  # noqa: F401
