"""The help of a command line without markup: rich takes longer to load than all else that --help needs."""

from __future__ import annotations

from typing import Any

from typer.core import TyperGroup


class Group(TyperGroup):
    """Commands in the help with the whole of their first sentence."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        commands = [(name, self.get_command(ctx, name)) for name in self.list_commands(ctx)]
        with formatter.section("Commands"):
            formatter.write_dl([(name, command.get_short_help_str(1000)) for name, command in commands if command])


PLAIN: dict[str, Any] = {"cls": Group, "rich_markup_mode": None, "no_args_is_help": True}
