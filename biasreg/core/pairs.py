"""Pairs of images to register or to evaluate, in any of the forms that users have them in."""

import csv
import logging
import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path

from biasreg.core.dataset import Case, format_faults, read_dataset
from biasreg.core.errors import DatasetError, ImageError, RecordError
from biasreg.core.image_io import IMAGE_ENDINGS, strip_ending
from biasreg.core.serialization import from_json, read_json

logger = logging.getLogger(__name__)

LIST_NAMES = ("pairs.json", "pairs.csv")
CHANNEL_SEPARATOR = ";"
"""Separates the files of several channels in one cell of `pairs.csv`."""

_FORMS = (
    "use <pair>_moving.nii.gz with <pair>_fixed.nii.gz, a sub-folder per pair with moving.nii.gz and fixed.nii.gz,"
    " a pairs.json or pairs.csv, or a raw dataset with test_pairs"
)
_ROLE = r"(?P<role>moving_seg|fixed_seg|moving_points|fixed_points|fixed_mask|moving|fixed)"
_FLAT_NAME = re.compile(rf"(?P<pair>.+)_{_ROLE}(_(?P<channel>\d{{4}}))?")
_FOLDER_NAME = re.compile(rf"{_ROLE}(_(?P<channel>\d{{4}}))?")
_FREE_FOLDER_NAME = re.compile(r"(?P<role>moving|fixed)(?!_mask).*?(_(?P<channel>\d{4}))?")
_CHANNEL_SUFFIX = re.compile(r"_\d{4}$")
_NAMES_SHOWN = 12

_Files = dict[str, dict[int, list[Path]]]
"""Files of one pair, by role and channel."""


@dataclass(frozen=True)
class PairFiles:
    """The files of one pair.

    Attributes:
        identifier: Name of the pair; names its outputs.
        moving: One file per channel.
        fixed: One file per channel.
        moving_seg: Label map of the moving image.
        fixed_seg: Label map of the fixed image.
        moving_points: Named points of the moving image.
        fixed_points: Named points of the fixed image.
        fixed_mask: Where the similarity counts.
    """

    identifier: str
    moving: tuple[Path, ...]
    fixed: tuple[Path, ...]
    moving_seg: Path | None
    fixed_seg: Path | None
    moving_points: Path | None
    fixed_points: Path | None
    fixed_mask: Path | None = None


@dataclass(frozen=True)
class _ListedPair:
    """One entry of `pairs.json` or `pairs.csv`; paths are relative to that file."""

    moving: str | tuple[str, ...]
    fixed: str | tuple[str, ...]
    id: str | None = None
    moving_seg: str | None = None
    fixed_seg: str | None = None
    moving_points: str | None = None
    fixed_points: str | None = None
    fixed_mask: str | None = None


# In the order of the fields of PairFiles.
_OPTIONAL_ROLES = ("moving_seg", "fixed_seg", "moving_points", "fixed_points", "fixed_mask")


def read_pairs(source: Path | str) -> tuple[PairFiles, ...]:
    """Find the pairs that a folder or a file means.

    Args:
        source: A folder with `<pair>_moving[_0000].nii.gz` and `<pair>_fixed[_0000].nii.gz`; a folder with a sub-folder
            per pair; `pairs.json` or `pairs.csv`, or the folder that holds one; or a raw dataset, whose `test_pairs`
            are taken.

    Returns:
        The pairs, at least one, with different identifiers.

    Raises:
        DatasetError: There is no pair, half a pair, a doubled pair or file, or a listed file is missing.
    """
    path = Path(source)
    if path.is_file():
        pairs = _read_list(path)
    elif not path.is_dir():
        raise DatasetError(f"{path}: there is no such file or folder; give the pairs to register")
    elif (path / "dataset.json").is_file():
        pairs = _read_test_pairs(path)
    else:
        lists = [path / name for name in LIST_NAMES if (path / name).is_file()]
        if len(lists) > 1:
            raise DatasetError(f"{path}: holds both pairs.json and pairs.csv; keep one, or name the one that counts")
        pairs = _read_list(lists[0]) if lists else _read_folder(path)
    doubled = [name for name, count in Counter(pair.identifier for pair in pairs).items() if count > 1]
    if doubled:
        raise DatasetError(f"{path}: pairs named twice: {', '.join(doubled)}; give each pair its own name (id)")
    return pairs


