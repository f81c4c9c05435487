"""The command on small runs as training leaves them: weights, checkpoints, a beton of images."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from kapdist.config import Config
from kapdist.config.file import dump_config, load_config
from kapdist.engine import Ranks
from kapdist.errors import InputError, LockedError
from kapdist.models.weights import save_weights
from kapdist.records.topography import ASKED, QUANTITIES, read_topography
from kapdist.report import topography_plots, write_report
from kapdist.report.topography import row
from kapdist.run.files import file_sha256
from kapdist.run.lock import locked
from kapdist.run.paths import RunDir
from kapdist.topography import null
from kapdist.topography import run as run_of
from kapdist.topography import subject as subject_module
from kapdist.topography.images import read_images
from kapdist.topography.run import Asked, run_topography
from kapdist.topography.subject import initial, moments_of, subject_of
from kapdist.train.checkpoint import seal, write_payload
from kapdist.train.job import initial_model

QUICK = {"images": 40, "permutations": 199, "draws": 2, "noisy_images": 8, "device": "cpu"}
SHEET = {"pool_size": 3, "layout": "sheet"}


class TrainedRun:
    """A run directory as a training leaves it, whose last weights are somebody's choice."""

    def __init__(self, root: Path, betons: tuple[Path, Path], kap: dict, ema_decay: float = 0.0) -> None:
        self.dir = RunDir(root)
        self.config = Config.model_validate(
            {
                "name": root.name,
                "seed": 3,
                "data": {"train": betons[0], "validation": betons[1]},
                "model": {"name": "resnet10", "num_classes": 10, "width": 0.25, "stem": "cifar"},
                "kap": kap,
                "optim": {"ema_decay": ema_decay},
            }
        )
        root.mkdir(parents=True)
        self.dir.config.write_text(dump_config(self.config))
        self.network = initial_model(self.config, Ranks())

    def smoothed(self) -> TrainedRun:
        """Make neighbouring kernels alike, all but the stem's."""
        from kapdist.kap import kernel_average

        with torch.no_grad():
            for name, module in self.network.named_modules():
                if isinstance(module, nn.Conv2d) and name != "conv1":
                    module.weight.copy_(kernel_average(module.weight, 3, layout="sheet", dim=0))
        return self

    def checkpoint(self, step: int, average: dict[str, Tensor] | None = None) -> TrainedRun:
        final = self.dir.checkpoint(step)
        final.mkdir(parents=True)
        ema = None if average is None else {"n_averaged": torch.tensor(3)}
        if ema is not None and average is not None:
            ema |= {f"module.{key}": value for key, value in average.items()}
        write_payload(final / "shared.pt", {"model": self.network.state_dict(), "ema": ema, "step": step})
        write_payload(final / "rank-0.pt", {})
        aside = final.with_name("aside")
        final.rename(aside)
        seal(aside, final, {"step": step, "world_size": 1})
        return self

    def finished(self, step: int = 9) -> TrainedRun:
        save_weights(self.network, self.dir.weights)
        sha256 = {path.name: file_sha256(path) for path in (self.dir.weights, self.dir.config)}
        self.dir.done.write_text(json.dumps({"step": step, "sha256": sha256}))
        return self


