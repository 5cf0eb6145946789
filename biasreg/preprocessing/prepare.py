"""The steps before training, as functions of the same meaning as the commands."""

import logging
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from biasreg.core.dataset import Dataset, read_dataset
from biasreg.core.errors import DatasetError, ImageError, PlansError
from biasreg.core.image_io import read_geometry
from biasreg.core.parallel import memory_per_case_gib, number_of_workers, process_executor
from biasreg.core.paths import Roots, find_dataset
from biasreg.core.serialization import content_hash, read_json, read_record, to_json, write_json, write_record
from biasreg.core.verification import verify_dataset
from biasreg.planning.fingerprint import FINGERPRINT_SCHEMA_VERSION, Fingerprint, source_hash
from biasreg.planning.fingerprint import extract_fingerprint as extract_facts
from biasreg.planning.planner import Target
from biasreg.planning.planner import plan_experiment as decide
from biasreg.planning.plans import DEFAULT_PLANS_NAME, PLANS_SCHEMA_VERSION, Plans
from biasreg.planning.splits import make_splits
from biasreg.preprocessing.prealign import measure_alignment
from biasreg.preprocessing.preprocess import preprocess_dataset
from biasreg.preprocessing.storage import configuration_folder

logger = logging.getLogger(__name__)

FINGERPRINT_FILE = "dataset_fingerprint.json"
SPLITS_FILE = "splits_final.json"
DATASET_FILE = "dataset.json"


@dataclass(frozen=True)
class PrepareOptions:
    """How the steps before training are run.

    Attributes:
        device: Device that will train.
        memory_gib: Its memory in GiB.
        plans_name: Name of the plans.
        verify: Check the raw dataset first.
        clean: Extract the fingerprint and preprocess anew even where results exist.
        num_workers: Processes; None for as many as cores and memory allow.
    """

    device: Literal["cpu", "cuda"]
    memory_gib: float
    plans_name: str = DEFAULT_PLANS_NAME
    verify: bool = True
    clean: bool = False
    num_workers: int | None = None


def plan_and_preprocess(roots: Roots, reference: str, options: PrepareOptions) -> Plans:
    """Take a raw dataset all the way to cases that can be trained on.

    Args:
        roots: Root folders.
        reference: Dataset id or name.
        options: How to run.

    Returns:
        The plans.
    """
    extract_fingerprint(roots, reference, options)
    plans = plan_experiment(roots, reference, options)
    preprocess(roots, reference, options)
    return plans


def extract_fingerprint(roots: Roots, reference: str, options: PrepareOptions) -> Fingerprint:
    """Verify a raw dataset and state the facts about it.

    A fingerprint whose raw files have not changed is kept.

    Args:
        roots: Root folders.
        reference: Dataset id or name.
        options: How to run.

    Returns:
        The fingerprint, also written to the dataset's preprocessed folder.

    Raises:
        DatasetError: If the dataset has faults; all of them are named.
    """
    dataset = read_dataset(find_dataset(reference, roots.raw))
    folder = roots.preprocessed / dataset.full_name
    path = folder / FINGERPRINT_FILE
    with process_executor(_workers(dataset, options)) as executor:
        if options.verify:
            verify_dataset(dataset, executor)
            logger.info("%s: no faults found in %d cases", dataset.full_name, len(dataset.cases("Tr")))
        if path.is_file() and not options.clean:
            known = _current_fingerprint(path, dataset)
            if known is not None:
                logger.info("fingerprint kept: the raw files have not changed (%s)", path)
                return known
        fingerprint = extract_facts(dataset, measure_alignment, executor)
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(dataset.folder / DATASET_FILE, folder / DATASET_FILE)
    write_record(path, fingerprint)
    return fingerprint


def plan_experiment(roots: Roots, reference: str, options: PrepareOptions) -> Plans:
    """Make the plans and the folds of a dataset from its fingerprint.

    Args:
        roots: Root folders.
        reference: Dataset id or name.
        options: How to run.

    Returns:
        The plans, also written to the dataset's preprocessed folder.

    Raises:
        PlansError: If there is no fingerprint.
    """
    dataset = read_dataset(find_dataset(reference, roots.raw))
    folder = roots.preprocessed / dataset.full_name
    fingerprint = read_fingerprint(folder, reference)
    plans = decide(fingerprint, dataset.json, Target(options.device, options.memory_gib, options.plans_name))
    write_record(folder / f"{options.plans_name}.json", plans)
    splits = make_splits({case.identifier: case.subject for case in fingerprint.cases})
    write_json(folder / SPLITS_FILE, [to_json(fold) for fold in splits])
    for topic, reason in plans.why.items():
        logger.info("%s: %s", topic, reason)
    chosen = plans.configurations[plans.default_configuration].preprocessing
    logger.info("%s: grid %s at %s mm", plans.default_configuration, chosen.patch_size, chosen.spacing)
    return plans


