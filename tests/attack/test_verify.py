"""A bundle holds what a reviewer needs, says which breaks hold, and is refused with any byte of it changed."""

from __future__ import annotations

import io
import json
import os
import random
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from attack.test_attack_model import kapdist_run
from safetensors.torch import save_file

from kapdist import cli
from kapdist.attack.command import lines
from kapdist.attack.merge import merge
from kapdist.attack.plan import plan_attack
from kapdist.attack.shard import run_shard
from kapdist.attack.verify import Given, verify, with_factory
from kapdist.errors import InputError
from kapdist.models.factory import call_factory
from kapdist.records import bundle as bundles
from kapdist.records.attack_plan import PlannedModel
from kapdist.records.bundle import MANIFEST, Bundle, seal, write_bundle, zip_writer
from kapdist.records.sealed import read_array, read_table, write_array, write_table
from kapdist.report.export.bundle import export_bundle
from kapdist.run.paths import AttackDir, RunDir

World = Any
FACTORY = Given(factory="factory.py:build")


def attacked(world: World, run: Path, **fields: object) -> AttackDir:
    fields = {"keep_adversarial": True, "eps": (0.02, 0.05)} | fields
    plan_attack(run, world.config(**fields))
    attack = RunDir(run).attack("aa")
    run_shard(attack.root, 0, 1)
    merge(attack.root)
    return attack


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kept") / "attacks"


@pytest.fixture
def attack(world: World, short: None, kept: Path) -> AttackDir:
    """A merged attack with its images; worked out once for all tests of this file."""
    if not kept.exists():
        shutil.copytree(attacked(world, world.run).root.parent, kept)
    else:
        shutil.copytree(kept, world.run / "attacks")
    return RunDir(world.run).attack("aa")


@pytest.fixture(params=[".zip", ".tar"])
def bundle(request: pytest.FixtureRequest, attack: AttackDir) -> Path:
    return export_bundle([attack.root], attack.root.parent / f"b{request.param}")


def test_what_was_claimed_holds_and_is_counted_again_by_hand(world: World, attack: AttackDir, bundle: Path) -> None:
    found = verify(bundle, FACTORY)
    records, model = read_table(attack.records), call_factory("factory.py:build").eval()
    broken = records.filter(records["broken_by"].is_not_null())
    assert 3 < len(broken) < 19
    assert set(broken["broken_eps"]) == {0.02, 0.05}
    assert (found.num_breaks, found.num_hold, found.do_not_hold) == (len(broken), len(broken), ())
    right = int((model(world.images).argmax(1) == world.labels).sum())
    assert found.num_clean_correct == found.num_clean_correct_claimed == right
    assert found.num_robust_at_most == found.num_robust_claimed == right - len(broken)
    assert found.confirmed
    assert "confirmed" in lines(found)[-1]
    assert not found.notes


def test_equal_attacks_give_equal_bytes(attack: AttackDir, bundle: Path) -> None:
    again = export_bundle([attack.root], bundle.parent / "again" / bundle.name)
    assert again.read_bytes() == bundle.read_bytes()


def test_any_reader_of_zips_and_tars_sees_the_attack_s_own_files(attack: AttackDir, bundle: Path) -> None:
    if bundle.suffix == ".zip":
        with zipfile.ZipFile(bundle) as archive:
            assert archive.testzip() is None
            files = {name: archive.read(name) for name in archive.namelist()}
    else:
        with tarfile.open(bundle) as tar:
            files = {member.name: tar.extractfile(member).read() for member in tar}
    for path in (attack.plan, attack.chunk(1), attack.adversarial_images(2), attack.clean_images(5)):
        assert files[path.relative_to(attack.root).as_posix()] == path.read_bytes()
    assert files["factory/network.py"] == Path("factory.py").read_bytes()
    manifest = json.loads(files[MANIFEST])
    assert manifest["factory"] == "factory.py:build"
    assert manifest["weights"] is None
    assert "--factory FILE.py:FUNCTION" in files["README.txt"].decode()
    assert "--weights" not in files["README.txt"].decode()  # the factory brings its own


