"""From raw cases to arrays on the canonical grid; the same functions serve training and prediction."""

import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from biasreg.core.dataset import Case, Dataset
from biasreg.core.errors import DatasetError, PlansError
from biasreg.core.geometry import Geometry, mask_box
from biasreg.core.image_io import Image, read_channels, read_labels
from biasreg.core.parallel import map_cases
from biasreg.core.serialization import read_json, to_json, write_record
from biasreg.planning.data_ranges import DataRanges, data_ranges
from biasreg.planning.files import RANGES_FILE
from biasreg.planning.fingerprint import source_hash
from biasreg.planning.fingerprint_records import Fingerprint
from biasreg.planning.foreground import foreground_mask
from biasreg.planning.plans import PreprocessingPlans
from biasreg.planning.shared_centers import shared_centers
from biasreg.preprocessing.case_frames import case_frame, is_complete
from biasreg.preprocessing.disk_use import check_room, remove_half_written
from biasreg.preprocessing.frames import build_reference, reference_source, store_reference
from biasreg.preprocessing.normalization import normalize
from biasreg.preprocessing.prealign import joins_centers_only
from biasreg.preprocessing.resampling import field_of_view, labels_to_canonical, to_canonical
from biasreg.preprocessing.storage import (
    EXCLUDED,
    INSIDE,
    OUTSIDE,
    STAMP_FILE,
    StoredCase,
    clear_folder,
    damaged_arrays,
    is_stamped,
    read_stored_case,
    write_case,
    write_stamp,
)

logger = logging.getLogger(__name__)

# Anatomy outside the grid beyond this fraction is reported, by case or by pair: the network does not see it.
OUTSIDE_NOTICE = 0.01


class CanonicalImage(NamedTuple):
    """An image on the canonical grid.

    Attributes:
        image: (C, X, Y, Z) float32 in [0, 1]; 0 outside the image's field of view.
        mask: (X, Y, Z) bool, true inside the field of view.
        foreground_outside: Fraction of the anatomy that lies outside the grid.
        extent_mm: Sides of the world-aligned box around the anatomy.
        blank: Per channel, whether normalisation leaves nothing to tell one voxel of the image from another.
    """

    image: np.ndarray
    mask: np.ndarray
    foreground_outside: float
    extent_mm: tuple[float, float, float]
    blank: tuple[bool, ...]


def canonical_grid(plans: PreprocessingPlans) -> Geometry:
    """Build the canonical grid: RAS axes, centre at the origin.

    Args:
        plans: The preprocessing plans.

    Returns:
        The grid.
    """
    return Geometry.centered(plans.patch_size, plans.spacing)


def canonical_image(channels: Sequence[Image], frame: np.ndarray, plans: PreprocessingPlans) -> CanonicalImage:
    """Normalise an image and sample it on the canonical grid.

    Args:
        channels: One image per channel, all on one grid.
        frame: (4, 4) canonical mm → world RAS mm of the image.
        plans: The preprocessing plans.

    Returns:
        The image on the canonical grid.
    """
    grid, geometry = canonical_grid(plans), channels[0].geometry
    foreground = foreground_mask(channels[0].array, plans.modality)
    normalized = [
        normalize(channel.array, foreground, plan) for channel, plan in zip(channels, plans.normalization, strict=True)
    ]
    return CanonicalImage(
        image=np.stack([to_canonical(array, geometry, grid, frame, fill=0.0) for array in normalized]),
        mask=field_of_view(geometry, grid, frame),
        foreground_outside=_fraction_outside(foreground, geometry, grid, frame),
        extent_mm=mask_box(geometry, foreground)[1],
        blank=tuple(bool(array.min() == array.max()) for array in normalized),
    )


def preprocess_dataset(
    dataset: Dataset,
    fingerprint: Fingerprint,
    plans: PreprocessingPlans,
    folder: Path,
    executor: Executor,
    remedy: str = "run `biasreg_plan_and_preprocess` again",
) -> None:
    """Preprocess all training cases of a dataset into a folder.

    Complete cases are kept if their arrays are whole and their raw files have not changed; a folder made with other
    plans, or aligned to another reference image, is made anew.

    Args:
        dataset: The raw dataset.
        fingerprint: Its fingerprint.
        plans: The preprocessing plans.
        folder: Where the cases go.
        executor: Where they are made.
        remedy: What to do when raw files have changed since the fingerprint was taken, for the message.

    Raises:
        BiasregError: If a case cannot be read or stored; it is named, and those that are complete stay.
        PlansError: If raw files have changed since the fingerprint was taken, or the folder holds files that were not
            made here.
        InputError: If the disk has no room for the cases; none is written then.
    """
    cases = {case.identifier: case for case in dataset.cases("Tr")}
    _check_names(cases)
    hashes = map_cases(source_hash, {name: (case,) for name, case in cases.items()}, executor, "looking for changes")
    _check_unchanged(hashes, fingerprint, f"{dataset.folder} · {remedy}")
    _open_folder(folder, plans, cases)
    _write_ranges(folder / RANGES_FILE, data_ranges(fingerprint, plans))
    centers = shared_centers(fingerprint, dataset.json.pairing)
    known = {name: (case, centers[name], plans, folder) for name, case in cases.items()}
    looked_at = {name: (*arguments, hashes[name]) for name, arguments in known.items()}
    complete = map_cases(is_complete, looked_at, executor, "looking at what is there")
    pending = {name: known[name] for name, case in cases.items() if not _all_complete(case, complete)}
    if len(pending) < len(cases):
        logger.info("%d of %d cases are already preprocessed", len(cases) - len(pending), len(cases))
    for name in pending:
        for path in damaged_arrays(folder, name):
            logger.warning("case %s is preprocessed anew, for an array of it is cut off or damaged: %s", name, path)
    remove_half_written(folder)
    check_room(folder, {name: cases[name] for name in pending}, plans)
    for follows in (False, True):  # the frame of a case may follow from that of another one
        part = {name: arguments for name, arguments in pending.items() if bool(cases[name].given) == follows}
        map_cases(preprocess_case, part, executor, "preprocessing")
    for name, case in cases.items():
        _report(case, read_stored_case(folder, name, "run `biasreg_preprocess` again"), plans)


