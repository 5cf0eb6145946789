from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

from biasreg.core.dataset import Case, read_dataset
from biasreg.core.dataset_json import PairNames
from biasreg.core.errors import GeometryError, ImageError
from biasreg.core.geometry import Geometry, apply_affine, index_corners, world_box
from biasreg.core.image_io import write_image
from biasreg.core.points_io import Points, write_points
from biasreg.core.serialization import from_json, to_json, write_json
from biasreg.planning.fingerprint import dataset_hash, describe_case, extract_fingerprint, source_hash, world_spacing
from biasreg.planning.fingerprint_records import Fingerprint, Misalignment, PairFingerprint

SHAPE = (20, 16, 12)


def oblique(spacing=(1.0, 1.5, 2.0)):
    cosine, sine = np.cos(np.radians(30)), np.sin(np.radians(30))
    affine = np.eye(4)
    affine[:3, :3] = np.array([[cosine, -sine, 0], [sine, cosine, 0], [0, 0, 1]]) * spacing
    affine[:3, 3] = [10.0, -20.0, 5.0]
    return Geometry.from_affine(affine, SHAPE)


@pytest.fixture
def write_case(tmp_path):
    def write(name="a", array=None, geometry=None, labels=None, modality="MRI", channels=1):
        geometry = geometry or Geometry.centered(SHAPE, (1.0, 1.5, 2.0))
        array = np.zeros(SHAPE, np.float32) if array is None else array
        for channel in range(channels):
            write_image(tmp_path / f"{name}_{channel:04d}.nii.gz", array + channel, geometry)
        if labels is not None:
            write_image(tmp_path / f"{name}_labels.nii.gz", labels, geometry)
        images = tuple(tmp_path / f"{name}_{channel:04d}.nii.gz" for channel in range(channels))
        return Case(
            name, name, modality, images, tmp_path / f"{name}_labels.nii.gz" if labels is not None else None, None, None
        )

    return write


def block(value=100.0, background=0.0):
    array = np.full(SHAPE, background, np.float32)
    array[4:12, 5:11, 3:9] = value + np.arange(8 * 6 * 6).reshape(8, 6, 6)
    return array


def test_the_box_of_an_oblique_grid_holds_its_voxels_whole():
    geometry = oblique()
    center, extent = world_box(geometry, [(2, 6), (3, 5), (1, 9)])
    faces = [[start - 0.5, stop - 0.5] for start, stop in ((2, 6), (3, 5), (1, 9))]
    corners = apply_affine(geometry.affine, [[x, y, z] for x in faces[0] for y in faces[1] for z in faces[2]])
    np.testing.assert_allclose(np.array(center) - np.array(extent) / 2, corners.min(axis=0))
    np.testing.assert_allclose(np.array(center) + np.array(extent) / 2, corners.max(axis=0))
    assert extent[2] == pytest.approx(16.0)
    assert extent[0] == pytest.approx(4 * np.cos(np.radians(30)) + 3 * np.sin(np.radians(30)))


def test_the_corners_of_a_box_are_those_of_its_outer_voxels_faces():
    corners = index_corners(Geometry.centered((4, 4, 4), (2.0, 2.0, 2.0)), [(0, 4)] * 3)
    assert sorted({tuple(np.abs(corner)) for corner in corners}) == [(4.0, 4.0, 4.0)]
    assert len({tuple(corner) for corner in corners}) == 8


@pytest.mark.parametrize(
    ("modality", "background", "extent"),
    [("MRI", 0.0, (8.0, 9.0, 12.0)), ("CT", -1000.0, (8.0, 9.0, 12.0)), ("CT", 0.0, (20.0, 24.0, 24.0))],
)
def test_the_foreground_is_the_masked_part_the_body_or_the_whole_image(modality, background, extent, write_case):
    facts = describe_case(write_case(array=block(background=background), modality=modality), ())
    assert facts.foreground_extent_mm == pytest.approx(extent)


def test_intensities_are_described_inside_the_foreground_and_per_channel(write_case):
    first, second = describe_case(write_case(array=block(), channels=2), ()).channels
    values = block()[block() > 0]
    assert (first.minimum, first.maximum) == (values.min(), values.max())
    assert first.percentiles == pytest.approx(np.percentile(values, (0.5, 1, 50, 99, 99.5)))
    assert (first.mean, first.std) == pytest.approx((values.mean(), values.std()))
    assert second.mean == pytest.approx(first.mean + 1)


