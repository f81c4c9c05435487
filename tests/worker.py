"""A worker of pytest-xdist that tests/warm_start.py forks: it finds imported what tests import.

pytest-xdist runs it as `python worker.py PYTHON -u -c PROGRAM`; PYTHON is what tests start cold processes with.
"""

import sys

_, sys.executable, *_, program = sys.argv
sys.argv, sys.path[0] = ["-c"], ""
exec(program)
