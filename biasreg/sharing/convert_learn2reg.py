"""Turns a dataset of the Learn2Reg challenge into a raw dataset of biasreg; the source is never changed."""

import logging
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from tqdm import tqdm

from biasreg.core.dataset import read_dataset
from biasreg.core.dataset_json import DATASET_FILE, DatasetJson, Pairing, PairNames
from biasreg.core.errors import BiasregError, DatasetError
from biasreg.core.image_io import read_labels
from biasreg.core.paths import DATASET_NAME, check_writable
from biasreg.core.points_io import write_points
from biasreg.core.serialization import write_record
from biasreg.sharing.learn2reg_folder import ENDING, Learn2RegFolder, SourcePair, read_learn2reg
from biasreg.sharing.learn2reg_points import read_all_points
from biasreg.sharing.placing import place_file

logger = logging.getLogger(__name__)

TestPairs = Literal["val", "test"]
UNKNOWN_MODALITY = "unknown"


@dataclass(frozen=True)
class ConvertOptions:
    """How a dataset is taken over.

    Attributes:
        name: Name of the dataset; None for its own.
        test_pairs: Which list becomes `test_pairs`: `registration_val` or `registration_test`.
        copy: Copy the files, where hard links would do.
    """

    name: str | None = None
    test_pairs: TestPairs = "val"
    copy: bool = False


def convert_learn2reg(source: Path, raw: Path, number: int, options: ConvertOptions | None = None) -> Path:
    """Make a raw dataset of a Learn2Reg dataset, and say what could not be taken over.

    Cases of the validation and test pairs are held out (`imagesTs`); all others are trained on.

    Args:
        source: Folder with `<Name>_dataset.json`.
        raw: Root of the raw datasets.
        number: Number of the new dataset.
        options: How it is taken over.

    Returns:
        Folder of the new dataset, which appears whole.

    Raises:
        DatasetError: The source is no such dataset, or the number or name is taken or cannot be used.
        InputError: The root of the raw datasets cannot be written to.
    """
    options = options or ConvertOptions()
    found = read_learn2reg(source)
    full_name = _full_name(raw, number, options.name or found.name)
    check_writable(raw, "get the permission, or give another root with --raw")
    raw.mkdir(parents=True, exist_ok=True)
    notices = list(found.notices)
    with tempfile.TemporaryDirectory(prefix=".convert-", dir=raw) as temporary:
        made = Path(temporary) / full_name
        held_out = _held_out(found, notices)
        _place_files(found, made, held_out, notices, copy=options.copy)
        write_record(made / DATASET_FILE, _dataset_json(found, held_out, options, notices))
        read_dataset(made)  # what breaks the format is found now, and not at planning
        made.rename(raw / full_name)
    for notice in notices:
        logger.warning("%s", notice)
    logger.info("%d images, %d of them held out: %s", len(found.images), len(held_out), raw / full_name)
    return raw / full_name


def _full_name(raw: Path, number: int, name: str) -> str:
    full_name = f"Dataset{number:03d}_{re.sub(r'[^A-Za-z0-9_-]+', '', name)}"
    if not DATASET_NAME.fullmatch(full_name):
        raise DatasetError(f"{full_name} is no name of a dataset · give it a number and a name of letters with --name")
    taken = sorted(path.name for path in raw.glob(f"Dataset{number:03d}_*")) if raw.is_dir() else []
    if taken:
        raise DatasetError(f"{raw}: the number {number} is taken by {', '.join(taken)} · choose another with -d")
    return full_name


def _held_out(found: Learn2RegFolder, notices: list[str]) -> set[str]:
    """Find the cases that training must not see: those of validation and test pairs, and what lies in imagesTs."""
    pairs = (*found.pairs["registration_val"], *found.pairs["registration_test"])
    cases = {case for pair in pairs for case in (pair.moving, pair.fixed)}
    cases |= {case for case, image in found.images.items() if image.path.parent.name == "imagesTs"}
    training = set(found.images) - cases
    if not training:
        notices.append("all images are of validation or test pairs: all are trained on, and scores on them say nothing")
        return set()
    subjects = {found.images[case].subject for case in cases}
    seen = sorted({found.images[case].subject for case in training} & subjects)
    if seen:
        notices.append(
            f"{len(seen)} subject(s) have images among those held out and among those trained on, {seen[0]} for one"
        )
    return cases


