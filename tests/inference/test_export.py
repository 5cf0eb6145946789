import numpy as np
import pytest

from biasreg.cli import predict as command
from biasreg.core.errors import GeometryError
from biasreg.core.image_io import read_image, read_labels
from biasreg.core.transform_io import read_displacement
from biasreg.inference.export import SAVE_CHOICES, OutputFiles, write_labels, write_prediction
from biasreg.inference.prediction import FieldQuality, Prediction
from biasreg.inference.trust import Trust


@pytest.fixture
def grids(make_grid):
    return make_grid("LPS", (4.0, 5.0, 6.0)), make_grid("oblique", (5.0, 5.0, 4.0))


def prediction_on(moving, fixed, channels=1):
    rng = np.random.default_rng(0)
    return Prediction(
        fixed=fixed,
        moving=moving,
        displacement=np.tile(np.float32([1.0, -2.0, 3.0]), (*fixed.shape, 1)),
        inverse=np.tile(np.float32([-1.0, 2.0, -3.0]), (*moving.shape, 1)),
        warped=tuple(rng.normal(size=fixed.shape).astype(np.float32) for _ in range(channels)),
        quality=FieldQuality(0.0, 0.0, None),
        trust=Trust("PASS", ()),
    )


def names(folder):
    return {path.name for path in folder.iterdir()}


def test_fields_and_image_lie_on_the_grids_they_belong_to(tmp_path, grids):
    moving, fixed = grids
    prediction = prediction_on(moving, fixed)
    write_prediction(OutputFiles(tmp_path, "a"), prediction)
    assert names(tmp_path) == {"a_warp.nii.gz", "a_inverse_warp.nii.gz", "a_warped.nii.gz"}
    for name, field, grid in (("warp", prediction.displacement, fixed), ("inverse_warp", prediction.inverse, moving)):
        read, geometry = read_displacement(tmp_path / f"a_{name}.nii.gz")
        np.testing.assert_array_equal(read, field)
        assert geometry.is_close(grid)
    warped = read_image(tmp_path / "a_warped.nii.gz")
    np.testing.assert_array_equal(warped.array, prediction.warped[0])
    assert warped.geometry.is_close(fixed)


def test_each_channel_has_a_file(tmp_path, grids):
    write_prediction(OutputFiles(tmp_path, "a"), prediction_on(*grids, channels=2))
    assert {"a_warped_0000.nii.gz", "a_warped_0001.nii.gz"} <= names(tmp_path)
    assert "a_warped.nii.gz" not in names(tmp_path)


def test_further_outputs_are_written_on_request(tmp_path, grids):
    moving, fixed = grids
    write_prediction(OutputFiles(tmp_path, "a"), prediction_on(moving, fixed), ("jacobian", "h5"))
    assert {"a_jacobian.nii.gz", "a_warp.h5"} <= names(tmp_path)
    jacobian = read_image(tmp_path / "a_jacobian.nii.gz")
    np.testing.assert_allclose(jacobian.array, 1, atol=1e-6)
    assert jacobian.geometry.is_close(fixed)


def test_learn2regs_field_counts_voxels_of_a_shared_grid(tmp_path, grids):
    _, fixed = grids
    write_prediction(OutputFiles(tmp_path, "a"), prediction_on(fixed, fixed), ("learn2reg",))
    assert "a_disp.nii.gz" in names(tmp_path)


def test_learn2regs_field_of_different_grids_is_refused_before_anything_is_written(tmp_path, grids):
    with pytest.raises(GeometryError, match="one grid that both images share"):
        write_prediction(OutputFiles(tmp_path, "a"), prediction_on(*grids), ("learn2reg",))
    assert names(tmp_path) == set()


def test_labels_keep_their_type_and_images_may_have_another_ending(tmp_path, grids):
    moving, fixed = grids
    files = OutputFiles(tmp_path, "a", ending=".mha")
    write_labels(files, np.full(fixed.shape, 300, dtype=np.uint16), fixed)
    write_prediction(files, prediction_on(moving, fixed))
    assert names(tmp_path) == {"a_warped_seg.mha", "a_warped.mha", "a_warp.nii.gz", "a_inverse_warp.nii.gz"}
    assert (read_labels(tmp_path / "a_warped_seg.mha").array == 300).all()


def test_the_command_offers_what_can_be_written():
    assert command.SAVE_CHOICES == SAVE_CHOICES
