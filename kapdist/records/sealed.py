"""Files that carry the checksum of all their other bytes: a flipped bit is noticed before a number is read.

The seal is SEAL and 64 hexadecimal digits, where a format has room for a word: a key of a JSON object, the metadata
of Parquet, behind the pixels of .npy (its readers stop there). The sum is over the file with zeros for the digits,
so one look at the bytes decides, whatever the format, and no parser is shown what is damaged. The seal stands last,
so a file that was cut off has none, as those of older versions: without one the format must be there to its end.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
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
PARQUET = b"PAR1"  # its first and its last bytes


class DamagedError(InputError):
    """A file is not what was written."""


def sealed(content: bytes) -> bytes:
    """Return a file's bytes with the digits of the one blank seal in them filled in."""
    assert content.count(BLANK.encode()) == 1, "one place for the seal"
    digits = hashlib.sha256(content).hexdigest()
    return content.replace(BLANK.encode(), (SEAL + digits).encode())


def read_checked(path: Path, remedy: str = "") -> bytes:
    """Return the bytes of a file whose seal holds; one of an older version, without any, is there to its end.

    Args:
        remedy: what the user may do about a file that is damaged.

    Raises:
        DamagedError: the seal does not hold, or there is none and the file was cut off.
        InputError: the file cannot be read.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(path, "a file that can be read", error.strerror or str(error)) from None
    if (fault := fault_in(content, path.suffix)) is not None:
        raise damaged(path, fault, remedy)
    return content


def fault_in(content: bytes, suffix: str) -> str | None:
    """Return what speaks against a file's bytes; None where the seal in them holds, or where there is none and all
    that the format says is there."""
    if not content:
        return "no bytes"
    start = content.rfind(SEAL.encode())
    if start < 0:
        return fault_without_seal(content, suffix)
    start += len(SEAL)
    rest = hashlib.sha256(content[:start] + b"0" * 64 + content[start + 64 :]).hexdigest()
    return None if content[start : start + 64] == rest.encode() else "bytes that its checksum does not fit"


def fault_without_seal(content: bytes, suffix: str) -> str | None:
    """Return what a file that was cut off lacks of its format, which the suffix names; others may end anywhere."""
    try:
        if suffix == ".json":
            json.loads(content)
        elif suffix == ".npy":
            return fault_in_npy(content)
    except Exception as error:  # a damaged header of .npy is parsed as Python
        return f"no {suffix[1:].upper()}: {first_line(error)}"
    if suffix == ".parquet" and not (content.startswith(PARQUET) and content[len(PARQUET) :].endswith(PARQUET)):
        return f"no Parquet to its end, which is {PARQUET.decode()}"
    return None


def fault_in_npy(content: bytes) -> str | None:
    """Return what is wrong with the length of an .npy; numbers are all that stands behind its header.

    Raises:
        Exception: of any kind, where the header is none.
    """
    from numpy.lib import format as npy

    file = io.BytesIO(content)
    read_header = npy.read_array_header_1_0 if npy.read_magic(file) == (1, 0) else npy.read_array_header_2_0
    shape, _, dtype = read_header(file)
    expected = math.prod(shape) * dtype.itemsize
    found = len(content) - file.tell()
    return None if found == expected else f"{found} bytes behind its header, which says {expected}"


def is_sealed(path: Path) -> bool:
    """Tell whether a file has a seal, which need not hold."""
    return SEAL.encode() in path.read_bytes()


def is_whole(path: Path) -> bool:
    """Tell whether a file is there and neither a seal nor its end speaks against it."""
    try:
        return fault_in(path.read_bytes(), path.suffix) is None
    except OSError:
        return False


def damaged(path: Path, found: str, remedy: str = "") -> DamagedError:
    return DamagedError(path, "a whole file" + (f" ({remedy})" if remedy else ""), found)


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write a JSON object under a seal; as every file here, whole or not at all."""
    write_atomic(path, json_bytes(value))


def json_bytes(value: dict[str, Any]) -> bytes:
    """Return the bytes of a JSON object under a seal."""
    return sealed((to_json(value | {KEY: BLANK}, indent=2) + "\n").encode())


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
