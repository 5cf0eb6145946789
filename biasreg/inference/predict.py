"""Registering a batch of pairs, from files to files."""

import logging
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from tqdm import tqdm

from biasreg.core.errors import BiasregError, PredictionError
from biasreg.core.pairs import PairFiles, read_pairs
from biasreg.core.paths import check_writable
from biasreg.core.serialization import write_record
from biasreg.inference.estimation import EXTRAS, EstimatedPair, RegistrationOptions
from biasreg.inference.export import OutputFiles, check_save, write_labels, write_prediction
from biasreg.inference.models import TrainedModel
from biasreg.inference.pair_images import PairImages, measure_accuracy, read_pair_images, warp_moving_labels
from biasreg.inference.predictor import Predictor
from biasreg.inference.preparation import PreparedPair
from biasreg.inference.record import (
    GIVEN,
    PredictionRecord,
    Provenance,
    Settings,
    describe_inputs,
    describe_run,
    now,
)
from biasreg.inference.stages import overlapped, timed
from biasreg.inference.staging import read_earlier_record, record_path, staged

logger = logging.getLogger(__name__)

# What pairs are known to fail by; its text says enough. The failure of anything else is logged with its traceback.
EXPLAINED_ERRORS = (BiasregError, OSError, MemoryError, torch.cuda.OutOfMemoryError)


@dataclass(frozen=True)
class PredictOptions:
    """How a batch is registered.

    Attributes:
        save: Further outputs out of `export.SAVE_CHOICES`.
        overwrite: Register pairs again whose results are already there.
        mirror_axes: As in `RegistrationOptions`.
        refine_steps: As in `RegistrationOptions`.
        compressed: Write images as `.nii.gz`, not `.nii`.
        part: Number of this part of the batch, from 0, and the number of parts.
        workers: Threads that prepare pairs, and that finish and write them.
        strict: Count pairs with the verdict FAIL among those that failed; their files are there all the same.
    """

    save: tuple[str, ...] = ()
    overwrite: bool = True
    mirror_axes: tuple[int, ...] = ()
    refine_steps: int | None = None
    compressed: bool = True
    part: tuple[int, int] = (0, 1)
    workers: tuple[int, int] = (1, 1)
    strict: bool = False

    @property
    def registration(self) -> RegistrationOptions:
        """What of this the predictor has to know."""
        extras = tuple(name for name in EXTRAS if name in self.save)
        return RegistrationOptions(self.mirror_axes, self.refine_steps, extras)


@dataclass(frozen=True)
class _Work:
    """A pair on its way through the stages; `seconds` counts what was spent on it alone."""

    pair: PairFiles
    images: PairImages
    prepared: PreparedPair
    estimated: EstimatedPair | None = None
    seconds: dict[str, float] = field(default_factory=dict)


