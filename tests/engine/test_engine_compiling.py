"""The limit on graphs follows the plan, and the run's log says when it is met."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import torch._dynamo
from torch import nn

from kapdist.config import Config
from kapdist.engine.compiling import check_compiler, make_room
from kapdist.errors import InputError
from kapdist.plan.training import make_plan


def graphs_of(num_shapes: int) -> int:
    """Run a compiled model on so many shapes; return how many graphs torch made."""
    torch.compiler.reset()
    graphs = []
    model = torch.compile(nn.Flatten(), dynamic=False, backend=lambda graph, _: graphs.append(1) or graph.forward)
    for side in range(2, 2 + num_shapes):
        model(torch.rand(2, 3, side, side))
    return len(graphs)


@pytest.fixture
def told(monkeypatch, caplog) -> Iterator[Callable[[], list[str]]]:
    """What the run's log was told; torch's limits as before afterwards."""
    monkeypatch.setattr(logging.getLogger("kapdist"), "propagate", True)
    limits = torch._dynamo.config
    with limits.patch(recompile_limit=8, accumulated_recompile_limit=256):
        yield lambda: [r.getMessage() for r in caplog.records if r.name == "kapdist.engine.compiling"]


def test_a_plan_of_many_shapes_has_room_for_all(told) -> None:
    """Five sides and two sizes of batches: what fell back after eight."""
    data = {"train": Path("a"), "validation": Path("b"), "crop": "random-resized"}
    ramp = {"min_resolution": 32, "max_resolution": 160, "start_ramp": 0, "end_ramp": 4}
    config = Config(name="test", data=data | ramp, train={"batch_size": 5, "epochs": 6}, optim={"warmup_epochs": 0})
    plan = make_plan(config, num_images=14, world_size=1)
    shapes = {(plan.resolution(step), len(plan.batch(step))) for step in range(plan.total_steps)}
    assert plan.num_graphs == len(shapes) == 10
    make_room(plan.num_graphs)
    assert graphs_of(plan.num_graphs) == plan.num_graphs
    assert told() == []


def test_the_log_says_when_there_is_no_more_room(told) -> None:
    make_room(1)
    make_room(1)  # once is enough
    assert graphs_of(12) == 8
    (line,) = told()
    assert "new shapes run uncompiled" in line


def test_without_a_compiler_or_with_torch_in_a_folder_it_cuts_nothing_is_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_compiler(torch.device("cuda", 0))
    monkeypatch.setenv("CXX", str(tmp_path / "none"))
    with pytest.raises(InputError, match=r"engine.compile: expected a C\+\+ compiler on a CPU .*, found none"):
        check_compiler(torch.device("cpu"))
    monkeypatch.setenv("CXX", "true")  # a program that is anywhere
    monkeypatch.setattr(torch, "__file__", "/my code/torch/__init__.py")
    with pytest.raises(InputError, match="torch in a folder without spaces, on a CPU, found /my code/torch"):
        check_compiler(torch.device("cpu"))
