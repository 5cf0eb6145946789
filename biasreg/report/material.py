"""Everything that a report can be made of, as far as it is there; what is not is named."""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from biasreg.core.errors import BiasregError, InputError
from biasreg.core.pairs import PairFiles, read_pairs
from biasreg.core.paths import Roots, find_dataset
from biasreg.evaluation.records import DEFAULT_METHOD, IDENTITY, SCORES_SCHEMA_VERSION, Evaluation, PairScores
from biasreg.evaluation.summary import SUMMARY_FILE
from biasreg.inference.models import ModelRequest, TrainedModel, find_model
from biasreg.planning.files import PLANS_FILE, read_plans, read_versioned
from biasreg.planning.fingerprint_records import FINGERPRINT_SCHEMA_VERSION, Fingerprint
from biasreg.planning.plans import DEFAULT_PLANS_NAME, Plans
from biasreg.preprocessing.dataset_records import FINGERPRINT_FILE
from biasreg.report.predictions import PredictedPair, locate_images, read_predictions

logger = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True)
class ReportRequest:
    """What a report is asked for; everything is optional, but something must be given.

    Attributes:
        model: Which trained model; its `dataset` is None for none.
        roots: Root folders; only needed for a dataset.
        predictions: Folder of predictions.
        evaluation: Folder of an evaluation; None takes the one among the predictions, if it is there.
        references: Where the images of the pairs are looked for, in the forms of `read_pairs`.
    """

    model: ModelRequest = field(default_factory=ModelRequest)
    roots: Roots | None = None
    predictions: Path | None = None
    evaluation: Path | None = None
    references: Path | None = None


@dataclass(frozen=True)
class Material:
    """What a report is made of.

    Attributes:
        dataset: Full name of the dataset, where it is known.
        model: The trained model.
        plans: Its plans, or else the dataset's.
        fingerprint: The dataset's facts.
        pairs: The registered pairs.
        predictions: Folder of the predictions.
        evaluation: The evaluation.
        missing: What was asked for or belongs to a whole report and is not there: what, and why.
    """

    dataset: str | None
    model: TrainedModel | None
    plans: Plans | None
    fingerprint: Fingerprint | None
    pairs: tuple[PredictedPair, ...]
    predictions: Path | None
    evaluation: Evaluation | None
    missing: tuple[tuple[str, str], ...]

    @property
    def method(self) -> str | None:
        """Name under which the evaluation lists the predictions; None without an evaluation."""
        if self.evaluation is None:
            return None
        folders = self.evaluation.sources.predictions
        own = None if self.predictions is None else str(self.predictions.resolve())
        by_folder = [name for name, folder in folders.items() if folder == own]
        by_name = [name for name in folders if name == DEFAULT_METHOD]
        return next(iter([*by_folder, *by_name, *folders]), None)

    def scores(self, method: str | None) -> dict[str, PairScores]:
        """The evaluation's scores of a method by pair."""
        pairs = () if self.evaluation is None else self.evaluation.pairs
        return {score.pair: score for score in pairs if score.method == method}

    @property
    def methods(self) -> tuple[str, ...]:
        """Methods of the evaluation that measured anything, `identity` first."""
        if self.evaluation is None:
            return ()
        return tuple(summary.method for summary in self.evaluation.methods if summary.num_pairs)

    @property
    def other_methods(self) -> tuple[str, ...]:
        """Methods beside the predictions' own and `identity`."""
        return tuple(name for name in self.methods if name not in (IDENTITY, self.method))


class _Reader:
    """Reads what is there, and keeps the reasons of what is not."""

    def __init__(self) -> None:
        self.missing: list[tuple[str, str]] = []

    def read(self, what: str, function: Callable[[], T]) -> T | None:
        """Call a function, or note why it cannot be done."""
        try:
            return function()
        except BiasregError as error:
            self.note(what, str(error))
            return None

    def note(self, what: str, reason: str) -> None:
        """Note that something is not there."""
        logger.info("not in the report: %s: %s", what, reason)
        self.missing.append((what, reason))


