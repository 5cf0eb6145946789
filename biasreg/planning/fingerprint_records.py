"""The records that a fingerprint consists of: facts about a dataset, and nothing but facts."""

from dataclasses import dataclass

from biasreg.core.geometry import Geometry

FINGERPRINT_SCHEMA_VERSION = 3
INTENSITY_PERCENTILES = (0.5, 1.0, 50.0, 99.0, 99.5)
DISTANCE_PERCENTILES = (50.0, 95.0, 100.0)
GIVEN = "given"  # the way of alignment that is the user's own transforms

Triple = tuple[float, float, float]


@dataclass(frozen=True)
class ChannelStatistics:
    """Intensities of one channel inside the foreground.

    Attributes:
        minimum: Smallest value.
        percentiles: Values at `INTENSITY_PERCENTILES` percent.
        maximum: Largest value.
        mean: Mean.
        std: Standard deviation.
    """

    minimum: float
    percentiles: tuple[float, ...]
    maximum: float
    mean: float
    std: float


@dataclass(frozen=True)
class CaseFingerprint:
    """Facts about one case.

    Attributes:
        identifier: Case identifier.
        subject: Subject of the case.
        modality: Modality of the case.
        geometry: Grid of the image.
        world_spacing: Its voxel size in mm along the world's x, y, z.
        field_of_view_mm: Side lengths of the world-aligned box around the whole grid, along the world's x, y, z.
        foreground_center: World coordinates (RAS mm) of the centre of the foreground's world-aligned box.
        foreground_extent_mm: Side lengths of that box along the world's x, y, z.
        channels: Intensity statistics per channel.
        label_volumes_mm3: Volume of each label that occurs, by file value (as text); None without a label map.
        label_extent_mm: Side lengths of the world-aligned box around all labels; None where there are none.
        landmarks: Number of named points; None without such a file.
        source_hash: Hashes over the contents of the case's image, label and mask files.
    """

    identifier: str
    subject: str
    modality: str
    geometry: Geometry
    world_spacing: Triple
    field_of_view_mm: Triple
    foreground_center: Triple
    foreground_extent_mm: Triple
    channels: tuple[ChannelStatistics, ...]
    label_volumes_mm3: dict[str, float] | None
    label_extent_mm: Triple | None
    landmarks: int | None
    source_hash: str


@dataclass(frozen=True)
class Misalignment:
    """How far one case lies from another one under one way of pre-alignment.

    Attributes:
        score: Mean Dice of the labels that both show, or, without labels, how well the intensities of one tell those of
            the other; 0 to 1.
        centroid_mm: Distance between the two centroids of a label, over all labels that both show: its
            `DISTANCE_PERCENTILES`; None without labels.
        surface_mm: Distance from the surface of a label in one case to the same in the other, both ways, over all
            labels that both show: likewise. Both distances are measured where both images reach.
    """

    score: float
    centroid_mm: Triple | None = None
    surface_mm: Triple | None = None


@dataclass(frozen=True)
class PairFingerprint:
    """Facts about one pair of the sample.

    Attributes:
        moving: The moving case.
        fixed: The fixed case: the reference case itself, within subjects one of the same subject, or the fixed case of
            a listed pair.
        overlap: Part of the fixed image's field of view that the moving image's covers, as their headers lie; 0 to 1.
        center_offset_mm: Distance between the centres of the two foregrounds, as the headers lie.
        alignments: How far they are apart under each way of pre-alignment: `none`, `center`, between subjects also
            `rigid` and `affine` (each registered to the reference case), and `affine_focus` where the reference has
            labels; `given` where the user's own transforms lead from one to the other.
    """

    moving: str
    fixed: str
    overlap: float
    center_offset_mm: float
    alignments: dict[str, Misalignment]


@dataclass(frozen=True)
class Fingerprint:
    """Facts about a dataset.

    Attributes:
        schema_version: Version of this record's layout.
        dataset_name: Full dataset name.
        reference_case: The case that all others may be aligned to: of the most typical ones the one through which a
            sample's pairs lie on each other best; within subjects the most typical one.
        cases: Facts per training case, sorted by identifier.
        pairs: Facts about a deterministic sample of pairs.
        dataset_hash: Content hash of what `dataset.json` says about channels, labels, pairing, listed pairs, subjects
            and modalities.
    """

    schema_version: int
    dataset_name: str
    reference_case: str
    cases: tuple[CaseFingerprint, ...]
    pairs: tuple[PairFingerprint, ...]
    dataset_hash: str = ""