def preprocess_case(case: Case, shared_center: Sequence[float], plans: PreprocessingPlans, folder: Path) -> StoredCase:
    """Preprocess one case and store it.

    Args:
        case: The case.
        shared_center: World point (RAS mm) that becomes the canonical origin when pre-alignment is `none`.
        plans: The preprocessing plans.
        folder: Where it goes; holds the reference when cases are aligned by an affine map, and the case that the user's
            transforms start from, if they say where this one lies.

    Returns:
        The stored record.
    """
    channels = read_channels(case.images)
    frame = case_frame(case, channels[0], shared_center, plans, folder)
    canonical = canonical_image(channels, frame, plans)
    mask, grid = np.where(canonical.mask, INSIDE, OUTSIDE), canonical_grid(plans)
    if case.mask is not None:
        user_mask = read_labels(case.mask)
        compared = labels_to_canonical(user_mask.array > 0, user_mask.geometry, grid, frame, (1,)) > 0
        mask[canonical.mask & ~compared] = EXCLUDED
    classes, outside = None, canonical.foreground_outside if plans.crop == "anatomy" else 0.0
    if case.labels is not None:
        labels = read_labels(case.labels)
        classes = labels_to_canonical(labels.array, labels.geometry, grid, frame, plans.label_values)
        shown = np.isin(labels.array, plans.label_values)
        if plans.crop == "labels" and shown.any():
            outside = _fraction_outside(shown, labels.geometry, grid, frame)
    present = () if classes is None else tuple(int(value) for value in np.unique(classes) if value > 0)
    record = StoredCase(
        identifier=case.identifier,
        subject=case.subject,
        modality=case.modality,
        annotated=classes is not None,
        label_presence=present,
        frame=tuple((float(a), float(b), float(c), float(d)) for a, b, c, d in frame),
        geometry=channels[0].geometry,
        foreground_outside=outside,
        source_hash=source_hash(case),
    )
    write_case(folder, record, canonical.image, mask, classes)
    return record


def _check_names(cases: Mapping[str, Case]) -> None:
    """Refuse cases whose files would overwrite those of another case."""
    for name in cases:
        stem = name.removesuffix("_seg").removesuffix("_mask")
        if f"{name}.json" in (STAMP_FILE, RANGES_FILE) or (stem != name and stem in cases):
            raise DatasetError(f"case {name}: its preprocessed files would have the name of others · rename the case")


def _check_unchanged(hashes: Mapping[str, str], fingerprint: Fingerprint, advice: str) -> None:
    """Refuse raw files other than those that the plans follow from."""
    planned = {case.identifier: case.source_hash for case in fingerprint.cases}
    changed = [name for name, found in hashes.items() if found != planned.get(name)]
    if changed:
        raise PlansError(f"raw files have changed since they were planned for (cases {', '.join(changed)}) · {advice}")


def _open_folder(folder: Path, plans: PreprocessingPlans, cases: Mapping[str, Case]) -> None:
    """Make the folder ready: empty if it was made with other plans, with its stamp and the reference image."""
    if plans.reference_case and plans.reference_case not in cases:
        raise PlansError(
            f"the plans align cases to {plans.reference_case}, which the dataset does not hold · {folder} · correct "
            "reference_case in the plans, or run `biasreg_plan_experiment` again"
        )
    case = cases[plans.reference_case] if plans.reference_case else None
    reference = build_reference(plans, case) if case else None  # before anything is deleted: it may fail
    made_of = reference_source(plans, case) if case else None
    if not is_stamped(folder, plans, made_of):
        if (folder / STAMP_FILE).is_file():
            logger.info("the plans have changed: preprocessing anew in %s", folder)
        clear_folder(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_stamp(folder, plans, made_of)
    if reference:
        store_reference(folder, plans, reference)


def _write_ranges(path: Path, ranges: DataRanges) -> None:
    """Write what the images are like, unless it stands there already."""
    if not path.is_file() or read_json(path) != to_json(ranges):
        write_record(path, ranges)


def _all_complete(case: Case, complete: Mapping[str, bool]) -> bool:
    """Tell whether a case is complete, and the one that its frame follows from too."""
    return complete[case.identifier] and (case.given is None or complete[case.given.anchor])


def _fraction_outside(foreground: np.ndarray, geometry: Geometry, grid: Geometry, frame: np.ndarray) -> float:
    seen = field_of_view(grid, geometry, np.linalg.inv(frame))
    return float(np.count_nonzero(foreground & ~seen) / np.count_nonzero(foreground))


def _report(case: Case, record: StoredCase, plans: PreprocessingPlans) -> None:
    """Name a case that a user should look at."""
    if record.foreground_outside > OUTSIDE_NOTICE:
        share = 100 * record.foreground_outside
        logger.warning("case %s: %.1f %% of the %s lies outside the grid", record.identifier, share, plans.crop)
    registered = plans.reference_case not in (None, case.identifier) and case.given is None
    if registered and joins_centers_only(np.array(record.frame)):
        logger.warning("case %s: affine registration did not get beyond its start; look at it", record.identifier)
