"""`python launch/module.py -m MODULE WORDS` is `python -m MODULE WORDS` with the modules of this copy of the code.

`python -m` looks in the working directory first. A job starts where it was submitted, which is often the checkout:
it would run what that has become by then, and not its snapshot. (`python -P` came with Python 3.11.)
"""

import os
import runpy
import sys
from pathlib import Path

if __name__ == "__main__":
    words = sys.argv[1:]
    module = words[words.index("-m") + 1]
    # The working directory comes last, so that a module of the user's that lies there is still found.
    sys.path[:] = [str(Path(__file__).resolve().parents[1]), *sys.path[1:], os.getcwd()]
    sys.argv = [module, *words[words.index("-m") + 2 :]]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
