from __future__ import annotations

import base64
import io
import json
import re
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import polars
import pytest
from PIL import Image

from kapdist.errors import InputError
from kapdist.report import comparison, write_report
from kapdist.report.examples import examples
from kapdist.report.plots import look, loss_plot, shortened, stages_plot
from kapdist.report.reading import read_runs
from kapdist.report.words import duration
from kapdist.run.paths import RunDir

MakeRun = Callable[..., Any]
PLOTS = ["accuracy-by-attack.png", "clean-against-robust.png", "evaluation-accuracy.png", "training-loss.png"]


class Parts(HTMLParser):
    """Collects the tags of a page with their attributes, and its text."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.tags if name == tag]


def test_the_files_of_a_report(three: list[Path], tmp_path: Path) -> None:
    page = write_report(three, tmp_path / "deep" / "out")
    assert page == tmp_path / "deep" / "out" / "index.html"
    assert sorted(path.name for path in page.parent.iterdir()) == sorted(
        [*PLOTS, "index.html", "table.csv", "table.md"]
    )
    for name in PLOTS:
        with Image.open(page.parent / name) as image:
            assert min(image.size) > 500


def test_the_page_says_what_its_files_say(three: list[Path], page: Path) -> None:
    parts = Parts(page)
    for words in (
        "plain, noise and kap, attacked with AutoAttack standard in Linf with eps = 0.03137 (8/255) on 20 images",
        "Activation noise was switched off during this attack",
        "KAP minus noise alone (kap minus noise, activation noise σ = 0.3): +5.0 points",
        "0123456789abcdef0123456789abcdef01234567, with uncommitted changes in 1 file",
        "torch 2.13.0, ffcv 1.0.2",
        "512 MiB, 520 MiB",
        "1 min 35 s",
        "pool_size: 3",
        "Image 0, T-shirt, broken by apgd-ce",
    ):
        assert words in parts.text
    run = read_runs(three)[2]
    assert run.weights_sha256 is not None
    assert parts.text.count(run.weights_sha256) == 2
    assert parts.text.count(run.attacks[0].summary.plan_fingerprint) == 3


def test_the_page_is_one_file(page: Path) -> None:
    parts = Parts(page)
    # Bases of 64 letters may spell anything; outside of them nothing may point anywhere.
    bare = re.sub(r"data:image/[a-z+]+;base64,[A-Za-z0-9+/=]+", "", page.read_text())
    assert "http" not in bare
    assert "//" not in bare.replace("<!--", "")
    assert not {"script", "link", "iframe", "object", "base"} & {tag for tag, _ in parts.tags}
    assert "url(" not in bare
    assert "@import" not in bare
    sources = [attrs["src"] for attrs in parts.of("img")]
    # Four plots, and clean, adversarial and difference of three images for each of three runs.
    assert len(sources) == 4 + 3 * 3 * 3
    for source in sources:
        assert source is not None
        kind, content = re.fullmatch(r"data:image/(png|svg\+xml);base64,(.+)", source).groups()  # type: ignore[union-attr]
        data = base64.b64decode(content, validate=True)
        if kind == "png":
            Image.open(io.BytesIO(data)).verify()
        else:
            assert data.startswith(b"<?xml")
            assert b'href="http' not in data


def test_the_page_is_accessible(page: Path) -> None:
    parts = Parts(page)
    assert parts.of("html")[0]["lang"] == "en"
    assert all(attrs.get("alt") for attrs in parts.of("img"))
    assert all(attrs.get("scope") in ("col", "row") for attrs in parts.of("th"))
    assert len(parts.of("h1")) == 1
    assert "plain: clean 90.0, robust 0.0 percent" in str([attrs["alt"] for attrs in parts.of("img")])
    ids = [attrs["id"] for _, attrs in parts.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    for _, attrs in parts.tags:
        assert attrs.get("aria-labelledby") in (None, *ids)


def test_names_are_escaped(make_run: MakeRun, tmp_path: Path) -> None:
    name = "<b onclick=x>&[bold]$a_b$ | 'q' \"r\""
    run = make_run(name).trained().attacked(18, {"apgd-ce": 8}, keep=True)
    page = write_report([run.dir.root], tmp_path / "out")
    assert "b" not in {tag for tag, _ in Parts(page).tags}
    assert name in Parts(page).text
    row = (page.parent / "table.md").read_text().splitlines()[4]
    assert row.replace("\\|", "").count("|") == 11
    assert "<b" not in row


def test_settings_have_their_own_tables_and_plots(three: list[Path], make_run: MakeRun, tmp_path: Path) -> None:
    other = make_run("other").attacked(18, {"apgd-ce": 8}, norm="L2", eps=0.5).dir.root
    page = write_report([*three, other], tmp_path / "out")
    parts = Parts(page)
    assert len(parts.of("table")) == 2
    assert "AutoAttack standard, L2, eps 0.5, 20 images, noise off" in parts.text
    assert "Not attacked in this setting: other." in parts.text
    names = sorted(path.name for path in page.parent.glob("clean-against-robust*.png"))
    assert names == [f"clean-against-robust-{end}-standard-off-20.png" for end in ("L2-0.5", "Linf-8_255")]


def test_missing_pieces_are_said(make_run: MakeRun, tmp_path: Path) -> None:
    bare = make_run("bare")
    bare.dir.attack("begun").chunks.mkdir(parents=True)
    page = write_report([bare.dir.root], tmp_path / "out")
    text = Parts(page).text
    for words in (
        "bare: not attacked yet.",
        "No attack on this run has been finished.",
        "No run has recorded metrics of its training.",
        "not finished",
        "not recorded",
        "begun",
    ):
        assert words in text
    assert sorted(path.suffix for path in page.parent.iterdir()) == [".csv", ".html", ".md"]


def test_one_attacked_run_without_anything_else(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run("one").attacked(18, {"apgd-ce": 8})
    run.dir.attack("linf").records.unlink()
    run.dir.config.unlink()
    text = Parts(write_report([run.dir.root], tmp_path / "out")).text
    assert "No adversarial images of this attack were kept" in text
    assert "There is no config: the model was not trained by kapdist." in text


def test_a_run_without_metrics_beside_one_with_them(three: list[Path], make_run: MakeRun, tmp_path: Path) -> None:
    text = Parts(write_report([*three, make_run("bare").dir.root], tmp_path / "out")).text
    assert "No metrics of training: bare." in text


def test_a_loss_that_is_not_a_number_is_no_reason_to_fail(make_run: MakeRun, tmp_path: Path) -> None:
    lines = [{"kind": "train", "step": step, "epoch": step / 2, "loss": float("nan")} for step in (1, 2)]
    write_report([make_run("run").metrics(lines).dir.root], tmp_path / "out")


def test_no_directory_is_made_for_a_run_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(InputError):
        write_report([tmp_path / "absent"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_examples_are_broken_images_that_were_right(make_run: MakeRun) -> None:
    weak = make_run("weak").attacked(18, {"apgd-ce": 18}, keep=True).dir.root
    strong = make_run("strong").attacked(18, {"apgd-ce": 2}, keep=True).dir.root
    found, few = examples([run.attacks[0] for run in read_runs([weak, strong])])
    assert [example.image for example in found] == [0, 1, 2]
    assert [example.image for example in few] == [0, 1]
    first = few[0]
    assert (first.label, first.clean_prediction, first.adversarial_prediction) == ("T-shirt", "T-shirt", "Dress")
    assert first.clean is not None
    assert first.adversarial.shape == (32, 32, 3)
    # Half of the range over 8/255 is 15.9: the amplified difference stays inside it.
    assert first.gain == 15
    assert np.abs(first.perturbation - 0.5).max() == pytest.approx(15 * 8 / 255, abs=1e-6)


def test_images_of_a_removed_plan_are_no_examples_of_one_that_keeps_none(make_run: MakeRun) -> None:
    root = make_run("run").attacked(18, {"apgd-ce": 18}, keep=True).dir.root
    plan = RunDir(root).attack("linf").plan
    plan.write_text(json.dumps(json.loads(plan.read_text()) | {"keep_adversarial": False}))
    assert examples([run.attacks[0] for run in read_runs([root])]) == [[]]


def test_images_that_all_runs_lost_come_first(make_run: MakeRun) -> None:
    one = make_run("one").attacked(18, {"apgd-ce": 9}, keep=True).dir.root
    two = make_run("two").attacked(18, {"apgd-ce": 9}, keep=True, first_image=6).dir.root
    found = examples([run.attacks[0] for run in read_runs([one, two])])
    assert [[example.image for example in part] for part in found] == [[6, 7, 8], [6, 7, 8]]


def test_without_clean_images_and_class_names_the_rest_is_shown(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run("run").attacked(18, {"apgd-ce": 8}, keep=True, clean=False, class_names=False)
    page = Parts(write_report([run.dir.root], tmp_path / "out"))
    assert "Image 0, class 0, broken by apgd-ce" in page.text
    alts = [attrs["alt"] for attrs in page.of("img")]
    assert "Adversarial image 0" in alts
    assert "Clean image 0" not in alts


def test_kept_images_that_do_not_fit_their_rows(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run("run").attacked(18, {"apgd-ce": 8}, keep=True)
    np.save(run.dir.attack("linf").adversarial_images(0), np.zeros((1, 3, 4, 4), np.float32))
    with pytest.raises(InputError, match="more than 1 images"):
        write_report([run.dir.root], tmp_path / "out")
    run.dir.attack("linf").adversarial_images(0).write_bytes(b"no array")
    with pytest.raises(InputError, match="a whole file"):
        write_report([run.dir.root], tmp_path / "out")


def test_many_runs_have_looks_of_their_own(make_run: MakeRun, tmp_path: Path) -> None:
    runs = [make_run(f"run-{index}").attacked(18, {"apgd-ce": index}).dir.root for index in range(10)]
    assert "run-9" in Parts(write_report(runs, tmp_path / "out")).text


def test_times_in_two_units() -> None:
    texts = [duration(seconds) for seconds in (None, 0.25, 59.9, 60, 3725, 100_000)]
    assert texts == ["not recorded", "0.2 s", "59.9 s", "1 min 0 s", "1 h 2 min", "27 h 46 min"]


def test_values_stand_above_the_names_of_their_own_attacks(make_run: Callable[..., Any]) -> None:
    """One attack with smaller eps and one without are one setting: all of the second's is at the largest."""
    short, long = make_run("short"), make_run("long")
    short.attacked(18, {"apgd-ce": 6, "square": 2})
    long.attacked(18, {"apgd-ce": 8, "square": 2})
    path = long.dir.attack("linf").summary
    summary = json.loads(path.read_text())
    sizes = [2 / 255, 8 / 255]
    left = {("apgd-ce", 0): 15, ("square", 0): 14, ("apgd-ce", 1): 9, ("square", 1): 8}
    summary["attacks"] = [
        summary["attacks"][0]
        | {"name": f"{name}@{sizes[size]:.6g}", "eps": sizes[size], "robust_accuracy_after": count / 20}
        for (name, size), count in left.items()
    ]
    path.write_text(json.dumps(summary))
    compared = comparison([short.dir.root, long.dir.root])
    (block,) = compared.blocks
    plot = stages_plot(block, {run.label: look(index) for index, run in enumerate(compared.runs)})
    axes = plot.figure.axes[0]
    names = [label.get_text() for label in axes.get_xticklabels()]
    assert names == ["clean", "apgd-ce 2/255", "square 2/255", "apgd-ce 8/255", "square 8/255"]
    ours, theirs = ({names[int(x)]: y for x, y in line.get_xydata()} for line in axes.get_lines())
    assert ours == pytest.approx({"clean": 90, "apgd-ce 8/255": 60, "square 8/255": 50})
    assert theirs == pytest.approx(dict(zip(names, (90, 75, 70, 45, 40), strict=True)))
    told = "short: clean 90.0, apgd-ce 8/255 60.0, square 8/255 50.0; long: 90.0, 75.0, 70.0, 45.0, 40.0."
    assert plot.alt.endswith(told)


