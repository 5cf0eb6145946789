"""The registered pairs of a folder: which there are, what their records say, and where their images lie."""

import dataclasses
import logging
import re
import typing
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from biasreg.core.errors import RecordError
from biasreg.core.image_io import IMAGE_ENDINGS, image_files
from biasreg.core.pairs import FURTHER_FIELDS, PairFiles
from biasreg.core.serialization import file_hash, from_json, read_json
from biasreg.inference.record import Accuracy, InputFile, Provenance
from biasreg.inference.staging import record_path
from biasreg.inference.trust import Trust

logger = logging.getLogger(__name__)

_WARP = re.compile(r"(?P<pair>.+)_warp(?P<ending>\.nii\.gz|\.nii|\.mha|\.mhd|\.nrrd)")
_FURTHER_FIELD = re.compile(rf"(.+){FURTHER_FIELDS}")


@dataclass(frozen=True)
class InverseQuality:
    """How well the two fields undo each other, mm.

    Attributes:
        percentile95_mm: 95th percentile of the error.
    """

    percentile95_mm: float


@dataclass(frozen=True)
class Quality:
    """How regular the transform is.

    Attributes:
        folding_percent: Share of folding voxels, 0 to 100.
        log_jacobian_std: Spread of log det J.
        inverse_error: How well it is undone.
    """

    folding_percent: float
    log_jacobian_std: float | None
    inverse_error: InverseQuality | None


@dataclass(frozen=True)
class PairRecord:
    """What a report shows of a pair's record: a part of `PredictionRecord`, in which records of all versions agree.

    Attributes:
        written: When, in UTC (ISO 8601).
        provenance: What registered the pair.
        inputs: What it was made from.
        seconds: Wall time of each stage, and `total`.
        quality: How regular the transform is.
        accuracy: Overlap of the labels; None without label maps of both images.
        notices: What a user should know about this pair.
        trust: Whether it may be trusted; None in records that do not say.
        refined_mm: Voxel size of the finest grid that the field was refined on; None if it was not.
    """

    written: str
    provenance: Provenance
    inputs: tuple[InputFile, ...]
    seconds: dict[str, float]
    quality: Quality
    accuracy: Accuracy | None
    notices: tuple[str, ...] = ()
    trust: Trust | None = None
    refined_mm: tuple[float, float, float] | None = None


@dataclass(frozen=True)
class PredictedPair:
    """A registered pair on disk.

    Attributes:
        name: Identifier of the pair.
        folder: Folder of its files.
        record: Its record; None where there is none that can be read, as with fields of another tool.
        images: The files that it was made from; None where they are not found.
        missing: Why there are no images.
    """

    name: str
    folder: Path
    record: PairRecord | None = None
    images: PairFiles | None = None
    missing: str | None = None

    def file(self, suffix: str) -> Path | None:
        """Find one of the pair's files, whatever its ending.

        Args:
            suffix: What it holds, for example `warp`.

        Returns:
            The file; None where there is none.
        """
        paths = (self.folder / f"{self.name}_{suffix}{ending}" for ending in IMAGE_ENDINGS)
        return next((path for path in paths if path.is_file()), None)

    @property
    def level_fields(self) -> dict[str, Path]:
        """The total field after each level that was kept, coarsest first, and last the result, by name."""
        found = {f"level {level}": self.file(f"level{level}_warp") for level in range(9, -1, -1)}
        last = "level 0" if found["level 0"] is None else "refined"
        found |= {f"{last}, the result": self.file("warp")}
        return {name: path for name, path in found.items() if path is not None}

    @property
    def features(self) -> Path | None:
        """The pair's feature maps, if they were kept."""
        path = self.folder / f"{self.name}_features.npz"
        return path if path.is_file() else None


def read_predictions(folder: Path) -> tuple[PredictedPair, ...]:
    """Find the pairs of a folder by their fields `<pair>_warp.nii.gz`.

    Args:
        folder: The folder, by biasreg or another tool.

    Returns:
        The pairs by name, with their records but without their images.
    """
    matches = (_WARP.fullmatch(path.name) for path in folder.iterdir())
    names = {match["pair"] for match in matches if match}
    further = {name for name in names if (match := _FURTHER_FIELD.fullmatch(name)) and match[1] in names}
    return tuple(_read_pair(folder, name) for name in sorted(names - further))


