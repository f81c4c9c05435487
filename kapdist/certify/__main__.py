"""`python -m kapdist.certify DIRECTORY SHARD NUM_SHARDS`: a child of `kapdist certify`, ending with it."""

import sys

from kapdist.attack.units import child_main
from kapdist.certify.shard import run_shard

if __name__ == "__main__":
    sys.exit(child_main(run_shard, sys.argv[1:]))
