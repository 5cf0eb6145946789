import numpy as np
import pytest

from biasreg.core.label_boxes import label_boxes


@pytest.mark.parametrize("large", [300, 614_454_277, 2**40])
def test_boxes_hold_their_label_whatever_its_value(large):
    labels = np.zeros((6, 7, 8), np.int64)
    labels[1:3, 2:5, 7] = 2
    labels[4, 0:2, 3:6] = large
    labels[5, 5, 5] = 9  # not asked for
    boxes = label_boxes(labels, [2, 3, large])
    assert boxes == {
        2: (slice(1, 3), slice(2, 5), slice(7, 8)),
        large: (slice(4, 5), slice(0, 2), slice(3, 6)),
    }


def test_an_empty_map_has_no_boxes():
    assert label_boxes(np.zeros((3, 3, 3), np.uint8), [1, 2]) == {}
