import numpy as np
import pytest

from biasreg.core.errors import PlansError
from biasreg.core.geometry import Geometry
from biasreg.planning.plans import ChannelNormalization, PreprocessingPlans
from biasreg.preprocessing import storage
from biasreg.preprocessing.storage import StoredCase

PLANS = PreprocessingPlans(
    (1.0, 1.0, 1.0), (4, 4, 4), "MRI", (ChannelNormalization("percentile", 0.5, 99.5),), "center", None, (1,), ("a",)
)
FRAME = tuple(tuple(float(value) for value in row) for row in np.eye(4))
RECORD = StoredCase("c", "c", "MRI", True, (1,), FRAME, Geometry.centered((4, 4, 4), (1.0, 1.0, 1.0)), 0.0, "hash")


def test_a_stored_case_comes_back(tmp_path):
    image = np.random.default_rng(0).random((1, 4, 4, 4)).astype(np.float32)
    labels = np.ones((4, 4, 4), np.uint8)
    storage.write_case(tmp_path, RECORD, image, labels > 0, labels)
    assert storage.read_stored_case(tmp_path, "c") == RECORD
    np.testing.assert_allclose(storage.load_image(tmp_path, "c"), image, atol=1e-3)
    assert (storage.load_labels(tmp_path, "c") == 1).all()
    assert (storage.load_mask(tmp_path, "c") == 1).all()


def test_a_case_without_labels_gives_background(tmp_path):
    storage.write_case(tmp_path, RECORD, np.zeros((1, 4, 4, 4)), np.ones((4, 4, 4), bool), None)
    assert not storage.load_labels(tmp_path, "c").any()


def test_a_folder_made_with_other_plans_is_refused_with_the_command(tmp_path):
    with pytest.raises(PlansError, match=r"no preprocessed cases.*run `make it`"):
        storage.check_stamp(tmp_path, PLANS, "make it")
    storage.write_stamp(tmp_path, PLANS)
    storage.check_stamp(tmp_path, PLANS, "make it")
    other = PreprocessingPlans((2.0, 1.0, 1.0), (4, 4, 4), "MRI", PLANS.normalization, "center", None, (1,), ("a",))
    with pytest.raises(PlansError, match=r"other plans.*run `make it`"):
        storage.check_stamp(tmp_path, other, "make it")
    with pytest.raises(PlansError, match="case d is not preprocessed"):
        storage.read_stored_case(tmp_path, "d")
