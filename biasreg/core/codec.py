"""Records to plain JSON data and back, by their annotations; `serialization.py` is the way in."""

import dataclasses
import json
import math
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, Union, get_args, get_origin

import numpy as np

from biasreg.core.errors import InputError


class MismatchError(Exception):
    """Values do not fit their annotations; each fault is the path of a field and a message."""

    def __init__(self, *faults: tuple[str, str]) -> None:
        super().__init__(*faults)
        self.faults = faults


def encode(value: Any, path: str) -> Any:
    """Return plain JSON data for a value; `path` names the field in a `MismatchError`."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return _finite(value, path)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: encode(getattr(value, f.name), _join(path, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {_key(key, path): encode(item, _join(path, str(key))) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [encode(item, f"{path}[{index}]") for index, item in enumerate(value)]
    raise MismatchError((path, f"{type(value).__name__} has no JSON form"))


def decode(annotation: Any, value: Any, path: str) -> Any:
    """Return the value that plain JSON data means under an annotation; `path` names the field in a `MismatchError`."""
    if annotation is Any:
        return value
    if dataclasses.is_dataclass(annotation):
        return _decode_record(annotation, value, path)
    decoder = _DECODERS.get(get_origin(annotation) or annotation)
    if decoder is None:
        raise TypeError(f"{path}: annotation {annotation!r} has no JSON form")
    return decoder(annotation, value, path)


def _decode_record(cls: Any, value: Any, path: str) -> Any:
    if not isinstance(value, dict):
        raise _mismatch(cls, value, path)
    annotations = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}
    unknown, missing = sorted(set(value) - set(fields)), [name for name in fields if name not in value]
    faults = [
        (_join(path, name), f"unknown field; remove or rename it (known: {', '.join(fields)})") for name in unknown
    ]
    faults += [(_join(path, name), "this field is missing; add it") for name in missing if _is_required(fields[name])]
    given = {name: item for name, item in value.items() if name in fields}
    decoded = _decode_all(((annotations[name], item, _join(path, name)) for name, item in given.items()), faults)
    try:
        return cls(**dict(zip(given, decoded, strict=True)))
    except InputError as error:
        raise MismatchError((path, str(error))) from error


def _decode_all(items: Iterable[tuple[Any, Any, str]], faults: Iterable[tuple[str, str]] = ()) -> list[Any]:
    """Decode values by annotation and path; the faults of all of them, and those known before, come as one error."""
    decoded, found = [], list(faults)
    for annotation, value, path in items:
        try:
            decoded.append(decode(annotation, value, path))
        except MismatchError as error:
            found += error.faults
    if found:
        raise MismatchError(*found)
    return decoded


def _decode_plain(annotation: Any, value: Any, path: str) -> Any:
    expected = type(None) if annotation is None else annotation
    if type(value) is not expected:
        raise _mismatch(annotation, value, path)
    return value


def _decode_float(annotation: Any, value: Any, path: str) -> float:
    if type(value) not in (int, float):
        raise _mismatch(annotation, value, path)
    try:
        return _finite(float(value), path)
    except OverflowError:
        raise MismatchError((path, f"expected a finite number, got one beyond its range: {_short(value)}")) from None


def _decode_literal(annotation: Any, value: Any, path: str) -> Any:
    for choice in get_args(annotation):
        if type(choice) is type(value) and choice == value:
            return choice
    raise _mismatch(annotation, value, path)


def _decode_union(annotation: Any, value: Any, path: str) -> Any:
    members = [member for member in get_args(annotation) if member is not type(None)]
    if value is None and len(members) < len(get_args(annotation)):
        return None
    if len(members) == 1:
        return decode(members[0], value, path)
    for member in members:
        try:
            return decode(member, value, path)
        except MismatchError:
            continue
    raise _mismatch(annotation, value, path)


def _decode_tuple(annotation: Any, value: Any, path: str) -> tuple[Any, ...]:
    members = get_args(annotation)
    if not isinstance(value, (list, tuple)):
        raise _mismatch(annotation, value, path)
    if len(members) == 2 and members[1] is Ellipsis:
        members = (members[0],) * len(value)
    if len(members) != len(value):
        raise MismatchError((path, f"expected {len(members)} values, got {len(value)}: {_short(value)}"))
    pairs = zip(members, value, strict=True)
    return tuple(_decode_all((member, item, f"{path}[{index}]") for index, (member, item) in enumerate(pairs)))


def _decode_list(annotation: Any, value: Any, path: str) -> list[Any]:
    if not isinstance(value, (list, tuple)):
        raise _mismatch(annotation, value, path)
    (member,) = get_args(annotation)
    return _decode_all((member, item, f"{path}[{index}]") for index, item in enumerate(value))


def _decode_dict(annotation: Any, value: Any, path: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _mismatch(annotation, value, path)
    _, member = get_args(annotation)
    keys = [_key(key, path) for key in value]
    decoded = _decode_all((member, item, _join(path, key)) for key, item in zip(keys, value.values(), strict=True))
    return dict(zip(keys, decoded, strict=True))


_DECODERS: dict[Any, Callable[[Any, Any, str], Any]] = {
    int: _decode_plain,
    bool: _decode_plain,
    str: _decode_plain,
    type(None): _decode_plain,
    None: _decode_plain,
    float: _decode_float,
    Literal: _decode_literal,
    Union: _decode_union,
    types.UnionType: _decode_union,
    tuple: _decode_tuple,
    list: _decode_list,
    dict: _decode_dict,
}

_WORDS: dict[Any, str] = {
    int: "a whole number",
    bool: "true or false",
    str: "text",
    type(None): "null",
    None: "null",
    float: "a number",
    tuple: "a list",
    list: "a list",
    dict: "an object",
}


def _is_required(field: "dataclasses.Field[Any]") -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _finite(value: float, path: str) -> float:
    if not math.isfinite(value):
        raise MismatchError((path, f"expected a finite number, got {value}"))
    return value


def _key(key: Any, path: str) -> str:
    if not isinstance(key, str):
        raise MismatchError((path, f"expected text as key, got {_short(key)}"))
    return key


def _mismatch(annotation: Any, value: Any, path: str) -> MismatchError:
    return MismatchError((path, f"expected {_in_words(annotation)}, got {_short(value)}"))


def _in_words(annotation: Any) -> str:
    """Say in JSON's words, not Python's, what an annotation takes."""
    if dataclasses.is_dataclass(annotation):
        return f"an object with the fields {', '.join(field.name for field in dataclasses.fields(annotation))}"
    kind, members = get_origin(annotation) or annotation, get_args(annotation)
    if kind is Literal:
        return f"one of {', '.join(_short(choice) for choice in members)}"
    if kind in (Union, types.UnionType):
        return " or ".join(_in_words(member) for member in members)
    return _WORDS[kind]


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=repr)
    return text if len(text) <= 80 else text[:77] + "..."


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
