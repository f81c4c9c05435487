"""`kapdist attack export`: everything is worked out before the first file is written."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from kapdist.errors import InputError
from kapdist.report.curves import curve_rows
from kapdist.report.export.bundle import export_bundle
from kapdist.report.export.images import csv_bytes, csv_description, image_table, parquet_bytes
from kapdist.report.export.latex import beyond_pdflatex, latex_table
from kapdist.report.export.merged import Merged, read_all
from kapdist.report.export.robustbench import Entry, ModelInfo, Standard, model_info
from kapdist.run.files import check_outputs, to_json, write_atomic

FORMATS = ("model-info", "csv", "parquet", "latex")
BUNDLE = "bundle"
Files = dict[str, str | bytes]


@dataclass(frozen=True)
class Exported:
    """The files that were written, and what a reader should be told about them."""

    files: tuple[Path, ...]
    remarks: tuple[str, ...]


def export(
    directories: Sequence[Path],
    out: Path,
    formats: Sequence[str] = (),
    entry: Entry | None = None,
    *,
    standard: Standard,
    with_weights: bool = False,
) -> Exported:
    """Write merged attacks in the formats of others; `out` is made where it is missing.

    Args:
        formats: of FORMATS; none: all that apply, and a remark says why one does not. Or BUNDLE alone, whose `out`
            is a file.
        standard: what the library has in its standard list, as kapdist.attack.stock.standard_list.
        with_weights: of a bundle.

    Raises:
        InputError: no merged attack, one that a format that was asked for cannot tell, or no way to write to `out`.
    """
    if tuple(formats) == (BUNDLE,):
        return Exported((export_bundle(directories, out, with_weights),), ())
    wanted = tuple(formats) or FORMATS
    for name in wanted:
        if name not in FORMATS:
            expected = f"{', '.join(FORMATS)}, or {BUNDLE} alone; of a run's network hub or onnx"
            raise InputError("--format", expected, name)
    if with_weights:
        raise InputError("--with-weights", f"--format {BUNDLE}, which may hold them", ", ".join(wanted))
    check_outputs(out / "table.tex", keep_folders=False)
    attacks = read_all(directories)
    files: Files = {}
    remarks: list[str] = []
    if "model-info" in wanted:
        try:
            info = robustbench_info(attacks, entry or Entry(), standard)
            files[info.path] = to_json(info.values, indent=2) + "\n"
            remarks += remarks_on(info)
        except InputError as error:
            if formats:
                raise
            remarks.append(f"model-info left out: {error}")
    if "csv" in wanted or "parquet" in wanted:
        files |= image_files(attacks, wanted)
    if "latex" in wanted:
        files["table.tex"] = tex = latex_table(attacks)
        if letters := beyond_pdflatex(tex):
            remarks.append(f"latex: for lualatex or xelatex, as pdflatex has no {letters}")
    return Exported(write(files, out), tuple(remarks))


def robustbench_info(attacks: Sequence[Merged], entry: Entry, standard: Standard) -> ModelInfo:
    if len(attacks) > 1:
        raise InputError("model-info", "one attack, as the file is one entry", f"{len(attacks)}")
    return model_info(attacks[0], entry, standard)


def remarks_on(info: ModelInfo) -> list[str]:
    said = []
    if info.unknown:
        said.append(f"model-info: to be filled in: {', '.join(info.unknown)}")
    if "footnote" in info.values:
        said.append(f"model-info: footnote: {info.values['footnote']}")
    if info.values["unreliable"]:
        said.append("model-info: marked as unreliable: Square or stronger attacks broke what gradients had left")
    return said


def image_files(attacks: Sequence[Merged], wanted: Sequence[str]) -> Files:
    table = image_table(attacks)
    curves = curve_table(attacks)
    files: Files = {}
    if "csv" in wanted:
        files["curves.csv"] = csv_bytes(curves)
        files["images.csv"] = csv_bytes(table)
        files["images.csv-metadata.json"] = to_json(csv_description(attacks, "images.csv"), indent=2) + "\n"
    if "parquet" in wanted:
        files["curves.parquet"] = parquet_bytes(curves, attacks)
        files["images.parquet"] = parquet_bytes(table, attacks)
    return files


def curve_table(attacks: Sequence[Merged]) -> pl.DataFrame:
    """Return what withstood everything up to each eps of each attack, the clean accuracy at 0 first."""
    names = (
        {"run": it.run, "attack": it.name, "plan": it.plan.fingerprint, "norm": it.plan.norm} for it in attacks
    )
    rows = zip(names, (curve_rows(attack.summary) for attack in attacks), strict=True)
    return pl.DataFrame([name | row for name, points in rows for row in points])


def write(files: Files, out: Path) -> tuple[Path, ...]:
    """Write all files below a folder, each atomically."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        for path in (out / name for name in files):
            path.parent.mkdir(parents=True, exist_ok=True)
            if not os.access(path.parent, os.W_OK) or path.is_dir():
                raise InputError(
                    path, "a file that can be written", "a folder" if path.is_dir() else "no permission"
                )
    except OSError as error:
        raise InputError(out, "a folder that can be made and written to", str(error)) from None
    for name, content in files.items():
        write_atomic(out / name, content)
    return tuple(out / name for name in files)
