"""Which weights a task of TotalSegmentator needs, where they belong, and how they get there."""

import contextlib
import io
import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from biasreg.core.errors import InputError, WeightsError

logger = logging.getLogger(__name__)

CHECKPOINT = "checkpoint_final.pth"
LICENCE_PAGE = "https://backend.totalsegmentator.com/license-academic/"

# Numbers of models in TotalSegmentator's release that its code asks for beside a task's own.
_VERTEBRAL_BODIES = 305
_COARSE_BODY = 300
_COARSE_MR, _COARSE_CT, _ROBUST_CT = 852, 298, 297


def needed_weights(api: Any, task: str, *, fast: bool, subset: bool) -> list[Any]:
    """Number the models that a task needs: its own, and the coarse one that finds where to crop.

    Args:
        api: The module `totalsegmentator.python_api`.
        task: Name of the task.
        fast: Whether its model of lower resolution is wanted.
        subset: Whether it is restricted to some of its classes.

    Returns:
        Numbers of models, each once.

    Raises:
        InputError: The task has no model of lower resolution.
        WeightsError: The task needs a licence number, and there is none.
    """
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            task_plan = api.get_task_config(task, fast=fast, quiet=True)
    except ValueError as error:
        raise InputError(f"TotalSegmentator refuses task '{task}': {error} · leave --fast out") from error
    except SystemExit:
        raise WeightsError(
            f"TotalSegmentator's task '{task}' needs a licence number, free for non-commercial use ({LICENCE_PAGE}) · "
            "get one and store it with `totalseg_set_license -l NUMBER`"
        ) from None
    own = task_plan["task_id"]
    needed = list(own) if isinstance(own, list) else [own]
    if task == "vertebrae_pp_refined":
        needed.append(_VERTEBRAL_BODIES)
    if subset or task_plan["crop"] is not None or task_plan["cascade"]:
        needed += _cropping_weights(api, task, task_plan)
    return list(dict.fromkeys(needed))


def weights_folder(number: Any) -> Path:
    """Find the folder that a model belongs in.

    Args:
        number: Number of the model.

    Returns:
        Its folder, under TotalSegmentator's folder of weights.
    """
    from totalsegmentator.config import get_weights_dir  # noqa: PLC0415  an optional dependency
    from totalsegmentator.map_tasks_config import TASK_ID_WEIGHTS_CONFIGS  # noqa: PLC0415

    known = TASK_ID_WEIGHTS_CONFIGS[number]
    return Path(get_weights_dir()) / (known.get("rel_path") or "") / known["foldername"]


def checkpoints(folder: Path) -> list[Path]:
    """List the checkpoints of a model.

    Args:
        folder: Its folder.

    Returns:
        One for each fold; none where it is missing or incomplete.
    """
    return sorted(folder.glob(f"*/fold_*/{CHECKPOINT}"))


def missing_weights(numbers: Sequence[Any]) -> WeightsError:
    """Say which files go where.

    Args:
        numbers: Numbers of the models that are missing.

    Returns:
        The error.
    """
    folders = [weights_folder(number) for number in numbers]
    names = ", ".join(folder.name for folder in folders)
    commands = " and ".join(f"`totalseg_download_weights -t {task}`" for task in _download_tasks(numbers))
    return WeightsError(
        f"weights of TotalSegmentator are missing: {names} · {folders[0].parent} must hold"
        f" <each of them>/<trainer>__<plans>__<configuration>/fold_0/{CHECKPOINT} · run {commands} here, or where there"
        " is a network, and copy the folders; or let this command download them with --download"
    )


def download_weights(api: Any, number: Any) -> None:
    """Let TotalSegmentator download a model.

    Args:
        api: The module `totalsegmentator.python_api`.
        number: Number of the model.

    Raises:
        WeightsError: The download failed, or the folder is there and holds no checkpoint.
    """
    folder = weights_folder(number)
    logger.info("downloading weights of TotalSegmentator: %s", folder.name)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            api.download_pretrained_weights(number)
    except (Exception, SystemExit) as error:
        raise WeightsError(
            f"weights of TotalSegmentator could not be downloaded: {error} · they belong in {folder} · try again, or"
            " copy the folder there from another machine"
        ) from error
    if not checkpoints(folder):
        raise WeightsError(f"{folder} holds no {CHECKPOINT} · it is incomplete: delete it and try again")


def _cropping_weights(api: Any, task: str, task_plan: Mapping[str, Any]) -> list[Any]:
    if task_plan["crop_model"] is not None:
        return needed_weights(api, task_plan["crop_model"], fast=False, subset=False)
    if {"body_trunc", "body_extremities"} & set(task_plan["crop"] or ()):
        return [_COARSE_BODY]
    if task.endswith("_mr"):
        return [_COARSE_MR]
    return [_ROBUST_CT if task_plan["robust_crop"] else _COARSE_CT]


def _download_tasks(numbers: Sequence[Any]) -> list[str]:
    """Name the tasks that TotalSegmentator's own downloader must be called with: one for all models, or for each."""
    from totalsegmentator.bin.totalseg_download_weights import TASK_TO_ID  # noqa: PLC0415  an optional dependency

    whole = [task for task, ids in TASK_TO_ID.items() if set(numbers) <= set(ids)]
    if whole:
        return whole[:1]
    each = [next((task for task, ids in TASK_TO_ID.items() if number in ids), "all") for number in numbers]
    return list(dict.fromkeys(each))
