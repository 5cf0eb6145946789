"""Fingerprints of datasets of many kinds: what the golden table of planning-rules.md is made of."""

from dataclasses import dataclass, replace

import numpy as np

from biasreg.core.dataset_json import DatasetJson, Pairing
from biasreg.core.geometry import Geometry
from biasreg.planning.fingerprint_records import (
    CaseFingerprint,
    ChannelStatistics,
    Fingerprint,
    Misalignment,
    PairFingerprint,
)

Triple = tuple[float, float, float]
CHANNEL = ChannelStatistics(-1000.0, (-900.0, -800.0, 0.0, 800.0, 900.0), 1000.0, 0.0, 1.0)


@dataclass(frozen=True)
class Kind:
    """A kind of dataset, in the numbers that plans depend on.

    Attributes:
        anatomy: Extent of the foreground in mm.
        spacing: Voxel size in mm.
        modalities: Of the cases, in turn.
        labels: Number of foreground labels; 0 for none.
        label_extent: Extent of the labels in mm; the anatomy's when None.
        scores: Mean score under none, center, affine, affine_focus; shorter where later ones do not exist.
        left_mm: What is left between labels after the best of them (95th percentile).
        pairing: Which pairs make sense.
        cases: Number of cases.
        channels: Number of channels.
        odd: Extent of one further, odd case.
    """

    anatomy: Triple
    spacing: Triple
    modalities: tuple[str, ...] = ("MRI",)
    labels: int = 4
    label_extent: Triple | None = None
    scores: tuple[float, ...] = (0.3, 0.4, 0.6)
    left_mm: float = 6.0
    pairing: Pairing = "inter-subject"
    cases: int = 30
    channels: int = 1
    odd: Triple | None = None


KINDS = {
    "brain MR, OASIS": Kind((146, 182, 150), (1, 1, 1), labels=35, scores=(0.2, 0.3, 0.57), left_mm=7.0),
    "abdominal CT": Kind((370, 260, 380), (2, 2, 2), ("CT",), scores=(0.1, 0.3, 0.5), left_mm=25.0),
    "hip CT": Kind((380, 250, 240), (0.8, 0.8, 1.5), ("CT",), labels=3, scores=(0.1, 0.4, 0.7), left_mm=15.0),
    "hippocampus MR": Kind((35, 50, 36), (1, 1, 1), labels=2, scores=(0.44, 0.55, 0.69), left_mm=4.0, cases=180),
    "head and neck CT": Kind(
        (480, 300, 330),
        (1.2, 1.2, 3),
        ("CT",),
        labels=7,
        label_extent=(150, 140, 130),
        scores=(0.01, 0.1, 0.4, 0.49),
        left_mm=12.0,
    ),
    "lung CT, in- and exhale": Kind(
        (320, 240, 300), (1, 1, 2.5), ("CT",), labels=1, scores=(0.9, 0.89), left_mm=18.0, pairing="intra-subject"
    ),
    "cardiac MR, short axis": Kind((260, 260, 90), (1.5, 1.5, 8), labels=3, scores=(0.2, 0.4, 0.6), left_mm=10.0),
    "prostate MR": Kind((180, 180, 90), (0.6, 0.6, 3), labels=2, scores=(0.3, 0.5, 0.6), left_mm=9.0),
    "whole-body CT": Kind((500, 340, 1700), (0.98, 0.98, 3), ("CT",), labels=20, scores=(0.1, 0.2, 0.4), left_mm=60.0),
    "mouse brain MR": Kind((11, 17, 9), (0.15, 0.15, 0.15), labels=20, scores=(0.3, 0.5, 0.7), left_mm=0.5),
    "micro-CT of bone": Kind((6, 6, 10), (0.012, 0.012, 0.012), ("micro-CT",), labels=0, scores=(0.3, 0.5, 0.6)),
    "neonatal brain MR": Kind((92, 118, 88), (0.8, 0.8, 0.8), labels=9, scores=(0.3, 0.4, 0.65), left_mm=6.0),
    "brain MR with one odd case": Kind(
        (146, 182, 150), (1, 1, 1), labels=35, scores=(0.2, 0.3, 0.57), left_mm=7.0, odd=(300, 400, 500)
    ),
    "abdominal CT and MR": Kind((360, 250, 300), (1.5, 1.5, 3), ("CT", "MRI"), scores=(0.1, 0.3, 0.5), left_mm=25.0),
    "PET/CT of one person, follow-up": Kind(
        (400, 280, 900), (2, 2, 3), ("CT",), labels=0, scores=(0.6, 0.61), pairing="intra-subject", channels=2
    ),
}


def make_fingerprint(kind: Kind) -> Fingerprint:
    """Build the fingerprint of a kind."""
    labelled = kind.labels > 0
    case = CaseFingerprint(
        identifier="",
        subject="",
        modality="",
        geometry=_grid(kind.anatomy, kind.spacing),
        world_spacing=kind.spacing,
        field_of_view_mm=kind.anatomy,
        foreground_center=(0.0, 0.0, 0.0),
        foreground_extent_mm=kind.anatomy,
        channels=(CHANNEL,) * kind.channels,
        label_volumes_mm3={str(value): 10.0 for value in range(1, kind.labels + 1)} if labelled else None,
        label_extent_mm=(kind.label_extent or kind.anatomy) if labelled else None,
        landmarks=None,
        source_hash="",
    )
    count = kind.cases
    cases = [
        replace(
            case,
            identifier=f"c{number:03d}",
            subject=f"s{number // 2 if kind.pairing == 'intra-subject' else number}",
            modality=kind.modalities[number % len(kind.modalities)],
        )
        for number in range(count)
    ]
    if kind.odd:
        cases[-1] = replace(cases[-1], foreground_extent_mm=kind.odd, geometry=_grid(kind.odd, kind.spacing))
    names = ("none", "center", "affine", "affine_focus")
    distances = (kind.left_mm / 3, kind.left_mm, 2 * kind.left_mm) if labelled else None
    alignments = {
        name: Misalignment(score, distances, distances) for name, score in zip(names, kind.scores, strict=False)
    }
    pairs = tuple(PairFingerprint(f"c{number:03d}", "c000", 0.9, 5.0, alignments) for number in range(1, 9))
    return Fingerprint(3, "Dataset700_Kind", "c000", tuple(cases), pairs)


def make_dataset(kind: Kind, **changes: object) -> DatasetJson:
    """Build the `dataset.json` of a kind."""
    facts = {
        "name": "Kind",
        "channel_names": {
            str(index): name for index, name in enumerate(["CT", "PET"] if kind.channels > 1 else ["MRI"])
        },
        "labels": {"background": 0, **{f"label {value}": value for value in range(1, kind.labels + 1)}},
        "file_ending": ".nii.gz",
        "pairing": kind.pairing,
    }
    return DatasetJson(**{**facts, **changes})


def _grid(extent: Triple, spacing: Triple) -> Geometry:
    x, y, z = (int(np.ceil(side / step)) for side, step in zip(extent, spacing, strict=True))
    return Geometry.centered((x, y, z), spacing)
