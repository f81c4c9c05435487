"""`python -m kapdist.attack ATTACK_DIR SHARD NUM_SHARDS`: a shard as a child of `attack run`, ending with it."""

import ctypes
import signal
import sys
from pathlib import Path

from kapdist.attack.shard import run_shard
from kapdist.errors import InputError


def end_with_parent() -> None:
    """Ask the kernel to end this process when the one that started it is gone, even by kill -9 (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)


def main(words: list[str]) -> int:
    """Run one shard; return the exit code: 2 for wrong input, with its one line."""
    end_with_parent()
    try:
        run_shard(Path(words[0]), int(words[1]), int(words[2]))
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