def preprocess(roots: Roots, reference: str, options: PrepareOptions) -> Path:
    """Preprocess the training cases of a dataset for the default configuration of its plans.

    Args:
        roots: Root folders.
        reference: Dataset id or name.
        options: How to run.

    Returns:
        Folder of the preprocessed cases.

    Raises:
        PlansError: If fingerprint or plans are missing, or do not belong together.
    """
    dataset = read_dataset(find_dataset(reference, roots.raw))
    dataset_folder = roots.preprocessed / dataset.full_name
    fingerprint = read_fingerprint(dataset_folder, reference)
    plans = read_plans(dataset_folder, options.plans_name, reference)
    if plans.fingerprint_hash != content_hash(fingerprint):
        raise PlansError(
            f"the plans follow another fingerprint than the one at hand · {dataset_folder} · "
            f"run `biasreg_plan_experiment -d {reference}`"
        )
    name = plans.default_configuration
    folder = configuration_folder(dataset_folder, plans.plans_name, name)
    if options.clean and folder.exists():
        shutil.rmtree(folder)
    with process_executor(_workers(dataset, options)) as executor:
        preprocess_dataset(dataset, fingerprint, plans.configurations[name].preprocessing, folder, executor)
    logger.info("preprocessed cases are in %s", folder)
    return folder


def read_fingerprint(folder: Path, reference: str) -> Fingerprint:
    """Read the fingerprint of a dataset.

    Args:
        folder: The dataset's preprocessed folder.
        reference: Dataset id or name, for the message.

    Returns:
        The fingerprint.

    Raises:
        PlansError: If there is none, or one of another version.
    """
    path = folder / FINGERPRINT_FILE
    if not path.is_file():
        raise PlansError(f"no fingerprint · {path} · run `biasreg_extract_fingerprint -d {reference}`")
    _check_schema(path, FINGERPRINT_SCHEMA_VERSION, f"biasreg_extract_fingerprint -d {reference}")
    return read_record(path, Fingerprint)


def read_plans(folder: Path, plans_name: str, reference: str) -> Plans:
    """Read the plans of a dataset.

    Args:
        folder: The dataset's preprocessed folder.
        plans_name: Name of the plans.
        reference: Dataset id or name, for the message.

    Returns:
        The plans.

    Raises:
        PlansError: If there are none, or ones of another version.
    """
    path = folder / f"{plans_name}.json"
    if not path.is_file():
        raise PlansError(f"no plans · {path} · run `biasreg_plan_and_preprocess -d {reference}`")
    _check_schema(path, PLANS_SCHEMA_VERSION, f"biasreg_plan_and_preprocess -d {reference}")
    return read_record(path, Plans)


def _check_schema(path: Path, version: int, command: str) -> None:
    found = read_json(path).get("schema_version")
    if found != version:
        raise PlansError(f"written by another version (schema {found}, not {version}) · {path} · run `{command}`")


def _current_fingerprint(path: Path, dataset: Dataset) -> Fingerprint | None:
    if read_json(path).get("schema_version") != FINGERPRINT_SCHEMA_VERSION:
        return None
    fingerprint = read_record(path, Fingerprint)
    hashes = {case.identifier: case.source_hash for case in fingerprint.cases}
    return fingerprint if hashes == {case.identifier: source_hash(case) for case in dataset.cases("Tr")} else None


def _workers(dataset: Dataset, options: PrepareOptions) -> int:
    voxels = _largest_image_voxels(dataset) * len(dataset.json.channel_names)
    return number_of_workers(options.num_workers, memory_per_case_gib(voxels))


def _largest_image_voxels(dataset: Dataset) -> int:
    """Size of the largest image; what cannot be read counts nothing, so that verification reports all such faults."""
    sizes = [0]
    with suppress(DatasetError):
        for case in dataset.cases("Tr"):
            with suppress(ImageError):
                sizes.append(int(np.prod(read_geometry(case.images[0]).shape)))
    return max(sizes)
