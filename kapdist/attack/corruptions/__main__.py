"""`python -m kapdist.attack.corruptions DIRECTORY SHARD NUM_SHARDS`: a child of `attack corruptions`."""

import sys

from kapdist.attack.corruptions.shard import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
