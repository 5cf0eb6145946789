"""Registering a batch of pairs, from files to files."""

import datetime
import logging
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

import biasreg
from biasreg.core.errors import BiasregError, GeometryError, PredictionError
from biasreg.core.image_io import Image, read_image, read_labels
from biasreg.core.pairs import PairFiles, read_pairs
from biasreg.core.serialization import file_hash, to_json, write_json
from biasreg.evaluation.metrics import FieldMetrics, dice_per_label, field_metrics
from biasreg.inference.export import OutputFiles, same_grid, write_labels, write_prediction
from biasreg.inference.models import TrainedModel
from biasreg.inference.predictor import Prediction, Predictor
from biasreg.spatial.native import warp_label_map

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PredictOptions:
    """How a batch is registered.

    Attributes:
        save: Further outputs out of `export.SAVE_CHOICES`.
        overwrite: Register pairs again whose results are already there.
    """

    save: tuple[str, ...] = ()
    overwrite: bool = True


def predict_pairs(
    source: Path, output: Path, model: TrainedModel, device: torch.device, options: PredictOptions
) -> dict[str, str]:
    """Register all pairs of a folder or list; a pair that fails does not stop the others.

    Args:
        source: The pairs: a folder, a list, or a raw dataset with test pairs (see `core.pairs`).
        output: Output folder.
        model: The trained model.
        device: Where it runs.
        options: How to run.

    Returns:
        Reason of failure per failed pair; empty when all went well.

    Raises:
        DatasetError: If no pairs are found.
    """
    pairs = read_pairs(source)
    output.mkdir(parents=True, exist_ok=True)
    predictor = Predictor.from_model(model, device)
    provenance = _model_provenance(model, device)
    logger.info("registering %d pair(s) with %s on %s", len(pairs), model.name, device)
    failures: dict[str, str] = {}
    for pair in tqdm(pairs, desc="pairs", disable=None):
        files = OutputFiles(output, pair.identifier)
        if not options.overwrite and files.path("", ".json").is_file():
            continue
        try:
            _predict_pair(predictor, pair, files, options.save, provenance)
        except (BiasregError, OSError, RuntimeError, MemoryError) as error:
            failures[pair.identifier] = str(error) or type(error).__name__
            logger.error("pair %s failed: %s", pair.identifier, failures[pair.identifier])
    return failures


def check_failures(failures: Mapping[str, str], total: int | None = None) -> None:
    """Raise when pairs failed.

    Args:
        failures: Reason per failed pair.
        total: Number of pairs that were tried, for the message.

    Raises:
        PredictionError: If any pair failed; the message lists them.
    """
    if failures:
        listed = "".join(f"\n  {pair}: {reason}" for pair, reason in failures.items())
        of = "" if total is None else f" of {total}"
        raise PredictionError(f"{len(failures)}{of} pair(s) could not be registered:{listed}")


def _predict_pair(
    predictor: Predictor, pair: PairFiles, files: OutputFiles, save: Sequence[str], provenance: Mapping[str, Any]
) -> None:
    start = time.perf_counter()
    moving, fixed = _read_channels(pair.moving), _read_channels(pair.fixed)
    moving_labels = _read_seg(pair.moving_seg, moving[0])
    fixed_labels = _read_seg(pair.fixed_seg, fixed[0])
    read = time.perf_counter()
    prediction = predictor.register(moving, fixed)
    regularity = field_metrics(prediction.displacement, fixed[0].geometry)
    warped_labels = None
    if moving_labels is not None:
        warped_labels = warp_label_map(moving_labels, prediction.displacement, fixed[0].geometry)
    registered = time.perf_counter()
    write_prediction(files, prediction, moving[0].geometry, fixed[0].geometry, save)
    if warped_labels is not None:
        write_labels(files, warped_labels, fixed[0].geometry)
    written = time.perf_counter()
    seconds = {
        "read": round(read - start, 4),
        **prediction.seconds,
        "labels_and_folding": round(registered - read - sum(prediction.seconds.values()), 4),
        "write": round(written - registered, 4),
        "total": round(written - start, 4),
    }
    record = {
        "pair": pair.identifier,
        **_measured(prediction, regularity),
        **_accuracy(moving_labels, warped_labels, fixed_labels),
        "seconds": seconds,
        "inputs": _input_hashes(pair),
        **provenance,
    }
    write_json(files.folder / f"{files.pair}.json", record)
    for notice in prediction.notices:
        logger.warning("pair %s: %s", pair.identifier, notice)


def _read_channels(paths: Sequence[Path]) -> tuple[Image, ...]:
    channels = tuple(read_image(path) for path in paths)
    if not same_grid(channels):
        raise GeometryError(f"the channels lie on different grids · {', '.join(path.name for path in paths)}")
    return channels


def _read_seg(path: Path | None, image: Image) -> Image | None:
    if path is None:
        return None
    labels = read_labels(path)
    if not labels.geometry.is_close(image.geometry):
        raise GeometryError(
            f"the label map's grid {labels.geometry.shape} differs from its image's {image.geometry.shape}, in shape, "
            f"spacing, origin or direction · {path} · resample the labels onto the image's grid"
        )
    return labels


def _measured(prediction: Prediction, regularity: FieldMetrics) -> dict[str, Any]:
    return {
        "folding_percent": regularity.folding_percent,
        "log_jacobian_std": regularity.log_jacobian_std,
        "inverse_error": to_json(prediction.inverse_error),
        "notices": list(prediction.notices),
    }


def _accuracy(moving: Image | None, warped: Any, fixed: Image | None) -> dict[str, Any]:
    """Dice per label value before (through the identity of the world) and after registration."""
    if moving is None or fixed is None or warped is None:
        return {}
    values = [int(value) for value in np.intersect1d(moving.array, fixed.array) if value != 0]
    before = dice_per_label(warp_label_map(moving, None, fixed.geometry), fixed.array, values)
    after = dice_per_label(warped, fixed.array, values)
    return {
        "dice_before": {str(value): score for value, score in before.items()},
        "dice_after": {str(value): score for value, score in after.items()},
    }


def _input_hashes(pair: PairFiles) -> dict[str, str]:
    files = [*pair.moving, *pair.fixed, *(path for path in (pair.moving_seg, pair.fixed_seg) if path)]
    return {str(path): file_hash(path) for path in files}


def _model_provenance(model: TrainedModel, device: torch.device) -> dict[str, Any]:
    return {
        "model": {
            "name": model.name,
            "checkpoints": {path.parent.name: file_hash(path) for path in model.checkpoints},
        },
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "versions": {
            "biasreg": biasreg.__version__,
            "torch": str(torch.__version__),
            "python": platform.python_version(),
        },
        "written": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }
