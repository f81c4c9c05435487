"""Whether torch can compile for this CPU: tests that let it skip where it cannot."""

import pytest
import torch

from kapdist.engine.compiling import check_compiler
from kapdist.errors import InputError


def what_it_lacks() -> str:
    try:
        check_compiler(torch.device("cpu"))
    except InputError as error:
        return str(error)
    return ""


LACKING = what_it_lacks()
needs_compiler = pytest.mark.skipif(bool(LACKING), reason=LACKING)