@pytest.fixture(autouse=True)
def narrow_bands(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Few permutations where each is worked out whole; p-values of what is asked are of all. Plots where asked."""
    monkeypatch.setattr(null, "BAND", 19)
    if "plots" not in request.fixturenames:
        monkeypatch.setattr(run_of, "topography_plots", lambda record: ())
        monkeypatch.setattr(topography_plots, "topography_plots", lambda record, suffix: ())


@pytest.fixture
def plots() -> None:
    """Drawing takes longer than all else."""


@pytest.fixture
def trained(tmp_path: Path, small_betons: tuple[Path, Path]) -> Callable[..., TrainedRun]:
    def make(name: str, kap: dict | None = None, ema_decay: float = 0.0) -> TrainedRun:
        return TrainedRun(tmp_path / name, small_betons, kap or {}, ema_decay)

    return make


@pytest.mark.slow
def test_a_record_says_what_was_planted_beside_a_twin_that_has_nothing(trained, plots, tmp_path: Path) -> None:
    """Smoothed weights stand beside those of chance, on one sheet, with the same images and orders."""
    kap = trained("kap", SHEET | {"noise_std": 0.3}).smoothed().finished()
    plain = trained("plain").finished()
    found = run_topography(kap.dir.root, [plain.dir.root], Asked(**QUICK | {"permutations": 999}))
    place = kap.dir.topography("topography")
    assert found == read_topography(place.record)
    assert not place.lock.exists()
    assert (found.num_images, found.layout) == (40, "sheet")
    smooth, twin = found.subjects
    assert (smooth.kind, twin.kind) == ("KAP 3, sheet, noise 0.3", "plain")
    assert [layer.name for layer in smooth.layers] == [layer.name for layer in twin.layers]
    assert smooth.layers[0].name == "conv1"
    for layer in smooth.layers:
        assert [layer.measure(quantity) is not None for quantity in QUANTITIES] == [True] * 4
        for quantity in ASKED:
            assert layer.measure(quantity).is_found == (layer.name != "conv1"), (layer.name, quantity)
    for layer in twin.layers:
        assert layer.averaged is None
        assert layer.grid == next(one.grid for one in smooth.layers if one.name == layer.name)
        assert not any(layer.measure(quantity).is_found for quantity in ASKED)
    assert {path.name for path in place.root.iterdir()} >= {
        "topography.json",
        "topography-responses.png",
        "topography-kernels.png",
        "topography-noise-logits.png",
    }

    page = write_report([kap.dir.root, plain.dir.root], tmp_path / "out").read_text()
    assert "Have neighbouring kernels become alike?" in page
    assert "responses before the average" in page
    assert "kap, topography: 40 images, 999 permutations" in page
    assert (tmp_path / "out" / "topography-responses-kap-topography.png").exists()
    assert "this is of other weights" not in page


def test_permutations_that_could_find_no_layer_are_not_counted_as_none_found(trained) -> None:
    """Holm's correction over 12 layers: the least p of 199 permutations becomes 0.06, that of 239 is 0.05."""
    run = trained("kap", SHEET).smoothed().finished()
    few = run_topography(run.dir.root, [], Asked(**QUICK | {"draws": 0})).subject
    assert all(layer.measure(quantity).p_holm is None for layer in few.layers for quantity in ASKED)
    assert row(few, "stored")[4] == "? of 12"
    assert any("in any of 12 layers: it takes 239 (--permutations)" in note for note in few.notes)
    enough = run_topography(run.dir.root, [], Asked(**QUICK | {"draws": 0, "permutations": 239})).subject
    assert row(enough, "stored")[4] == "11 of 12"
    assert not any("permutations" in note for note in enough.notes)


def test_responses_that_are_no_numbers_are_named_and_leave_no_record(trained, caplog) -> None:
    """A network that grows beyond single precision, at its end or on its way there."""
    run = trained("kap", SHEET)
    whole = {key: value.clone() for key, value in run.network.state_dict().items()}
    with torch.no_grad():
        run.network.conv1.weight.mul_(1e30)
    run.checkpoint(4).finished()
    with pytest.raises(InputError, match=r"kap: expected finite responses, found NaN or infinity in conv1$"):
        run_topography(run.dir.root, [], Asked(**QUICK | {"draws": 0}))
    assert not run.dir.topography("topography").record.exists()
    run.network.load_state_dict(whole)
    run.finished()
    found = run_topography(run.dir.root, [], Asked(**QUICK | {"draws": 0}))
    assert [stage.step for stage in found.subject.stages] == [0, 9]
    assert "step 4 is passed over: NaN or infinity in conv1" in caplog.text


def test_a_record_of_other_weights_says_so_on_the_page(trained, tmp_path: Path) -> None:
    run = trained("kap", SHEET).finished()
    run_topography(run.dir.root, [], Asked(**QUICK | {"draws": 0}))
    run.dir.done.unlink()
    save_weights(run.smoothed().network, run.dir.weights)
    assert "this is of other weights" in write_report([run.dir.root], tmp_path / "out").read_text()


def test_the_way_of_a_training_is_shown_from_its_checkpoints(trained) -> None:
    run = trained("kap", SHEET)
    run.checkpoint(4).smoothed().checkpoint(8).finished(step=9)
    found = run_topography(run.dir.root, [], Asked(**QUICK | {"draws": 0}))
    stages = found.subject.stages
    assert [(stage.step, stage.what) for stage in stages] == [
        (0, "before the first step"),
        (4, "checkpoint"),
        (8, "checkpoint"),
        (9, "measured weights"),
    ]
    means = [np.mean([layer.stored[0] for layer in stage.layers]) for stage in stages]
    assert means[0] == means[1]  # the seed's own weights
    assert means[2] == means[3] > means[0] + 0.2
    assert found.subject.noise == ()
    assert not any("no checkpoint is left" in note for note in found.subject.notes)


def test_without_checkpoints_it_says_what_it_can_still_show(trained, tmp_path: Path) -> None:
    run = trained("kap", SHEET).finished()
    found = run_topography(run.dir.root, [], Asked(**QUICK | {"draws": 0}))
    assert [stage.step for stage in found.subject.stages] == [0, 9]
    assert "no checkpoint is left: of its way there are the first step's weights" in found.subject.notes[0]
    empty = trained("empty", SHEET)
    with pytest.raises(InputError, match=r"or one whole checkpoint, found neither"):
        run_topography(empty.dir.root, [], Asked(**QUICK))
    assert not empty.dir.topographies.exists()


def test_an_unfinished_run_is_measured_at_its_newest_whole_checkpoint_by_its_average(trained) -> None:
    run = trained("kap", SHEET, ema_decay=0.9)
    average = {key: value.clone() for key, value in run.smoothed().network.state_dict().items()}
    run.network = initial_model(run.config, Ranks())
    run.checkpoint(4, average).checkpoint(8, average).checkpoint(12, average)
    (run.dir.checkpoint(12) / "shared.pt").write_bytes(b"torn")
    subject = subject_of(run.dir.root, "kap")
    assert subject.said == "checkpoints/step-000000008/shared.pt, the moving average"
    weights = subject.model(torch.device("cpu")).state_dict()
    assert all(torch.equal(weights[key], value) for key, value in average.items())
    found = run_topography(run.dir.root, [], Asked(**QUICK | {"draws": 0}))
    assert [stage.step for stage in found.subject.stages] == [0, 4, 8]
    assert any("has not finished" in note for note in found.subject.notes)


def test_a_checkpoint_that_the_training_prunes_is_measured_or_passed_over(
    trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    """12 goes between two looks at it, 8 once it is read, 4 when its turn comes."""
    run = trained("kap", SHEET)
    run.checkpoint(4).smoothed().checkpoint(8).checkpoint(12)
    sha256 = file_sha256(run.dir.checkpoint(8) / "shared.pt")
    real, looked = subject_module.is_whole, set()

    def looked_at(folder: Path) -> bool:
        """Tell whether it is whole, and prune it as soon as that is known."""
        whole = real(folder)
        if folder != run.dir.checkpoint(8):
            shutil.rmtree(folder)
        looked.add(folder.name)
        return whole

    def read_then_pruned(*words: object) -> object:
        monkeypatch.setattr(run_of, "work_of", lambda *_: 100)  # which looks at what there is too
        shutil.rmtree(run.dir.checkpoint(8))
        return read_images(*words)

    monkeypatch.setattr(subject_module, "is_whole", looked_at)
    monkeypatch.setattr(run_of, "read_images", read_then_pruned)
    found = run_topography(run.dir.root, [], Asked(**QUICK | {"draws": 0}))
    assert looked == {f"step-{step:09d}" for step in (12, 8, 4)}
    assert found.subject.weights_sha256 == sha256
    assert [(stage.step, stage.what) for stage in found.subject.stages] == [
        (0, "before the first step"),
        (8, "measured weights"),
    ]


def test_where_every_checkpoint_was_pruned_there_is_a_newer_one(trained, monkeypatch: pytest.MonkeyPatch) -> None:
    run = trained("kap", SHEET).checkpoint(4)
    real = subject_module.is_whole

    def goes_on(folder: Path) -> bool:
        whole = real(folder)
        if folder == run.dir.checkpoint(4):
            run.checkpoint(8)
            shutil.rmtree(folder)
        return whole

    monkeypatch.setattr(subject_module, "is_whole", goes_on)
    assert subject_of(run.dir.root, "kap").weights == run.dir.checkpoint(8) / "shared.pt"


@pytest.mark.parametrize(("best", "step"), [("clean", 8), ("robust", 4)])
def test_the_best_weights_are_of_the_step_that_the_training_found_best(trained, best: str, step: int) -> None:
    run = trained("kap", SHEET)
    words = [f"train.best={best}", "robust.every_epochs=1"]
    run.dir.config.write_text(dump_config(load_config(Config, run.dir.config, words)))
    attacked = {"clean_accuracy": 0.5, "eps": 0.01, "attack_steps": 2}
    lines = []
    for at, top1, accuracy in ((4, 0.5, 0.3), (8, 0.7, 0.1)):
        common = {"step": at, "epoch": at / 4, "num_images": 20, "weights": "model"}
        lines += [{"kind": "evaluate", "top1": top1} | common, {"kind": "robust", "accuracy": accuracy} | common]
        lines[-1] |= attacked
    run.dir.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    save_weights(run.network, run.dir.best_weights)
    run.finished()
    moments = moments_of(subject_of(run.dir.root, "kap"))
    assert [(one.step, one.what) for one in moments] == [
        (0, "before the first step"),
        (step, "best evaluation"),
    ]


def test_the_first_weights_are_those_that_the_run_began_with_and_no_stream_moves(trained) -> None:
    run = trained("kap", SHEET)
    state = torch.get_rng_state()
    first = initial(run.config, torch.device("cpu")).state_dict()
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(first[key], value) for key, value in run.network.state_dict().items())


def test_the_first_step_of_members_is_that_of_their_files_and_is_passed_over_without_them(trained) -> None:
    run = trained("kap", SHEET)
    files = {"members": 2, "weights": run.dir.root / "{member}.safetensors"}
    run.config = run.config.model_copy(update={"model": run.config.model.model_copy(update=files)})
    for number in range(2):
        save_weights(run.network, run.dir.root / f"{number}.safetensors")
    run.dir.config.write_text(dump_config(run.config))
    run.network = initial_model(run.config, Ranks())
    run.finished()
    steps = []
    for _ in range(2):
        found = run_topography(run.dir.root, [], Asked(**QUICK | {"images": 4, "draws": 0}))
        steps.append([stage.step for stage in found.subject.stages])
        (run.dir.root / "1.safetensors").write_bytes(b"others by now")
    assert steps == [[0, 9], [9]]


def test_a_record_repeats(trained) -> None:
    run = trained("kap", SHEET).finished()
    few = Asked(**QUICK | {"images": 12, "noisy_images": 2})
    records = [run_topography(run.dir.root, [], few).describe() for _ in range(2)]
    assert {**records[0], "seconds": 0} == {**records[1], "seconds": 0}


def test_input_that_is_wrong_ends_in_one_line(trained, small_betons, tmp_path: Path) -> None:
    run = trained("kap", SHEET).finished()
    with pytest.raises(InputError, match=r"--images: expected at most 70, .*found 71"):
        run_topography(run.dir.root, [], Asked(**QUICK | {"images": 71}))
    with pytest.raises(InputError, match="each run once"):
        run_topography(run.dir.root, [run.dir.root / "."], Asked(**QUICK))
    with pytest.raises(InputError, match="a run directory"):
        run_topography(run.dir.root, [tmp_path / "absent"], Asked(**QUICK))
    for wrong, place in (({"draws": 1}, "--draws"), ({"name": "../x"}, "--name"), ({"device": "tpu"}, "--device")):
        with pytest.raises(InputError, match=place):
            Asked(**QUICK | wrong)
    other = trained("other", SHEET).finished()
    config = other.config.model_dump(mode="json")
    config["data"] |= {"resolution": 16, "crop": "random-resized"}
    other.dir.config.write_text(dump_config(Config.model_validate(config)))
    other.dir.done.unlink()
    with pytest.raises(InputError, match="a run on images of 32 px"):
        run_topography(run.dir.root, [other.dir.root], Asked(**QUICK))
    with locked(run.dir.topography("topography").lock), pytest.raises(LockedError):
        run_topography(run.dir.root, [], Asked(**QUICK))


def test_weights_that_the_run_did_not_end_with_are_refused(trained) -> None:
    run = trained("kap", SHEET).finished()
    save_weights(run.smoothed().network, run.dir.weights)
    with pytest.raises(InputError, match="the file that this run ended with"):
        run_topography(run.dir.root, [], Asked(**QUICK))


def test_a_damaged_record_is_named(trained, tmp_path: Path) -> None:
    run = trained("kap", SHEET).finished()
    run_topography(run.dir.root, [], Asked(**QUICK | {"draws": 0}))
    record = run.dir.topography("topography").record
    record.write_text(record.read_text().replace('"seed": 0', '"seed": 1'))
    with pytest.raises(InputError, match=r"topography\.json: expected a whole file"):
        write_report([run.dir.root], tmp_path / "out")


def test_a_narrow_network_says_which_layers_are_not_asked(trained, small_betons, tmp_path: Path) -> None:
    """Two kernels are neighbours and nothing else."""
    from kapdist.topography.measure import Settings, answered, layer_topography, side_by_side, with_holm

    model = nn.Sequential(nn.Conv2d(3, 2, 3), nn.Conv2d(2, 2, 3), nn.Conv2d(2, 9, 3, groups=1), nn.Flatten())
    model = nn.Sequential(*model, nn.Linear(9 * 26 * 26, 10)).eval()
    images = read_images(subject_of(trained("kap", SHEET).finished().dir.root, "kap"), 12, 0)
    settings = Settings("sheet", 199, 0, (), 4, 1)
    shown = answered(model, images, 12, settings, lambda count: None)
    found = side_by_side(lambda layer: layer_topography(layer, shown.moments, settings), shown, settings)
    layers = with_holm(found)
    assert [bool(layer.not_asked) for layer in layers] == [True, True, False]
    assert layers[2].stored is not None


@pytest.mark.slow
def test_the_command_line_from_training_to_the_table(kapdist, tiny_config: Path) -> None:
    wide = ["model.width=0.25", "kap.layout=sheet", "train.epochs=1", "optim.warmup_epochs=0.2"]
    kept = ["train.checkpoint_every_minutes=0", "train.checkpoint_every_steps=3", "train.keep_checkpoints=2"]
    done = kapdist("train", tiny_config, *wide, *kept, timeout=400)
    assert done.code == 0, done.output
    run = tiny_config.parent / "runs" / "tiny"
    words = ("--images", "20", "--permutations", "199", "--draws", "2", "--noisy-images", "4")
    done = kapdist("topography", run, *words, timeout=400)
    assert done.code == 0, done.output
    assert "stored weights" in done.output
    assert (run / "topography" / "topography" / "topography-stages.png").exists()
    refused = kapdist("topography", run, "--images", "71")
    assert (refused.code, "at most 70" in refused.output) == (2, True), refused.output
    shutil.rmtree(run / "checkpoints")
    assert kapdist("topography", run, "--permutations", "5").code == 2
