import errno
import gzip
import os
import struct

import nibabel
import numpy as np
import pytest
import SimpleITK

from biasreg.core.errors import GeometryError, ImageError
from biasreg.core.geometry import Geometry, apply_affine, ras_to_lps
from biasreg.core.image_io import write_image
from biasreg.core.transform_io import (
    read_displacement,
    write_composite_transform,
    write_displacement,
    write_learn2reg,
)

SHAPE = (12, 14, 16)
SHIFT_RAS = np.array([6.0, -4.0, 3.0])


def oblique(scale: tuple[float, float, float], handedness: float = 1.0) -> np.ndarray:
    rotation = np.array(SimpleITK.VersorTransform([0.3, -0.5, 0.8], 0.4).GetMatrix()).reshape(3, 3)
    affine = np.eye(4)
    affine[:3, :3] = rotation * np.array(scale) * (handedness, 1, 1)
    affine[:3, 3] = (11.0, -22.0, 33.0)
    return affine


GRIDS = {
    "RAS": np.diag([2.0, 2.0, 2.0, 1.0]),
    "LAS": np.diag([-2.0, 2.0, 2.0, 1.0]),
    "LPS": np.diag([-2.0, -2.0, 2.0, 1.0]),
    "oblique": oblique((2.0, 2.0, 2.0)),
    "left-handed oblique": oblique((2.0, 2.0, 2.0), -1.0),
    "anisotropic": np.diag([1.0, 1.5, 4.0, 1.0]),
    "anisotropic oblique": oblique((1.0, 1.5, 4.0)),
}


def constant_field(geometry: Geometry) -> np.ndarray:
    return np.broadcast_to(SHIFT_RAS, (*geometry.shape, 3)).astype(np.float32)


def random_field(geometry: Geometry, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(*geometry.shape, 3)).astype(np.float32)


def world_values(points_ras: np.ndarray) -> np.ndarray:
    """An image that is linear in the world, so that linear interpolation is exact."""
    return points_ras @ np.array([0.3, -0.7, 1.1]) + 5.0


def moving_image(tmp_path) -> SimpleITK.Image:
    """A linear image on a large grid of its own, with axes unlike those of any fixed grid."""
    affine = np.diag([-3.0, 3.0, -3.0, 1.0])
    affine[:3, 3] = (90.0, -90.0, 120.0)
    geometry = Geometry.from_affine(affine, (60, 60, 60))
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in geometry.shape), indexing="ij"), axis=-1)
    write_image(tmp_path / "moving.nii.gz", world_values(apply_affine(affine, grid)), geometry)
    return SimpleITK.ReadImage(str(tmp_path / "moving.nii.gz"))


def fixed_points(geometry: Geometry) -> np.ndarray:
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in geometry.shape), indexing="ij"), axis=-1)
    return apply_affine(geometry.affine, grid)


def resample(tmp_path, transform: SimpleITK.Transform, geometry: Geometry) -> np.ndarray:
    write_image(tmp_path / "fixed.nii.gz", np.zeros(geometry.shape, np.float32), geometry)
    fixed = SimpleITK.ReadImage(str(tmp_path / "fixed.nii.gz"))
    warped = SimpleITK.Resample(moving_image(tmp_path), fixed, transform, SimpleITK.sitkLinear, -1e6)
    return SimpleITK.GetArrayFromImage(warped).transpose()


@pytest.mark.parametrize("grid", GRIDS)
def test_simpleitk_moves_an_image_by_the_written_shift(grid, tmp_path):
    geometry = Geometry.from_affine(GRIDS[grid], SHAPE)
    write_displacement(tmp_path / "warp.nii.gz", constant_field(geometry), geometry)
    vectors = SimpleITK.ReadImage(str(tmp_path / "warp.nii.gz"), SimpleITK.sitkVectorFloat64)
    assert vectors.GetDimension() == 3
    warped = resample(tmp_path, SimpleITK.DisplacementFieldTransform(vectors), geometry)
    np.testing.assert_allclose(warped, world_values(fixed_points(geometry) + SHIFT_RAS), atol=2e-3)


@pytest.mark.parametrize("grid", GRIDS)
def test_simpleitk_moves_an_image_by_a_composite_of_varying_displacements(grid, tmp_path):
    geometry = Geometry.from_affine(GRIDS[grid], SHAPE)
    field = random_field(geometry)
    write_composite_transform(tmp_path / "warp.h5", field, geometry)
    transform = SimpleITK.ReadTransform(str(tmp_path / "warp.h5"))
    assert transform.GetName() == "CompositeTransform"
    warped = resample(tmp_path, transform, geometry)
    np.testing.assert_allclose(warped, world_values(fixed_points(geometry) + field), atol=2e-3)