def test_labels_are_weighed_in_cubic_millimetres_by_their_value_in_the_file(write_case):
    labels = np.zeros(SHAPE, np.uint16)
    labels[:2, :3, :4] = 2035
    labels[5, 5, 5] = 7
    facts = describe_case(write_case(array=block(), labels=labels), (7, 900, 2035))
    assert facts.label_volumes_mm3 == {"7": 3.0, "2035": 72.0}
    assert facts.label_extent_mm == pytest.approx((6.0, 9.0, 12.0))
    stray = describe_case(write_case(array=block(), labels=labels), (900,))
    assert (stray.label_volumes_mm3, stray.label_extent_mm) == ({}, None)
    bare = describe_case(write_case(array=block()), (7,))
    assert (bare.label_volumes_mm3, bare.label_extent_mm) == (None, None)


def test_the_field_of_view_and_the_number_of_landmarks_are_facts(write_case, tmp_path):
    points = tmp_path / "a.csv"
    write_points(points, Points(("p", "q"), np.zeros((2, 3))))
    facts = describe_case(replace(write_case(array=block()), landmarks=points), ())
    assert facts.field_of_view_mm == pytest.approx((20.0, 24.0, 24.0))
    assert facts.landmarks == 2
    assert describe_case(write_case(array=block()), ()).landmarks is None


def test_the_foreground_may_be_found_without_trusting_the_modality_of_the_case(write_case):
    case = write_case(array=block(background=-1000.0) + np.arange(SHAPE[2]), modality="CT")
    body, whole = describe_case(case, ()), describe_case(case, (), "mixed")
    assert body.foreground_extent_mm == pytest.approx((8.0, 9.0, 12.0))
    assert whole.foreground_extent_mm == pytest.approx((20.0, 24.0, 24.0))
    assert whole.modality == "CT"


def test_each_file_enters_the_hash_under_what_it_is(write_case, tmp_path):
    case = write_case(array=block(), labels=np.ones(SHAPE, np.uint8))
    as_mask = replace(case, labels=None, mask=case.labels)
    hashes = {source_hash(case), source_hash(as_mask), source_hash(replace(case, labels=None))}
    assert len(hashes) == 3
    assert source_hash(case) == source_hash(write_case(array=block(), labels=np.ones(SHAPE, np.uint8)))
    write_case(array=block() + 1)
    assert source_hash(case) not in hashes


def test_voxels_in_a_file_of_their_own_enter_the_hash(write_case, tmp_path):
    case = replace(write_case(), images=(tmp_path / "a.mhd",))
    case.images[0].write_text("ElementDataFile = a.raw\n")
    hashes = set()
    for voxels in ("old", "new"):
        (tmp_path / "a.raw").write_text(voxels)
        hashes.add(source_hash(case))
    assert len(hashes) == 2


def test_spacing_is_given_along_the_axes_of_the_world():
    affine = np.array([[0, 0, -3.0, 0], [1.0, 0, 0, 0], [0, 2.0, 0, 0], [0, 0, 0, 1]])
    assert world_spacing(Geometry.from_affine(affine, (4, 4, 4))) == pytest.approx((3.0, 1.0, 2.0))


def test_each_array_axis_counts_once_however_oblique_the_grid():
    half = np.sqrt(0.5)
    affine = np.eye(4)
    affine[:3, :3] = np.array([[half, -half, 0], [half, half, 0], [0, 0, 1]]) * [1.0, 4.0, 2.0]
    assert sorted(world_spacing(Geometry.from_affine(affine, (4, 4, 4)))) == pytest.approx([1.0, 2.0, 4.0])


def test_channels_on_different_grids_are_refused(write_case):
    case, other = write_case(array=block()), write_case("b", array=block(), geometry=oblique())
    with pytest.raises(GeometryError, match="different grids"):
        describe_case(replace(case, images=case.images + other.images), ())


@pytest.fixture
def raw(tmp_path, write_case):
    folder = tmp_path / "Dataset700_Tiny"
    for number in range(3):
        image = np.roll(block(), number, axis=0)
        write_image(folder / "imagesTr" / f"c{number}.nii.gz", image, oblique())
        write_image(folder / "labelsTr" / f"c{number}.nii.gz", (image > 0).astype(np.uint8), oblique())
    content = {"name": "Tiny", "channel_names": {"0": "MRI"}, "labels": {"background": 0, "a": 1}}
    write_json(folder / "dataset.json", content | {"file_ending": ".nii.gz", "pairing": "inter-subject"})
    return folder


