import numpy as np
import pytest

from biasreg.core.geometry import Geometry
from biasreg.preprocessing.label_quality import component_sizes, dice, measure_label, quality_fault

SHAPE = (20, 18, 16)
GRID = Geometry.centered(SHAPE, (2.0, 1.0, 3.0))
FREE = np.ones(SHAPE, dtype=bool)


def box(*ranges):
    mask = np.zeros(SHAPE, dtype=bool)
    mask[tuple(slice(*pair) for pair in ranges)] = True
    return mask


def fault(found, free=FREE, classes=1):
    return quality_fault(measure_label(found, free, GRID, classes))


ORGAN = box((5, 13), (5, 12), (4, 11))


def test_a_solid_organ_inside_the_image_is_measured_and_trusted():
    quality = measure_label(ORGAN, FREE, GRID, 1)
    assert quality.voxels == 8 * 7 * 7
    assert quality.volume_mm3 == pytest.approx(8 * 7 * 7 * 6.0)
    assert (quality.pieces, quality.main_share, quality.border_share, quality.covered_share) == (1, 1.0, 0.0, 0.0)
    assert quality_fault(quality) is None


def test_nothing_and_almost_nothing_are_no_label():
    assert fault(np.zeros(SHAPE, dtype=bool)) == "nothing was found"
    assert fault(box((5, 8), (5, 8), (5, 7))) == "tiny: 18 voxels, fewer than 27"


def test_crumbs_are_no_label_but_a_pair_of_organs_is():
    crumbs = np.zeros(SHAPE, dtype=bool)
    crumbs[1:-1:3, 1:-1:3, 1:-1:3] = True
    assert fault(crumbs).startswith("fragmented: ")
    assert fault(box((2, 6), (4, 10), (4, 10)) | box((12, 16), (4, 10), (4, 10))) is None


def test_a_label_of_several_classes_may_have_as_many_pieces():
    pieces = box((1, 19), (1, 3), (1, 4)) | box((1, 19), (5, 7), (1, 4)) | box((1, 19), (9, 11), (1, 4))
    pieces |= box((1, 19), (1, 3), (6, 9)) | box((1, 19), (5, 7), (6, 9))
    assert fault(pieces, classes=1).startswith("fragmented: 5 pieces")
    assert fault(pieces, classes=3) is None


def test_what_lies_mostly_outside_the_image_is_cut_off_but_touching_the_border_is_allowed():
    assert fault(box((5, 13), (5, 12), (0, 3))).startswith("cut off: 33% ")
    assert fault(box((5, 13), (5, 12), (0, 8))) is None


def test_what_lies_on_labels_drawn_as_something_else_is_refused():
    free = FREE.copy()
    free[5:11] = False
    assert fault(ORGAN, free).startswith("75% of it lies on labels that were drawn by hand")
    assert fault(ORGAN, ~ORGAN).startswith("100% of it lies on labels")


def test_pieces_that_touch_at_a_corner_are_one():
    assert component_sizes(box((2, 4), (2, 4), (2, 4)) | box((4, 6), (4, 6), (4, 6))) == [16]
    assert component_sizes(box((2, 4), (2, 4), (2, 4)) | box((6, 8), (4, 7), (4, 6))) == [12, 8]


def test_dice_of_masks():
    assert dice(ORGAN, ORGAN) == 1.0
    assert dice(ORGAN, np.zeros(SHAPE, dtype=bool)) == 0.0
    assert dice(box((0, 4), (0, 4), (0, 4)), box((2, 6), (0, 4), (0, 4))) == pytest.approx(0.5)
