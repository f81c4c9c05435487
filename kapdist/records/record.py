"""What a record is: the contents of one file on disk, frozen; a file that is none is refused in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from kapdist.errors import InputError
from kapdist.records.sealed import read_json

Count = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]


class Record(BaseModel):
    """A file or a part of one; keys that this version does not know are left alone."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    def describe(self) -> dict[str, Any]:
        """Return the record as JSON values."""
        return self.model_dump(mode="json")


class Exact(Record):
    """What decides a result: a key that this version does not know would change its meaning."""

    model_config = ConfigDict(frozen=True, extra="forbid")


AnyRecord = TypeVar("AnyRecord", bound=Record)


def read_record(kind: type[AnyRecord], path: Path, remedy: str = "") -> AnyRecord:
    """Read a JSON file as a record of some kind.

    Args:
        remedy: what the user may do about a file that is damaged or of another version.

    Raises:
        InputError: it is none; names the first field that does not fit.
    """
    values = read_json(path, remedy)
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise invalid(path, error, remedy) from None


def invalid(path: Path, error: ValidationError, remedy: str = "") -> InputError:
    """Return what to say of a file whose values do not fit."""
    first = error.errors()[0]
    key = ".".join(map(str, first["loc"]))
    missing = first["type"] == "missing"
    expected = "a value" if missing else first["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    found = "nothing" if missing else repr(first["input"]) if key else "something else"
    return InputError(f"{path}: {key}" if key else path, f"{expected} ({remedy})" if remedy else expected, found)
