"""Print the notes of a release, its section of CHANGELOG.md: python tools/release_notes.py [VERSION]"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

CHANGELOG = Path(__file__).parents[1] / "CHANGELOG.md"


def sections(text: str) -> dict[str, str]:
    """Return {version: what changed} of a changelog in the format of keepachangelog.com, as it stands there."""
    parts = re.split(r"^## \[?([^\s\]]+).*\n", text, flags=re.MULTILINE)[1:]
    return {version: body.strip() for version, body in zip(parts[::2], parts[1::2], strict=True)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("version", nargs="?", help="as its heading says; else the newest")
    parser.add_argument("--changelog", type=Path, default=CHANGELOG, help="another file")
    arguments = parser.parse_args()
    found = sections(arguments.changelog.read_text())
    version = arguments.version or next(iter(found), "Unreleased")
    if version not in found:
        sys.exit(tell(f"{arguments.changelog}: expected a section {version}, found {', '.join(found) or 'none'}"))
    print(found[version])


def tell(line: str) -> int:
    print(f"release_notes: {line}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    main()
