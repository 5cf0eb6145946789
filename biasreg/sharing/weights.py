"""The weights of one fold in an archive: tensors as safetensors, and what is known of them as JSON."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.overrides import TorchFunctionMode

from biasreg.core.errors import ArchiveError
from biasreg.core.serialization import from_json, read_record, to_json, write_record
from biasreg.network.build import build_network
from biasreg.network.checkpoint import LATEST, Checkpoint, Identity, load_checkpoint, network_state
from biasreg.planning.plans import Configuration
from biasreg.sharing.manifest import FOLD_FILE, WEIGHTS_FILE
from biasreg.training.validation import HeldOut, ValidationResult

MOST_EPOCHS = 1_000_000  # a checkpoint has a history with an entry for each
SHARED = "shared"  # where the progress of an installed checkpoint keeps its course


@dataclass(frozen=True)
class Scores:
    """Validation scores of a fold, means over its pairs on the canonical grid.

    Attributes:
        held_out: Which cases of the pairs training has never seen.
        pairs: Number of pairs.
        dice_before: Mean Dice without registration; None without labels.
        dice_after: Mean Dice.
        folding_percent: Mean share of folding voxels, 0 to 100.
    """

    held_out: HeldOut
    pairs: int
    dice_before: float | None
    dice_after: float | None
    folding_percent: float | None


@dataclass(frozen=True)
class Course:
    """How the weights of a fold were trained.

    Attributes:
        epochs_done: Epochs after which these weights were taken.
        epochs_trained: Epochs that the run has come to; None where only the best checkpoint is there.
        hours: Duration of the epochs up to these weights, validation included; None where it is not known.
        scores: Validation scores of these weights; None if they were never validated.
    """

    epochs_done: int
    epochs_trained: int | None
    hours: float | None
    scores: Scores | None


@dataclass(frozen=True)
class FoldRecord:
    """What is known of the weights of a fold.

    Attributes:
        identity: Which model they belong to.
        course: How they were trained.
        versions: Versions of biasreg, torch and Python that wrote the checkpoint.
    """

    identity: Identity
    course: Course
    versions: dict[str, str]


def course_of(path: Path, checkpoint: Checkpoint) -> Course:
    """Say how the weights of a checkpoint were trained.

    Args:
        path: The checkpoint's file; beside it the latest one tells how far the run has come.
        checkpoint: The checkpoint.

    Returns:
        The course; that of its maker, when the checkpoint was installed from an archive.
    """
    if SHARED in checkpoint.progress:
        return from_json(Course, checkpoint.progress[SHARED], where=f"{path}: progress")
    latest = path.with_name(LATEST)
    trained = load_checkpoint(latest, lazy=True).epochs_done if latest.is_file() else None
    seconds = [epoch.get("seconds") for epoch in checkpoint.progress["history"]]
    hours = None if None in seconds else round(sum(seconds) / 3600, 2)
    return Course(checkpoint.epochs_done, trained, hours, _scores(path, checkpoint.progress.get("best")))


def write_fold(folder: Path, weights: Mapping[str, Tensor], record: FoldRecord) -> None:
    """Write the weights of a fold and what is known of them.

    Args:
        folder: Folder of the fold, made if it is missing.
        weights: State of the network, as prediction takes it.
        record: What is known of them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    # Tensors may be views of one storage, which safetensors refuses.
    save_file({name: tensor.detach().clone().contiguous() for name, tensor in weights.items()}, folder / WEIGHTS_FILE)
    write_record(folder / FOLD_FILE, record)


def read_fold(folder: Path) -> Checkpoint:
    """Read the weights of a fold as a checkpoint for prediction, and check that they fit its network.

    Args:
        folder: Folder of the fold.

    Returns:
        The checkpoint; its history has as many entries as epochs, with nothing in them.

    Raises:
        ArchiveError: The file is damaged, or its tensors are not those of the network.
        RecordError: What is known of them is damaged.
    """
    path = folder / WEIGHTS_FILE
    record = read_record(folder / FOLD_FILE, FoldRecord)
    try:
        weights = load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise ArchiveError(f"the weights cannot be read as safetensors ({error}) · {path}") from error
    _check_fit(path, weights, record.identity)
    course = record.course
    if not 0 <= course.epochs_done <= MOST_EPOCHS:
        raise ArchiveError(f"the weights are said to be of {course.epochs_done} epochs · {folder / FOLD_FILE}")
    best = None if course.scores is None else {"epoch": course.epochs_done, "held_out": course.scores.held_out}
    return Checkpoint(
        identity=record.identity,
        progress={"history": [{}] * course.epochs_done, "best": best, SHARED: to_json(course)},
        network=weights,
        averaged=None,
        optimizer=None,
        random_states={},
        versions=record.versions,
    )


def _scores(path: Path, best: dict[str, Any] | None) -> Scores | None:
    if best is None:
        return None
    result = from_json(ValidationResult, best, where=f"{path}: validation")
    folding = result.folding_fraction
    return Scores(
        held_out=result.held_out,
        pairs=len(result.pairs),
        dice_before=result.dice_before,
        dice_after=result.dice_after,
        folding_percent=None if folding is None else 100 * folding,
    )


def _check_fit(path: Path, weights: Mapping[str, Tensor], identity: Identity) -> None:
    """Compare names and shapes with the network's own, which is built without memory for that."""
    own = _own_shapes(path, len(weights), identity.configuration, with_base=identity.pretrained_hash is None)
    found = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    if found != own:
        wrong = sorted(name for name in own.keys() | found.keys() if own.get(name) != found.get(name))
        raise ArchiveError(
            f"the weights are not those of the network in the plans: {len(wrong)} tensors are missing, unknown or of "
            f"another shape, {wrong[0]} for one · {path}"
        )


class _NumbersOnCpu(TorchFunctionMode):
    """Makes the ramp of drop rates on the CPU: MONAI's Swin encoder reads its numbers back while it is built."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call a function of torch, a linspace on the CPU."""
        there = {"device": "cpu"} if func is torch.linspace else {}
        return func(*args, **(kwargs or {}), **there)


def _own_shapes(
    path: Path, tensors: int, configuration: Configuration, *, with_base: bool
) -> dict[str, tuple[int, ...]]:
    plans = configuration.network
    if sum(plans.encoder.depths) > tensors:  # each block has tensors of its own; more would be built for ever
        raise ArchiveError(f"the plans ask for more blocks than there are weights · {path}")
    try:
        with torch.device("meta"), _NumbersOnCpu():
            network = build_network(plans)
    except Exception as error:  # plans that anybody may have written lead to whatever
        raise ArchiveError(
            f"no network can be built by the plans ({type(error).__name__}: {error}) · {path}"
        ) from error
    return {name: tuple(tensor.shape) for name, tensor in network_state(network, with_base=with_base).items()}