def _read_folder(folder: Path) -> tuple[PairFiles, ...]:
    groups: dict[str, _Files] = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    unused: list[str] = []
    items = _visible(folder)
    for item in items:
        members = _visible(item) if item.is_dir() else [item]
        for file in members:
            match = _match_name(file.name, inside=item.is_dir())
            if match is None:
                unused += [str(file.relative_to(folder))] if _ending(file.name) else []
                continue
            pair = item.name if item.is_dir() else match["pair"]
            groups[pair][match["role"]][int(match["channel"] or 0)].append(file)
    if not groups:
        seen = ", ".join(item.name for item in items[:_NAMES_SHOWN]) or "nothing"
        more = f" and {len(items) - _NAMES_SHOWN} more" if len(items) > _NAMES_SHOWN else ""
        raise DatasetError(f"{folder}: holds no pair (seen: {seen}{more}); {_FORMS}")
    faults = [fault for name in sorted(groups) for fault in _group_faults(name, groups[name])]
    if faults:
        raise DatasetError(format_faults(folder, faults))
    if unused:
        logger.warning("%s: belong to no pair and are not used: %s", folder, ", ".join(unused))
    return tuple(_pair_of_group(name, groups[name]) for name in sorted(groups))


def _visible(folder: Path) -> list[Path]:
    return [item for item in sorted(folder.iterdir()) if not item.name.startswith(".")]


def _match_name(name: str, *, inside: bool) -> re.Match[str] | None:
    """Read pair, role and channel from a file's name; `inside` a pair's own folder the name has no pair."""
    ending = _ending(name)
    if ending is None:
        return None
    stem = name[: -len(ending)]
    match = (_FOLDER_NAME if inside else _FLAT_NAME).fullmatch(stem)
    if match is None and inside and ending != ".csv":
        match = _FREE_FOLDER_NAME.fullmatch(stem)
    if match is None or match["role"].endswith("_points") != (ending == ".csv"):
        return None
    return match


def _ending(name: str) -> str | None:
    return next((ending for ending in (*IMAGE_ENDINGS, ".csv") if name.lower().endswith(ending)), None)


def _group_faults(name: str, files: _Files) -> list[str]:
    faults = []
    for role, other in (("moving", "fixed"), ("fixed", "moving")):
        if role not in files:
            seen = ", ".join(sorted(path.name for paths in files.values() for path in _flat(paths)))
            faults.append(f"pair {name}: there is no {role} image (seen: {seen}); add it beside the {other} one")
    for role, channels in files.items():
        for paths in channels.values():
            if len(paths) > 1:
                names = " and ".join(path.name for path in paths)
                faults.append(f"pair {name}: {names} are the same file of the pair ({role}); keep one")
        if sorted(channels) != list(range(len(channels))):
            names = ", ".join(path.name for path in _flat(channels))
            faults.append(f"pair {name}: channels of {role} must be numbered _0000, _0001, … without gaps, got {names}")
        if role in _OPTIONAL_ROLES and len(channels) > 1:
            faults.append(f"pair {name}: {role} must be one file, got {len(channels)}")
    return faults or _channel_faults(name, len(files["moving"]), len(files["fixed"]))


def _channel_faults(name: str, moving: int, fixed: int) -> list[str]:
    if moving == fixed:
        return []
    return [f"pair {name}: moving has {moving} channels and fixed {fixed}; give both the same channels"]


def _pair_of_group(name: str, files: _Files) -> PairFiles:
    optional = [files[role][0][0] if role in files else None for role in _OPTIONAL_ROLES]
    return PairFiles(name, tuple(_flat(files["moving"])), tuple(_flat(files["fixed"])), *optional)


def _flat(channels: dict[int, list[Path]]) -> list[Path]:
    return [path for number in sorted(channels) for path in channels[number]]