def test_the_report_imports_no_torch() -> None:
    code = "import json, sys, kapdist.report; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=240)
    assert not {"torch", "ffcv", "pyautoattack", "matplotlib.pyplot"} & set(json.loads(done.stdout))


def legend_of(figure: Any) -> list[str]:
    return [text.get_text().strip("\N{HAIR SPACE}") for legend in figure.legends for text in legend.get_texts()]


def test_names_that_begin_with_an_underscore_are_in_the_legend(make_run: MakeRun) -> None:
    names = ["_one", "__two", "three"]
    runs = comparison([make_run(name).trained().attacked(18, {"apgd-ce": 1}).dir.root for name in names])
    looks = {run.label: look(index) for index, run in enumerate(runs.runs)}
    assert legend_of(stages_plot(runs.blocks[0], looks).figure) == names
    assert legend_of(loss_plot(runs.runs, looks).figure) == names


def test_two_attacks_on_one_run_are_two_looks(make_run: MakeRun) -> None:
    run = make_run("one").attacked(18, {"apgd-ce": 1}, name="x").attacked(18, {"apgd-ce": 9}, name="y")
    compared = comparison([run.dir.root])
    figure = stages_plot(compared.blocks[0], {"one": look(0)}).figure
    dashes = {line.get_linestyle() for line in figure.axes[0].get_lines()}
    assert len(dashes) == 2


