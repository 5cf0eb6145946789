import numpy as np

from biasreg.planning.foreground import bounding_box, common_modality, foreground_mask


def test_the_body_of_a_ct_is_its_largest_part_above_air():
    array = np.full((20, 20, 20), -1000.0)
    array[5:15, 5:15, 5:15] = 40
    array[0:2, 0:2, 0:2] = 200  # a piece of the couch
    assert bounding_box(foreground_mask(array, "CT")) == ((5, 15), (5, 15), (5, 15))


def test_a_masked_image_is_what_lies_above_its_minimum():
    array = np.zeros((20, 20, 20))
    array[4:12, 6:15, 3:18] = 1 + np.random.default_rng(0).random((8, 9, 15))
    assert bounding_box(foreground_mask(array, "MRI")) == ((4, 12), (6, 15), (3, 18))


def test_a_cropped_box_and_an_empty_ct_are_all_foreground():
    assert foreground_mask(np.random.default_rng(0).random((6, 6, 6)), "MRI").all()
    assert foreground_mask(np.full((6, 6, 6), -1000.0), "CT").all()


def test_a_constant_image_is_all_foreground():
    assert foreground_mask(np.full((5, 5, 5), 3.0), "MRI").all()


def test_the_common_modality_is_that_of_all_or_none():
    assert common_modality(["CT", "CT"]) == "CT"
    assert common_modality(["CT", "MRI", "CT"]) == "mixed"