class _Batch:
    """The three stages of a pair, from its files to its files; None passes through for pairs that are kept."""

    def __init__(self, predictor: Predictor, output: Path, options: PredictOptions, provenance: Provenance) -> None:
        self.predictor = predictor
        self.output = output
        self.options = options
        self.provenance = provenance

    def read(self, pair: PairFiles) -> _Work | None:
        """Read a pair and bring it into the canonical frame."""
        if not self.options.overwrite and _is_registered(pair, self.output, self.options, self.provenance):
            return None
        start, seconds = time.perf_counter(), dict[str, float]()
        with timed(seconds, "read"):
            images = read_pair_images(pair)
        check_save(pair.identifier, images.moving[0].geometry, images.fixed[0].geometry, self.options.save)
        prepared = self.predictor.prepare(images.moving, images.fixed, images.initial)
        return _Work(pair, images, prepared, None, seconds | {"total": time.perf_counter() - start})

    def register(self, work: _Work | None) -> _Work | None:
        """Find the field."""
        if work is None:
            return None
        start = time.perf_counter()
        estimated = self.predictor.estimate(work.prepared)
        total = work.seconds["total"] + time.perf_counter() - start
        return _Work(work.pair, work.images, work.prepared, estimated, work.seconds | {"total": total})

    def write(self, work: _Work | None) -> PredictionRecord | None:
        """Bring the field to the native grids and write everything."""
        if work is None:
            return None
        assert work.estimated is not None  # `register` has come before
        start, name, images = time.perf_counter(), work.pair.identifier, work.images
        prediction = self.predictor.finish(work.prepared, work.estimated)
        seconds = work.seconds | prediction.seconds
        with timed(seconds, "labels"):
            warped_labels = warp_moving_labels(images, prediction)
            accuracy = measure_accuracy(images, warped_labels)
        with staged(self.output, name) as folder:
            with timed(seconds, "write"):
                files = OutputFiles(folder, name, ".nii.gz" if self.options.compressed else ".nii")
                write_prediction(files, prediction, self.options.save)
                if warped_labels is not None:
                    write_labels(files, warped_labels, prediction.fixed)
            seconds["total"] = round(work.seconds["total"] + time.perf_counter() - start, 4)
            made = sorted(folder.iterdir())
            record = PredictionRecord(
                pair=name,
                written=now(),
                provenance=self.provenance,
                inputs=describe_inputs(work.pair),
                settings=_settings(self.options),
                outputs=tuple(path.name for path in made),
                prealignment=self.predictor.frames.plans.prealignment if images.initial is None else GIVEN,
                seconds=seconds,
                quality=prediction.quality,
                trust=prediction.trust,
                accuracy=accuracy,
                notices=(*images.notices, *prediction.notices),
                output_bytes=tuple(path.stat().st_size for path in made),
                refined_mm=prediction.refined_mm,
            )
            write_record(record_path(folder, name), record)
        return record


def predict_pairs(
    source: Path, output: Path, model: TrainedModel, device: torch.device, options: PredictOptions
) -> dict[str, str]:
    """Register all pairs of a folder or list; a pair that fails does not stop the others and leaves no files.

    Reading, registering and writing of different pairs overlap.

    Args:
        source: The pairs: a folder, a list, or a raw dataset with test pairs (see `core.pairs`).
        output: Output folder.
        model: The trained model.
        device: Where it runs.
        options: How to run.

    Returns:
        Reason of failure per failed pair, pairs that are not complete among them, and if `strict` those with the
        verdict FAIL; empty when all went well.

    Raises:
        DatasetError: If no complete pairs are found.
        InputError: If the model cannot be loaded or give what is asked for, or the output folder cannot be written to.
    """
    check_writable(output, "choose another folder with -o")
    found = read_pairs(source)
    predictor = Predictor.from_model(model, device, options.registration)
    provenance = describe_run(model, device)
    output.mkdir(parents=True, exist_ok=True)
    number, parts = options.part
    pairs = found.pairs[number::parts]
    faults = dict(found.faults) if number == 0 else {}  # named once
    of_all = f" (part {number} of {parts}, {len(found.pairs)} in all)" if parts > 1 else ""
    of_all += f", {len(faults)} more cannot be" if faults else ""
    logger.info("registering %d pair(s)%s with %s on %s", len(pairs), of_all, model.name, device)
    batch = _Batch(predictor, output, options, provenance)
    failures: dict[str, str] = {}
    for name, fault in faults.items():
        _note_failure(failures, name, fault, output)
    records = []
    outcomes = overlapped(pairs, batch.read, batch.register, batch.write, options.workers)
    for outcome in tqdm(outcomes, total=len(pairs), desc="pairs", disable=None):
        if outcome.error is not None:  # whatever is wrong with one pair is no reason to give up the others
            _note_failure(failures, outcome.item.identifier, outcome.error, output)
        elif outcome.result is not None:
            records.append(outcome.result)
            _log_pair(outcome.result)
    _log_end(output, len(pairs) + len(faults), failures, records)
    return failures | _untrusted(pairs, failures, output) if options.strict else failures


