from one_thread import one_thread  # noqa: F401
from zoos import zoos  # noqa: F401
