"""Registering a batch of pairs, from files to files."""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from biasreg.core.errors import BiasregError, PredictionError
from biasreg.core.geometry import Geometry
from biasreg.core.image_io import Image, read_channels
from biasreg.core.pairs import PairFiles, read_pairs
from biasreg.core.paths import check_writable
from biasreg.core.serialization import write_record
from biasreg.core.transform_io import read_linear_transform
from biasreg.evaluation.metrics import dice_per_label, field_metrics
from biasreg.evaluation.reference_data import read_label_map
from biasreg.inference.export import OutputFiles, check_save, write_labels, write_prediction
from biasreg.inference.models import TrainedModel
from biasreg.inference.predictor import Prediction, Predictor, timed
from biasreg.inference.record import (
    GIVEN,
    Accuracy,
    FieldQuality,
    PredictionRecord,
    Provenance,
    describe_inputs,
    describe_run,
    now,
)
from biasreg.inference.staging import read_earlier_record, record_path, staged
from biasreg.spatial.native import warp_label_map

logger = logging.getLogger(__name__)

# What pairs are known to fail by; its text says enough. The failure of anything else is logged with its traceback.
EXPLAINED_ERRORS = (BiasregError, OSError, MemoryError, torch.cuda.OutOfMemoryError)


@dataclass(frozen=True)
class PredictOptions:
    """How a batch is registered.

    Attributes:
        save: Further outputs out of `export.SAVE_CHOICES`.
        overwrite: Register pairs again whose results are already there.
    """

    save: tuple[str, ...] = ()
    overwrite: bool = True


@dataclass(frozen=True)
class PairImages:
    """A pair in memory.

    Attributes:
        moving: The moving image, one `Image` per channel.
        fixed: The fixed image, one `Image` per channel.
        moving_labels: Label map on the moving grid.
        fixed_labels: Label map on the fixed grid.
        initial: (4, 4) matrix from fixed to moving points, RAS mm, that replaces the pre-alignment, if any.
    """

    moving: tuple[Image, ...]
    fixed: tuple[Image, ...]
    moving_labels: Image | None
    fixed_labels: Image | None
    initial: NDArray[np.float64] | None = None


def predict_pairs(
    source: Path, output: Path, model: TrainedModel, device: torch.device, options: PredictOptions
) -> dict[str, str]:
    """Register all pairs of a folder or list; a pair that fails does not stop the others and leaves no files.

    Args:
        source: The pairs: a folder, a list, or a raw dataset with test pairs (see `core.pairs`).
        output: Output folder.
        model: The trained model.
        device: Where it runs.
        options: How to run.

    Returns:
        Reason of failure per failed pair, pairs that are not complete among them; empty when all went well.

    Raises:
        DatasetError: If no complete pairs are found.
        InputError: If the model cannot be loaded or the output folder cannot be written to.
    """
    check_writable(output, "choose another folder with -o")
    found = read_pairs(source)
    predictor = Predictor.from_model(model, device)
    provenance = describe_run(model, device)
    output.mkdir(parents=True, exist_ok=True)
    logger.info("registering %d pair(s) with %s on %s", len(found.pairs), model.name, device)
    failures: dict[str, str] = {}
    for name, fault in found.faults.items():
        failures[name] = fault + _leftovers(output, name)
        logger.error("pair %s failed: %s", name, failures[name])
    folding = []
    for pair in tqdm(found.pairs, desc="pairs", disable=None):
        try:
            if options.overwrite or not _is_registered(pair, output, options.save, provenance):
                folding.append(_predict_pair(predictor, pair, output, options.save, provenance).folding_percent)
        except Exception as error:  # whatever is wrong with one pair is no reason to give up the others
            name, explained = pair.identifier, isinstance(error, EXPLAINED_ERRORS)
            failures[name] = (str(error) or type(error).__name__) + _leftovers(output, name)
            logger.error("pair %s failed: %s", name, failures[name], exc_info=not explained)
    _log_end(output, len(found.pairs) + len(found.faults), failures, folding)
    return failures


def check_failures(failures: Mapping[str, str]) -> None:
    """Raise when pairs failed.

    Args:
        failures: Reason per failed pair, which `predict_pairs` has logged.

    Raises:
        PredictionError: If any pair failed; the message names them.
    """
    if failures:
        raise PredictionError(
            f"{len(failures)} pair(s) could not be registered: {', '.join(failures)}; reasons are above"
        )


def _log_end(output: Path, count: int, failures: Mapping[str, str], folding: Sequence[float]) -> None:
    """Say what has become of all pairs in one line."""
    kept = count - len(failures) - len(folding)
    parts = [f"registered {len(folding)} of {count} pair(s) into {output}"]
    parts += [f"folding at most {max(folding):.3g} %"] if folding else []
    parts += [f"{kept} were registered already and are kept"] if kept else []
    parts += [f"{len(failures)} failed"] if failures else []
    logger.info("%s", "; ".join(parts))


