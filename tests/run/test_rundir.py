import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from kapdist.config import Config, DataConfig, OptimConfig
from kapdist.errors import InputError
from kapdist.run.files import file_sha256, fingerprint, output, write_atomic, write_json, written_aside
from kapdist.run.paths import RunDir, as_ended, weights_sha256


def config(workers: int = 0, **sections: object) -> Config:
    return Config(name="test", data=DataConfig(train=Path("a"), validation=Path("b"), workers=workers), **sections)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomic(path, "old")
    with pytest.raises(UnicodeEncodeError), written_aside(path) as aside:
        aside.write_text("half" + "\udc80")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


def test_what_failed_is_written_down_whatever_the_locale_and_the_names_of_files(tmp_path: Path) -> None:
    program = "import sys; from pathlib import Path; from kapdist.run.files import write_first\n"
    program += r"write_first(Path(sys.argv[1]), 'no file /caf\udce9 \u2192 \xe4\n')"
    ascii_alone = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    words = [sys.executable, "-c", program, str(tmp_path / "FAILED")]
    done = subprocess.run(words, env=os.environ | ascii_alone, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "FAILED").read_bytes() == b"no file /caf\\udce9 \xe2\x86\x92 \xc3\xa4\n"


def test_a_fingerprint_does_not_depend_on_the_order_of_keys() -> None:
    assert fingerprint({"a": 1, "b": [2.5]}) == fingerprint({"b": [2.5], "a": 1}) != fingerprint({"a": 1})


def test_a_directory_belongs_to_its_config(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    run.claim(config())
    run.checkpoint(3).mkdir(parents=True)
    run.claim(config())
    expected = r"expected optim.lr = 0.5 as this run began .*, found 0.25"
    with pytest.raises(InputError, match=expected):
        run.claim(config(optim=OptimConfig(lr=0.25)))
    assert run.load_config() == config()


@pytest.mark.parametrize("kept", ["checkpoint", "weights", "done"])
def test_a_run_with_something_to_lose_keeps_its_config(tmp_path: Path, kept: str) -> None:
    run = RunDir(tmp_path)
    run.claim(config())
    run.claim(config(optim=OptimConfig(lr=0.25)))  # a mistake does not take the name for good
    assert run.load_config().optim.lr == 0.25
    path = run.checkpoint(1) if kept == "checkpoint" else getattr(run, kept)
    path.mkdir(parents=True)
    before = run.config.read_bytes()
    with pytest.raises(InputError, match=r"expected optim\.lr = 0\.25 as this run began"):
        run.claim(config())
    assert run.config.read_bytes() == before


def test_a_damaged_config_of_a_run_is_named(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    run.checkpoint(1).mkdir(parents=True)
    for damage in (b"", b"\0\xff" * 40, b"name: [\n", b"name: test\n"):
        run.config.write_bytes(damage)
        with pytest.raises(InputError, match=r"config\.yaml"):
            run.check(config())


def test_json_knows_no_nan(tmp_path: Path) -> None:
    write_json(tmp_path / "file", {"a": [float("nan"), 1.5, (float("inf"),)], "b": "NaN"})
    assert json.loads((tmp_path / "file").read_text(), parse_constant=pytest.fail) == {
        "a": [None, 1.5, [None]],
        "b": "NaN",
    }


def test_an_append_is_whole_or_nothing(tmp_path: Path) -> None:
    program = "import resource, signal, sys; from pathlib import Path; from kapdist.run.files import append_whole\n"
    program += "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); file = Path(sys.argv[1]).open('ab', buffering=0)\n"
    program += "append_whole(file, b'first\\n'); resource.setrlimit(resource.RLIMIT_FSIZE, (10, 1000))\n"
    program += "try: append_whole(file, b'second and long\\n')\n"
    program += "except OSError: print('refused')\n"
    program += "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000)); append_whole(file, b'third\\n')\n"
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path / "file")], capture_output=True, text=True)
    assert done.stdout == "refused\n", done.stderr
    assert (tmp_path / "file").read_text() == "first\nthird\n"


def test_an_output_that_cannot_be_written_is_wrong_input(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"file.*: expected a place that can be written, found"), output(tmp_path):
        write_atomic(tmp_path / "file" / "inside", "")
    with pytest.raises(FileNotFoundError), output(tmp_path):
        (tmp_path / "absent").read_text()


def test_what_killed_writers_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    left = [tmp_path / ".best.safetensors.0123abcd.tmp", run.checkpoints / ".LATEST.0123abcd.tmp"]
    left += [run.checkpoints / ".step-000000004.attempt-1.tmp" / "shared.pt"]
    left += [run.attempts / "1" / ".heartbeat-0.json.0123abcd.tmp"]
    others = [tmp_path / ".LOCK.0123abcd.tmp", run.checkpoint(3) / "shared.pt", run.best_weights]
    others += [run.evaluations / ".final.json.0123abcd.tmp", run.attack("a").chunks / ".chunk-0.parquet.01.tmp"]
    for path in [*left, *others]:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    run.drop_leftovers()
    assert not any(path.exists() for path in left)
    assert all(path.exists() for path in others)
    assert [path.name for path in run.checkpoints.iterdir()] == [run.checkpoint(3).name]


def test_the_weights_of_a_run_are_those_that_it_ended_with(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    run.weights.write_bytes(b"weights")
    digest = hashlib.sha256(b"weights").hexdigest()
    assert weights_sha256(run.weights) == digest  # a run that is not done
    run.done.write_text('{"step": 3}\n')
    assert weights_sha256(run.weights) == digest  # or was done before DONE spoke of it
    run.done.write_text(json.dumps({"step": 3, "sha256": {"model.safetensors": digest}}))
    assert weights_sha256(run.weights) == digest
    run.weights.write_bytes(b"weighty")
    found = hashlib.sha256(b"weighty").hexdigest()
    with pytest.raises(InputError, match=rf"model\.safetensors: expected .*{digest}.*, found sha256 {found}"):
        weights_sha256(run.weights)
    run.done.write_text("[1")
    with pytest.raises(InputError, match="DONE: expected the JSON that a run ends with"):
        weights_sha256(run.weights)


def test_what_is_told_of_a_run_is_what_it_ended_with(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    run.claim(config())
    run.metrics.write_bytes(b"{}\n")
    ended = {path.name: file_sha256(path) for path in run.results if path.exists()}
    assert set(ended) == {"config.yaml", "metrics.jsonl"}
    run.done.write_text(json.dumps({"step": 3, "sha256": ended}))
    assert run.load_config() == config()
    assert as_ended(run.metrics) == run.metrics
    assert as_ended(run.plan) == run.plan  # which is not there
    for path in (run.config, run.metrics):
        content = path.read_bytes()
        path.write_bytes(content + b" ")
        with pytest.raises(InputError, match=rf"{path.name}: expected the file that this run ended with"):
            run.load_config() if path == run.config else as_ended(path)
        path.write_bytes(content)


def test_how_fast_it_goes_may_change(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    run.claim(config())
    run.checkpoint(1).mkdir(parents=True)
    run.claim(config(workers=3))
    assert run.load_config().data.workers == 3


def test_a_directory_without_config_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"expected a run directory, found no config\.yaml"):
        RunDir(tmp_path).load_config()
    with pytest.raises(InputError, match="expected a run directory, found nothing"):
        RunDir(tmp_path / "absent").load_config()