@pytest.mark.parametrize("grid", GRIDS)
def test_a_point_of_the_fixed_world_is_mapped_into_the_moving_world(grid, tmp_path):
    geometry = Geometry.from_affine(GRIDS[grid], SHAPE)
    field = random_field(geometry)
    write_displacement(tmp_path / "warp.nii.gz", field, geometry)
    vectors = SimpleITK.ReadImage(str(tmp_path / "warp.nii.gz"), SimpleITK.sitkVectorFloat64)
    transform = SimpleITK.DisplacementFieldTransform(vectors)
    for voxel in [(1, 2, 3), (10, 5, 7)]:
        point = apply_affine(geometry.affine, voxel)
        mapped = ras_to_lps(np.array(transform.TransformPoint(ras_to_lps(point).tolist())))
        np.testing.assert_allclose(mapped, point + field[voxel], atol=1e-3)


def test_the_header_holds_what_other_tools_rely_on_byte_by_byte(tmp_path):
    geometry = Geometry.from_affine(GRIDS["anisotropic oblique"], SHAPE)
    write_displacement(tmp_path / "warp.nii.gz", constant_field(geometry), geometry)
    content = gzip.decompress((tmp_path / "warp.nii.gz").read_bytes())
    assert struct.unpack_from("<i", content, 0) == (348,)
    assert struct.unpack_from("<8h", content, 40) == (5, 12, 14, 16, 1, 3, 1, 1)  # dim
    assert struct.unpack_from("<h", content, 68) == (1007,)  # intent_code: NIFTI_INTENT_VECTOR
    assert struct.unpack_from("<2h", content, 70) == (16, 32)  # datatype float32, bitpix
    pixdim = struct.unpack_from("<8f", content, 76)
    assert pixdim[1:4] == pytest.approx((1.0, 1.5, 4.0), rel=1e-6)
    assert abs(pixdim[0]) == 1.0
    assert struct.unpack_from("<f", content, 108) == (352.0,)  # vox_offset
    slope, intercept = struct.unpack_from("<2f", content, 112)
    assert np.isnan(slope) or (slope in {0.0, 1.0} and intercept == 0.0)
    assert content[123] & 0x07 == 2  # xyzt_units: mm
    assert struct.unpack_from("<2h", content, 252) == (1, 1)  # qform_code, sform_code
    np.testing.assert_allclose(np.frombuffer(content, "<f4", 12, 280).reshape(3, 4), geometry.affine[:3], rtol=1e-6)
    np.testing.assert_allclose(nibabel.load(tmp_path / "warp.nii.gz").header.get_qform(), geometry.affine, atol=1e-4)
    assert content[344:348] == b"n+1\0"
    voxels = np.frombuffer(content, "<f4", offset=352).reshape(3, -1)  # components vary slowest
    np.testing.assert_array_equal(voxels[:, 0], [-6.0, 4.0, 3.0])
    np.testing.assert_array_equal(voxels, np.broadcast_to(voxels[:, :1], voxels.shape))


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("ending", [".nii.gz", ".nii"])
def test_fields_survive_the_round_trip(grid, ending, tmp_path):
    geometry = Geometry.from_affine(GRIDS[grid], SHAPE)
    field = random_field(geometry)
    write_displacement(tmp_path / f"warp{ending}", field, geometry)
    read, grid_read = read_displacement(tmp_path / f"warp{ending}")
    np.testing.assert_array_equal(read, field)
    assert read.dtype == np.float32
    assert grid_read.is_close(geometry)


@pytest.mark.parametrize("ending", [".mha", ".nrrd", ".nii.gz"])
def test_vector_images_of_itk_are_read(ending, tmp_path):
    geometry = Geometry.from_affine(GRIDS["anisotropic oblique"], SHAPE)
    field = random_field(geometry)
    write_displacement(tmp_path / "warp.nii.gz", field, geometry)
    itk_image = SimpleITK.ReadImage(str(tmp_path / "warp.nii.gz"))
    SimpleITK.WriteImage(itk_image, str(tmp_path / f"itk{ending}"))
    read, grid = read_displacement(tmp_path / f"itk{ending}")
    np.testing.assert_allclose(read, field, atol=1e-6)
    assert grid.is_close(geometry)


