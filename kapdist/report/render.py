"""The comparison as text: cells, Markdown, CSV, terminal."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Literal

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from kapdist.report.claims import Claim
from kapdist.report.table import Block, Row
from kapdist.report.words import accuracy_text, percent, short
from kapdist.run.tables import print_table
from kapdist.statistics.intervals import Proportion

COLUMNS = (
    "Run",
    "Model",
    "K and layout",
    "Noise σ",
    "Input noise σ",
    "Epochs",
    "Clean accuracy, % [95% interval]",
    "Robust accuracy, % [95% interval]",
    "Images",
    "Attack passes, forward + backward",
)
SHORT_COLUMNS = (*COLUMNS[:6], "Clean accuracy, %", "Robust accuracy, %", "Images", "Forward + backward passes")
NUMBERS = COLUMNS[3:]
DOUBT = ", not to be believed"
CSV_COLUMNS = (
    *("run", "attack", "norm", "eps", "version", "attacks", "noise", "model", "pool_size", "layout", "noise_std"),
    *("input_noise_std", "epochs", "num_images", "clean", "clean_low", "clean_high", "robust", "robust_low"),
    *("robust_high", "forwards", "backwards", "seconds", "weights_sha256", "plan_fingerprint", "setting", "doubt"),
)


def cells(row: Row) -> tuple[str, ...]:
    """Return the row's texts in the order of COLUMNS."""
    return (
        row.name,
        row.model,
        row.pool,
        number(row.noise_std),
        number(row.input_noise_std),
        number(row.epochs),
        accuracy(row.clean),
        accuracy(row.robust) + doubted(row),
        number(row.num_images),
        " + ".join(map(short, row.passes)) if row.passes else "–",
    )


def number(value: float | None) -> str:
    return "–" if value is None else f"{value:.10g}"


def accuracy(found: Proportion | None) -> str:
    return "–" if found is None else accuracy_text(found, sign="")


def doubted(row: Row) -> str:
    """Say beside a number what is left of it; nothing where no stronger attack speaks against it."""
    doubt = row.attack.doubt if row.attack else None
    if doubt is None:
        return ""
    if doubt.num_left < doubt.num_robust:
        return f"{DOUBT}: {percent(doubt.left)} left of {doubt.num_images} examined"
    return f"{DOUBT}: of what it left a single draw has {percent(doubt.single_draw_left or 0)} right"


def markdown_block(block: Block, remarks: Sequence[Claim]) -> str:
    aligned = ["---:" if column in NUMBERS else "---" for column in COLUMNS]
    rows = [COLUMNS, aligned, *(cells(row) for row in block.rows)]
    lines = ["| " + " | ".join(map(escaped, row)) + " |" for row in rows]
    said = [f"- {escaped(claim.text)}" for claim in remarks]
    return "\n".join([f"## {escaped(block.title)}", "", *lines, "", *said, ""])


def escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")


def csv_text(blocks: Sequence[Block]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    writer.writerows(csv_row(row, block) for block in blocks for row in block.rows)
    return text.getvalue()


def csv_row(row: Row, block: Block) -> list[object]:
    """Return the row's values in the order of CSV_COLUMNS, None where there is none."""
    config = row.run.config if row.own else None
    summary = row.attack.summary if row.attack else None
    where = block.setting
    return [
        row.run.label,
        row.attack.name if row.attack else None,
        *((summary.norm, summary.eps, summary.version) if summary else (None,) * 3),
        " ".join(stage.name for stage in summary.attacks) if summary else None,
        where.noise if where else None,
        row.model,
        *((config.kap.pool_size, config.kap.layout) if config else (None, None)),
        *(row.noise_std, row.input_noise_std, row.epochs, row.num_images),
        *limits(row.clean),
        *limits(row.robust),
        *((summary.forwards, summary.backwards, summary.seconds) if summary else (None,) * 3),
        summary.weights_sha256 if summary else row.run.weights_sha256,
        summary.plan_fingerprint if summary else None,
        block.title if where else None,
        doubted(row).removeprefix(", ") or None,
    ]


def limits(found: Proportion | None) -> tuple[float | None, float | None, float | None]:
    return (None, None, None) if found is None else (found.value, found.low, found.high)


def print_block(console: Console, block: Block, remarks: Sequence[Claim]) -> None:
    print_table(console, terminal_table(block))
    for claim in remarks:
        console.print(Text(f"  {claim.text}", "bold" if claim.warns else ""))
    console.print()


def terminal_table(block: Block) -> Table:
    """Return what fits a terminal of 80 columns; the other columns are in the files and on the page."""
    table = Table(title=block.title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    heads = {0: "Run", 2: "K", 3: "Noise σ", 4: "Input σ", 6: "Clean, %", 7: "Robust, %"}
    for column, head in heads.items():
        doubts = COLUMNS[column] in NUMBERS and any(map(doubted, block.rows))
        justify: Literal["right", "left"] = "right" if COLUMNS[column] in NUMBERS else "left"
        whole = column > 0 and not doubts and not head.endswith("σ")
        table.add_column(head, justify=justify, no_wrap=whole)
    for row in block.rows:
        texts = cells(row)
        table.add_row(*(Text(texts[column]) for column in heads))
    return table