def _place_files(found: Learn2RegFolder, made: Path, held_out: set[str], notices: list[str], *, copy: bool) -> None:
    """Link or copy images, label maps and masks, and write the points."""
    for case, image in found.images.items():
        place_file(image.path, made / f"images{_split(case, held_out)}" / f"{case}_0000{ENDING}", copy=copy)
    for what in ("labels", "masks"):
        for case, path in found.files(what).items():
            place_file(path, made / f"{what}{_split(case, held_out)}" / path.name, copy=copy)
    for case, points in read_all_points(found, notices).items():
        write_points(made / f"landmarks{_split(case, held_out)}" / f"{case}.csv", points)


def _split(case: str, held_out: set[str]) -> str:
    return "Ts" if case in held_out else "Tr"


def _dataset_json(
    found: Learn2RegFolder, held_out: set[str], options: ConvertOptions, notices: list[str]
) -> DatasetJson:
    modalities = {case: found.modality.get(image.kind, "") for case, image in found.images.items()}
    if "" in modalities.values():
        notices.append(f"the modality of some images is not named; they are called {UNKNOWN_MODALITY}")
        modalities = {case: name or UNKNOWN_MODALITY for case, name in modalities.items()}
    if strange := sorted(name for name in set(modalities.values()) if "CT" in name.upper() and name.upper() != "CT"):
        notices.append(
            f"{', '.join(strange)} is not taken for CT · if its intensities are Hounsfield units, call it CT in "
            "dataset.json"
        )
    kinds = sorted(set(modalities.values()))
    pairing, pairs = _pairing(found, held_out, notices)
    chosen, other = ("registration_val", "registration_test")[:: 1 if options.test_pairs == "val" else -1]
    if found.pairs[other]:
        notices.append(
            f"{len(found.pairs[other])} pair(s) of {other} are not among test_pairs · take them with --test_pairs"
        )
    if not found.pairs[chosen]:
        notices.append(f"{chosen} lists no pair: there are no test_pairs")
    subjects = {case: image.subject for case, image in found.images.items() if image.subject != case}
    return DatasetJson(
        name=options.name or found.name,
        channel_names={"0": found.modality.get("0000", kinds[0])},
        labels=_labels(found, notices),
        file_ending=ENDING,
        pairing=pairing,
        subjects=subjects,
        pairs=_names(pairs),
        modalities=modalities if len(kinds) > 1 else {},
        test_pairs=_names(found.pairs[chosen]),
        **found.texts,
    )


def _pairing(found: Learn2RegFolder, held_out: set[str], notices: list[str]) -> tuple[Pairing, tuple[SourcePair, ...]]:
    """Train on the listed pairs if there are any, else within subjects that have several images, else between them."""
    listed = found.pairs["training_paired_images"]
    pairs = tuple(pair for pair in listed if held_out.isdisjoint((pair.moving, pair.fixed)))
    if len(pairs) < len(listed):
        notices.append(f"{len(listed) - len(pairs)} training pair(s) have a case that is held out; they are left out")
    training = [case for case in found.images if case not in held_out]
    if pairs:
        unpaired = len(set(training) - {case for pair in pairs for case in (pair.moving, pair.fixed)})
        if unpaired:
            notices.append(f"{unpaired} training image(s) are in no training pair: no step of the training draws them")
        return "listed", pairs
    subjects = [found.images[case].subject for case in training]
    return ("intra-subject" if found.paired and len(set(subjects)) < len(subjects) else "inter-subject"), ()


def _labels(found: Learn2RegFolder, notices: list[str]) -> dict[str, int]:
    """Name the values that the label maps hold."""
    values: set[int] = set()
    for path in tqdm(found.files("labels").values(), desc="label maps", disable=None):
        try:
            values |= {int(value) for value in np.unique(read_labels(path).array)}
        except BiasregError as error:
            notices.append(f"a label map cannot be used as it is: {error}")
    values.discard(0)
    if unnamed := sorted(values - set(found.label_names)):
        notices.append(f"labels without a name in the file are called label_<value>: {', '.join(map(str, unnamed))}")
    if absent := sorted(set(found.label_names) - values - {0}):
        notices.append(
            f"labels that no map holds are left out: {', '.join(found.label_names[value] for value in absent)}"
        )
    labels = {"background": 0}
    for value in sorted(values):
        name = found.label_names.get(value, f"label_{value}")
        labels[name if name not in labels else f"{name}_{value}"] = value
    return labels


def _names(pairs: Sequence[SourcePair]) -> tuple[PairNames, ...]:
    return tuple(PairNames(pair.moving, pair.fixed) for pair in pairs)
