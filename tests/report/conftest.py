"""Small run directories in exactly the formats that train/ and attack/ write, with known numbers."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars
import pytest

from kapdist.config import Config
from kapdist.config.file import dump_config
from kapdist.records.summary import Summary
from kapdist.report import write_report
from kapdist.run.files import file_sha256, fingerprint
from kapdist.run.paths import RunDir

CLASSES = ["T-shirt", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"]
CHUNK = 4


def interval(count: int, total: int) -> dict[str, float]:
    """Any interval will do here, as long as the report shows it as it stands in the file."""
    half = 2 * math.sqrt(max(count * (total - count), total) / total**3)
    return {"value": count / total, "low": max(0.0, count / total - half), "high": min(1.0, count / total + half)}


class FakeRun:
    """Writes a run directory piece by piece; every method returns the run, so that calls can be chained."""

    def __init__(self, root: Path, pool_size: int, layout: str, noise_std: float, options: dict[str, Any]) -> None:
        self.dir = RunDir(root)
        self.dir.root.mkdir(parents=True)
        values = {
            "name": options.get("name", "fake"),
            "seed": options.get("seed", 0),
            "data": {"train": "data/train.beton", "validation": "data/test.beton"},
            "model": {"name": "resnet18", "num_classes": 10, "stem": "cifar", "width": 0.25}
            | options.get("model", {}),
            "kap": {"pool_size": pool_size, "layout": layout, "noise_std": noise_std, "norm_first": False},
            "train": {"epochs": 3, "input_noise_std": options.get("input_noise_std", 0.0)},
            "adversarial": options.get("adversarial", {}),
        }
        self.dir.config.write_text(dump_config(Config.model_validate(values)))

    def trained(self, top1: float = 0.9, seconds: float = 95.0) -> FakeRun:
        lines: list[dict[str, Any]] = []
        for step in range(1, 31):
            loss = 0.4 + 1.9 * math.exp(-step / 8)
            lines.append(
                {"kind": "train", "step": step, "epoch": step / 10, "loss": loss, "lr": 0.1, "grad_norm": 1.0}
                | {"images_per_second": 900.0, "time": 1000.0 + step}
            )
            if step % 10 == 0:
                lines.append(self.evaluation(step, top1 - 0.1 * (3 - step / 10)))
        lines.append(
            {"kind": "end", "step": 30, "seconds": seconds, "peak_memory_bytes": [512 * 2**20, 520 * 2**20]}
        )
        self.metrics(lines)
        self.dir.plan.write_text(json.dumps({"world_size": 2, "total_steps": 30}))
        packages = {"kapdist": "0.1.0", "torch": "2.13.0", "ffcv": "1.0.2", "wandb": None}
        git = {"commit": "0123456789abcdef0123456789abcdef01234567", "diff": "diff --git a/x b/x\n+1\n"}
        environment = {"git": git, "packages": packages, "python": "3.11.2", "host": "node-7"}
        self.dir.environment.write_text(json.dumps(environment))
        self.dir.weights.write_bytes(self.dir.root.name.encode())
        self.dir.done.write_text('{"step": 30}\n')
        return self

    @staticmethod
    def evaluation(step: int, top1: float, weights: str = "model") -> dict[str, Any]:
        return {
            "kind": "evaluate",
            "step": step,
            "epoch": step / 10,
            "top1": top1,
            "top5": 0.99,
            "loss": 0.5,
            "num_images": 10000,
            "noise": "off",
            "weights": weights,
        }

    def metrics(self, lines: Sequence[dict[str, Any] | str]) -> FakeRun:
        texts = (line if isinstance(line, str) else json.dumps(line) for line in lines)
        self.dir.metrics.write_text("".join(f"{text}\n" for text in texts))
        return self

    def attacked(self, correct: int, broken: dict[str, int], **options: Any) -> FakeRun:
        """Write an attack on `num_images` images: the first `correct` are right, then each attack breaks some.

        Options: num_images, name, eps, norm, version, noise, max_norm, keep, clean, first_image,
        class_names, data, notes, weights_sha256.
        """
        total = options.get("num_images", 20)
        name = options.get("name", "linf")
        attack = self.dir.attack(name)
        records = self.records(total, correct, broken, options.get("first_image", 0))
        attack.chunks.mkdir(parents=True)
        records.write_parquet(attack.records)
        for index, part in enumerate(records.iter_slices(CHUNK)):
            part.write_parquet(attack.chunk(index))
            if options.get("keep"):
                self.keep(name, index, part, options.get("clean", True))
        beton = self.dir.root.parent / "test.beton"
        if options.get("class_names", True):
            beton.with_name("test.beton.json").write_text(json.dumps({"class_names": CLASSES}))
        data = {"path": str(beton), "fingerprint": options.get("data", "d" * 64)}
        attack.plan.write_text(json.dumps({"model": {"factory": None}, "data": data}))
        attack.summary.write_text(json.dumps(self.summary(total, correct, broken, name, options)))
        return self

    def records(self, total: int, correct: int, broken: dict[str, int], first: int) -> polars.DataFrame:
        rows: list[dict[str, Any]] = []
        breakers = [name for name, count in broken.items() for _ in range(count)]
        for number in range(total):
            label = number % 10
            right = number < correct
            breaker = breakers[number] if right and number < len(breakers) else None
            row: dict[str, Any] = {"image": first + number, "label": label, "chunk": number // CHUNK}
            row |= {"clean_prediction": label if right else (label + 1) % 10, "broken_by": breaker}
            for name in broken:
                row |= {f"{name}_broke": name == breaker if right else None}
                row |= {f"{name}_norm": 8 / 255 if name == breaker else None}
                row |= {f"{name}_prediction": (label + 3) % 10 if name == breaker else label}
            rows.append(row)
        return polars.DataFrame(rows, infer_schema_length=None)

    def keep(self, name: str, index: int, part: polars.DataFrame, with_clean: bool) -> None:
        attack = self.dir.attack(name)
        attack.adversarial.mkdir(exist_ok=True)
        clean = np.stack([garment(image) for image in part["image"]]).astype(np.float32)
        sign = np.sign(np.random.default_rng(index).standard_normal(clean.shape))
        broken = np.array([value is not None for value in part["broken_by"]])[:, None, None, None]
        adversarial = np.clip(clean + broken * 8 / 255 * sign, 0, 1).astype(np.float32)
        np.save(attack.adversarial_images(index), adversarial)
        if with_clean:
            np.save(attack.adversarial / f"clean-{index:06d}.npy", clean)

    def summary(
        self, total: int, correct: int, broken: dict[str, int], name: str, options: dict[str, Any]
    ) -> dict[str, Any]:
        left, stages = correct, []
        for attack, count in broken.items():
            attacked, left = left, left - count
            stages.append(
                {"name": attack, "eps": options.get("eps", 8 / 255), "num_attacked": attacked, "num_broken": count}
                | {"num_robust_after": left, "robust_accuracy_after": left / total, "seconds": 10.0}
                | {"forwards": 1000, "backwards": 500, "library_forwards": 2000, "library_backwards": 1000}
            )
        weights = file_sha256(self.dir.weights) if self.dir.weights.exists() else "0" * 64
        values = {
            "name": name,
            "run": self.dir.name,
            "plan_fingerprint": fingerprint(name),
            "norm": options.get("norm", "Linf"),
            "eps": options.get("eps", 8 / 255),
            "version": options.get("version", "standard"),
            "noise": options.get("noise", "off"),
            "num_images": total,
            "num_clean_correct": correct,
            "clean_accuracy": interval(correct, total),
            "num_robust": left,
            "robust_accuracy": interval(left, total),
            "sweep": [
                {"eps": options.get("eps", 8 / 255), "num_robust": left, "robust_accuracy": interval(left, total)}
            ],
            "attacks": stages,
            "screen": 0,
            "eot": 1,
            "rescored": None,
            "forwards": 1000 * len(broken),
            "backwards": 500 * len(broken),
            "library_forwards": 2000 * len(broken),
            "library_backwards": 1000 * len(broken),
            "seconds": 10.0 * len(broken),
            "max_norm": options.get("max_norm", 8 / 255),
            "packages": {"torch": "2.13.0", "pyautoattack": "0.2.0"},
            "weights_sha256": options.get("weights_sha256", weights),
            "device": "cpu",
            "notes": options.get("notes", []),
        }
        return Summary.model_validate(values).describe()


def garment(image: int) -> np.ndarray:
    """A picture (3, 32, 32) that one can recognise on the page."""
    y, x = np.mgrid[0:32, 0:32] / 31
    width = 0.18 + 0.03 * (image % 7)
    inside = (np.abs(x - 0.5) < width) & (y > 0.15) & (y < 0.9)
    return np.broadcast_to((inside * (0.45 + 0.4 * y)).astype(np.float32), (3, 32, 32))


STANDARD = ("apgd-ce", "apgd-t", "fab-t", "square")


def standard(*counts: int) -> dict[str, int]:
    return dict(zip(STANDARD, counts, strict=True))


MakeRun = Callable[..., FakeRun]


def maker(runs: Path) -> MakeRun:
    def make(name: str, pool_size: int = 1, layout: str = "line", noise_std: float = 0, **options: Any) -> FakeRun:
        return FakeRun(runs / name, pool_size, layout, noise_std, options)

    return make


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    return maker(tmp_path / "runs")


@pytest.fixture(scope="session")
def three(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """plain, noise and kap, attacked in one setting on 20 images: clean 18 17 17, robust 0 9 10; read-only."""
    make = maker(tmp_path_factory.mktemp("three"))
    plain = make("plain").trained(0.91).attacked(18, standard(18, 0, 0, 0), keep=True)
    noise = make("noise", noise_std=0.3).trained(0.88).attacked(17, standard(6, 1, 0, 1), keep=True)
    kap = make("kap", 3, noise_std=0.3).trained(0.89).attacked(17, standard(5, 1, 1, 0), keep=True)
    return [run.dir.root for run in (plain, noise, kap)]


@pytest.fixture(scope="session")
def page(three: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page that compares `three`."""
    return write_report(three, tmp_path_factory.mktemp("page") / "deep" / "out")
