"""Pairs of images to register or to evaluate, in any of the forms that users have them in."""

import logging
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from biasreg.core.dataset import SPLITS, Case, read_dataset
from biasreg.core.dataset_json import DATASET_FILE
from biasreg.core.errors import DatasetError, RecordError, format_faults
from biasreg.core.image_io import VOLUME_ENDINGS
from biasreg.core.pair_lists import ListedPair, read_csv_list, read_json_list
from biasreg.core.pair_names import POINTS_ENDING, is_image_or_points, match_name
from biasreg.core.transform_io import LINEAR_ENDINGS

logger = logging.getLogger(__name__)

LIST_NAMES = ("pairs.json", "pairs.csv")
FURTHER_FIELDS = r"_(inverse|level\d+)"
"""Between a pair's name and `_warp.nii.gz`, in the names of the fields that it may have besides its own."""

RESERVED_NAMES = ("summary", "scores")
"""Files of an evaluation are called so; they may lie in the folder of the predictions."""

_FORMS = (
    "use <pair>_moving.nii.gz with <pair>_fixed.nii.gz, a sub-folder per pair with moving.nii.gz and fixed.nii.gz,"
    " a pairs.json or pairs.csv, or a raw dataset with test_pairs"
)
_NAMES_SHOWN = 12
# Of files that are named in a warning if they belong to no pair; texts may be notes.
_NOTICED_ENDINGS = (*VOLUME_ENDINGS, POINTS_ENDING, *(set(LINEAR_ENDINGS) - {".txt"}))

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
        initial: A linear ITK transform of the user's that replaces the pre-alignment.
    """

    identifier: str
    moving: tuple[Path, ...]
    fixed: tuple[Path, ...]
    moving_seg: Path | None
    fixed_seg: Path | None
    moving_points: Path | None
    fixed_points: Path | None
    fixed_mask: Path | None = None
    initial: Path | None = None


@dataclass(frozen=True)
class FoundPairs:
    """What a folder or a list of pairs holds.

    Attributes:
        pairs: The complete pairs, with different identifiers.
        faults: What is wrong with each pair that is not complete, by its identifier.
    """

    pairs: tuple[PairFiles, ...]
    faults: dict[str, str]


@dataclass
class _SortedFiles:
    """The files of a folder by pair, the faults of their names, and the files that belong to no pair."""

    groups: defaultdict[str, _Files] = field(
        default_factory=lambda: defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    )
    faults: defaultdict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    unused: list[Path] = field(default_factory=list)


# In the order of the fields of PairFiles.
_OPTIONAL_ROLES = ("moving_seg", "fixed_seg", "moving_points", "fixed_points", "fixed_mask", "initial")


def read_pairs(source: Path | str) -> FoundPairs:
    """Find the pairs that a folder or a file means.

    Args:
        source: A folder with `<pair>_moving[_0000].nii.gz` and `<pair>_fixed[_0000].nii.gz`; a folder with a sub-folder
            per pair; `pairs.json` or `pairs.csv`, or the folder that holds one; or a raw dataset, whose `test_pairs`
            are taken.

    Returns:
        The complete pairs, at least one, and the faults of the others.

    Raises:
        DatasetError: There is no complete pair, two have the same name, or a list or dataset cannot be read.
    """
    path = Path(source)
    if path.is_file():
        found = _read_list(path)
    elif not path.is_dir():
        raise DatasetError(f"{path}: there is no such file or folder; give the pairs to register")
    elif (path / DATASET_FILE).is_file():
        found = _read_test_pairs(path)
    else:
        lists = [path / name for name in LIST_NAMES if (path / name).is_file()]
        if len(lists) > 1:
            raise DatasetError(f"{path}: holds both pairs.json and pairs.csv; keep one, or name the one that counts")
        found = _read_list(lists[0]) if lists else _read_folder(path)
    if not found.pairs:
        raise DatasetError(format_faults(path, (f"pair {name}: {fault}" for name, fault in found.faults.items())))
    return found


def _read_folder(folder: Path) -> FoundPairs:
    items = _visible(folder)
    files = _SortedFiles()
    for item in items:
        for file in _visible(item) if item.is_dir() else [item]:
            _sort_file(file, item.name if item.is_dir() else None, files)
    if not files.groups:
        seen = ", ".join(item.name for item in items[:_NAMES_SHOWN]) or "nothing"
        more = f" and {len(items) - _NAMES_SHOWN} more" if len(items) > _NAMES_SHOWN else ""
        raise DatasetError(f"{folder}: holds no pair (seen: {seen}{more}); {_FORMS}")
    if files.unused:
        names = ", ".join(str(file.relative_to(folder)) for file in files.unused)
        logger.warning("%s: belong to no pair and are not used: %s", folder, names)
    for name in _folders_without_images(items, files.groups):
        files.faults[name].append("its folder holds no image; put moving and fixed there, or remove the folder")
    for name, group in files.groups.items():
        files.faults[name] += _group_faults(group)
    complete = [name for name in sorted(files.groups) if not files.faults[name]]
    return _divide((_pair_of_group(name, files.groups[name]) for name in complete), files.faults)


def _sort_file(file: Path, pair: str | None, files: _SortedFiles) -> None:
    """Put a file where it belongs; `pair` is the name of its folder, None in a flat folder."""
    match = match_name(file.name, inside=pair is not None)
    if match is None:
        files.unused += [file] if file.name.lower().endswith(_NOTICED_ENDINGS) else []
        return
    name, role = pair or match["pair"], match["role"].lower()
    if role != match["role"]:
        files.faults[name].append(f"{file.name}: '{match['role']}' must be written '{role}'; rename the file")
    files.groups[name][role][int(match["channel"] or 0)].append(file)


def _folders_without_images(items: Sequence[Path], groups: Mapping[str, _Files]) -> list[str]:
    """Find sub-folders that should be pairs: those without any image, where others are pairs."""
    folders = [item for item in items if item.is_dir()]
    if not any(item.name in groups for item in folders):
        return []
    return [item.name for item in folders if not any(is_image_or_points(file.name) for file in _visible(item))]


def _divide(pairs: Iterable[PairFiles], faults: Mapping[str, Sequence[str]]) -> FoundPairs:
    """Put complete pairs and faults together; pairs whose name is taken are faulty too."""
    pairs, complete = list(pairs), []
    names = {pair.identifier for pair in pairs}
    reasons = {name: "; ".join(lines) for name, lines in sorted(faults.items()) if lines}
    for pair in pairs:
        if pair.identifier.lower() in RESERVED_NAMES:
            reasons[pair.identifier] = "summary and scores are the names of an evaluation's files; rename the pair"
        elif (other := re.sub(f"{FURTHER_FIELDS}$", "", pair.identifier)) != pair.identifier and other in names:
            reasons[pair.identifier] = f"pair {other} also writes {pair.identifier}_warp.nii.gz; rename one of them"
        else:
            complete.append(pair)
    return FoundPairs(tuple(complete), reasons)


def _visible(folder: Path) -> list[Path]:
    return [item for item in sorted(folder.iterdir()) if not item.name.startswith(".")]


def _group_faults(files: _Files) -> list[str]:
    faults = []
    for role, other in (("moving", "fixed"), ("fixed", "moving")):
        if role not in files:
            seen = ", ".join(sorted(path.name for paths in files.values() for path in _flat(paths)))
            faults.append(f"there is no {role} image (seen: {seen}); add it beside the {other} one")
    for role, channels in files.items():
        for paths in channels.values():
            if len(paths) > 1:
                names = " and ".join(path.name for path in paths)
                faults.append(f"{names} are the same file of the pair ({role}); keep one")
        if sorted(channels) != list(range(len(channels))):
            names = ", ".join(path.name for path in _flat(channels))
            faults.append(f"channels of {role} must be numbered _0000, _0001, … without gaps, got {names}")
        if role in _OPTIONAL_ROLES and len(channels) > 1:
            faults.append(f"{role} must be one file, got {len(channels)}")
    return faults or _channel_faults(len(files["moving"]), len(files["fixed"]))


def _channel_faults(moving: int, fixed: int) -> list[str]:
    if moving == fixed:
        return []
    return [f"moving has {moving} channels and fixed {fixed}; give both the same channels"]


def _pair_of_group(name: str, files: _Files) -> PairFiles:
    optional = [files[role][0][0] if role in files else None for role in _OPTIONAL_ROLES]
    return PairFiles(name, tuple(_flat(files["moving"])), tuple(_flat(files["fixed"])), *optional)


def _flat(channels: dict[int, list[Path]]) -> list[Path]:
    return [path for number in sorted(channels) for path in channels[number]]


def _read_list(path: Path) -> FoundPairs:
    readers = {".json": read_json_list, ".csv": read_csv_list}
    read = readers.get(path.suffix.lower())
    if read is None:
        raise DatasetError(f"{path}: a list of pairs is a .json or .csv file; {_FORMS}")
    try:
        entries = read(path)
    except RecordError as error:
        raise DatasetError(str(error)) from error
    if not entries:
        raise DatasetError(f"{path}: lists no pair; add entries with moving and fixed")
    pairs = [_pair_of_entry(entry, path.parent) for entry in entries]
    _check_doubled(path, pairs)
    faults = {pair.identifier: _listed_faults(pair) for pair in pairs}
    return _divide((pair for pair in pairs if not faults[pair.identifier]), faults)


def _check_doubled(path: Path, pairs: Iterable[PairFiles]) -> None:
    doubled = [name for name, count in Counter(pair.identifier for pair in pairs).items() if count > 1]
    if doubled:
        raise DatasetError(f"{path}: pairs named twice: {', '.join(doubled)}; give each pair its own name (id)")


def _pair_of_entry(entry: ListedPair, folder: Path) -> PairFiles:
    moving, fixed = (tuple(folder / name for name in names) for names in (entry.moving_files, entry.fixed_files))
    optional = [folder / name if (name := getattr(entry, role)) else None for role in _OPTIONAL_ROLES]
    return PairFiles(entry.identifier, moving, fixed, *optional)


def _listed_faults(pair: PairFiles) -> list[str]:
    faults = []
    if not re.fullmatch(r"[^/\\]+", pair.identifier):
        faults.append("the id names files, so it must not be empty or hold / or \\")
    if not pair.moving or not pair.fixed:
        faults.append("moving and fixed must each name at least one file")
    files: Iterable[Path | None] = (*pair.moving, *pair.fixed, *(getattr(pair, role) for role in _OPTIONAL_ROLES))
    faults += [f"there is no file {file}; correct the path" for file in files if file and not file.is_file()]
    return faults + _channel_faults(len(pair.moving), len(pair.fixed))


def _read_test_pairs(folder: Path) -> FoundPairs:
    dataset = read_dataset(folder)
    if not dataset.json.test_pairs:
        raise DatasetError(f"{folder / DATASET_FILE}: lists no test_pairs; add them, or {_FORMS}")
    training, held_out = ({case.identifier: case for case in dataset.cases(split)} for split in SPLITS)
    cases = training | held_out
    seen = [pair for pair in dataset.json.test_pairs if not {pair.moving, pair.fixed}.isdisjoint(training)]
    if seen:
        names = ", ".join(f"{pair.moving}_to_{pair.fixed}" for pair in seen)
        logger.warning("%s: test pairs with a case of imagesTr, seen in training: %s", folder / DATASET_FILE, names)
    pairs = []
    for pair in dataset.json.test_pairs:
        initial = folder / pair.initial if pair.initial else None
        pairs.append(replace(_pair_of_cases(cases[pair.moving], cases[pair.fixed]), initial=initial))
    _check_doubled(folder / DATASET_FILE, pairs)
    return _divide(pairs, {})


def _pair_of_cases(moving: Case, fixed: Case) -> PairFiles:
    return PairFiles(
        identifier=f"{moving.identifier}_to_{fixed.identifier}",
        moving=moving.images,
        fixed=fixed.images,
        moving_seg=moving.manual_labels,
        fixed_seg=fixed.manual_labels,
        moving_points=moving.landmarks,
        fixed_points=fixed.landmarks,
        fixed_mask=fixed.mask,
    )