def _read_list(path: Path) -> tuple[PairFiles, ...]:
    if path.suffix.lower() not in {".json", ".csv"}:
        raise DatasetError(f"{path}: a list of pairs is a .json or .csv file; {_FORMS}")
    try:
        entries = _read_json_list(path) if path.suffix.lower() == ".json" else _read_csv_list(path)
    except RecordError as error:
        raise DatasetError(str(error)) from error
    if not entries:
        raise DatasetError(f"{path}: lists no pair; add entries with moving and fixed")
    pairs = [_pair_of_entry(entry, path.parent) for entry in entries]
    faults = [fault for pair in pairs for fault in _listed_faults(pair)]
    if faults:
        raise DatasetError(format_faults(path, faults))
    return tuple(pairs)


def _read_json_list(path: Path) -> list[_ListedPair]:
    return from_json(list[_ListedPair], read_json(path), where=str(path))


def _read_csv_list(path: Path) -> list[_ListedPair]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, restkey="further cells", strict=True)
            rows = [(reader.line_num, row) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise RecordError(f"{path}: cannot be read as CSV: {error}") from error
    known = ", ".join(field.name for field in fields(_ListedPair))
    entries = []
    for line, row in rows:
        if "further cells" in row:
            raise RecordError(f"{path}: line {line}: has more cells than the header; the columns are {known}")
        data: dict[str, str | list[str]] = {key: value.strip() for key, value in row.items() if value and value.strip()}
        for role in ("moving", "fixed"):
            if role in data:
                data[role] = [part.strip() for part in str(data[role]).split(CHANNEL_SEPARATOR)]
        entries.append(from_json(_ListedPair, data, where=f"{path}: line {line}"))
    return entries


def _pair_of_entry(entry: _ListedPair, folder: Path) -> PairFiles:
    moving, fixed = _names(entry.moving), _names(entry.fixed)
    default = "_to_".join(_case_name(names[0]) for names in (moving, fixed) if names)
    optional = [folder / name if (name := getattr(entry, role)) else None for role in _OPTIONAL_ROLES]
    return PairFiles(
        entry.id or default, tuple(folder / name for name in moving), tuple(folder / name for name in fixed), *optional
    )


def _names(value: str | tuple[str, ...]) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else value


def _case_name(file: str) -> str:
    try:
        return _CHANNEL_SUFFIX.sub("", strip_ending(Path(file).name)[0])
    except ImageError:
        return Path(file).stem


def _listed_faults(pair: PairFiles) -> list[str]:
    name = pair.identifier
    faults = []
    if not re.fullmatch(r"[^/\\]+", name):
        faults.append(f"pair {name}: the id names files, so it must not be empty or hold / or \\")
    if not pair.moving or not pair.fixed:
        faults.append(f"pair {name}: moving and fixed must each name at least one file")
    files: Iterable[Path | None] = (*pair.moving, *pair.fixed, *(getattr(pair, role) for role in _OPTIONAL_ROLES))
    faults += [
        f"pair {name}: there is no file {file}; correct the path" for file in files if file and not file.is_file()
    ]
    return faults + _channel_faults(name, len(pair.moving), len(pair.fixed))


def _read_test_pairs(folder: Path) -> tuple[PairFiles, ...]:
    dataset = read_dataset(folder)
    if not dataset.json.test_pairs:
        raise DatasetError(f"{folder / 'dataset.json'}: lists no test_pairs; add them, or {_FORMS}")
    cases = {case.identifier: case for split in ("Tr", "Ts") for case in dataset.cases(split)}
    return tuple(_pair_of_cases(cases[pair.moving], cases[pair.fixed]) for pair in dataset.json.test_pairs)


def _pair_of_cases(moving: Case, fixed: Case) -> PairFiles:
    return PairFiles(
        identifier=f"{moving.identifier}_to_{fixed.identifier}",
        moving=moving.images,
        fixed=fixed.images,
        moving_seg=moving.labels,
        fixed_seg=fixed.labels,
        moving_points=moving.landmarks,
        fixed_points=fixed.landmarks,
        fixed_mask=fixed.mask,
    )