def test_plots_that_would_be_called_alike_have_files_of_their_own(make_run: MakeRun, tmp_path: Path) -> None:
    """The same function among the attacks, and as where their gradients come from."""
    run = make_run("one")
    for name in ("x", "y"):
        run.attacked(18, {"a.py:f": 3}, name=name, version="custom")
        path = run.dir.attack(name).summary
        gradient = {"functions": {"a.py:f": "1" * 64}, "gradient_of": "a.py:f" if name == "y" else None}
        path.write_text(json.dumps(json.loads(path.read_text()) | gradient))
    page = write_report([run.dir.root], tmp_path / "out")
    assert page.read_text().count('<h2 id="block-') == 2
    assert len(list(page.parent.glob("clean-against-robust*.png"))) == 2


def test_a_page_names_no_file_that_is_not_there(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run("one").attacked(18, {"fmn": 3}, version="custom")
    attack = run.dir.attack("linf")
    attack.records.write_bytes(b"")
    rows = run.records(20, 18, {"fmn": 3}, 0)
    sizes = [0.01 * (number + 1) for number in range(20)]
    rows.with_columns(smallest=polars.Series(sizes)).write_parquet(attack.records)
    attack.summary.write_text(
        json.dumps(json.loads(attack.summary.read_text()) | {"smallest": {"num_found": 18, "median": 8 / 255}})
    )
    page = write_report([run.dir.root], tmp_path / "out")
    assert "Smallest perturbation found" in page.read_text()
    assert "median over all images 8/255." in page.read_text()
    assert "curves.csv" not in page.read_text()
    assert not (page.parent / "curves.csv").exists()


def test_long_names_are_cut_where_they_stay_apart() -> None:
    names = [f"fashion_mnist_{kind}_adversarially_trained_seed_0" for kind in ("noise", "kap", "kap_sheet")]
    short = [shortened(name, names) for name in names]
    assert len(set(short)) == 3
    assert shortened(names[0]) == "fashion_mnist…rained_seed_0"


@pytest.mark.filterwarnings("error")
def test_a_legend_of_many_runs_leaves_the_axes_their_height(make_run: MakeRun) -> None:
    """A row of names for each three, or for each one where they are long, below axes that stay as high."""
    heights = []
    for names in (["one"], [f"run_{number:02d}" for number in range(60)], [f"{n}" * 40 for n in "abcdefg"]):
        runs = comparison([make_run(name).trained().dir.root for name in names]).runs
        plot = loss_plot(runs, {run.label: look(index) for index, run in enumerate(runs)})
        assert plot is not None
        (axes,), (legend,) = plot.figure.axes, plot.figure.legends
        assert len(legend.get_texts()) == len(names)
        frame, box = plot.figure.bbox, legend.get_window_extent()
        assert frame.x0 <= box.x0 < box.x1 <= frame.x1
        assert box.y1 <= axes.get_window_extent().y0
        heights.append(axes.get_window_extent().height)
    assert max(heights) < 1.5 * min(heights)