def check_failures(failures: Mapping[str, str]) -> None:
    """Raise when pairs failed.

    Args:
        failures: Reason per failed pair, which `predict_pairs` has logged.

    Raises:
        PredictionError: If any pair failed; the message names them.
    """
    if failures:
        raise PredictionError(f"{len(failures)} pair(s) failed: {', '.join(failures)}; reasons are above")


def _untrusted(pairs: Sequence[PairFiles], failures: Mapping[str, str], output: Path) -> dict[str, str]:
    """Find the pairs whose verdict is FAIL, whether they were registered now or earlier, and say so."""
    found: dict[str, str] = {}
    for name in (pair.identifier for pair in pairs if pair.identifier not in failures):
        record = read_earlier_record(output, name)
        if record is not None and record.trust.status == "FAIL":
            checks = ", ".join(check.name for check in record.trust.checks if check.status == "FAIL")
            found[name] = f"its verdict is FAIL: {checks}"
            logger.error("pair %s: %s", name, found[name])
    return found


def _note_failure(failures: dict[str, str], name: str, error: Exception | str, output: Path) -> None:
    earlier = read_earlier_record(output, name)
    left = "" if earlier is None else f" (its files in {output} are those of an earlier run, {earlier.written})"
    failures[name] = (str(error) or type(error).__name__) + left
    unexplained = None if isinstance(error, (str, *EXPLAINED_ERRORS)) else error
    logger.error("pair %s failed: %s", name, failures[name], exc_info=unexplained)


def _log_pair(record: PredictionRecord) -> None:
    """Say what a user should know about a pair."""
    for notice in record.notices:
        logger.warning("pair %s: %s", record.pair, notice)
    for check in record.trust.checks:
        if check.status != "PASS":
            logger.warning("pair %s: %s %s: %s", record.pair, check.status, check.name, check.text)


def _log_end(output: Path, count: int, failures: Mapping[str, str], records: Sequence[PredictionRecord]) -> None:
    """Say what has become of all pairs in one line."""
    kept = count - len(failures) - len(records)
    verdicts = Counter(record.trust.status for record in records)
    parts = [f"registered {len(records)} of {count} pair(s) into {output}"]
    if records:
        parts.append(", ".join(f"{verdicts[status]} {status}" for status in ("PASS", "WARN", "FAIL")))
        parts.append(f"folding at most {max(record.quality.folding_percent for record in records):.3g} %")
    refined = sum(record.refined_mm is not None for record in records)
    parts += [f"{refined} refined beyond the networks' field"] if refined else []
    parts += [f"{kept} were registered already and are kept"] if kept else []
    parts += [f"{len(failures)} failed"] if failures else []
    logger.info("%s", "; ".join(parts))


def _settings(options: PredictOptions) -> Settings:
    return Settings(options.save, options.mirror_axes, options.refine_steps, options.compressed)


def _is_registered(pair: PairFiles, output: Path, options: PredictOptions, provenance: Provenance) -> bool:
    """Tell whether an earlier run made all that this one would make, of the same files and by the same model."""
    record = read_earlier_record(output, pair.identifier)
    if record is None:
        return False
    same_model = record.provenance.checkpoints == provenance.checkpoints and record.provenance.model == provenance.model
    sources = [(file.role, file.sha256) for file in record.inputs]
    if not same_model or sources != [(file.role, file.sha256) for file in describe_inputs(pair)]:
        logger.info("pair %s: registered by another model or from other files before; it is done again", record.pair)
        return False
    if not record.settings.gives(_settings(options)):
        logger.info("pair %s: registered with other settings before; it is done again", record.pair)
        return False
    paths = [output / name for name in record.outputs]
    sizes = tuple(path.stat().st_size if path.is_file() else None for path in paths)
    if sizes != record.output_bytes:
        logger.info("pair %s: a file of it is missing or was changed; it is done again", record.pair)
    return sizes == record.output_bytes