def _is_registered(pair: PairFiles, output: Path, save: Sequence[str], provenance: Provenance) -> bool:
    """Tell whether an earlier run made all that this one would make, of the same files and by the same model."""
    record = read_earlier_record(output, pair.identifier)
    if record is None:
        return False
    same_model = record.provenance.checkpoints == provenance.checkpoints and record.provenance.model == provenance.model
    sources = [(file.role, file.sha256) for file in record.inputs]
    if not same_model or sources != [(file.role, file.sha256) for file in describe_inputs(pair)]:
        logger.info("pair %s: registered by another model or from other files before; it is done again", record.pair)
        return False
    return set(save) <= set(record.save) and all((output / name).is_file() for name in record.outputs)


def _leftovers(output: Path, pair: str) -> str:
    """Say that a pair that failed now has results of before."""
    earlier = read_earlier_record(output, pair)
    return "" if earlier is None else f" (its files in {output} are those of an earlier run, {earlier.written})"


def _predict_pair(
    predictor: Predictor, pair: PairFiles, output: Path, save: Sequence[str], provenance: Provenance
) -> FieldQuality:
    start = time.perf_counter()
    seconds: dict[str, float] = {}
    with timed(seconds, "read"):
        images = _read(pair)
    check_save(pair.identifier, images.moving[0].geometry, images.fixed[0].geometry, save)
    prediction = predictor.register(images.moving, images.fixed, images.initial)
    seconds |= prediction.seconds
    with timed(seconds, "folding"):
        quality = _quality(prediction, images.fixed[0].geometry)
    with timed(seconds, "labels"):
        warped_labels = _warp_labels(images, prediction)
        accuracy = _accuracy(images, warped_labels)
    with staged(output, pair.identifier) as folder:
        with timed(seconds, "write"):
            _write(OutputFiles(folder, pair.identifier), images, prediction, warped_labels, save)
        seconds["total"] = round(time.perf_counter() - start, 4)
        record = PredictionRecord(
            pair=pair.identifier,
            written=now(),
            provenance=provenance,
            inputs=describe_inputs(pair),
            save=tuple(save),
            outputs=tuple(sorted(path.name for path in folder.iterdir())),
            prealignment=predictor.frames.plans.prealignment if images.initial is None else GIVEN,
            seconds=seconds,
            quality=quality,
            accuracy=accuracy,
            notices=prediction.notices,
        )
        write_record(record_path(folder, pair.identifier), record)
    for notice in prediction.notices:
        logger.warning("pair %s: %s", pair.identifier, notice)
    return quality


def _write(
    files: OutputFiles,
    images: PairImages,
    prediction: Prediction,
    warped_labels: NDArray | None,
    save: Sequence[str],
) -> None:
    fixed = images.fixed[0].geometry
    write_prediction(files, prediction, images.moving[0].geometry, fixed, save)
    if warped_labels is not None:
        write_labels(files, warped_labels, fixed)


def _read(pair: PairFiles) -> PairImages:
    moving, fixed = read_channels(pair.moving), read_channels(pair.fixed)
    moving_labels, fixed_labels = (
        None if path is None else read_label_map(path, image_path, image.geometry)
        for path, image_path, image in (
            (pair.moving_seg, pair.moving[0], moving[0]),
            (pair.fixed_seg, pair.fixed[0], fixed[0]),
        )
    )
    initial = None if pair.initial is None else read_linear_transform(pair.initial)
    return PairImages(moving, fixed, moving_labels, fixed_labels, initial)


def _quality(prediction: Prediction, fixed: Geometry) -> FieldQuality:
    metrics = field_metrics(prediction.displacement, fixed)
    return FieldQuality(metrics.folding_percent, metrics.log_jacobian_std, prediction.inverse_error)


def _warp_labels(images: PairImages, prediction: Prediction) -> NDArray | None:
    if images.moving_labels is None:
        return None
    return warp_label_map(images.moving_labels, prediction.displacement, images.fixed[0].geometry)


def _accuracy(images: PairImages, warped: NDArray | None) -> Accuracy | None:
    """Measure the overlap of the labels that both maps hold."""
    moving, fixed = images.moving_labels, images.fixed_labels
    if moving is None or fixed is None or warped is None:
        return None
    values = [int(value) for value in np.intersect1d(moving.array, fixed.array) if value != 0]
    maps = (warp_label_map(moving, None, fixed.geometry), warped)
    before, after = (dice_per_label(labels, fixed.array, values) for labels in maps)
    return Accuracy(
        {str(key): score for key, score in before.items()}, {str(key): score for key, score in after.items()}
    )
