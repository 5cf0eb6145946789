"""What the folds of one model share: the configuration that they are trained with, and what prediction needs."""

import shutil
from pathlib import Path

from biasreg.core.dataset_json import DATASET_FILE
from biasreg.core.errors import PlansError
from biasreg.core.serialization import atomic_write, file_hash, read_json, to_json, write_record
from biasreg.inference.models import trained_folds
from biasreg.network.checkpoint import load_checkpoint
from biasreg.planning.fallback import fallbacks
from biasreg.planning.files import PLANS_FILE, RANGES_FILE
from biasreg.planning.plans import Configuration
from biasreg.planning.voco import installed_hash
from biasreg.preprocessing.reference_files import copy_reference, reference_files
from biasreg.training.workspace import FoldName, Workspace


def agreed_configuration(workspace: Workspace, fold: FoldName) -> Configuration:
    """Find the configuration to start from: the planned one, or what other folds of the model had to fall back to.

    Args:
        workspace: The workspace.
        fold: The fold about to be trained.

    Returns:
        The configuration; folds of one model share theirs.
    """
    planned, path = workspace.planned, workspace.model_folder / PLANS_FILE
    others = {found.parent.name for found in trained_folds(workspace.model_folder).values()}
    if path.is_file() and others - {workspace.fold_folder(fold).name}:
        published = read_json(path).get("configurations", {}).get(workspace.configuration_name)
        for smaller in fallbacks(planned):
            if to_json(smaller.configuration) == published:
                return smaller.configuration
    return planned


def publish(workspace: Workspace, fold: FoldName) -> None:
    """Copy what prediction needs into the model folder: plans, dataset.json, and the reference if there is one.

    Args:
        workspace: The workspace.
        fold: The fold about to be trained.

    Raises:
        PlansError: If the model folder holds folds that were trained with another configuration, reference image or
            pretrained encoder.
    """
    _check_other_folds(workspace, fold)
    write_record(workspace.model_folder / PLANS_FILE, workspace.published_plans)
    _copy(workspace.dataset_folder / DATASET_FILE, workspace.model_folder / DATASET_FILE)
    if (workspace.cases_folder / RANGES_FILE).is_file():  # cases preprocessed by an earlier version have none
        _copy(workspace.cases_folder / RANGES_FILE, workspace.model_folder / RANGES_FILE)
    copy_reference(workspace.cases_folder, workspace.model_folder, workspace.configuration.preprocessing)


def _check_other_folds(workspace: Workspace, fold: FoldName) -> None:
    """Refuse to replace what other folds of the model were trained with."""
    folder = workspace.model_folder
    others = {path.parent.name for path in trained_folds(folder).values()} - {workspace.fold_folder(fold).name}
    if not others:
        return
    plans = folder / PLANS_FILE
    if plans.is_file() and not _same_configuration(plans, workspace):
        raise _trained_otherwise(others, "configuration than the plans at hand", plans)
    init = workspace.configuration.network.encoder.init
    own = installed_hash(workspace.results, init)
    for name, path in trained_folds(folder).items() if init != "scratch" else ():
        if f"fold_{name}" in others and load_checkpoint(path, lazy=True).identity.pretrained_hash != own:
            raise _trained_otherwise({f"fold_{name}"}, "pretrained encoder than the one that is installed", path)
    for name in reference_files(workspace.configuration.preprocessing):
        if (folder / name).is_file() and not _same_file(folder / name, workspace.cases_folder / name):
            raise _trained_otherwise(others, "reference image than that of the preprocessed cases", folder / name)


def _trained_otherwise(folds: set[str], what: str, path: Path) -> PlansError:
    return PlansError(
        f"{', '.join(sorted(folds))} of this model were trained with another {what} · {path} · plan under another name "
        f"(-p), or move {path.parent} away"
    )


def _same_file(first: Path, second: Path) -> bool:
    return second.is_file() and file_hash(first) == file_hash(second)


def _same_configuration(path: Path, workspace: Workspace) -> bool:
    configurations = read_json(path).get("configurations", {})
    return bool(configurations.get(workspace.configuration_name) == to_json(workspace.configuration))


def _copy(source: Path, target: Path) -> None:
    with atomic_write(target) as temporary:
        shutil.copyfile(source, temporary)