def test_learn2reg_fields_are_four_dimensional_voxels(tmp_path):
    geometry = Geometry.from_affine(GRIDS["LPS"], SHAPE)
    field = random_field(geometry)
    write_learn2reg(tmp_path / "disp.nii.gz", field, geometry)
    image = nibabel.load(tmp_path / "disp.nii.gz")
    assert image.shape == (*SHAPE, 3)
    assert image.get_data_dtype() == np.float32
    np.testing.assert_array_equal(np.asanyarray(image.dataobj), field)


def save_nifti(path, array, intent=0, affine=None):
    image = nibabel.Nifti1Image(array, np.eye(4) if affine is None else affine)
    image.header["intent_code"] = intent
    nibabel.save(image, path)
    return path


def test_files_that_other_tools_misread_are_refused_by_name(tmp_path):
    with pytest.raises(ImageError, match=r"a\.nii\.gz: .*this file is 4-D \(4, 5, 6, 3\); write it as 5-D"):
        read_displacement(save_nifti(tmp_path / "a.nii.gz", np.zeros((4, 5, 6, 3), np.float32), 1007))
    with pytest.raises(ImageError, match=r"b\.nii\.gz: .*intent 1007 \(vector\), but this has 0"):
        read_displacement(save_nifti(tmp_path / "b.nii.gz", np.zeros((4, 5, 6, 1, 3), np.float32)))
    with pytest.raises(ImageError, match=r"c\.nii\.gz: .*this file is 5-D \(4, 5, 6, 2, 3\)"):
        read_displacement(save_nifti(tmp_path / "c.nii.gz", np.zeros((4, 5, 6, 2, 3), np.float32), 1007))
    SimpleITK.WriteImage(SimpleITK.Image([4, 5, 6], SimpleITK.sitkFloat32), str(tmp_path / "d.mha"))
    with pytest.raises(ImageError, match=r"d\.mha: .*this is 3-D with 1"):
        read_displacement(tmp_path / "d.mha")


def test_unusable_fields_and_grids_are_refused_by_name(tmp_path):
    array = np.zeros((4, 5, 6, 1, 3), np.float32)
    array[1, 2, 3, 0, 1] = np.nan
    with pytest.raises(ImageError, match=r"a\.nii\.gz: 1 displacements are NaN or infinite, the first at \(1, 2, 3\)"):
        read_displacement(save_nifti(tmp_path / "a.nii.gz", array, 1007))
    sheared = np.eye(4)
    sheared[0, 1] = 0.3
    content = bytearray(save_nifti(tmp_path / "b.nii", np.zeros_like(array), 1007).read_bytes())
    content[252:256] = struct.pack("<2h", 0, 1)
    content[280:328] = sheared[:3].astype("<f4").tobytes()
    (tmp_path / "b.nii").write_bytes(content)
    with pytest.raises(GeometryError, match=r"b\.nii: .*sheared"):
        read_displacement(tmp_path / "b.nii")
    whole = save_nifti(tmp_path / "c.nii.gz", np.random.default_rng(0).normal(size=array.shape), 1007)
    whole.write_bytes(whole.read_bytes()[:1500])
    with pytest.raises(ImageError, match=r"c\.nii\.gz: the voxels cannot be read"):
        read_displacement(whole)


@pytest.mark.parametrize(
    ("write", "name", "wrong"),
    [
        (write_displacement, "a.nii.gz", "a.mha"),
        (write_composite_transform, "a.h5", "a.txt"),
        (write_learn2reg, "a.nii.gz", "a.h5"),
    ],
)
def test_writers_refuse_what_they_cannot_write_and_leave_nothing_behind(write, name, wrong, tmp_path, monkeypatch):
    geometry = Geometry.centered((4, 5, 6), (1.0, 1.0, 1.0))
    field = np.zeros((4, 5, 6, 3), np.float32)
    with pytest.raises(ImageError, match=wrong):
        write(tmp_path / wrong, field, geometry)
    with pytest.raises(ImageError, match=r"shape \(3, 4, 5, 6\) is not \(4, 5, 6, 3\)"):
        write(tmp_path / name, field.transpose(3, 0, 1, 2), geometry)
    with pytest.raises(ImageError, match="NaN or infinite"):
        write(tmp_path / name, np.full_like(field, np.nan), geometry)

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write(tmp_path / name, field, geometry)
    assert list(tmp_path.iterdir()) == []
