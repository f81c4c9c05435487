"""One row per image of one or more attacks, flat columns, as CSV and as Parquet, both self-describing.

Rows are the images that were attacked; attacks stand one below the other, told apart by run, attack and plan.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import polars as pl

from kapdist.report.export.merged import Merged
from kapdist.run.files import to_json

# name: (type, what it says). The one list of columns, from which both files and their descriptions are made.
COLUMNS: dict[str, tuple[Any, str]] = {
    "run": (pl.String, "run that was attacked"),
    "attack": (pl.String, "name of the attack in that run"),
    "plan": (pl.String, "fingerprint of the attack plan: all that decides a verdict"),
    "data": (pl.String, "fingerprint of the beton that `image` counts in"),
    "image": (pl.Int64, "number of the image in the beton, from 0"),
    "label": (pl.Int32, "class, from 0"),
    "clean_prediction": (pl.Int32, "class that the model gives to the clean image"),
    "clean_correct": (pl.Boolean, "clean_prediction is the label"),
    "robust": (pl.Boolean, "right on the clean image, and no attack broke it at any eps up to `eps`"),
    "norm": (pl.String, "norm that bounds the perturbation"),
    "eps": (pl.Float64, "largest size of the perturbation that was tried, images being in [0, 1]"),
    "broken_by": (pl.String, "attack that broke the image first; empty: none did, or misclassified without one"),
    "broken_eps": (pl.Float64, "size at which it did; an image has fallen at every larger one"),
    "smallest": (pl.Float64, "smallest perturbation known, an upper bound; 0: misclassified; empty: none known"),
    "adversarial_norm": (pl.Float64, "norm of the perturbation that broke it, to float32 rounding"),
    "adversarial_prediction": (pl.Int32, "class that the model gives to the image that broke it"),
    "num_draws": (pl.Int32, "fresh noise draws that the image was scored under afterwards; empty: none"),
    "clean_draws_correct": (pl.Int32, "draws that were right on the clean image"),
    "clean_majority": (pl.Int32, "class of most draws on the clean image"),
    "adversarial_draws_correct": (pl.Int32, "draws right on the adversarial image, or on the hardest seen"),
    "adversarial_majority": (pl.Int32, "class of most draws on that image"),
    "chunk": (pl.Int32, "chunk of the attack, as in adversarial/chunk-<number>.npy where images were kept"),
    "chunk_row": (pl.Int32, "row of the image in its chunk, from 0"),
}
# What the columns of the curves say that the images have not, or have otherwise.
OF_CURVES = {
    "eps": "size of the perturbation, images being in [0, 1]; 0: none",
    "num_images": "images that were attacked",
    "num_robust": "of them right on the clean image, and broken by no attack at any size up to `eps`",
    "robust": "num_robust / num_images",
    "robust_low": "lower end of its 95% Wilson interval over the images",
    "robust_high": "upper end of it",
}
CSVW_TYPES = {pl.String: "string", pl.Int64: "integer", pl.Int32: "integer", pl.Float64: "double"}


def image_table(attacks: Sequence[Merged]) -> pl.DataFrame:
    """Return the rows of all attacks, columns COLUMNS."""
    schema = pl.Schema({name: dtype for name, (dtype, _) in COLUMNS.items()})
    return pl.concat(rows_of(attack).select(*COLUMNS).cast(schema) for attack in attacks)


def rows_of(attack: Merged) -> pl.DataFrame:
    plan = attack.plan
    correct = pl.col("label") == pl.col("clean_prediction")
    names = {stage.name: stage.attack for stage in plan.stages}
    constants: dict[str, Any] = {
        "run": attack.run,
        "attack": attack.name,
        "plan": plan.fingerprint,
        "data": plan.data.fingerprint,
    }
    constants |= {"norm": plan.norm, "eps": plan.eps, "num_draws": plan.rescore or None}
    has_smallest = "smallest" in attack.records.columns  # records of older versions have not
    return attack.records.with_columns(
        smallest=pl.col("smallest") if has_smallest else pl.lit(None, pl.Float64),
        clean_correct=correct,
        robust=correct & pl.col("broken_by").is_null(),
        adversarial_norm=of_breaker("norm", attack),
        adversarial_prediction=of_breaker("prediction", attack),
        broken_by=pl.col("broken_by").replace_strict(names, return_dtype=pl.String),
        chunk_row=pl.int_range(pl.len()).over("chunk"),
        **{name: pl.lit(value) for name, value in constants.items()},
    )


def of_breaker(what: str, attack: Merged) -> pl.Expr:
    """Return the column of the stage that broke the image, null where none did."""
    names = [stage.name for stage in attack.plan.stages]
    return pl.coalesce(pl.when(pl.col("broken_by") == name).then(pl.col(f"{name}_{what}")) for name in names)


def csv_bytes(table: pl.DataFrame) -> bytes:
    """Return CSV: a header, then rows; booleans are true and false, what is unknown is empty."""
    return table.write_csv().encode()


def csv_description(attacks: Sequence[Merged], url: str) -> dict[str, Any]:
    """Return what a reader of the CSV needs, as CSV on the Web has it (W3C 2015, tabular-metadata)."""
    columns = [
        {"name": name, "titles": name, "datatype": CSVW_TYPES.get(dtype, "boolean"), "dc:description": meaning}
        for name, (dtype, meaning) in COLUMNS.items()
    ]
    key = ["run", "attack", "image"]
    return {
        "@context": "http://www.w3.org/ns/csvw",
        "url": url,
        "tableSchema": {"columns": columns, "primaryKey": key},
        "notes": provenance(attacks),
    }


def meanings_of(columns: Sequence[str]) -> dict[str, str]:
    """Return what the columns of images or of curves say."""
    known = {name: meaning for name, (_, meaning) in COLUMNS.items()}
    known |= OF_CURVES if "image" not in columns else {}
    return {name: known[name] for name in columns}


def parquet_bytes(table: pl.DataFrame, attacks: Sequence[Merged]) -> bytes:
    """Return Parquet of images or of curves; its metadata has kapdist.columns and kapdist.attacks, JSON each."""
    meanings = meanings_of(table.columns)
    metadata = {"kapdist.columns": to_json(meanings), "kapdist.attacks": to_json(provenance(attacks))}
    file = io.BytesIO()
    table.write_parquet(file, metadata=metadata)
    return file.getvalue()


def provenance(attacks: Sequence[Merged]) -> list[dict[str, Any]]:
    """Return what each attack was and found: its plan without names and places, its summary, what is against it."""
    return [
        {
            "run": attack.run,
            "attack": attack.name,
            "plan_fingerprint": attack.plan.fingerprint,
            "plan": attack.plan.identity(),
            "summary": attack.summary.describe(),
            "doubt": attack.doubt,
        }
        for attack in attacks
    ]
