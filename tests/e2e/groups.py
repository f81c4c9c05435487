"""`python groups.py torch`: kapdist with torch alone; `python groups.py FILE`: a file's commands without any extra.

Everything else that is installed here is made absent before it is imported.
"""

from __future__ import annotations

import contextlib
import importlib.metadata as metadata
import io
import json
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

OWN = {"kapdist", "launch"}


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def closure(names: Iterable[str]) -> set[str]:
    """Return the distributions that pip would bring with these, without any extra."""
    found: set[str] = set()
    todo = list(names)
    while todo:
        name = normal(todo.pop())
        if name in found:
            continue
        with contextlib.suppress(metadata.PackageNotFoundError):
            needed = [each for each in metadata.requires(name) or [] if "extra ==" not in each]
            found.add(name)
            todo += [re.match(r"[\w.-]+", each)[0] for each in needed]
    return found


class Absent:
    """Of what is installed only these distributions can be imported."""

    brought_by = metadata.packages_distributions()

    def __init__(self, *present: str) -> None:
        self.present = closure(present)

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        top = name.partition(".")[0]
        packages = {normal(package) for package in self.brought_by.get(top, ())}
        if top not in OWN and packages and not packages & self.present:
            raise ModuleNotFoundError(f"No module named {top!r}", name=top)


def with_torch_alone() -> dict[str, Any]:
    import torch

    import kapdist
    from kapdist.kap import fold, kapify, noise
    from kapdist.models import MODELS

    model = kapify(MODELS["resnet10"](num_classes=3, width=0.125), pool_size=3, layout="line", noise_std=0.3).eval()
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad(), noise(model, "off"):
        apart = (model(images) - fold(model)(images)).abs().max().item()
    with torch.no_grad():
        noisy = (model(images) - model(images)).abs().max().item()
    return {"fold": apart, "noise": noisy, "numpy": "numpy" in sys.modules, "file": kapdist.__file__}


def attacked() -> dict[str, Any]:
    """Attack a linear model in two classes within reach of its border: what breaks each image."""
    import torch

    import kapdist

    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 8 * 8, 2))
    with torch.no_grad():
        weight = torch.zeros(2, 3 * 8 * 8)
        weight[0, 0], weight[1, 0] = 1.0, -1.0
        model[1].weight.copy_(weight)
        model[1].bias.zero_()
        model[1].bias[0] = -0.5  # class 0 where the first value is above 1/4
    images = torch.full((4, 3, 8, 8), 0.5)
    images[:, 0, 0, 0] = torch.tensor([0.26, 0.27, 0.275, 0.28])
    keys = {"eps": 8 / 255, "version": "custom", "attacks": ["apgd-ce"]}
    found = kapdist.attack(model.eval(), images, torch.zeros(4, dtype=torch.long), **keys)
    return {"broken": found.images["broken_by"].to_list()}


def told(program: Any, *words: str) -> tuple[int, str]:
    """Run a command line in this process; return its exit code and what it said."""
    said = io.StringIO()
    sys.argv = ["command", *words]
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
        try:
            program()
            code = 0
        except SystemExit as end:
            code = end.code or 0
    return code, said.getvalue().strip()


def main() -> None:
    asked = sys.argv[1]
    sys.meta_path.insert(0, Absent("torch" if asked == "torch" else "kapdist"))
    if asked == "torch":
        print(json.dumps(with_torch_alone()))
        return
    out: dict[str, Any] = {"attack": attacked()}
    import launch.main
    from kapdist import cli

    for line in Path(asked).read_text().splitlines():
        program, *words = line.split()

        out[line] = told({"kapdist": cli, "kapdist-launch": launch.main}[program].main, *words)
    Path(asked).with_suffix(".json").write_text(json.dumps(out, indent=1))


if __name__ == "__main__":
    main()