def locate_images(pair: PredictedPair, references: Mapping[str, PairFiles]) -> PredictedPair:
    """Find the files that a pair was made from: where its record says, else among reference pairs of its name.

    Args:
        pair: The pair.
        references: Reference pairs by identifier.

    Returns:
        The pair with its images, or with the reason why there are none. A file whose bytes are not those that were
        registered does not count.
    """
    reference = references.get(pair.name)
    recorded = None if pair.record is None else _recorded_files(pair.name, pair.record)
    reasons = []
    for files in (recorded, reference):
        if files is None:
            continue
        fault = _fault(files, pair.record)
        if fault is None:
            return replace(pair, images=_with_labels(files, reference), missing=None)
        reasons.append(fault)
    return replace(
        pair, missing="; ".join(dict.fromkeys(reasons)) or "neither a record nor a reference pair names them"
    )


def _read_pair(folder: Path, name: str) -> PredictedPair:
    path = record_path(folder, name)
    if not path.is_file():
        return PredictedPair(name, folder)
    try:
        record = from_json(PairRecord, _known(PairRecord, read_json(path)), where=str(path))
    except RecordError as error:  # of another tool
        logger.debug("no record: %s", error)
        return PredictedPair(name, folder)
    return PredictedPair(name, folder, record)


def _known(cls: type, data: Any) -> Any:
    """Leave out the fields that a record, or a record in it, does not have: a report shows a part."""
    if not isinstance(data, dict):
        return data
    annotations = typing.get_type_hints(cls)
    inner = {name: _record_in(annotation) for name, annotation in annotations.items()}
    return {
        name: value if (record := inner[name]) is None else _known(record, value)
        for name, value in data.items()
        if name in annotations
    }


def _record_in(annotation: Any) -> type | None:
    """The record that an annotation is, or is beside None."""
    kinds = (annotation, *typing.get_args(annotation))
    return next((kind for kind in kinds if isinstance(kind, type) and dataclasses.is_dataclass(kind)), None)


def _recorded_files(pair: str, record: PairRecord) -> PairFiles:
    files: dict[str, list[Path]] = {}
    for each in record.inputs:
        if each.path.lower().endswith(IMAGE_ENDINGS):  # not the voxels beside an .mhd
            files.setdefault(each.role, []).append(Path(each.path))
    moving_seg, fixed_seg = (next(iter(files.get(role, [])), None) for role in ("moving_seg", "fixed_seg"))
    return PairFiles(
        pair,
        tuple(files.get("moving", ())),
        tuple(files.get("fixed", ())),
        moving_seg,
        fixed_seg,
        moving_points=None,
        fixed_points=None,
    )


def _fault(files: PairFiles, record: PairRecord | None) -> str | None:
    """Say why the first channels of a pair cannot be shown; None where they can."""
    for role, paths in (("moving", files.moving), ("fixed", files.fixed)):
        if not paths or not paths[0].is_file():
            return f"the {role} image is not at {paths[0] if paths else 'any place that the record names'}"
        known = {each.sha256 for each in record.inputs if each.role == role} if record is not None else set()
        if known and not {file_hash(file) for file in image_files(paths[0])} <= known:
            return f"{paths[0]} is not the {role} image that was registered: its bytes are others"
    return None


def _with_labels(files: PairFiles, reference: PairFiles | None) -> PairFiles:
    """Take label maps that exist, those of the reference where the pair itself has none."""
    others = (None, None) if reference is None else (reference.moving_seg, reference.fixed_seg)
    return replace(
        files,
        moving_seg=_existing(files.moving_seg, others[0]),
        fixed_seg=_existing(files.fixed_seg, others[1]),
    )


def _existing(*paths: Path | None) -> Path | None:
    return next((path for path in paths if path is not None and path.is_file()), None)
