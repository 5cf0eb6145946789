"""Write synthetic subjects as a raw dataset in biasreg's layout."""

from pathlib import Path

import numpy as np

from biasreg.core.dataset_json import DatasetJson, PairNames
from biasreg.core.errors import DatasetError, InputError
from biasreg.core.image_io import write_image
from biasreg.core.points_io import write_points
from biasreg.core.serialization import write_record
from biasreg.demo.anatomy import LABELS
from biasreg.demo.phantom import PhantomCase, PhantomSettings, case_landmarks, make_case

FILE_ENDING = ".nii.gz"


def make_phantom_dataset(folder: Path, *, settings: PhantomSettings, seed: int) -> Path:
    """Write a synthetic dataset; the same settings and seed give the same voxels.

    Args:
        folder: Folder of raw datasets; made if need be.
        settings: What the dataset holds.
        seed: Seed of everything random, not negative.

    Returns:
        The dataset's own folder, `folder / settings.name`.

    Raises:
        DatasetError: That folder exists and is not empty.
        InputError: Fewer than two test cases, or more test pairs than they can form.
    """
    target = folder / settings.name
    if target.exists() and any(target.iterdir()):
        raise DatasetError(f"{target}: the folder is not empty; delete it, or choose another place")
    heldout_names = heldout_identifiers(settings)
    record = _dataset_json(settings, cyclic_pairs(heldout_names, settings.num_test_pairs))
    for index, name in enumerate(training_identifiers(settings)):
        labelled = index < settings.num_training_cases - settings.num_unlabelled_cases
        _write_case(target, "Tr", name, phantom_case(name, settings=settings, seed=seed), labelled=labelled)
    for name in heldout_names:
        case = phantom_case(name, settings=settings, seed=seed)
        _write_case(target, "Ts", name, case, labelled=True)
        landmarks_folder = target / "landmarksTs"
        landmarks_folder.mkdir(parents=True, exist_ok=True)
        write_points(landmarks_folder / f"{name}.csv", case_landmarks(case))
    write_record(target / "dataset.json", record)  # last: a folder with it is whole
    return target


def training_identifiers(settings: PhantomSettings) -> tuple[str, ...]:
    """Name the training cases.

    Args:
        settings: What the dataset holds.

    Returns:
        Identifiers, in order.
    """
    return tuple(f"demo_{number:03d}" for number in range(1, settings.num_training_cases + 1))


def heldout_identifiers(settings: PhantomSettings) -> tuple[str, ...]:
    """Name the held-out cases.

    Args:
        settings: What the dataset holds.

    Returns:
        Identifiers, in order; none is that of a training case.
    """
    first = settings.num_training_cases + 1
    return tuple(f"demo_{number:03d}" for number in range(first, first + settings.num_test_cases))


def phantom_case(identifier: str, *, settings: PhantomSettings, seed: int) -> PhantomCase:
    """Make the case of a dataset again, with its true map, without reading files.

    Args:
        identifier: One of the training or held-out identifiers.
        settings: What the dataset holds.
        seed: The dataset's seed.

    Returns:
        The case as it was before writing.

    Raises:
        InputError: The dataset has no such case.
    """
    names = training_identifiers(settings) + heldout_identifiers(settings)
    if identifier not in names:
        raise InputError(f"{settings.name}: there is no case {identifier!r}; its cases are {names[0]} to {names[-1]}")
    # Each case has a stream of its own, so that cases do not depend on their number or order.
    return make_case(settings, np.random.default_rng([seed, names.index(identifier)]))


def cyclic_pairs(identifiers: tuple[str, ...], count: int) -> tuple[PairNames, ...]:
    """Pair cases so that each is moving, and fixed, about equally often.

    Args:
        identifiers: The cases, n of them.
        count: Number of pairs, at most n (n − 1).

    Returns:
        Distinct ordered pairs.

    Raises:
        InputError: There are fewer pairs than `count`.
    """
    size = len(identifiers)
    pairs = [
        PairNames(moving=identifiers[index], fixed=identifiers[(index + step) % size])
        for step in range(1, size)
        for index in range(size)
    ]
    if count > len(pairs):
        raise InputError(
            f"phantom settings: {count} test pairs were asked for, but {size} test cases form only {len(pairs)}; "
            "ask for fewer pairs or more test cases"
        )
    return tuple(pairs[:count])


def _dataset_json(settings: PhantomSettings, test_pairs: tuple[PairNames, ...]) -> DatasetJson:
    """Describe the dataset."""
    return DatasetJson(
        name=settings.name.partition("_")[2] or settings.name,
        channel_names={"0": "MRI"},
        labels=dict(LABELS),
        file_ending=FILE_ENDING,
        pairing="inter-subject",
        test_pairs=test_pairs,
        licence="CC0-1.0",
        reference="biasreg's synthetic torso, made by biasreg.demo",
        description="Synthetic MR-like torsos with seven organs; true correspondences are known.",
    )


def _write_case(target: Path, split: str, name: str, case: PhantomCase, *, labelled: bool) -> None:
    """Write a case's image and, if `labelled`, its label map."""
    files = {target / f"images{split}" / f"{name}_0000{FILE_ENDING}": case.image}
    if labelled:
        files[target / f"labels{split}" / f"{name}{FILE_ENDING}"] = case.labels
    for path, array in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_image(path, array, case.geometry)
