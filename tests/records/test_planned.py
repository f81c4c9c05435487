"""A directory of another kind than was asked for is named as that, and nobody is told to remove its plan."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from kapdist.cli import app
from kapdist.errors import InputError
from kapdist.records import attack_plan, certificate, corruptions
from kapdist.records.norms import read_across
from kapdist.run.paths import AttackDir, CertificateDir, CorruptionsDir

TRAINING, ATTACK, CERTIFICATE = {"steps_per_epoch": 6}, {"attacks": ["square"]}, {"sigmas": [0.25]}


@pytest.mark.parametrize(
    ("read", "kind", "values", "said"),
    [
        (attack_plan.read_plan, AttackDir, TRAINING, "an attack directory .*, found a run directory"),
        (attack_plan.read_plan, AttackDir, CERTIFICATE, "an attack directory .*, found that of a certificate"),
        (certificate.read_plan, CertificateDir, ATTACK, "`kapdist certify`, found that of an attack"),
        (corruptions.read_plan, CorruptionsDir, TRAINING, "attack corruptions`, found a run directory"),
    ],
)
def test_another_kind_of_directory(
    read: Callable[[Any], Any], kind: type[AttackDir], values: dict[str, Any], said: str, tmp_path: Path
) -> None:
    (tmp_path / "plan.json").write_text(json.dumps(values))
    with pytest.raises(InputError, match=said) as refused:
        read(kind(tmp_path))
    assert "remove" not in str(refused.value)


def test_a_plan_of_its_own_kind_with_a_key_less_is_planned_again(tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text(json.dumps(ATTACK))
    with pytest.raises(InputError, match=r"expected a value \(remove it and plan again.*found nothing"):
        attack_plan.read_plan(AttackDir(tmp_path))


def test_a_run_is_not_told_to_be_merged(tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text(json.dumps(TRAINING))
    with pytest.raises(InputError, match="found a run directory"):
        read_across([tmp_path])


def test_no_shards_at_all(tmp_path: Path) -> None:
    end = CliRunner().invoke(app, ["attack", "shard", str(tmp_path), "--num-shards", "0"])
    assert end.exit_code == 2
    assert "--num-shards" in end.output
