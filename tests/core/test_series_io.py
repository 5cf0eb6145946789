import nibabel
import numpy as np
import pytest
import SimpleITK

from biasreg.core.errors import ImageError
from biasreg.core.geometry import Geometry
from biasreg.core.series_io import Series, read_grid, read_series, write_series

GRID = Geometry.centered((5, 6, 7), (2.0, 2.0, 3.0))


def save(path, array, **header):
    image = nibabel.Nifti1Image(array, GRID.affine)
    image.header.set_xyzt_units(xyz="mm", t=header.pop("unit", "sec"))
    for key, value in header.items():
        if key == "step":
            image.header["pixdim"][4] = value
        else:
            image.header[key] = value
    nibabel.save(image, path)
    return path


def test_time_step_start_and_unit_survive(tmp_path):
    array = np.arange(5 * 6 * 7 * 4, dtype=np.int16).reshape(5, 6, 7, 4)
    series = read_series(save(tmp_path / "a.nii.gz", array, step=850.0, toffset=12.5, unit="msec"))
    assert series.array.dtype == np.int16
    write_series(tmp_path / "b.nii.gz", series)
    header = nibabel.load(tmp_path / "b.nii.gz").header
    assert header.get_zooms() == (2, 2, 3, 850)
    assert header.get_xyzt_units() == ("mm", "msec")
    assert header["toffset"] == 12.5
    np.testing.assert_array_equal(read_series(tmp_path / "b.nii.gz").array, array)
    assert read_grid(tmp_path / "b.nii.gz").is_close(GRID)


def test_several_values_per_voxel_of_itks_formats_are_volumes(tmp_path):
    array = np.random.default_rng(0).normal(size=(7, 6, 5, 2)).astype(np.float32)
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(array, isVector=True), str(tmp_path / "a.mha"))
    series = read_series(tmp_path / "a.mha")
    np.testing.assert_array_equal(series.array, array.transpose(2, 1, 0, 3))
    assert series.time is None
    with pytest.raises(ImageError, match=r"b\.mha: several volumes are written as NIfTI alone"):
        write_series(tmp_path / "b.mha", series)


def test_one_volume_goes_to_any_format(tmp_path):
    array = np.zeros(GRID.shape, np.uint8)
    write_series(tmp_path / "a.nrrd", Series(array, GRID))
    assert read_series(tmp_path / "a.nrrd").array.dtype == np.uint8


@pytest.mark.parametrize(
    ("shape", "intent", "words"),
    [
        ((5, 6), 0, r"is 2-D \(5×6 voxels\)"),
        ((5, 6, 1, 4), 0, "is 2-D"),
        ((5, 6, 7, 1, 3), 1007, r"holds vectors \(intent 1007\).*given with -t"),
        ((5, 6, 7, 3), 2006, "a transform of FSL"),
    ],
)
def test_what_is_no_image_is_refused(shape, intent, words, tmp_path):
    path = save(tmp_path / "a.nii.gz", np.zeros(shape, np.float32), intent_code=intent)
    with pytest.raises(ImageError, match=words):
        read_series(path)


def test_voxels_that_are_no_numbers_are_counted(tmp_path):
    array = np.zeros((5, 6, 7, 2), np.float32)
    array[0, 0, 0, 1] = np.nan
    with pytest.raises(ImageError, match="1 voxels are NaN or infinite"):
        read_series(save(tmp_path / "a.nii.gz", array))
