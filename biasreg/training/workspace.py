"""The folders of a training run: what it reads from the preprocessed data, and what its model folder holds."""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from biasreg.core.errors import DatasetError, InputError, PlansError
from biasreg.core.paths import Roots, find_dataset
from biasreg.core.serialization import atomic_write, from_json, read_json, to_json
from biasreg.network.checkpoint import BEST, LATEST
from biasreg.planning.plans import PLANS_SCHEMA_VERSION, Configuration, Plans
from biasreg.planning.splits import Fold
from biasreg.preprocessing.storage import (
    REFERENCE_FILE,
    check_stamp,
    configuration_folder,
    read_stored_case,
)
from biasreg.training.sampling import Pair, PairSampler, select_pairs
from biasreg.training.validation import HeldOut

FoldName = int | Literal["all"]

PLANS_FILE = "plans.json"
DATASET_FILE = "dataset.json"
SPLITS_FILE = "splits_final.json"


@dataclass(frozen=True)
class Workspace:
    """What a run works on and where its results go.

    Attributes:
        dataset_folder: The dataset's preprocessed folder.
        plans: The plans.
        configuration_name: Which of their configurations is trained.
        cases_folder: Preprocessed cases of that configuration.
        model_folder: Folder of the model, which holds a folder per fold.
        command: The command that makes the preprocessed data, for messages.
    """

    dataset_folder: Path
    plans: Plans
    configuration_name: str
    cases_folder: Path
    model_folder: Path
    command: str

    @property
    def configuration(self) -> Configuration:
        """The configuration that is trained."""
        return self.plans.configurations[self.configuration_name]

    def fold_folder(self, fold: FoldName) -> Path:
        """Folder of a fold's results."""
        return self.model_folder / f"fold_{fold}"


class FoldData(NamedTuple):
    """What a fold trains on and is measured on.

    Attributes:
        fold: Its cases.
        annotated: Whether each of them has labels.
        sampler: Draws pairs of training cases.
        validation: Pairs that are scored after an epoch.
        held_out: What training has not seen of them.
    """

    fold: Fold
    annotated: dict[str, bool]
    sampler: PairSampler
    validation: tuple[Pair, ...]
    held_out: HeldOut


@dataclass(frozen=True)
class _ListedPair:
    """An entry of `pairs` in dataset.json."""

    moving: str
    fixed: str


def open_workspace(roots: Roots, dataset: str, plans_name: str, configuration: str | None) -> Workspace:
    """Find the preprocessed data of a dataset and check that they belong to its plans.

    Args:
        roots: Root folders; the raw one is not looked at.
        dataset: Dataset id or name.
        plans_name: Name of the plans.
        configuration: Name of the configuration; None for the plans' default.

    Returns:
        The workspace. Nothing is written.

    Raises:
        DatasetError: If there are no preprocessed data.
        PlansError: If plans or configuration are missing, or the cases were made with other plans.
    """
    command = f"biasreg_plan_and_preprocess -d {dataset}"
    try:
        folder = find_dataset(dataset, roots.preprocessed)
    except DatasetError as error:
        raise DatasetError(f"{error} · it is not preprocessed; run `{command}`") from error
    plans = _read_plans(folder, plans_name, command)
    name = configuration or plans.default_configuration
    if name not in plans.configurations:
        known = ", ".join(plans.configurations)
        raise PlansError(f"no configuration '{name}' in {folder / plans_name}.json · there is: {known}")
    cases_folder = configuration_folder(folder, plans_name, name)
    check_stamp(cases_folder, plans.configurations[name].preprocessing, command)
    return Workspace(
        dataset_folder=folder,
        plans=plans,
        configuration_name=name,
        cases_folder=cases_folder,
        model_folder=roots.results / plans.dataset_name / f"{plans_name}__{name}",
        command=command,
    )


def read_fold(workspace: Workspace, fold: FoldName) -> Fold:
    """Read which cases a fold trains on and which it holds back; fold `all` holds nothing back.

    Raises:
        InputError: If there is no such fold.
        PlansError: If the splits are missing.
    """
    path = workspace.dataset_folder / SPLITS_FILE
    if not path.is_file():
        raise PlansError(f"no folds · {path} · run `{workspace.command}`")
    folds = from_json(tuple[Fold, ...], read_json(path), where=str(path))
    if fold == "all":
        return Fold(
            train=tuple(sorted({case for each in folds for case in each.train + each.validation})), validation=()
        )
    if not 0 <= fold < len(folds):
        raise InputError(f"no fold {fold} in {path} · there are folds 0 to {len(folds) - 1}, and 'all'")
    return folds[fold]


