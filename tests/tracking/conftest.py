"""The attacked world, for what asks something of a model in it and tells trackers."""

from attack_world import one_thread, world  # noqa: F401
