"""What a study found as plain files: its table as CSV, Parquet, LaTeX and Markdown, with the claims in words."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import polars as pl

from kapdist.records.study import Decision, Row, StudyResults
from kapdist.report.words import eps_text, p_text, percent, points
from kapdist.run.files import write_atomic
from kapdist.study.claims import LEVEL

MARK = "†"
ONE_SEED = f"{MARK} One seed: the interval is over images alone, and another seed may lie outside of it."


def tables(rows: Sequence[Row]) -> dict[str, dict[str, list[Row]]]:
    """Return {attack: {setting: rows by eps}}."""
    found: dict[str, dict[str, list[Row]]] = {}
    for row in rows:
        found.setdefault(row.attack, {}).setdefault(row.setting, []).append(row)
    return found


def marked(rows: Sequence[Row]) -> str:
    """Return a setting's name, with a mark where its intervals are those of one seed."""
    return rows[0].setting + (f" {MARK}" if len(rows[0].seeds) == 1 else "")


def lonely(settings: Mapping[str, Sequence[Row]]) -> bool:
    """Whether any setting has one seed alone."""
    return any(len(rows[0].seeds) == 1 for rows in settings.values())


def column(row: Row) -> str:
    return "clean" if not row.eps else f"{row.norm} {eps_text(row.norm, row.eps)}"


def interval(low: float, high: float) -> str:
    return f"[{percent(low)}, {percent(high)}]"


def sentence(found: Decision) -> str:
    """Say a decision with its numbers."""
    if found.difference is None or found.p is None or found.p_holm is None:
        return f"{found.why}."
    where = ""
    if found.clean is not None:
        where = f" between {percent(found.clean[0])}% and {percent(found.clean[1])}% of clean accuracy"
    against = f" (against {points(found.margin)})" if found.margin else ""
    several = found.p_holm != found.p
    alone = " (95%, this test alone)" if several else ""
    p = p_text(found.p, LEVEL) + (f", corrected {p_text(found.p_holm, LEVEL)}" if several else "")
    more = f" {found.more[0].upper()}{found.more[1:]}." if found.more else ""
    pair = f"{found.first} over {found.over}"
    which = "" if pair in found.claim else f"{found.first} against {found.over}: "
    return f"{which}{difference(found)}{alone}{where}{against}, {p}: {found.why}.{more}"


def difference(found: Decision) -> str:
    """Return what was found, with its interval."""
    low, high = (points(bound or 0).removesuffix(" points") for bound in (found.low, found.high))
    return f"{points(found.difference or 0)} [{low}, {high}]"


def csv_text(rows: Sequence[Row]) -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, list(Row.model_fields), lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat(row) for row in rows)
    return out.getvalue()


def write_parquet(path: Path, rows: Sequence[Row]) -> None:
    buffer = io.BytesIO()
    pl.DataFrame([flat(row) for row in rows], schema_overrides={"eps": pl.Float64}).write_parquet(buffer)
    write_atomic(path, buffer.getvalue())


def flat(row: Row) -> dict[str, object]:
    """Return a row with lists as words, for formats without them."""
    return {
        key: " ".join(map(str, value)) if isinstance(value, list) else value
        for key, value in row.describe().items()
    }


def latex(rows: Sequence[Row]) -> str:
    """Return the table as LaTeX with booktabs: mean over seeds and its 95% interval, in percent."""
    lines = []
    for attack, settings in tables(rows).items():
        heads = [column(row) for row in max(settings.values(), key=len)]
        lines += [f"% {attack}", rf"\begin{{tabular}}{{l{'r' * len(heads)}}}", r"\toprule"]
        lines += [" & ".join(["", *heads]) + r" \\", r"\midrule"]
        for setting, own in settings.items():
            cells = [rf"{percent(row.value)} {{\small {interval(row.low, row.high)}}}" for row in own]
            lines.append(" & ".join([setting.replace("_", r"\_"), *cells]) + r" \\")
        lines += [r"\bottomrule", r"\end{tabular}", ""]
    return "\n".join(lines)


def markdown(found: StudyResults) -> str:
    """Return claims with their verdicts, what is to be said of the numbers, and the table.

    Of each setting the mean over seeds, its 95% interval, each seed's own.
    """
    lines = [f"- **{one.verdict}**: {one.claim}. {sentence(one)}" for one in found.decisions]
    lines += [f"- {note[0].upper()}{note[1:]}." for note in found.notes]
    for attack, settings in tables(found.rows).items():
        heads = [f"{column(row)}, % | each seed" for row in max(settings.values(), key=len)]
        lines += ["", " | ".join([f"| under {attack}", *heads]) + " |", "|---|" + "---:|---|" * len(heads)]
        for own in settings.values():
            cells = [
                f"{percent(row.value)} {interval(row.low, row.high)} | {' '.join(map(percent, row.per_seed))} |"
                for row in own
            ]
            lines.append(" ".join([f"| {marked(own)} |", *cells, *["| |"] * (len(heads) - len(cells))]))
        lines += ["", ONE_SEED] if lonely(settings) else []
    return "\n".join([*lines, ""])