def read_fold_data(workspace: Workspace, fold: FoldName) -> FoldData:
    """Read what a fold trains on, and choose the pairs that it is measured on.

    Args:
        workspace: The workspace.
        fold: Fold number, or `all`.

    Returns:
        The fold's cases and pairs.

    Raises:
        InputError: If there is no such fold.
        PlansError: If the splits or a case are missing.
        DatasetError: If the training cases hold no pair.
    """
    cases = read_fold(workspace, fold)
    records = {name: read_stored_case(workspace.cases_folder, name) for name in cases.train + cases.validation}
    subjects = {name: record.subject for name, record in records.items()}
    _check_leakage(cases, subjects, workspace.dataset_folder / SPLITS_FILE)
    pairing, listed = workspace.plans.pairing, _read_listed_pairs(workspace)
    sampler = PairSampler({name: subjects[name] for name in cases.train}, pairing, listed)
    validation, held_out = choose_validation(
        cases,
        lambda names: PairSampler({name: subjects[name] for name in names}, pairing, listed),
        workspace.configuration.training.validation_pairs,
    )
    annotated = {name: record.annotated for name, record in records.items()}
    return FoldData(cases, annotated, sampler, validation, held_out)


def _check_leakage(fold: Fold, subjects: Mapping[str, str], path: Path) -> None:
    shared = {subjects[case] for case in fold.train} & {subjects[case] for case in fold.validation}
    if shared:
        raise PlansError(
            f"subject(s) {', '.join(sorted(shared))} are in training and in validation of one fold · {path} · keep all "
            "cases of a subject on one side, or delete the file and plan again"
        )


def choose_validation(
    fold: Fold, make_sampler: Callable[[tuple[str, ...]], PairSampler], count: int
) -> tuple[tuple[Pair, ...], HeldOut]:
    """Choose the pairs that a run is measured on, as far from its training data as the fold allows.

    Args:
        fold: The fold.
        make_sampler: Makes the sampler of the pairs among some cases; raises DatasetError when they hold none.
        count: At most this many pairs.

    Returns:
        Pairs of two held-out cases (`both`); where there are none, pairs of a training case onto a held-out one (`fixed
        only`); where there are none either, training pairs (`none`).
    """
    options: tuple[tuple[HeldOut, tuple[str, ...], tuple[str, ...] | None], ...] = (
        ("both", fold.validation, None),
        ("fixed only", fold.train + fold.validation, fold.validation),
        ("none", fold.train, None),
    )
    for held_out, names, fixed_cases in options:
        try:
            pairs = select_pairs(make_sampler(names), count, fixed_cases)
        except DatasetError:
            continue
        if pairs:
            return pairs, held_out
    return (), "none"


def publish(workspace: Workspace, fold: FoldName) -> None:
    """Copy what prediction needs into the model folder: plans, dataset.json, and the reference case if there is one.

    Args:
        workspace: The workspace.
        fold: The fold about to be trained.

    Raises:
        PlansError: If the model folder holds folds that were trained with another configuration.
    """
    target = workspace.model_folder / PLANS_FILE
    if target.is_file() and not _same_configuration(target, workspace):
        own = workspace.fold_folder(fold)
        others = [path.parent.name for name in (LATEST, BEST) for path in workspace.model_folder.glob(f"fold_*/{name}")]
        if foreign := sorted({name for name in others if name != own.name}):
            raise PlansError(
                f"{', '.join(foreign)} of this model were trained with another configuration than the plans at hand · "
                f"{target} · plan under another name (-p), or move {workspace.model_folder} away"
            )
    _copy(workspace.dataset_folder / f"{workspace.plans.plans_name}.json", target)
    _copy(workspace.dataset_folder / DATASET_FILE, workspace.model_folder / DATASET_FILE)
    if (workspace.cases_folder / REFERENCE_FILE).is_file():
        _copy(workspace.cases_folder / REFERENCE_FILE, workspace.model_folder / REFERENCE_FILE)


def _read_plans(folder: Path, plans_name: str, command: str) -> Plans:
    path = folder / f"{plans_name}.json"
    if not path.is_file():
        raise PlansError(f"no plans '{plans_name}' · {path} · run `{command}`")
    data = read_json(path)
    found = data.get("schema_version") if isinstance(data, dict) else None
    if found != PLANS_SCHEMA_VERSION:
        raise PlansError(
            f"the plans have schema version {found}, this biasreg reads version {PLANS_SCHEMA_VERSION} · {path} · plan "
            f"again: `{command}`"
        )
    return from_json(Plans, data, where=str(path))


def _read_listed_pairs(workspace: Workspace) -> tuple[Pair, ...]:
    if workspace.plans.pairing != "listed":
        return ()
    path = workspace.dataset_folder / DATASET_FILE
    pairs = from_json(tuple[_ListedPair, ...], read_json(path).get("pairs", []), where=f"{path}: pairs")
    return tuple((pair.moving, pair.fixed) for pair in pairs)


def _same_configuration(path: Path, workspace: Workspace) -> bool:
    configurations = read_json(path).get("configurations", {})
    return bool(configurations.get(workspace.configuration_name) == to_json(workspace.configuration))


def _copy(source: Path, target: Path) -> None:
    with atomic_write(target) as temporary:
        shutil.copyfile(source, temporary)