def measure(fixed, moving, reference):
    assert fixed.modality == moving.modality == reference.modality
    return PairFingerprint(moving.identifier, fixed.identifier, 0.5, 3.0, {moving.modality: Misalignment(0.1)})


def extract(folder, measure=measure, cache=None):
    with ThreadPoolExecutor(2) as executor:
        return extract_fingerprint(read_dataset(folder), measure, executor, cache)


def test_the_same_files_give_the_same_facts_which_survive_being_written(raw):
    first = extract(raw)
    assert [case.identifier for case in first.cases] == ["c0", "c1", "c2"]
    assert [(pair.fixed, pair.moving) for pair in first.pairs] == [("c0", "c1"), ("c1", "c2"), ("c2", "c0")]
    assert extract(raw) == first
    assert from_json(Fingerprint, to_json(first)) == first


def test_the_alignment_of_every_listed_pair_is_measured_and_a_change_of_pairs_is_a_change_of_facts(raw):
    content = to_json(read_dataset(raw).json)
    pairs = [{"moving": "c0", "fixed": "c1"}, {"moving": "c0", "fixed": "c2"}]
    write_json(raw / "dataset.json", content | {"pairing": "listed", "pairs": pairs})
    fingerprint = extract(raw)
    assert [(pair.moving, pair.fixed) for pair in fingerprint.pairs] == [
        ("c0", "c1"),
        ("c0", "c2"),
    ]
    write_json(raw / "dataset.json", content | {"pairing": "listed", "pairs": pairs[:1]})
    assert dataset_hash(read_dataset(raw).json) != fingerprint.dataset_hash


def test_mixed_modalities_are_facts_of_the_cases_but_foreground_and_alignment_assume_none(raw):
    path = raw / "dataset.json"
    content = to_json(read_dataset(raw).json)
    write_json(path, content | {"modalities": {"c0": "CT"}})
    fingerprint = extract(raw)
    assert [case.modality for case in fingerprint.cases] == ["CT", "MRI", "MRI"]
    assert {name for pair in fingerprint.pairs for name in pair.alignments} == {"mixed"}


def test_what_is_known_is_not_looked_at_again_and_what_has_changed_is(raw, tmp_path):
    measured = []

    def count(fixed, moving, reference):
        measured.append(moving.identifier)
        return measure(fixed, moving, reference)

    cache = tmp_path / "cache"
    first = extract(raw, count, cache)
    assert extract(raw, count, cache) == first == extract(raw)
    assert len(measured) == 3
    assert sorted(path.name for path in cache.glob("*.json")) == ["c0.json", "c1.json", "c2.json"]
    moving = first.reference_case
    write_image(raw / "imagesTr" / f"{moving}.nii.gz", block(50.0), oblique())
    (cache / f"{next(case.identifier for case in first.cases if case.identifier != moving)}.json").write_text("cut")
    changed = extract(raw, count, cache)
    assert len(measured[3:]) == 3  # it is the reference of all pairs
    assert changed == extract(raw)
    assert [a != b for a, b in zip(first.cases, changed.cases, strict=True)] == [
        case.identifier == moving for case in first.cases
    ]


def test_a_broken_file_is_named_with_its_case(raw):
    (raw / "imagesTr" / "c1.nii.gz").write_bytes(b"broken")
    with pytest.raises(ImageError, match=r"case c1: .*c1\.nii\.gz"):
        extract(raw)


@pytest.mark.parametrize(
    ("changes", "same"),
    [
        ({"description": "new", "licence": "CC0", "reference": "x"}, True),
        ({"labels": {"background": 0, "b": 1}}, False),
        ({"channel_names": {"0": "CT"}}, False),
        ({"pairing": "intra-subject"}, False),
        ({"subjects": {"c0": "s", "c1": "s"}}, False),
        ({"modalities": {"c0": "CT"}}, False),
        ({"pairs": (PairNames("c0", "c1"),)}, True),  # not trained on
    ],
)
def test_what_facts_and_plans_are_taken_from_enters_the_hash_of_dataset_json(changes, same, raw):
    json = read_dataset(raw).json
    assert (dataset_hash(replace(json, **changes)) == dataset_hash(json)) == same
