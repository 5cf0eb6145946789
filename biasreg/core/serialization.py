"""Strict JSON for records, atomic files, and hashes."""

import hashlib
import json
import math
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from biasreg.core.codec import MismatchError, decode, encode
from biasreg.core.errors import RecordError, format_faults

Record = TypeVar("Record")

_HASH_CHUNK_BYTES = 1 << 20


def to_json(record: Any) -> Any:
    """Turn a record into plain JSON data (dict, list, str, int, float, bool, None).

    Args:
        record: A dataclass instance, or a nesting of dicts with string keys, tuples, lists and primitives.

    Raises:
        RecordError: A number is not finite, a key is no string, or a type has no JSON form.
    """
    try:
        return encode(record, "")
    except MismatchError as fault:
        path, message = fault.faults[0]
        raise RecordError(f"{path or type(record).__name__}: {message}") from None


def from_json(cls: type[Record], data: Any, where: str = "JSON") -> Record:
    """Build a record from plain JSON data, strictly.

    Args:
        cls: A dataclass, or any annotation made of nested dataclasses, int, float, bool, str, None, unions, `Literal`,
            tuples, lists, and dicts with string keys.
        data: What `json.load` gives.
        where: Named in messages, usually the file.

    Raises:
        RecordError: Unknown or missing fields, wrong types, or numbers that are not finite; the message starts with
            `where`, and has one line with the path of the field for each fault.
    """
    try:
        result: Record = decode(cls, data, "")
    except MismatchError as mismatch:
        faults = [f"{path}: {message}" if path else message for path, message in mismatch.faults]
        raise RecordError(format_faults(where, faults)) from None
    return result


def write_record(path: Path | str, record: Any) -> None:
    """Write a record as indented JSON, atomically."""
    write_json(path, to_json(record))


def read_record(path: Path | str, cls: type[Record]) -> Record:
    """Read a record written by `write_record`.

    Raises:
        RecordError: The file is missing, is not JSON, or does not fit the record.
    """
    return from_json(cls, read_json(path), where=str(path))


def content_hash(record: Any) -> str:
    """Return the SHA-256 (hex) of the record's canonical JSON: sorted keys, no white space."""
    text = json.dumps(to_json(record), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def write_json(path: Path | str, data: Any) -> None:
    """Write plain data as indented JSON in UTF-8, atomically.

    Raises:
        RecordError: A number is not finite, or something has no JSON form.
    """
    text = json.dumps(to_json(data), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    with atomic_write(path) as temporary:
        # A lone surrogate (a file name that is not UTF-8) becomes \udcXX, which is its JSON escape.
        temporary.write_bytes(text.encode("utf-8", errors="backslashreplace"))


def read_json(path: Path | str) -> Any:
    """Read plain JSON data.

    Raises:
        RecordError: The file is missing or unreadable, is not JSON, has NaN or infinite numbers, or names a key twice.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
        return json.loads(
            text, parse_constant=_refuse_constant, parse_float=_parse_float, object_pairs_hook=_refuse_doubled_keys
        )
    except FileNotFoundError:
        raise RecordError(f"{path}: there is no such file") from None
    except PermissionError:
        raise RecordError(f"{path}: permission denied; allow yourself to read it (chmod u+r)") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RecordError(f"{path}: cannot be read: {error}") from error
    except json.JSONDecodeError as error:
        raise RecordError(
            f"{path}: not valid JSON at line {error.lineno}, column {error.colno}: {error.msg}; correct the file there"
        ) from error
    except MismatchError as mismatch:
        raise RecordError(f"{path}: {mismatch.faults[0][1]}") from None
    except (RecursionError, ValueError) as error:  # nested thousands deep, or a number of thousands of digits
        raise RecordError(f"{path}: is no JSON that can be read: {error}") from None


@contextmanager
def atomic_write(path: Path | str) -> Iterator[Path]:
    """Give a temporary path that becomes `path` only if the block ends without an error.

    The temporary file lies in the same folder (made if it is missing), starts with a dot, and has the same ending. It
    is fsynced and renamed on success and removed on any error, so that a reader never sees half a file.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.parent / f".{secrets.token_hex(4)}-{target.name}"
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(target)
    except OSError as error:
        error.filename = error.filename or str(target)  # what a full disk raises names no file
        raise
    finally:
        temporary.unlink(missing_ok=True)


def file_hash(path: Path | str) -> str:
    """Return the SHA-256 (hex) of a file's bytes."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while chunk := file.read(_HASH_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _refuse_constant(text: str) -> float:
    raise MismatchError(("", f"expected finite numbers, got {text}"))


def _parse_float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise MismatchError(("", f"expected finite numbers, got {text}"))
    return value


def _refuse_doubled_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise MismatchError(("", f'the key "{key}" stands twice in one object; keep one of them'))
        result[key] = value
    return result
