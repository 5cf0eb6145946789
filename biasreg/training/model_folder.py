"""What the folds of one model share: the configuration that they are trained with, and what prediction needs."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from biasreg.core.dataset_json import DATASET_FILE
from biasreg.core.errors import InputError, PlansError
from biasreg.core.serialization import atomic_write, file_hash, read_json, to_json, write_record
from biasreg.inference.models import trained_folds
from biasreg.network.checkpoint import load_checkpoint
from biasreg.planning.fallback import fallbacks
from biasreg.planning.files import PLANS_FILE, RANGES_FILE
from biasreg.planning.plans import Configuration
from biasreg.planning.voco import installed_hash
from biasreg.preprocessing.reference_files import copy_reference, reference_files
from biasreg.training.workspace import FoldName, Workspace

LOCK_FILE = ".lock"  # held by the run of a fold in its folder, and in the model's while its files are written
WRITING_SECONDS = 60.0  # of some small files
PUBLISHED_FILE = ".published"  # in a fold's folder: while its run holds the lock, the model's plans are its own


def agreed_configuration(workspace: Workspace, fold: FoldName) -> Configuration:
    """Find the configuration to start from: the planned one, or what other folds of the model had to fall back to.

    Args:
        workspace: The workspace.
        fold: The fold about to be trained.

    Returns:
        The configuration; folds of one model share theirs.
    """
    planned, path = workspace.planned, workspace.model_folder / PLANS_FILE
    if path.is_file() and _other_folds(workspace, fold):
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
        PlansError: If the model folder holds folds that are trained with another configuration, reference image or
            pretrained encoder.
        InputError: If another fold does not come to an end of writing there.
    """
    folder, cases = workspace.model_folder, workspace.cases_folder
    with _writing(folder):  # folds may begin side by side
        _check_other_folds(workspace, fold)
        write_record(folder / PLANS_FILE, workspace.published_plans)
        _copy(workspace.dataset_folder / DATASET_FILE, folder / DATASET_FILE)
        if (cases / RANGES_FILE).is_file():  # cases preprocessed by an earlier version have none
            _copy(cases / RANGES_FILE, folder / RANGES_FILE)
        copy_reference(cases, folder, workspace.configuration.preprocessing)
        workspace.fold_folder(fold).mkdir(exist_ok=True)
        (workspace.fold_folder(fold) / PUBLISHED_FILE).touch()


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        with FileLock(folder / LOCK_FILE, timeout=WRITING_SECONDS):
            yield
    except Timeout as error:
        raise InputError(
            f"another fold has been writing the model's plans for a minute · {folder / LOCK_FILE} · see whether its "
            "run hangs; where none runs, delete the file"
        ) from error


def _other_folds(workspace: Workspace, fold: FoldName) -> set[str]:
    """Name the folders of the other folds that have weights, or are being trained."""
    trained = {path.parent.name for path in trained_folds(workspace.model_folder).values()}
    return (trained | _running_folds(workspace.model_folder)) - {workspace.fold_folder(fold).name}


def _running_folds(folder: Path) -> set[str]:
    return {path.parent.name for path in folder.glob(f"fold_*/{PUBLISHED_FILE}") if _is_locked(path.parent)}


def _is_locked(folder: Path) -> bool:
    try:
        with FileLock(folder / LOCK_FILE, timeout=0):
            return False
    except (Timeout, OSError):  # a lock that may not be tried is another user's
        return True


def _check_other_folds(workspace: Workspace, fold: FoldName) -> None:
    """Refuse to replace what other folds of the model were trained with."""
    folder = workspace.model_folder
    others = _other_folds(workspace, fold)
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
    running = sorted(folds & _running_folds(path.parent))
    first = f"end the running training of {', '.join(running)} and " if running else ""
    return PlansError(
        f"{', '.join(sorted(folds))} of this model are trained with another {what} · {path} · plan under another name "
        f"(-p), or {first}move {path.parent} away"
    )


def _same_file(first: Path, second: Path) -> bool:
    return second.is_file() and file_hash(first) == file_hash(second)


def _same_configuration(path: Path, workspace: Workspace) -> bool:
    configurations = read_json(path).get("configurations", {})
    return bool(configurations.get(workspace.configuration_name) == to_json(workspace.configuration))


def _copy(source: Path, target: Path) -> None:
    with atomic_write(target) as temporary:
        shutil.copyfile(source, temporary)
