"""The steps before training, as functions of the same meaning as the commands."""

import logging
import shutil
from collections.abc import Iterator
from concurrent.futures import Executor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from biasreg.core.dataset import SPLITS, Dataset, read_dataset, scan_cases
from biasreg.core.dataset_json import DATASET_FILE
from biasreg.core.errors import ImageError, InputError, PlansError
from biasreg.core.image_io import read_geometry
from biasreg.core.parallel import memory_per_case_gib, number_of_workers, process_executor
from biasreg.core.paths import Roots, check_writable, find_dataset
from biasreg.core.serialization import atomic_write, content_hash, write_record
from biasreg.core.verification import verify_dataset
from biasreg.planning.consistency import check_configuration
from biasreg.planning.encoder_rules import EncoderChoice
from biasreg.planning.files import SPLITS_FILE, command_line, configuration_of, read_dataset_plans
from biasreg.planning.fingerprint import extract_fingerprint as extract_facts
from biasreg.planning.fingerprint_records import Fingerprint
from biasreg.planning.overrides import apply_changes, keep_user_configurations, lost_changes
from biasreg.planning.planner import Target
from biasreg.planning.planner import plan_experiment as decide
from biasreg.planning.plans import DEFAULT_PLANS_NAME, Plans
from biasreg.planning.voco import installed_encoders
from biasreg.preprocessing.alignment_scores import measure_alignment
from biasreg.preprocessing.dataset_records import (
    FINGERPRINT_CACHE,
    FINGERPRINT_FILE,
    check_belongs,
    check_plans_name,
    current_fingerprint,
    current_plans,
    read_fingerprint,
    settle_folds,
    write_folds,
)
from biasreg.preprocessing.plan_report import report_plans, report_unused
from biasreg.preprocessing.preprocess import preprocess_dataset
from biasreg.preprocessing.pseudo_labels import PseudoLabelOptions, make_pseudo_labels, report_use
from biasreg.preprocessing.reference_choice import choose_reference
from biasreg.preprocessing.storage import clear_folder, configuration_folder

logger = logging.getLogger(__name__)

