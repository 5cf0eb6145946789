"""Learn2Reg's evaluation applies `_disp.nii.gz` as biasreg applies the field.

Its rule: SciPy's `map_coordinates(moving, identity + disp.transpose(3, 0, 1, 2))`, on the arrays as nibabel gives them.
It does not look at the headers, and beyond the outermost voxel centres it finds 0: compared is between the centres.
"""

import nibabel
import numpy as np
import pytest
from scipy.ndimage import map_coordinates

from biasreg.core.errors import GeometryError
from biasreg.core.image_io import read_image
from biasreg.inference.export import OutputFiles, write_prediction

INTENSITY_TOLERANCE = 1e-3  # of the moving image's range


def warp_by_learn2reg(pair, name: str, order: int) -> np.ndarray:
    moving = nibabel.load(pair.folder / f"{name}.nii.gz").get_fdata()
    disp = nibabel.load(pair.files.path("disp", ".nii.gz")).get_fdata()
    identity = np.meshgrid(*(np.arange(size) for size in moving.shape), indexing="ij")
    return map_coordinates(moving, identity + disp.transpose(3, 0, 1, 2), order=order)


def test_an_image_is_warped_as_written(pair_on_one_grid):
    pair = pair_on_one_grid
    difference = np.abs(warp_by_learn2reg(pair, "moving", order=1) - read_image(pair.files.path("warped")).array)
    assert pair.between_centres.mean() > 0.6
    assert difference[pair.between_centres].max() < INTENSITY_TOLERANCE * np.ptp(pair.moving.array)


def test_labels_of_the_nearest_voxel_agree(pair_on_one_grid):
    pair = pair_on_one_grid
    compared = pair.between_centres & pair.off_ties
    warped = warp_by_learn2reg(pair, "moving_seg", order=0)
    np.testing.assert_array_equal(warped[compared], pair.nearest_labels[compared])


@pytest.mark.parametrize("grids", ["RAS/LPS", "anisotropic/oblique"])
def test_images_on_different_grids_have_no_field_of_learn2regs(grids, written_pair, tmp_path):
    pair = written_pair(f"{grids}/smooth")
    files = OutputFiles(tmp_path, "pair")
    with pytest.raises(GeometryError, match=r"pair_disp\.nii\.gz: .*one grid.*moving.*28×.*fixed.*; resample"):
        write_prediction(files, pair.prediction, ["learn2reg"])
    assert list(tmp_path.iterdir()) == []
