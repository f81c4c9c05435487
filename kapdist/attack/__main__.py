"""`python -m kapdist.attack ATTACK_DIR SHARD NUM_SHARDS`: a shard as a child of `attack run`, ending with it."""

import sys

from kapdist.run.asked import end_with_parent

if __name__ == "__main__":
    end_with_parent()  # before all that takes long to load
    from kapdist.attack.shard import run_shard
    from kapdist.attack.units import child_main

    sys.exit(child_main(run_shard, sys.argv[1:]))
