"""`python -m kapdist.attack ATTACK_DIR SHARD NUM_SHARDS`: a shard as a child of `attack run`, ending with it."""

import sys

from kapdist.attack.shard import run_shard
from kapdist.attack.units import child_main

if __name__ == "__main__":
    sys.exit(child_main(run_shard, sys.argv[1:]))
