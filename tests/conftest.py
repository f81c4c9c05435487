"""What all tests share: ranks, the command line, and small betons of real images."""

from __future__ import annotations

import faulthandler
import os
import shlex
import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

import hypothesis
import long_first
import pytest
from processes import SERVED, Finished, end_ranks, serve_warm_starts, start_ranks, warm_python

# What a machine may lack, CI's too; whatever else a test skips for must be there on CI.
MAY_BE_ABSENT = ("torchvision", "timm", "imagecorruptions", "CUDA", "GPU", "AVX-512")

# A thread of torch's that waits for another one sleeps, here and in all that is started: where processes share
# cores, spinning keeps the other from coming, and a model on two threads takes up to a hundred times as long.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# The machine is shared: no test is timed, nor what makes up its examples.
hypothesis.settings.register_profile(
    "kapdist", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("kapdist")


TERMINAL = pytest.StashKey[int]()


def pytest_configure(config: pytest.Config) -> None:
    """All workers share what starts processes warm, and start so themselves."""
    config.stash[TERMINAL] = os.dup(2)  # before pytest has what tests say in a file, which a crash loses
    if getattr(config.option, "numprocesses", None) and not hasattr(config, "workerinput"):
        os.environ[SERVED] = str(serve_warm_starts())
        worker = shlex.join([str(warm_python()), str(Path(__file__).with_name("worker.py")), sys.executable])
        config.option.tx = [f"popen//python={worker}"] * len(config.option.tx)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    long_first.sort(items)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> long_first.LongFirst:
    return long_first.LongFirst(config, log)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, Any]:
    """On CI a test that skips for something that should be there has failed."""
    report = yield
    if report.skipped and os.environ.get("CI"):
        reason = str(report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr)
        if not any(name in reason for name in MAY_BE_ABSENT):
            report.outcome, report.longrepr = "failed", f"absent on CI: {reason}"
    return report


@pytest.fixture(autouse=True)
def process_left_as_it_was(pytestconfig: pytest.Config) -> Iterator[None]:
    """A test leaves torch its threads (two of them die of oneDNN where one does not), and a crash its stacks."""
    before = sys.modules["torch"].get_num_threads() if "torch" in sys.modules else None
    yield
    faulthandler.enable(pytestconfig.stash[TERMINAL])  # a run within this process leaves them to sys.stderr
    if before is not None:
        after = sys.modules["torch"].get_num_threads()
        sys.modules["torch"].set_num_threads(before)
        assert after == before, "the test left torch with another number of threads"


@pytest.fixture
def run_ranks(tmp_path: Path) -> Callable[..., list[Finished]]:
    """Run `python WORDS` on some ranks, in tmp_path, within a time limit in seconds; see start_ranks for cold."""

    def run(words: Sequence[str], world_size: int = 1, timeout: float = 240, cold: bool = False) -> list[Finished]:
        return end_ranks(start_ranks(words, world_size, tmp_path, cold), timeout)

    return run


@pytest.fixture
def kapdist(run_ranks: Callable[..., list[Finished]]) -> Callable[..., Finished]:
    """Run the command line in one process within a time limit."""

    def kapdist(*words: object, timeout: float = 240) -> Finished:
        command = ["-m", "kapdist.cli", *map(str, words)]
        return run_ranks(command, timeout=timeout)[0]

    return kapdist


@pytest.fixture(scope="session")
def small_betons(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The first 130 and 70 images of Fashion-MNIST as betons: (train, validation)."""
    from kapdist.data.beton.write import write_beton
    from kapdist.data.sources import fashion_mnist

    class First:
        """The first images of a source."""

        def __init__(self, source, length: int) -> None:
            self.source, self.length = source, length
            self.name, self.class_names, self.largest_bytes = source.name, source.class_names, source.largest_bytes
            self.item, self.image_name = source.item, source.image_name

        def __len__(self) -> int:
            return self.length

    folder = tmp_path_factory.mktemp("betons")
    write_beton(First(fashion_mnist("train"), 130), folder / "train.beton")
    write_beton(First(fashion_mnist("test"), 70), folder / "test.beton")
    return folder / "train.beton", folder / "test.beton"


TINY = """
data: {{train: {train}, validation: {test}, flip: true, translate: 2}}
model: {{name: resnet10, num_classes: 10, width: 0.125}}
kap: {{pool_size: 3, layout: line, noise_std: 0.2}}
optim: {{lr: 0.1, warmup_epochs: 0.5, ema_decay: 0.9}}
train: {{epochs: 2, batch_size: 20, accumulation_steps: 2, input_noise_std: 0.05, log_every_steps: 3}}
engine: {{threads: 1}}
"""


@pytest.fixture
def tiny_config(tmp_path: Path, small_betons: tuple[Path, Path]) -> Path:
    """A config that trains a narrow ResNet-10 for 14 steps with everything on; runs go to tmp_path/runs."""
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY.format(train=small_betons[0], test=small_betons[1]))
    return path
