import numpy as np

from biasreg.core.geometry import Geometry
from biasreg.preprocessing.label_completion import complete_labels

SHAPE = (20, 18, 16)
GRID = Geometry.centered(SHAPE, (2.0, 2.0, 2.0))
TABLE = {"background": 0, "liver": 3, "kidneys": 300, "spleen": 7}
MATCHED = {"liver": {"liver": 5}, "kidneys": {"kidney_left": 1, "kidney_right": 2}}

BOXES = {5: (slice(2, 9), slice(2, 9), slice(2, 9)), 1: (slice(11, 15), slice(2, 7), slice(2, 7))}
BOXES[2] = (slice(11, 15), slice(10, 15), slice(2, 7))


def segmented():
    array = np.zeros(SHAPE, dtype=np.uint8)
    for value, place in BOXES.items():
        array[place] = value
    array[16:, 15:, 13:] = 99  # a class that nobody asked for
    return array


def complete(drawn=None, array=None):
    return complete_labels(segmented() if array is None else array, drawn, GRID, MATCHED, TABLE)


def origins(completed):
    return {label.name: label.origin for label in completed.labels}


def test_without_a_map_all_classes_become_the_labels_of_the_dataset():
    completed = complete()
    assert completed.added
    assert completed.array.dtype == np.uint16
    assert origins(completed) == {"liver": "pseudo", "kidneys": "pseudo"}
    assert (completed.array[BOXES[5]] == 3).all()
    assert ((completed.array == 300) == np.isin(segmented(), [1, 2])).all()
    assert set(np.unique(completed.array)) == {0, 3, 300}


def test_a_map_drawn_by_hand_is_kept_voxel_for_voxel_and_completed_only_by_what_it_does_not_show():
    drawn = np.zeros(SHAPE, dtype=np.uint8)
    drawn[3:9, 2:9, 2:9] = 3  # a smaller liver than the segmenter's
    drawn[11:13, 2:4, 2:7] = 7  # a spleen, which the segmenter takes for a kidney
    completed = complete(drawn)
    assert origins(completed) == {"liver": "manual", "kidneys": "pseudo"}
    assert (completed.array[drawn > 0] == drawn[drawn > 0]).all()
    assert (completed.array == 3).sum() == (drawn == 3).sum()
    assert ((completed.array == 300) == (np.isin(segmented(), [1, 2]) & (drawn == 0))).all()
    liver, kidneys = completed.labels
    assert liver.manual_dice > 0.9
    assert kidneys.manual_dice is None
    assert 0 < kidneys.covered_share < 0.5


def test_a_label_of_bad_quality_is_left_out_with_the_reason():
    array = segmented()
    array[array == 5] = 0
    completed = complete(array=array)
    assert origins(completed) == {"liver": "excluded", "kidneys": "pseudo"}
    assert completed.labels[0].reason == "nothing was found"
    assert set(np.unique(completed.array)) == {0, 300}


def test_where_the_segmenter_contradicts_what_was_drawn_nothing_of_it_is_added():
    drawn = np.zeros(SHAPE, dtype=np.uint8)
    drawn[2:9, 2:9, 10:15] = 3  # the segmenter has its liver elsewhere, as in a flipped image
    completed = complete(drawn)
    assert not completed.added
    assert completed.labels[1].origin == "excluded"
    assert "disagrees with what was drawn by hand in this case (Dice: liver 0.00)" in completed.labels[1].reason
    assert (completed.array == drawn).all()
