"""The comparison of runs as one value, and its renderings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from kapdist.report.claims import Claim, claims
from kapdist.report.reading import Run, read_runs
from kapdist.report.render import csv_text, markdown_block, print_block
from kapdist.report.table import Block, blocks
from kapdist.run.standard_output import screen


@dataclass(frozen=True)
class Comparison:
    """All that is compared: a block of rows per attack setting, then the models without an attack."""

    runs: tuple[Run, ...]
    blocks: tuple[Block, ...]

    def claims(self, block: Block) -> tuple[Claim, ...]:
        """Return what may and may not be concluded from a block, in reading order."""
        return claims(block, self.runs)

    def markdown(self) -> str:
        """Return the comparison as Markdown: a heading, a table and the remarks per setting."""
        return "\n".join(markdown_block(block, self.claims(block)) for block in self.blocks)

    def csv(self) -> str:
        """Return the comparison as CSV: one header, each row with its own setting, accuracies in [0, 1]."""
        return csv_text(self.blocks)

    def print(self, console: Console | None = None) -> None:
        """Print a table and the remarks per setting on a terminal, by default on standard output."""
        for block in self.blocks:
            print_block(console or screen(), block, self.claims(block))


def comparison(runs: Sequence[Path]) -> Comparison:
    """Read run directories and put what may be compared side by side.

    Raises:
        InputError: no directory at all, one that is no run, or a file in it that is not what its name says.
    """
    read = read_runs(runs)
    return Comparison(read, blocks(read))