WRITING_ADVICE = "get the permission, or give another root with --preprocessed"


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
        target_spacing: Voxel size in mm along x, y, z to plan with; None for what the rules give.
        encoder: Encoder to plan with; `auto` for what the rules give.
        changes: Values of the plans that the user sets, each as `training.epochs=200`.
        configuration: Configuration to preprocess; None for the plans' default.
        pseudo_labels: Have TotalSegmentator make the labels that are missing first, as `make_pseudo_labels` does.
    """

    device: Literal["cpu", "cuda"]
    memory_gib: float
    plans_name: str = DEFAULT_PLANS_NAME
    verify: bool = True
    clean: bool = False
    num_workers: int | None = None
    target_spacing: tuple[float, float, float] | None = None
    encoder: EncoderChoice = "auto"
    changes: tuple[str, ...] = ()
    configuration: str | None = None
    pseudo_labels: bool = False

    def __post_init__(self) -> None:
        if self.target_spacing is not None and not all(0 < side < float("inf") for side in self.target_spacing):
            raise InputError(f"target spacing {self.target_spacing} mm · give three numbers above 0")


def plan_and_preprocess(
    roots: Roots, reference: str, options: PrepareOptions, executor: Executor | None = None
) -> Plans:
    """Take a raw dataset all the way to cases that can be trained on.

    Args:
        roots: Root folders.
        reference: Dataset id or name.
        options: How to run.
        executor: Where cases are worked on; processes of this machine when None.

    Returns:
        The plans.

    Raises:
        BiasregError: As the three steps do.
    """
    check_plans_name(options.plans_name)
    dataset, folder = _open(roots, reference)
    if options.pseudo_labels:
        make_pseudo_labels(roots, reference, PseudoLabelOptions(keep_others=True))
    with _case_executor(dataset, options, executor) as shared:
        if options.verify:
            _verify(dataset, shared)
        settle_folds(folder / SPLITS_FILE, dataset)  # refuses what cannot be trained before the facts take their time
        extract_fingerprint(roots, reference, replace(options, verify=False), shared)
        plans = plan_experiment(roots, reference, options)
        preprocess(roots, reference, options, shared)
    return plans


def extract_fingerprint(
    roots: Roots, reference: str, options: PrepareOptions, executor: Executor | None = None
) -> Fingerprint:
    """Verify a raw dataset and state the facts about it.

    A fingerprint is kept if neither the raw files nor what `dataset.json` says of them have changed.

    Args:
        roots: Root folders.
        reference: Dataset id or name.
        options: How to run.
        executor: Where cases are read; processes of this machine when None.

    Returns:
        The fingerprint, also written to the dataset's preprocessed folder.

    Raises:
        DatasetError: If the dataset has faults; all of them are named.
        InputError: If the dataset's preprocessed folder cannot be written to.
    """
    dataset, folder = _open(roots, reference)
    report_use(dataset)
    path = folder / FINGERPRINT_FILE
    with _case_executor(dataset, options, executor) as shared:
        if options.verify:
            _verify(dataset, shared)
        known = None if options.clean else current_fingerprint(path, dataset, shared)
        if known is not None:
            logger.info("fingerprint kept: the raw files have not changed (%s)", path)
            return known
        cache = folder / FINGERPRINT_CACHE
        if options.clean and cache.is_dir():
            shutil.rmtree(cache)
        fingerprint = extract_facts(dataset, measure_alignment, shared, cache, choose_reference)
    write_record(path, fingerprint)
    return fingerprint


def plan_experiment(roots: Roots, reference: str, options: PrepareOptions) -> Plans:
    """Make the plans of a dataset from its fingerprint, and its folds.

    Folds that are there and still fit the cases are kept, so that a user may choose them; so are configurations that a
    user has added to plans of this name.

    Args:
        roots: Root folders.
        reference: Dataset id or name.
        options: How to run.

    Returns:
        The plans, also written to the dataset's preprocessed folder.

    Raises:
        PlansError: If there is no fingerprint, it does not belong to the dataset, the name of the plans is unusable, or
            the encoder that is asked for cannot be had.
        DatasetError: If the dataset cannot be split into folds that each hold a pair to train on.
        InputError: If the dataset's preprocessed folder cannot be written to.
    """
    check_plans_name(options.plans_name)
    dataset, folder = _open(roots, reference)
    fingerprint = _read_own_fingerprint(folder, dataset, reference, options)
    folds = settle_folds(folder / SPLITS_FILE, dataset)
    installed = tuple(installed_encoders(roots.results))
    target = Target(
        options.device, options.memory_gib, options.plans_name, options.target_spacing, installed, options.encoder
    )
    plans = decide(fingerprint, dataset.json, target)
    earlier = current_plans(folder / f"{options.plans_name}.json")
    if earlier is not None:
        plans = keep_user_configurations(plans, earlier)
    plans = apply_changes(plans, options.changes)
    lost = lost_changes(plans, earlier) if earlier is not None else ()
    if lost:
        logger.warning("planned anew without what was set before: %s; give it again with --set", ", ".join(lost))
    with atomic_write(folder / DATASET_FILE) as temporary:
        shutil.copyfile(dataset.folder / DATASET_FILE, temporary)
    write_record(folder / f"{options.plans_name}.json", plans)
    write_folds(folder / SPLITS_FILE, folds)
    report_plans(plans)
    return plans


def preprocess(roots: Roots, reference: str, options: PrepareOptions, executor: Executor | None = None) -> Path:
    """Preprocess the training cases of a dataset for one configuration of its plans.

    Args:
        roots: Root folders.
        reference: Dataset id or name.
        options: How to run.
        executor: Where cases are preprocessed; processes of this machine when None.

    Returns:
        Folder of the preprocessed cases.

    Raises:
        PlansError: If fingerprint or plans are missing, do not belong together, or raw files have changed since.
        InputError: If the folder of the cases cannot be written to.
        BiasregError: If a case cannot be read or stored.
    """
    dataset, dataset_folder = _open(roots, reference)
    fingerprint = _read_own_fingerprint(dataset_folder, dataset, reference, options)
    plans = read_dataset_plans(dataset_folder, options.plans_name, reference)
    if plans.fingerprint_hash != content_hash(fingerprint):
        raise PlansError(
            f"the plans follow another fingerprint than the one at hand · {dataset_folder} · "
            f"run `{command_line('biasreg_plan_experiment', reference, options.plans_name)}`"
        )
    name = options.configuration or plans.default_configuration
    check_configuration(name, configuration_of(plans, name, dataset_folder))
    folder = configuration_folder(dataset_folder, plans.plans_name, name)
    check_writable(folder, WRITING_ADVICE)
    report_unused(dataset_folder, plans)
    if options.clean:
        clear_folder(folder)
    preprocessing = plans.configurations[name].preprocessing
    remedy = f"run `{command_line('biasreg_plan_and_preprocess', reference, plans.plans_name)}`"
    with _case_executor(dataset, options, executor) as shared:
        preprocess_dataset(dataset, fingerprint, preprocessing, folder, shared, remedy)
    logger.info("preprocessed cases are in %s", folder)
    return folder


def _open(roots: Roots, reference: str) -> tuple[Dataset, Path]:
    """Read what a raw dataset is, and find its preprocessed folder, which must be one that can be written to."""
    dataset = read_dataset(find_dataset(reference, roots.raw))
    folder = roots.preprocessed / dataset.full_name
    check_writable(folder, WRITING_ADVICE)
    return dataset, folder


def _verify(dataset: Dataset, executor: Executor) -> None:
    verify_dataset(dataset, executor)
    training, held_out = (len(dataset.cases(split)) for split in SPLITS)
    logger.info("%s: no faults found in %d training and %d held-out cases", dataset.full_name, training, held_out)


def _read_own_fingerprint(folder: Path, dataset: Dataset, reference: str, options: PrepareOptions) -> Fingerprint:
    """Read the fingerprint of a dataset, unless the dataset has changed since."""
    path = folder / FINGERPRINT_FILE
    extract = f"run `{command_line('biasreg_extract_fingerprint', reference)}`"
    fingerprint = read_fingerprint(path, extract)
    again = command_line("biasreg_plan_experiment", reference, options.plans_name)
    check_belongs(fingerprint, dataset, path, f"{extract}, then `{again}`")
    return fingerprint


@contextmanager
def _case_executor(dataset: Dataset, options: PrepareOptions, executor: Executor | None) -> Iterator[Executor]:
    """Pass on an executor, or start one of this machine's processes and end it."""
    if executor is not None:
        yield executor
        return
    voxels = _largest_image_voxels(dataset) * len(dataset.json.channel_names)
    with process_executor(number_of_workers(options.num_workers, memory_per_case_gib(voxels))) as own:
        yield own


def _largest_image_voxels(dataset: Dataset) -> int:
    """Size of the largest image; what cannot be read counts nothing, so that verification reports all such faults."""
    sizes = [0]
    for case in scan_cases(dataset.folder, dataset.json, "Tr")[0]:
        with suppress(ImageError):
            sizes.append(int(np.prod(read_geometry(case.images[0]).shape)))
    return max(sizes)
