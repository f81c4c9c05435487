"""`python -m kapdist.corruptions DIRECTORY SHARD NUM_SHARDS`: a child of `attack corruptions`."""

import sys

from kapdist.corruptions.shard import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
