"""`python -m kapdist.certify DIRECTORY SHARD NUM_SHARDS`: a child of `kapdist certify`, ending with it."""

import sys

from kapdist.run.asked import end_with_parent

if __name__ == "__main__":
    end_with_parent()  # before all that takes long to load
    from kapdist.attack.units import child_main
    from kapdist.certify.shard import run_shard

    sys.exit(child_main(run_shard, sys.argv[1:]))
