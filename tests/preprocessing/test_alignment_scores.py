import numpy as np
import pytest

from biasreg.core.dataset import Case
from biasreg.core.geometry import Geometry
from biasreg.core.image_io import Image, write_image
from biasreg.demo.dataset import phantom_case
from biasreg.demo.phantom import PhantomSettings, ScannerSettings
from biasreg.preprocessing.alignment_scores import intensity_score, label_misalignment, measure_alignment
from biasreg.preprocessing.prealign import translation

SETTINGS = PhantomSettings(scanner=ScannerSettings(spacing_mm=(4.6, 5.4)))


def cube(start, value=3):
    geometry = Geometry.centered((20, 20, 20), (2.0, 2.0, 2.0))
    labels = np.zeros(geometry.shape, np.uint8)
    labels[tuple(slice(first, first + 8) for first in start)] = value
    return Image(labels, geometry)


def label_score(*arguments):
    return label_misalignment(*arguments).score


def test_distances_are_between_centroids_and_surfaces_in_mm():
    fixed = cube((4, 6, 6))
    apart = label_misalignment(fixed, cube((8, 6, 6)), np.eye(4))
    assert apart.centroid_mm == pytest.approx((8.0,) * 3, abs=0.5)
    assert apart.surface_mm[2] == pytest.approx(8.0, abs=1.0)
    assert apart.surface_mm[0] <= apart.surface_mm[1] <= apart.surface_mm[2]
    onto = label_misalignment(fixed, cube((8, 6, 6)), translation([8.0, 0, 0]))
    assert (onto.centroid_mm, onto.surface_mm) == ((0.0,) * 3, (0.0,) * 3)
    other = label_misalignment(fixed, cube((4, 6, 6), value=5), np.eye(4))
    assert (other.centroid_mm, other.surface_mm) == (None, None)


def test_what_one_image_does_not_reach_is_no_displacement():
    fixed = cube((4, 6, 6))
    long = np.zeros(fixed.array.shape, np.uint8)
    long[4:12, 6:14, :] = 3
    rod = Image(long, fixed.geometry)
    cut = Image(rod.array[:, :, :10], Geometry.from_affine(rod.geometry.affine, (20, 20, 10)))
    assert label_misalignment(rod, cut, np.eye(4)).surface_mm[2] < 2.1
    assert label_misalignment(rod, cut, np.eye(4)).score < 0.8


def test_the_score_of_labels_is_their_dice():
    fixed = cube((4, 6, 6))
    assert label_score(fixed, fixed, np.eye(4)) == pytest.approx(1)
    assert label_score(fixed, cube((8, 6, 6)), np.eye(4)) == pytest.approx(0.5, abs=0.03)
    assert label_score(fixed, cube((8, 6, 6)), translation([8.0, 0, 0])) == pytest.approx(1)
    assert label_score(fixed, cube((12, 6, 6)), np.eye(4)) == 0
    assert label_score(fixed, cube((4, 6, 6), value=5), np.eye(4)) == 0


def test_the_score_of_intensities_is_high_where_one_tells_the_other_even_across_contrasts():
    rng = np.random.default_rng(0)
    geometry = Geometry.centered((24, 24, 24), (2.0, 2.0, 2.0))
    first = Image(rng.random(geometry.shape).astype(np.float32), geometry)
    second = Image(rng.random(geometry.shape).astype(np.float32), geometry)
    inverted = Image(np.exp(-first.array), geometry)
    assert intensity_score(first, first, np.eye(4)) > 0.9
    assert intensity_score(first, inverted, np.eye(4)) > 0.9
    assert intensity_score(first, second, np.eye(4)) < 0.25
    assert intensity_score(first, Image(np.ones(geometry.shape, np.float32), geometry), np.eye(4)) == 0


@pytest.mark.parametrize("labelled", [True, False])
def test_the_ways_of_alignment_are_scored_in_their_order(labelled, tmp_path):
    case = phantom_case("demo_001", settings=SETTINGS, seed=0)
    truth = translation([20.0, -15.0, 10.0])
    truth[:2, :2] = [[0.96, -0.28], [0.28, 0.96]]
    cases = []
    for name, matrix in (("a", np.eye(4)), ("b", truth)):
        geometry = Geometry.from_affine(matrix @ case.geometry.affine, case.image.shape)
        write_image(tmp_path / f"{name}.nii.gz", case.image, geometry)
        write_image(tmp_path / f"{name}_labels.nii.gz", case.labels, geometry)
        labels = tmp_path / f"{name}_labels.nii.gz" if labelled else None
        cases.append(Case(name, name, "MRI", (tmp_path / f"{name}.nii.gz",), labels, None, None))
    pair = measure_alignment(*cases, cases[0])
    assert (pair.moving, pair.fixed) == ("b", "a")
    found = pair.alignments
    assert found["none"].score < found["center"].score < found["affine"].score
    assert found["rigid"].score > found["center"].score
    assert found["affine"].score > 0.8
    assert ("affine_focus" in found) == labelled
    assert 0.3 < pair.overlap < 1
    assert pair.center_offset_mm == pytest.approx(np.linalg.norm([20.0, -15.0, 10.0]), rel=0.5)
    if labelled:
        assert found["affine_focus"].score > found["affine"].score - 0.03
        assert found["affine"].surface_mm[1] < found["none"].surface_mm[1]
        assert found["affine"].centroid_mm[1] < found["none"].centroid_mm[1]
    else:
        assert found["affine"].surface_mm is None