def gather(request: ReportRequest) -> Material:
    """Find and read everything that a report can be made of.

    Args:
        request: What is asked for.

    Returns:
        The material.

    Raises:
        InputError: Nothing was asked for, or nothing of it is there.
    """
    if (request.model.dataset, request.predictions, request.evaluation) == (None, None, None):
        raise InputError("nothing to report · give a dataset (-d), predictions (-i) or an evaluation (-e)")
    reader = _Reader()
    model, plans, fingerprint = _read_dataset(request, reader)
    pairs = _read_pairs(request, reader)
    evaluation = _read_evaluation(request, reader)
    if not pairs and (model, plans, fingerprint, evaluation) == (None, None, None, None):
        reasons = "\n".join(f"  - {what}: {reason}" for what, reason in reader.missing)
        raise InputError(f"nothing to report:\n{reasons}")
    references = dict(_references(request, evaluation)) if pairs else {}
    located = tuple(locate_images(pair, references) for pair in pairs)
    sources = (plans.dataset_name if plans else None, fingerprint.dataset_name if fingerprint else None)
    return Material(
        dataset=next((name for name in sources if name), None),
        model=model,
        plans=plans,
        fingerprint=fingerprint,
        pairs=located,
        predictions=request.predictions,
        evaluation=evaluation,
        missing=tuple(reader.missing),
    )


def _read_dataset(
    request: ReportRequest, reader: _Reader
) -> tuple[TrainedModel | None, Plans | None, Fingerprint | None]:
    dataset, roots = request.model.dataset, request.roots
    if dataset is None or roots is None:
        reader.note("Dataset, plans and training", "no dataset was named (-d)")
        return None, None, None
    model = reader.read("Trained model", lambda: find_model(roots.results, request.model))
    folder = reader.read("Preprocessed dataset", lambda: find_dataset(dataset, roots.preprocessed))
    plans = fingerprint = None
    if model is not None:
        plans = reader.read("Plans", lambda: read_plans(model.folder / PLANS_FILE, "train again"))
    elif folder is not None:
        name = request.model.plans_name or DEFAULT_PLANS_NAME
        plans = reader.read("Plans", lambda: read_plans(folder / f"{name}.json", "plan again"))
    if folder is not None:
        path, remedy = folder / FINGERPRINT_FILE, f"run `biasreg_extract_fingerprint -d {dataset}`"
        fingerprint = reader.read(
            "Dataset",
            lambda: read_versioned(Fingerprint, path, FINGERPRINT_SCHEMA_VERSION, "fingerprint", remedy),
        )
    return model, plans, fingerprint


def _read_pairs(request: ReportRequest, reader: _Reader) -> tuple[PredictedPair, ...]:
    folder = request.predictions
    if folder is None:
        reader.note("Registered pairs", "no folder of predictions was named (-i)")
        return ()
    if not folder.is_dir():
        raise InputError(f"{folder}: there is no such folder of predictions; give the output of biasreg_predict")
    pairs = read_predictions(folder)
    if not pairs:
        reader.note("Registered pairs", f"{folder} holds no <pair>_warp.nii.gz")
    unknown = [pair.name for pair in pairs if pair.record is None]
    if unknown:
        reader.note(
            "Records of pairs",
            f"{len(unknown)} of {len(pairs)} pairs have no record of biasreg, so that what registered them is not "
            "known; the first is " + unknown[0],
        )
    return pairs


def _read_evaluation(request: ReportRequest, reader: _Reader) -> Evaluation | None:
    folder = request.evaluation or request.predictions
    if folder is None:
        reader.note("Results", "no evaluation was named (-e)")
        return None
    path = folder / SUMMARY_FILE
    if not path.is_file():
        if request.evaluation is not None:
            raise InputError(f"{path}: there is no such evaluation; give the output of biasreg_evaluate")
        reader.note("Results", f"{folder} holds no evaluation; run `biasreg_evaluate`, or name its folder with -e")
        return None
    remedy = "evaluate again with biasreg_evaluate"
    return reader.read("Results", lambda: read_versioned(Evaluation, path, SCORES_SCHEMA_VERSION, "evaluation", remedy))


def _references(request: ReportRequest, evaluation: Evaluation | None) -> Iterator[tuple[str, PairFiles]]:
    """Reference pairs by identifier, those that the user named last, so that they win."""
    dataset, roots = request.model.dataset, request.roots
    if evaluation is not None:
        yield from _reference_pairs(Path(evaluation.sources.references))
    if dataset is not None and roots is not None:
        try:
            folder = find_dataset(dataset, roots.raw)
        except BiasregError:
            logger.debug("no raw dataset %s", dataset)
        else:
            yield from _reference_pairs(folder)
    if request.references is not None:
        for pair in read_pairs(request.references).pairs:
            yield pair.identifier, pair


def _reference_pairs(source: Path) -> Iterator[tuple[str, PairFiles]]:
    """Pairs of a place that nobody named for the report: it may be gone."""
    try:
        pairs = read_pairs(source).pairs
    except BiasregError as error:
        logger.debug("no reference pairs: %s", error)
        return
    for pair in pairs:
        yield pair.identifier, pair
