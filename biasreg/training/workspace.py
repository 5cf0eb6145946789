"""The folders of a training run: what it reads from the preprocessed data, and what its model folder holds."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

from biasreg.core.dataset_json import DATASET_FILE, PairNames
from biasreg.core.errors import DatasetError, InputError, PlansError
from biasreg.core.geometry import Geometry
from biasreg.core.paths import Roots, find_dataset
from biasreg.core.serialization import from_json, read_json
from biasreg.planning.ablations import ablation_name, add_ablation, whole_name
from biasreg.planning.consistency import check_configuration
from biasreg.planning.fallback import fallbacks
from biasreg.planning.files import (
    SPLITS_FILE,
    command_line,
    configuration_of,
    read_dataset_plans,
    read_folds,
)
from biasreg.planning.pairing import Pair
from biasreg.planning.plans import Configuration, Plans
from biasreg.planning.splits import Fold
from biasreg.preprocessing.storage import (
    check_stamp,
    configuration_folder,
    read_stored_case,
)
from biasreg.training.data import Regrid
from biasreg.training.sampling import PairSampler, select_pairs
from biasreg.training.validation import HeldOut

FoldName = int | Literal["all"]


@dataclass(frozen=True)
class Workspace:
    """What a run works on and where its results go.

    Attributes:
        dataset_folder: The dataset's preprocessed folder.
        plans: The plans.
        configuration_name: Which of their configurations is trained.
        cases_folder: Preprocessed cases of that configuration.
        model_folder: Folder of the model, which holds a folder per fold.
        dataset: Dataset id or name as the user gave it, for messages.
        used: What is trained in place of the planned configuration, where that did not fit the device.
    """

    dataset_folder: Path
    plans: Plans
    configuration_name: str
    cases_folder: Path
    model_folder: Path
    dataset: str
    used: Configuration | None = None

    @property
    def planned(self) -> Configuration:
        """The configuration as it was planned, and preprocessed."""
        return self.plans.configurations[self.configuration_name]

    @property
    def configuration(self) -> Configuration:
        """The configuration that is trained."""
        return self.used or self.planned

    @property
    def published_plans(self) -> Plans:
        """The plans with the configuration that is trained."""
        if self.configuration == self.planned:
            return self.plans
        name = self.configuration_name
        steps = []
        for smaller in fallbacks(self.planned):
            steps.append(smaller.step)
            if smaller.configuration == self.configuration:
                break
        reason = f"the plans did not fit the device that trained; given up: {'; '.join(steps)}"
        return replace(
            self.plans,
            configurations={**self.plans.configurations, name: self.configuration},
            why={**self.plans.why, name: {**self.plans.why.get(name, {}), "fallback": reason}},
        )

    @property
    def results(self) -> Path:
        """Root of the results, which also holds pretrained weights."""
        return self.model_folder.parents[1]

    @property
    def coarser_grid(self) -> Regrid | None:
        """From the grid of the preprocessed cases to the coarser one that is trained on, where they differ."""
        both = (self.planned.preprocessing, self.configuration.preprocessing)
        own, coarse = (Geometry.centered(made.patch_size, made.spacing) for made in both)
        return None if own == coarse else Regrid(own, coarse)

    @property
    def remedy(self) -> str:
        """What makes the preprocessed cases anew, for messages."""
        command = command_line("biasreg_preprocess", self.dataset, self.plans.plans_name)
        name = whole_name(self.configuration_name)
        return f"run `{command}`" if name == self.plans.default_configuration else f"run `{command} -c {name}`"

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


def open_workspace(
    roots: Roots, dataset: str, plans_name: str, configuration: str | None, ablate: Sequence[str] = ()
) -> Workspace:
    """Find the preprocessed data of a dataset and check that they belong to its plans.

    Args:
        roots: Root folders; the raw one is not looked at.
        dataset: Dataset id or name.
        plans_name: Name of the plans.
        configuration: Name of the configuration; None for the plans' default.
        ablate: Parts of the method to go without; the model then has a folder of its own.

    Returns:
        The workspace. Nothing is written.

    Raises:
        InputError: If a part to go without is not known, or not there.
        DatasetError: If there are no preprocessed data.
        PlansError: If plans or configuration are missing, or the cases were made with other plans.
    """
    try:
        folder = find_dataset(dataset, roots.preprocessed)
    except DatasetError as error:
        command = command_line("biasreg_plan_and_preprocess", dataset, plans_name)
        raise DatasetError(f"{error} · it is not preprocessed; run `{command}`") from error
    plans = read_dataset_plans(folder, plans_name, dataset)
    name = whole = configuration or plans.default_configuration
    configuration_of(plans, whole, folder)
    if ablate:
        plans, name = add_ablation(plans, whole, ablate), ablation_name(whole, ablate)
    check_configuration(name, configuration_of(plans, name, folder))
    workspace = Workspace(
        dataset_folder=folder,
        plans=plans,
        configuration_name=name,
        cases_folder=configuration_folder(folder, plans_name, whole),
        model_folder=roots.results / plans.dataset_name / f"{plans_name}__{name}",
        dataset=dataset,
    )
    check_stamp(workspace.cases_folder, workspace.configuration.preprocessing, workspace.remedy)
    return workspace


def read_fold(workspace: Workspace, fold: FoldName) -> Fold:
    """Read which cases a fold trains on and which it holds back; fold `all` holds nothing back.

    Raises:
        InputError: If there is no such fold.
        PlansError: If the splits are missing.
    """
    path = workspace.dataset_folder / SPLITS_FILE
    if not path.is_file():
        command = command_line("biasreg_plan_experiment", workspace.dataset, workspace.plans.plans_name)
        raise PlansError(f"no folds · {path} · run `{command}`")
    folds = read_folds(path)
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
        PlansError: If the splits or a case are missing, or an array of a case is cut off.
        DatasetError: If the training cases hold no pair.
    """
    cases = read_fold(workspace, fold)
    names = cases.train + cases.validation
    records = {name: read_stored_case(workspace.cases_folder, name, workspace.remedy) for name in names}
    subjects = {name: record.subject for name, record in records.items()}
    _check_leakage(cases, subjects, workspace.dataset_folder / SPLITS_FILE)
    pairing, listed = workspace.plans.pairing, _read_listed_pairs(workspace)
    shown = {name: records[name].label_presence for name in cases.train}
    sampler = PairSampler({name: subjects[name] for name in cases.train}, pairing, listed, shown)
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


def _read_listed_pairs(workspace: Workspace) -> tuple[Pair, ...]:
    if workspace.plans.pairing != "listed":
        return ()
    path = workspace.dataset_folder / DATASET_FILE
    pairs = from_json(tuple[PairNames, ...], read_json(path).get("pairs", []), where=f"{path}: pairs")
    return tuple((pair.moving, pair.fixed) for pair in pairs)
