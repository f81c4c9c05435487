"""Which device a plan is made for, and which GPU each local shard takes. No GPU is needed here."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from kapdist.attack.devices import computing, own_gpu, refuse_auto_elsewhere
from kapdist.config import AttackConfig
from kapdist.environment import package_version
from kapdist.errors import InputError
from kapdist.records.attack_plan import AttackPlan


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """GPUs by name that torch sees; a test may change the list."""
    names = ["H100", "T4", "H100"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(names))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(names))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index=0: names[index])
    return names


def test_local_shards_take_the_gpus_of_the_plan_in_turn(gpus: list[str]) -> None:
    taken = [own_gpu("H100", shard, {})["CUDA_VISIBLE_DEVICES"] for shard in range(4)]
    assert taken == ["0", "2", "0", "2"]
    named = {"CUDA_VISIBLE_DEVICES": "5, GPU-abc,7"}
    assert [own_gpu("H100", shard, named)["CUDA_VISIBLE_DEVICES"] for shard in range(3)] == ["5", "7", "5"]
    assert own_gpu("T4", 1, named) == {"CUDA_VISIBLE_DEVICES": "GPU-abc"}
    assert own_gpu("cpu", 1, {}) == own_gpu("A100", 1, {}) == {}
    gpus.clear()
    assert own_gpu("H100", 1, {}) == {}


def test_a_plan_without_a_gpu_does_not_bind_a_run_of_a_gpu_to_the_cpu(gpus: list[str], tmp_path: Path) -> None:
    (tmp_path / "environment.json").write_text(json.dumps({"device": "H100"}))
    auto, cpu = AttackConfig(name="a"), AttackConfig(name="a", device="cpu")
    refuse_auto_elsewhere(tmp_path, auto)
    gpus.clear()
    with pytest.raises(InputError, match=r"device=auto: .*device=cpu.*, found none .*; trained on H100"):
        refuse_auto_elsewhere(tmp_path, auto)
    refuse_auto_elsewhere(tmp_path, cpu)
    (tmp_path / "environment.json").write_text(json.dumps({"device": "cpu"}))
    refuse_auto_elsewhere(tmp_path, auto)
    (tmp_path / "environment.json").unlink()
    refuse_auto_elsewhere(tmp_path, auto)  # nothing tells
    (tmp_path / "config.yaml").write_text("data: {train: a, validation: b}\nengine: {device: cuda}\n")
    with pytest.raises(InputError, match="trained on cuda"):
        refuse_auto_elsewhere(tmp_path, auto)


def test_this_process_computes_as_planned_and_then_as_before(make_plan: Callable[..., AttackPlan]) -> None:
    plan = make_plan("Linf", 0.1, ("square",), threads=2)
    plan = plan.model_copy(update={"packages": {"kapdist": package_version("kapdist")}})
    cudnn, products = torch.backends.cudnn, torch.backends.cuda.matmul

    def flags() -> tuple[object, ...]:
        tf32 = cudnn.allow_tf32, products.allow_tf32
        return torch.get_num_threads(), cudnn.deterministic, cudnn.benchmark, *tf32

    before = flags()
    with contextlib.suppress(ZeroDivisionError), computing(plan) as device:
        assert device == torch.device("cpu")
        assert flags() == (2, True, False, False, False)
        raise ZeroDivisionError
    assert flags() == before
    assert before[0] == 1
