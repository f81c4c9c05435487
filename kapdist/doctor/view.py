"""Findings on a screen: one table, and what is to be done in the line below that it is about."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from kapdist.doctor.finding import Finding
from kapdist.run.standard_output import screen, sentence

STYLES = {"ok": "green", "note": "yellow", "wrong": "bold red"}


def print_findings(found: Sequence[Finding]) -> None:
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, show_header=False)
    for _ in range(2):
        table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for finding in found:
        words = Text(finding.found)
        if finding.remedy:
            words.append(f"\n{finding.remedy}", STYLES[finding.status])
        table.add_row(Text(finding.status, STYLES[finding.status]), finding.name, words)
    screen().print(table)
    counts = {status: sum(finding.status == status for finding in found) for status in STYLES}
    sentence(screen(), f"{counts['wrong']} wrong, {counts['note']} to note, {counts['ok']} fine")
