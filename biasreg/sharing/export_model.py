"""Packs a trained model into one file that can be given away."""

import logging
import shutil
import tempfile
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path

import torch
from torch import Tensor

import biasreg
from biasreg.core.dataset_json import DATASET_FILE, DatasetJson
from biasreg.core.errors import ArchiveError
from biasreg.core.paths import check_writable
from biasreg.core.serialization import content_hash, read_record, write_record
from biasreg.evaluation.records import Evaluation, MethodSummary
from biasreg.inference.models import TrainedModel
from biasreg.inference.predictor import Predictor
from biasreg.network.checkpoint import Checkpoint, check_reference, load_checkpoint
from biasreg.planning.files import PLANS_FILE, RANGES_FILE, read_plans
from biasreg.planning.plans import Configuration, Plans
from biasreg.preprocessing.reference_files import copy_reference, reference_files, reference_hash
from biasreg.sharing.anonymous import (
    anonymous_configuration,
    anonymous_dataset,
    anonymous_identity,
    anonymous_plans,
    case_names,
    check_ranges,
)
from biasreg.sharing.archive_writing import write_archive
from biasreg.sharing.manifest import ARCHIVE_SCHEMA_VERSION, CARD_FILE, Manifest, Reference
from biasreg.sharing.model_card import CardFacts, write_card
from biasreg.sharing.weights import FoldRecord, course_of, write_fold

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ExportOptions:
    """What goes into an archive, and what is said of it.

    Attributes:
        include_reference: Give away the image that cases are aligned to, which is a patient's.
        without_reference: Leave that image out; the model cannot predict without it.
        merge_lora: Fold adapters into the pretrained weights, so that these are given away too.
        evaluation: `summary.json` of an evaluation, for the card.
        licence: Licence of the weights.
        date: Day of the archive, UTC; None for today.
    """

    include_reference: bool = False
    without_reference: bool = False
    merge_lora: bool = False
    evaluation: Path | None = None
    licence: str = ""
    date: str | None = None


@dataclass(frozen=True)
class _Shared:
    """A model as it is given away: plans without names, its folds, and the names that must not be in it."""

    dataset: DatasetJson
    plans: Plans
    configuration: Configuration
    folds: dict[str, tuple[dict[str, Tensor], FoldRecord]]
    names: set[str]


def export_model(model: TrainedModel, output: Path, options: ExportOptions) -> Manifest:
    """Write a model's archive: plans, dataset.json, weights and a model card, without names of cases.

    Args:
        model: The model, as `find_model` gives it.
        output: The archive, which ends in `.zip`.
        options: What goes into it.

    Returns:
        What the archive says of itself.

    Raises:
        ArchiveError: The model is aligned to a patient's image and it was not said whether to give that away, the
            archive exists, or a file that would go into it names cases.
        InputError: The model, or the evaluation, cannot be read.
    """
    _check_output(output)
    reference = _reference(model, options)
    methods = () if options.evaluation is None else read_record(options.evaluation, Evaluation).methods
    shared = _share(model, merge=options.merge_lora)
    manifest = Manifest(
        schema_version=ARCHIVE_SCHEMA_VERSION,
        biasreg_version=biasreg.__version__,
        date=options.date or datetime.now(timezone.utc).date().isoformat(),
        dataset_name=shared.plans.dataset_name,
        plans_name=shared.plans.plans_name,
        configuration_name=model.configuration_name,
        licence=options.licence,
        reference=reference,
        merged=options.merge_lora,
        files={},
    )
    with tempfile.TemporaryDirectory(prefix=".export-", dir=output.absolute().parent) as temporary:
        _fill(Path(temporary), model, shared, manifest, methods)
        complete = write_archive(output, Path(temporary), manifest)
    _report(output, complete)
    return complete


def _check_output(output: Path) -> None:
    check_writable(output.parent, "choose another place with -o")
    if output.suffix.lower() != ".zip":
        raise ArchiveError(f"an archive is named *.zip · {output} · name it so with -o")
    if output.exists():
        raise ArchiveError(f"there is something already · {output} · move it away, or name another file with -o")
    output.parent.mkdir(parents=True, exist_ok=True)


