"""Files that carry the checksum of all their other bytes: a flipped bit is noticed before a number is read.

The seal is SEAL and 64 hexadecimal digits, where a format has room for a word: a key of a JSON object, the metadata
of Parquet, behind the pixels of .npy (its readers stop there). The sum is over the file with zeros for the digits,
so one look at the bytes decides, whatever the format, and no parser is shown what is damaged.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kapdist.errors import InputError, first_line
from kapdist.run.files import to_json, write_atomic

if TYPE_CHECKING:  # imported where they are used: a login node needs neither
    import numpy as np
    import polars as pl

SEAL = "kapdist-sha256:"
BLANK = SEAL + "0" * 64
KEY = "seal"


class DamagedError(InputError):
    """A file is not what was written."""


def sealed(content: bytes) -> bytes:
    """Return a file's bytes with the digits of the one blank seal in them filled in."""
    assert content.count(BLANK.encode()) == 1, "one place for the seal"
    digits = hashlib.sha256(content).hexdigest()
    return content.replace(BLANK.encode(), (SEAL + digits).encode())


def read_checked(path: Path, remedy: str = "") -> bytes:
    """Return the bytes of a file whose seal, if it has one, holds; older versions wrote none.

    Args:
        remedy: what the user may do about a file that is damaged.

    Raises:
        DamagedError: the seal does not hold.
        InputError: the file cannot be read.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(path, "a file that can be read", error.strerror or str(error)) from None
    if not holds(content):
        raise damaged(path, "bytes that its checksum does not fit", remedy)
    return content


def holds(content: bytes) -> bool:
    """Tell whether the seal in a file's bytes fits them; where there is none, nothing speaks against them."""
    start = content.rfind(SEAL.encode())
    if start < 0:
        return True
    start += len(SEAL)
    rest = hashlib.sha256(content[:start] + b"0" * 64 + content[start + 64 :]).hexdigest()
    return content[start : start + 64] == rest.encode()


def is_sealed(path: Path) -> bool:
    """Tell whether a file has a seal, which need not hold."""
    return SEAL.encode() in path.read_bytes()


def is_whole(path: Path) -> bool:
    """Tell whether a file is there and no seal speaks against it."""
    try:
        return holds(path.read_bytes())
    except OSError:
        return False


def damaged(path: Path, found: str, remedy: str = "") -> DamagedError:
    return DamagedError(path, "a whole file" + (f" ({remedy})" if remedy else ""), found)


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write a JSON object under a seal; as every file here, whole or not at all."""
    text = to_json(value | {KEY: BLANK}, indent=2) + "\n"
    write_atomic(path, sealed(text.encode()))


def read_json(path: Path, remedy: str = "") -> dict[str, Any]:
    """Return the JSON object in a file, without its seal.

    Raises:
        InputError: there is none, or it is damaged.
    """
    try:
        value = json.loads(read_checked(path, remedy))
    except (ValueError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        raise damaged(path, f"no JSON: {first_line(error)}", remedy) from None
    if not isinstance(value, dict):
        raise InputError(path, "a JSON object", type(value).__name__)
    value.pop(KEY, None)
    return value


def write_table(table: pl.DataFrame, path: Path) -> None:
    """Write Parquet under a seal; through memory, as polars calls a full disk an error of Thrift."""
    file = io.BytesIO()
    table.write_parquet(file, metadata={"kapdist": BLANK})
    write_atomic(path, sealed(file.getvalue()))


def read_table(path: Path, columns: Sequence[str] | None = None, remedy: str = "") -> pl.DataFrame:
    """Read a Parquet file.

    Raises:
        DamagedError: its seal does not hold, it is no Parquet, or it lacks one of the columns.
    """
    import polars as pl

    content = read_checked(path, remedy)
    try:
        return pl.read_parquet(io.BytesIO(content), columns=list(columns) if columns else None)
    except (Exception, pl.exceptions.PanicException) as error:  # whatever damaged bytes lead polars to
        raise damaged(path, first_line(error), remedy) from None


def read_unit(
    path: Path, columns: Sequence[str], unit: str, plan: str, images: Sequence[int]
) -> pl.DataFrame | None:
    """Return what a unit of work left behind, one row per image; None where there is no file, or a damaged one.

    Args:
        columns: of its table; image and plan are among them.
        unit: what it is called.
        plan, images: the fingerprint that it should have, and the images, in order.

    Raises:
        InputError: it is of another plan.
    """
    if not path.exists():
        return None
    try:
        table = read_table(path, columns)
    except DamagedError:
        return None
    if table["plan"].unique().to_list() != [plan]:
        raise InputError(path, f"a {unit} of this plan ({plan[:12]})", "one of another plan")
    return table if table["image"].to_list() == list(images) else None


def write_array(path: Path, array: np.ndarray) -> None:
    """Write an array as .npy under a seal, which stands behind the numbers."""
    import numpy as np

    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    file.write(f"\n{BLANK}\n".encode())
    write_atomic(path, sealed(file.getvalue()))


def read_array(path: Path, remedy: str = "") -> np.ndarray:
    """Read a .npy file.

    Raises:
        DamagedError: its seal does not hold, or it is none.
    """
    import numpy as np

    content = read_checked(path, remedy)
    try:
        array: np.ndarray = np.load(io.BytesIO(content), allow_pickle=False)
    except Exception as error:  # a damaged header is parsed as Python
        raise damaged(path, first_line(error), remedy) from None
    return array