def test_one_byte_changed_anywhere_is_refused_in_one_line(bundle: Path) -> None:
    whole, draw, named = bundle.read_bytes(), random.Random(0), 0
    ends = [0, 1, 30, len(whole) - 1, len(whole) - 64, len(whole) - 70, len(whole) - 79, len(whole) - 90]
    for place in [*ends, *(draw.randrange(len(whole)) for _ in range(120))]:
        content = bytearray(whole)
        content[place] ^= 1 << draw.randrange(8)
        bundle.write_bytes(content)
        with pytest.raises(InputError) as caught:
            Bundle(bundle)
        assert str(caught.value).startswith(str(bundle))
        assert "\n" not in str(caught.value)
        named += f"{bundle}!" in str(caught.value)
    assert named > 80  # the file in it, where its own bytes were changed
    for cut in (0, 1, 100, len(whole) // 2, len(whole) - 1):
        bundle.write_bytes(whole[:cut])
        with pytest.raises(InputError):
            Bundle(bundle)
    bundle.write_bytes(whole + b"!")
    with pytest.raises(InputError):
        Bundle(bundle)


def test_a_changed_file_is_named(bundle: Path) -> None:
    content = bytearray(bundle.read_bytes())
    name = b"adversarial/chunk-000003.npy"
    content[content.index(name) + len(name) + 600] ^= 4
    bundle.write_bytes(content)
    with pytest.raises(InputError, match=r"b\.(zip|tar)!adversarial/chunk-000003.npy: expected a whole file"):
        verify(bundle, FACTORY)


# Claims that do not hold.


def changed(attack: AttackDir, image: int, change: Any) -> Path:
    """Write a bundle with an adversarial image changed, every checksum made anew."""
    records = read_table(attack.records)
    chunk = records.filter(records["image"] == image)["chunk"][0]
    row = records.filter(records["chunk"] == chunk)["image"].to_list().index(image)
    path = attack.adversarial_images(chunk)
    array, clean = read_array(path), read_array(attack.clean_images(chunk))
    array[row] = change(array[row], clean[row])
    write_array(path, array)
    return export_bundle([attack.root], attack.root.parent / "changed.zip")


@pytest.mark.parametrize(
    ("change", "which"),
    [
        (lambda adversarial, clean: clean, "not_fooled"),
        (lambda adversarial, clean: np.clip(clean + 0.3 * np.sign(adversarial - clean), 0, 1), "outside"),
        (lambda adversarial, clean: np.where(adversarial == adversarial.max(), np.nan, adversarial), "outside"),
        (lambda adversarial, clean: adversarial - 1e-4 - adversarial.min(), "outside"),
    ],
    ids=["the clean image", "out of the ball", "not a number", "below 0"],
)
def test_a_break_that_does_not_hold_is_named(attack: AttackDir, change: Any, which: str) -> None:
    records = read_table(attack.records)
    image = records.filter(records["broken_by"].is_not_null())["image"][2]
    found = verify(changed(attack, image, change), FACTORY)
    assert getattr(found, which) == found.do_not_hold == (image,)
    assert found.num_hold == found.num_breaks - 1
    assert found.num_robust_at_most == found.num_robust_claimed + 1
    assert not found.confirmed
    said = "\n".join(lines(found))
    assert f"image {image}" in said
    assert "NOT confirmed" in said


def test_the_ball_is_that_of_the_eps_at_which_an_image_fell(attack: AttackDir) -> None:
    records = read_table(attack.records)
    image = records.filter(records["broken_eps"] == 0.02)["image"][0]
    far = changed(attack, image, lambda adversarial, clean: np.clip(clean + 2 * (adversarial - clean), 0, 1))
    assert verify(far, FACTORY).outside == (image,)  # at 0.04, within 0.05


def test_a_summary_that_its_chunks_do_not_add_up_to_is_refused(
    attack: AttackDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kapdist.records.sealed import read_json, write_json
    from kapdist.report.export import merged
    from kapdist.statistics.intervals import wilson

    values = read_json(attack.summary)
    robust = values["num_robust"] + 2
    values |= {"num_robust": robust, "robust_accuracy": vars(wilson(robust, values["num_images"]))}
    write_json(attack.summary, values)
    with pytest.raises(InputError, match="num_robust"):
        export_bundle([attack.root], attack.root.parent / "b.zip")
    monkeypatch.setattr(merged, "check_results", lambda *parts: None)
    bundle = export_bundle([attack.root], attack.root.parent / "b.zip")
    with pytest.raises(InputError, match=r"b.zip!summary.json: expected the num_robust that the chunks add up to"):
        verify(bundle, FACTORY)


@pytest.mark.parametrize(
    "change",
    [
        *(
            lambda table, gone=gone: table.drop(gone)
            for gone in ("label", "broken_by", "broken_eps", "chunk_forwards")
        ),
        lambda table: table.with_columns(pl.col("image", "label").cast(pl.String)),
        lambda table: table.with_columns(pl.col("plan").hash()),
        lambda table: table.with_columns(label=pl.lit(None, pl.Int32)),
        lambda table: table.with_columns(broken_eps=pl.lit("large")),
    ],
)
def test_chunks_of_strange_columns_are_one_line(
    attack: AttackDir, monkeypatch: pytest.MonkeyPatch, change: Callable[[pl.DataFrame], pl.DataFrame]
) -> None:
    from kapdist.report.export import merged

    for chunk in sorted(attack.chunks.glob("*.parquet")):
        write_table(change(read_table(chunk)), chunk)
    monkeypatch.setattr(merged, "check_results", lambda *parts: None)
    bundle = export_bundle([attack.root], attack.root.parent / "b.zip")
    with pytest.raises(InputError, match=r"b.zip!chunks: expected chunks that can be added up, found \S"):
        verify(bundle, FACTORY)


# What is in a bundle is data, and no more.


@pytest.mark.parametrize("name", ["../evil.npy", "/tmp/evil.npy", "chunks/../../evil.npy", "adversarial/x.pkl"])
def test_a_name_that_no_bundle_has_is_refused_and_nothing_is_written(tmp_path: Path, name: str) -> None:
    made = tmp_path / "made" / "made.zip"
    made.parent.mkdir()
    with zip_writer(made) as add:
        add(name, b"x")
    seal(made)
    with pytest.raises(InputError, match="the files of a bundle alone, found '"):
        Bundle(made)
    assert [path.name for path in tmp_path.rglob("*")] == ["made", "made.zip"]


def test_a_link_or_a_file_twice_is_refused(bundle: Path) -> None:
    made = bundle.with_name("made.tar")
    info = tarfile.TarInfo("plan.json")
    info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
    with tarfile.open(made, "w") as archive:
        archive.addfile(info)
    made.write_bytes(made.read_bytes() + bundles.BLANK.encode())
    seal(made)
    with pytest.raises(InputError, match=r"regular files alone, found 'plan.json'"):
        Bundle(made)
    with tarfile.open(made, "w") as archive:
        for _ in range(2):
            archive.addfile(tarfile.TarInfo("plan.json"), io.BytesIO())
    made.write_bytes(made.read_bytes() + bundles.BLANK.encode())
    seal(made)
    with pytest.raises(InputError, match="every file once"):
        Bundle(made)


def test_no_code_of_a_bundle_is_run(world: World, attack: AttackDir) -> None:
    source = Path("factory.py")
    bundle = export_bundle([attack.root], attack.root.parent / "b.zip")
    source.write_text("open('it-ran', 'w')\n" + source.read_text())
    with pytest.raises(
        InputError, match=r"--factory: expected .*no code of a bundle is run \(it was factory.py:build"
    ):
        verify(bundle, Given())
    assert not Path("it-ran").exists()
    with pytest.raises(InputError, match="the factory's file as it was"):
        verify(bundle, FACTORY)  # the user named another file than was attacked
    with pytest.raises(InputError, match="the file that was attacked"):
        export_bundle([attack.root], attack.root.parent / "c.zip")


def test_a_factory_of_the_run_s_config_is_the_user_s_own_too(world: World) -> None:
    sections = {"model": {"factory": "theirs.py:build", "num_classes": 5}, "kap": {"pool_size": 1}}
    values = {
        "factory": None,
        "factory_sha256": "s",
        "architecture": sections,
        "weights": None,
        "weights_sha256": "w",
    }
    planned = PlannedModel.model_validate(values | {"num_classes": 5, "folded": True})
    assert planned.by_others == "theirs.py:build"
    mine = with_factory(planned, "mine.py:build")
    assert (mine.factory, mine.by_others) == (None, "mine.py:build")
    assert mine.architecture["model"] == {"factory": "mine.py:build", "num_classes": 5}
    assert mine.factory_sha256 == "s"


@pytest.mark.parametrize("name", ["absent.zip", ".", "pipe", "text.zip"])
def test_what_is_no_bundle_is_one_line(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "text.zip").write_text("PK, but no zip")
    with pytest.raises(InputError, match=r"expected a bundle \(kapdist export ATTACK --format bundle\)"):
        Bundle(tmp_path / name)


def test_a_manifest_that_conceals_the_code_does_not_have_it_run(attack: AttackDir, bundle: Path) -> None:
    whole = Bundle(bundle)
    files = [(name, whole.read(name)) for name in whole.names()]
    concealed = whole.manifest.model_copy(update={"factory": None, "factory_sha256": None, "factory_file": None})
    made = bundle.with_name(f"concealed{bundle.suffix}")
    write_bundle(made, files, concealed)
    with pytest.raises(InputError, match="no code of a bundle is run"):
        verify(made, Given())


def test_images_that_were_not_kept_make_no_bundle(world: World, short: None) -> None:
    run = attacked(world, world.run, keep_adversarial=False, num_images=4)
    with pytest.raises(InputError, match="keep_adversarial=true, whose images a bundle holds"):
        export_bundle([run.root], world.folder / "b.zip")
    assert not (world.folder / "b.zip").exists()
    with pytest.raises(InputError, match=r"NAME\.zip"):
        export_bundle([run.root], world.folder / "b.tar.gz")
    with pytest.raises(InputError, match="one attack"):
        export_bundle([run.root, world.run], world.folder / "b.zip")


# Weights.


def test_a_run_s_own_model_is_built_from_the_plan_with_weights_from_anywhere(world: World, short: None) -> None:
    run = kapdist_run(world.folder)
    attack = attacked(world, run, model={}, num_classes=None, eps=0.3, num_images=6)
    bare = export_bundle([attack.root], world.folder / "bare.zip")
    whole = export_bundle([attack.root], world.folder / "whole.zip", with_weights=True)
    with pytest.raises(InputError, match=r"weights \(--weights FILE or --run RUN\) of sha256 [0-9a-f]{64}"):
        verify(bare, Given())
    elsewhere = world.folder / "copy.safetensors"
    shutil.copy(RunDir(run).weights, elsewhere)
    found = [verify(bare, Given(run=run)), verify(bare, Given(weights=elsewhere))]
    shutil.rmtree(run)
    found.append(verify(whole, Given()))
    assert len({result.num_hold for result in found}) == 1
    assert all(result.confirmed and result.num_breaks == result.num_hold for result in found)
    state = {"x": torch.zeros(1)}
    save_file(state, elsewhere)
    with pytest.raises(InputError, match=r"copy.safetensors: expected the weights that were planned"):
        verify(bare, Given(weights=elsewhere))


def test_weights_that_are_a_pickle_are_not_put_in(world: World, short: None) -> None:
    weights = world.folder / "weights.pt"
    torch.save(call_factory(world.factory).state_dict(), weights)
    attack = attacked(world, world.run, model={"factory": world.factory, "weights": weights}, num_images=4)
    with pytest.raises(InputError, match=r"--with-weights: expected weights in a .safetensors file"):
        export_bundle([attack.root], world.folder / "b.zip", with_weights=True)
    bundle = export_bundle([attack.root], world.folder / "b.zip")
    assert verify(bundle, Given(weights=weights, factory="factory.py:build")).confirmed


# Noise.

NOISY = """
import torch
from factory import build as plain

class Noisy(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.network = plain()

    def forward(self, images):
        return self.network(images + 0.02 * torch.randn_like(images))

def build():
    return Noisy()
"""


def test_fresh_noise_is_verified_by_draws_of_its_own_and_says_so(world: World, short: None) -> None:
    (world.folder / "noisy.py").write_text(NOISY)
    fields = {"model": {"factory": "noisy.py:build"}, "noise": "fresh", "eot": 20, "rescore": 30, "eps": 0.2}
    attack = attacked(world, world.run, **fields)
    bundle = export_bundle([attack.root], world.folder / "b.zip")
    found = verify(bundle, Given(factory="noisy.py:build"))
    assert found.num_draws == 30
    assert found.num_breaks > 10
    assert found.num_hold == found.num_breaks  # at this eps by far
    assert found == verify(bundle, Given(factory="noisy.py:build"))
    assert any("mean probability over 30 draws" in note for note in found.notes)


def test_fixed_noise_is_drawn_again_from_the_seed_in_the_plan(world: World, short: None) -> None:
    run = kapdist_run(world.folder)
    attack = attacked(world, run, model={}, num_classes=None, noise="fixed", eps=0.3, num_images=6)
    bundle = export_bundle([attack.root], world.folder / "b.zip")
    found = verify(bundle, Given(run=run))
    assert found.confirmed
    assert found.clean_differs == ()
    assert any("drawn from the seed in the plan" in note for note in found.notes)


def test_other_versions_and_a_gpu_are_said(attack: AttackDir, make_plan: Any) -> None:
    from kapdist.attack.verify import notes_on

    plan = make_plan("Linf", 0.1, ("square",), device="NVIDIA H100", noise="fixed", packages={"torch": "1.0"})
    said = " ".join(notes_on(plan))
    assert "attacked on NVIDIA H100, predicted here on a CPU" in said
    assert "attacked with torch 1.0, predicted here with" in said
    assert "NVIDIA H100 drew other numbers" in said


def test_the_commands(world: World, attack: AttackDir, capsys: pytest.CaptureFixture[str]) -> None:
    def said(*words: object) -> str:
        cli.app([*map(str, words)], standalone_mode=False)
        return capsys.readouterr().out

    said("export", attack.root, "--format", "bundle", "--out", "b.zip")
    words = "attack", "verify", "b.zip", "--factory", "factory.py:build"
    assert json.loads(said(*words, "--json"))["confirmed"] is True
    assert said(*words).rstrip().endswith("claimed: confirmed")
    content = bytearray(Path("b.zip").read_bytes())
    content[len(content) // 2] ^= 1
    Path("b.zip").write_bytes(content)
    with pytest.raises(InputError, match=r"b\.zip!"):
        said(*words)
    for wrong in (["--format", "csv", "--with-weights"], ["--format", "csv", "--format", "bundle"]):
        with pytest.raises(InputError, match="bundle"):
            said("export", attack.root, *wrong, "--out", "d")