def _reference(model: TrainedModel, options: ExportOptions) -> Reference:
    """Decide whether the reference goes along, which nobody but the user can."""
    names = reference_files(model.configuration.preprocessing)
    if not names:
        return "none"
    if options.include_reference == options.without_reference:
        raise ArchiveError(
            f"this model aligns every image to {' and '.join(names)}, which show A PATIENT of the training data; "
            f"without them it cannot predict · {model.folder} · if you may give that patient's image away, say so with "
            "--include_reference; else leave it out with --without_reference, and send it on a protected way to those "
            "who may have it"
        )
    return "included" if options.include_reference else "left out"


def _share(model: TrainedModel, *, merge: bool) -> _Shared:
    """Load the model, and take out of it what may be given away."""
    encoder = model.configuration.network.encoder
    checkpoints = [load_checkpoint(path, content_hash(model.configuration)) for path in model.checkpoints]
    reference = reference_hash(model.folder, model.configuration.preprocessing)
    for path, checkpoint in zip(model.checkpoints, checkpoints, strict=True):
        check_reference(path, checkpoint.identity, reference)
    if merge and encoder.tuning == "full":
        raise ArchiveError(
            f"{model.name} has no adapters to merge, its encoder trained as a whole · leave --merge_lora out"
        )
    configuration = anonymous_configuration(model.configuration)
    if merge:
        whole = replace(encoder, init="scratch", tuning="full", lora=None)
        configuration = replace(configuration, network=replace(configuration.network, encoder=whole))
    weights = _merged_weights(model) if merge else [checkpoint.weights for checkpoint in checkpoints]
    dataset = read_record(model.folder / DATASET_FILE, DatasetJson)
    names = case_names(dataset, model.configuration, checkpoints)
    plans = read_plans(model.folder / PLANS_FILE, "train the model anew")
    return _Shared(
        dataset=anonymous_dataset(dataset),
        plans=anonymous_plans(plans, model.configuration_name, configuration, names),
        configuration=configuration,
        folds={
            path.parent.name: (tensors, _record(path, checkpoint, configuration, merge=merge))
            for path, checkpoint, tensors in zip(model.checkpoints, checkpoints, weights, strict=True)
        },
        names=names,
    )


def _merged_weights(model: TrainedModel) -> list[dict[str, Tensor]]:
    """Load the networks as prediction does, which folds adapters into the weights that they belong to."""
    return [network.state_dict() for network in Predictor.from_model(model, torch.device("cpu")).networks]


def _record(path: Path, checkpoint: Checkpoint, configuration: Configuration, *, merge: bool) -> FoldRecord:
    identity = anonymous_identity(checkpoint.identity, configuration)
    if merge:
        identity = replace(identity, pretrained_hash=None)
    return FoldRecord(identity, course_of(path, checkpoint), checkpoint.versions)


def _fill(
    folder: Path, model: TrainedModel, shared: _Shared, manifest: Manifest, methods: tuple[MethodSummary, ...]
) -> None:
    """Write everything but the manifest."""
    write_record(folder / PLANS_FILE, shared.plans)
    write_record(folder / DATASET_FILE, shared.dataset)
    for fold, (weights, record) in shared.folds.items():
        write_fold(folder / fold, weights, record)
    if manifest.reference == "included":
        copy_reference(model.folder, folder, model.configuration.preprocessing)
    ranges = model.folder / RANGES_FILE
    if ranges.is_file():
        check_ranges(ranges, shared.names)
        shutil.copyfile(ranges, folder / RANGES_FILE)
    facts = CardFacts(
        manifest=manifest,
        dataset=shared.dataset,
        configuration=shared.configuration,
        origin=model.configuration.network.encoder,
        why=shared.plans.why[model.configuration_name],
        folds={fold: record for fold, (_, record) in shared.folds.items()},
        methods=methods,
        ranges=ranges.is_file(),
    )
    (folder / CARD_FILE).write_text(write_card(facts), encoding="utf-8")


def _report(output: Path, manifest: Manifest) -> None:
    size = output.stat().st_size / 1e6
    logger.info("%s: %s, %d files, %.1f MB", output, manifest.model, len(manifest.files) + 1, size)
    if manifest.reference == "included":
        logger.warning("THE ARCHIVE HOLDS A PATIENT'S IMAGE (the reference that cases are aligned to)")
    if manifest.reference == "left out":
        logger.warning("the reference image is not in the archive: without it the model cannot predict")
    if not manifest.licence:
        logger.warning("no licence is named: nobody may use the weights; name one with --licence")
