import contextlib
import errno
import gzip
import logging
import os

import nibabel
import numpy as np
import pytest
import SimpleITK

from biasreg.core import itk
from biasreg.core.errors import GeometryError, ImageError
from biasreg.core.geometry import Geometry, apply_affine
from biasreg.core.image_io import (
    IMAGE_ENDINGS,
    image_files,
    read_channels,
    read_geometry,
    read_image,
    read_labels,
    strip_ending,
    write_image,
)

SHAPE = (4, 5, 6)


def oblique_affine() -> np.ndarray:
    rotation = SimpleITK.VersorTransform([0.3, -0.5, 0.8], 0.4).GetMatrix()
    affine = np.eye(4)
    affine[:3, :3] = np.array(rotation).reshape(3, 3) * np.array([0.8, 1.5, 2.5])
    affine[:3, 3] = (11.0, -22.0, 33.0)
    return affine


AFFINES = {
    "RAS": np.diag([1.0, 1.0, 1.0, 1.0]),
    "LAS": np.diag([-1.0, 1.0, 1.0, 1.0]),
    "LPS": np.diag([-1.0, -1.0, 1.0, 1.0]),
    "PLI": np.array([[0.0, -2.0, 0.0, 5.0], [-1.0, 0.0, 0.0, 6.0], [0.0, 0.0, -3.0, 7.0], [0.0, 0.0, 0.0, 1.0]]),
    "oblique": oblique_affine(),
}


def random_array(shape=SHAPE, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def save(path, array, affine=None, sform=1, qform=1, **fields):
    matrix = np.eye(4) if affine is None else affine
    image = nibabel.Nifti1Image(array, matrix if sform or qform else None)
    image.set_sform(matrix, code=sform, update_affine=False)
    image.set_qform(matrix, code=qform, update_affine=False)
    for name, value in fields.items():
        image.header[name] = value
    nibabel.save(image, path)
    return path


@pytest.mark.parametrize("grid", AFFINES)
@pytest.mark.parametrize("ending", IMAGE_ENDINGS)
def test_images_survive_the_round_trip_in_every_format(grid, ending, tmp_path):
    array, geometry = random_array(), Geometry.from_affine(AFFINES[grid], SHAPE)
    write_image(tmp_path / f"a{ending}", array, geometry)
    image = read_image(tmp_path / f"a{ending}")
    np.testing.assert_array_equal(image.array, array)
    assert image.array.dtype == np.float32
    assert image.geometry.is_close(geometry)
    assert read_geometry(tmp_path / f"a{ending}").is_close(geometry)
    assert [item.name for item in tmp_path.iterdir()] == [f"a{ending}"]


@pytest.mark.parametrize("grid", AFFINES)
@pytest.mark.parametrize("ending", IMAGE_ENDINGS)
def test_simpleitk_sees_the_same_voxel_at_the_same_place(grid, ending, tmp_path):
    array, geometry = random_array(), Geometry.from_affine(AFFINES[grid], SHAPE)
    write_image(tmp_path / f"a{ending}", array, geometry)
    image = SimpleITK.ReadImage(str(tmp_path / f"a{ending}"))
    for voxel in [(0, 0, 0), (3, 1, 2), (3, 4, 5)]:
        assert image.GetPixel(*voxel) == array[voxel]
        point = np.array(image.TransformIndexToPhysicalPoint(voxel)) * (-1, -1, 1)
        np.testing.assert_allclose(point, apply_affine(geometry.affine, voxel), atol=1e-4)


def test_files_of_simpleitk_are_read_at_the_right_place(tmp_path):
    image = SimpleITK.GetImageFromArray(random_array().transpose())
    image.SetSpacing((0.5, 1.0, 2.0))
    image.SetOrigin((1.0, 2.0, 3.0))
    for ending in IMAGE_ENDINGS:
        SimpleITK.WriteImage(image, str(tmp_path / f"a{ending}"))
        read = read_image(tmp_path / f"a{ending}")
        np.testing.assert_array_equal(read.array, random_array())
        np.testing.assert_allclose(read.geometry.affine, [[-0.5, 0, 0, -1], [0, -1, 0, -2], [0, 0, 2, 3], [0, 0, 0, 1]])


def test_scaled_integers_are_read_as_their_true_values(tmp_path):
    image = nibabel.Nifti1Image(random_array(), np.eye(4))
    image.set_data_dtype(np.int16)
    nibabel.save(image, tmp_path / "a.nii.gz")
    np.testing.assert_allclose(read_image(tmp_path / "a.nii.gz").array, random_array(), atol=1e-3)


@pytest.mark.parametrize(
    ("values", "dtype", "expected"),
    [
        ([0, 255], np.float64, np.uint8),
        ([0, 256], np.int32, np.uint16),
        ([0, 70000], np.int32, np.int32),
        ([-1, 3], np.int16, np.int32),
    ],
)
def test_labels_get_the_smallest_type_that_holds_them(values, dtype, expected, tmp_path):
    array = np.resize(np.array(values, dtype), SHAPE)
    save(tmp_path / "a.nii.gz", array)
    image = read_labels(tmp_path / "a.nii.gz")
    assert image.array.dtype == expected
    np.testing.assert_array_equal(image.array, array)


def test_labels_that_are_no_whole_numbers_are_refused(tmp_path):
    array = np.zeros(SHAPE, np.float32)
    array[1, 2, 3] = 0.5
    with pytest.raises(ImageError, match=r"a\.nii\.gz: .*1 voxels do not \(for example 0\.5\)"):
        read_labels(save(tmp_path / "a.nii.gz", array))
    array[1, 2, 3] = np.nan
    with pytest.raises(ImageError, match="NaN"):
        read_labels(save(tmp_path / "a.nii.gz", array))


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32, np.float32, np.float64, np.int64])
@pytest.mark.parametrize("ending", [".nii.gz", ".mha"])
def test_the_voxel_type_is_kept(dtype, ending, tmp_path):
    write_image(tmp_path / f"a{ending}", np.ones(SHAPE, dtype), Geometry.centered(SHAPE, (1, 1, 1)))
    assert SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(tmp_path / f"a{ending}"))).dtype == dtype


def test_bool_becomes_uint8_and_types_without_a_place_are_refused(tmp_path):
    geometry = Geometry.centered(SHAPE, (1, 1, 1))
    for ending in (".nii.gz", ".mha"):
        write_image(tmp_path / f"a{ending}", np.ones(SHAPE, bool), geometry)
        assert read_labels(tmp_path / f"a{ending}").array.dtype == np.uint8
        with pytest.raises(ImageError, match="float16"):
            write_image(tmp_path / f"b{ending}", np.ones(SHAPE, np.float16), geometry)
    with pytest.raises(ImageError, match=r"shape \(2, 2, 2\) is not"):
        write_image(tmp_path / "c.nii.gz", np.ones((2, 2, 2)), geometry)


def test_written_nifti_has_both_forms_millimetres_and_the_same_bytes_each_time(tmp_path):
    geometry = Geometry.from_affine(AFFINES["oblique"], SHAPE)
    for name in ("a", "b"):
        write_image(tmp_path / f"{name}.nii.gz", random_array(), geometry)
    header = nibabel.load(tmp_path / "a.nii.gz").header
    assert (int(header["sform_code"]), int(header["qform_code"])) == (1, 1)
    assert header.get_xyzt_units()[0] == "mm"
    np.testing.assert_allclose(header.get_qform(), geometry.affine, atol=1e-4)
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()


@pytest.mark.parametrize("ending", IMAGE_ENDINGS)
def test_a_full_disk_leaves_nothing_half_written(ending, tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_image(tmp_path / f"a{ending}", random_array(), Geometry.centered(SHAPE, (1, 1, 1)))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("ending", [".mha", ".mhd", ".nrrd"])
def test_an_error_of_simpleitk_in_mid_write_leaves_nothing_behind(ending, tmp_path, monkeypatch):
    def fail(image, name, *arguments):
        with open(name, "wb") as file:
            file.write(b"half")
        raise RuntimeError("Exception\nno space")

    monkeypatch.setattr(itk.SimpleITK, "WriteImage", fail)
    with pytest.raises(ImageError, match="no space"):
        write_image(tmp_path / f"a{ending}", random_array(), Geometry.centered(SHAPE, (1, 1, 1)))
    assert list(tmp_path.iterdir()) == []


def test_nan_and_infinity_are_refused_with_their_place(tmp_path):
    array = random_array()
    array[1, 2, 3] = np.inf
    with pytest.raises(ImageError, match=r"a\.nii\.gz: 1 voxels are NaN or infinite, the first at \(1, 2, 3\)"):
        read_image(save(tmp_path / "a.nii.gz", array))
    with pytest.raises(ImageError, match="infinite"):
        read_image(save(tmp_path / "b.nii.gz", np.full(SHAPE, 1e300)))


@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd"])
def test_a_single_fourth_axis_is_dropped_with_a_notice(ending, tmp_path, caplog):
    path = tmp_path / f"a{ending}"
    if ending == ".nii.gz":
        save(path, random_array()[..., None])
    else:
        SimpleITK.WriteImage(SimpleITK.JoinSeries(SimpleITK.GetImageFromArray(random_array().transpose())), str(path))
    with caplog.at_level(logging.INFO):
        image = read_image(path)
    np.testing.assert_array_equal(image.array, random_array())
    assert "length 1" in caplog.text
    assert path.name in caplog.text


@pytest.mark.parametrize("reader", [read_geometry, read_image, read_labels])
def test_two_volumes_two_dimensions_and_vectors_are_refused(reader, tmp_path):
    cases = {
        "b.nii.gz": (np.zeros((4, 5, 6, 2), np.uint8), r"more than one volume \(4×5×6×2\)"),
        "c.nii.gz": (np.zeros((4, 5), np.uint8), "2-D"),
        "d.nii.gz": (np.zeros((4, 5, 1), np.uint8), "2-D"),
        "e.nii.gz": (np.zeros((4, 5, 6, 1, 3), np.uint8), "more than one volume"),
    }
    for name, (array, message) in cases.items():
        with pytest.raises(ImageError, match=f"{name}.*{message}"):
            reader(save(tmp_path / name, array))
    SimpleITK.WriteImage(SimpleITK.Image([4, 5], SimpleITK.sitkUInt8), str(tmp_path / "f.mha"))
    with pytest.raises(ImageError, match="2-D"):
        reader(tmp_path / "f.mha")
    SimpleITK.WriteImage(SimpleITK.Image([4, 5, 6], SimpleITK.sitkVectorUInt8, 3), str(tmp_path / "g.mha"))
    with pytest.raises(ImageError, match="3 values per voxel"):
        reader(tmp_path / "g.mha")
    SimpleITK.WriteImage(SimpleITK.Image([4, 5, 6, 2], SimpleITK.sitkUInt8), str(tmp_path / "h.nrrd"))
    with pytest.raises(ImageError, match="more than one volume"):
        reader(tmp_path / "h.nrrd")


def test_colour_voxels_are_refused(tmp_path):
    colours = np.zeros(SHAPE, np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")]))
    with pytest.raises(ImageError, match="one real number"):
        read_image(save(tmp_path / "a.nii.gz", colours))


@pytest.mark.parametrize("reader", [read_geometry, read_image])
def test_contradicting_forms_are_refused_and_both_are_named(reader, tmp_path):
    image = nibabel.Nifti1Image(random_array(), np.eye(4))
    moved = np.eye(4)
    moved[0, 3] = 5.0
    image.set_sform(np.eye(4), code=1)
    image.set_qform(moved, code=1)
    nibabel.save(image, tmp_path / "a.nii.gz")
    with pytest.raises(GeometryError, match=r"a\.nii\.gz: sform and qform .*sform \[1 0 0 0;.*qform \[1 0 0 5;"):
        reader(tmp_path / "a.nii.gz")


@pytest.mark.parametrize(("sform", "qform"), [(1, 0), (0, 1), (2, 1)])
def test_one_form_is_enough(sform, qform, tmp_path):
    save(tmp_path / "a.nii.gz", random_array(), AFFINES["oblique"], sform, qform)
    assert read_geometry(tmp_path / "a.nii.gz").is_close(Geometry.from_affine(AFFINES["oblique"], SHAPE))


def test_qform_round_off_of_a_nearly_half_turn_is_no_contradiction(tmp_path):
    rotation = SimpleITK.VersorTransform([0.1, 0.2, 1.0], np.pi - 1e-3).GetMatrix()
    affine = np.eye(4)
    affine[:3, :3] = np.array(rotation).reshape(3, 3) * np.array([0.5, 0.5, 5.0])
    save(tmp_path / "a.nii.gz", random_array(), affine)
    assert read_geometry(tmp_path / "a.nii.gz").is_close(Geometry.from_affine(affine, SHAPE))


def test_a_file_without_forms_is_read_with_a_warning(tmp_path, caplog):
    save(tmp_path / "a.nii.gz", random_array(), sform=0, qform=0)
    np.testing.assert_allclose(read_geometry(tmp_path / "a.nii.gz").center, 0.0, atol=1e-6)
    assert "a.nii.gz: neither sform nor qform" in caplog.text


def test_unusable_headers_are_refused_by_name(tmp_path):
    sheared = np.eye(4)
    sheared[0, 1] = 0.2
    with pytest.raises(GeometryError, match=r"a\.nii: .*sheared"):
        read_image(save(tmp_path / "a.nii", random_array(), sheared, qform=0))
    rows = {"b.nii": (np.zeros((3, 4)), "singular"), "c.nii": (np.full((3, 4), np.nan), "finite")}
    for name, (matrix, message) in rows.items():
        content = bytearray(save(tmp_path / name, random_array(), qform=0).read_bytes())
        content[280:328] = matrix.astype("<f4").tobytes()  # srow_x, srow_y, srow_z
        (tmp_path / name).write_bytes(content)
        with pytest.raises(GeometryError, match=f"{name}: .*{message}"):
            read_image(tmp_path / name)
    with pytest.raises(GeometryError, match=r"d\.nii: lengths are in metres"):
        read_image(save(tmp_path / "d.nii", random_array(), xyzt_units=1))
    with pytest.raises(GeometryError, match=r"e\.nii: lengths are in a unit of unknown code 7"):
        read_image(save(tmp_path / "e.nii", random_array(), xyzt_units=7))
    content = bytearray(save(tmp_path / "f.nii", random_array()).read_bytes())
    content[256:268] = np.full(3, 2.0, "<f4").tobytes()  # quatern_b, quatern_c, quatern_d of no unit quaternion
    (tmp_path / "f.nii").write_bytes(content)
    with pytest.raises(GeometryError, match=r"f\.nii: the orientation in the header is unusable"):
        read_image(tmp_path / "f.nii")


@pytest.mark.parametrize("ending", [".nii", ".nii.gz", ".mha", ".nrrd"])
def test_no_damage_of_a_file_causes_another_error_than_ours(ending, tmp_path):
    generator = np.random.default_rng(0)
    path = tmp_path / f"a{ending}"
    write_image(path, random_array(), Geometry.from_affine(AFFINES["oblique"], SHAPE))
    whole = path.read_bytes()
    for _ in range(150):
        damaged = bytearray(whole)
        for position in generator.integers(0, min(352, len(whole)), 3):
            damaged[position] = generator.integers(0, 256)
        path.write_bytes(damaged)
        with contextlib.suppress(ImageError):
            assert read_image(path).array.shape == read_geometry(path).shape


@pytest.mark.parametrize("ending", IMAGE_ENDINGS)
def test_missing_empty_and_foreign_files_are_named(ending, tmp_path):
    for reader in (read_geometry, read_image, read_labels):
        with pytest.raises(ImageError, match=rf"a{ending}: there is no such file"):
            reader(tmp_path / f"a{ending}")
    for content in (b"", b"this is no image" * 100):
        (tmp_path / f"b{ending}").write_bytes(content)
        for reader in (read_geometry, read_image, read_labels):
            with pytest.raises(ImageError, match=rf"b{ending}: .*cannot be read"):
                reader(tmp_path / f"b{ending}")


@pytest.mark.parametrize("keep", [20, 300, 1500, -8])
@pytest.mark.parametrize("ending", [".nii.gz", ".nii", ".mha", ".nrrd"])
def test_cut_off_files_are_refused_by_name(keep, ending, tmp_path):
    path = tmp_path / f"a{ending}"
    write_image(path, random_array((12, 12, 12)), Geometry.centered((12, 12, 12), (1, 1, 1)))
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ImageError, match=rf"a{ending}: "):
        read_image(path)


def test_damaged_gzip_streams_are_refused_by_name(tmp_path):
    path = save(tmp_path / "a.nii.gz", random_array((12, 12, 12)))
    content = bytearray(path.read_bytes())
    for position in range(len(content) // 2, len(content) // 2 + 200):
        content[position] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(ImageError, match=r"a\.nii\.gz: the voxels cannot be read"):
        read_image(path)
    whole = gzip.compress(b"x" * 1000)
    path.write_bytes(whole)
    with pytest.raises(ImageError, match=r"a\.nii\.gz: cannot be read as NIfTI"):
        read_image(path)


def test_endings_are_split_off_and_unknown_ones_refused():
    assert strip_ending("a.b.nii.gz") == ("a.b", ".nii.gz")
    assert strip_ending("a.nii") == ("a", ".nii")
    assert strip_ending("A.NII.GZ") == ("A", ".nii.gz")
    with pytest.raises(ImageError, match=r"a\.dcm: unknown image format; use one of \.nii\.gz"):
        strip_ending("a.dcm")


@pytest.mark.parametrize(
    ("name", "element", "others"),
    [
        ("a.mhd", "a.raw", ["a.raw"]),
        ("a.MHA", "sub/b.raw", ["sub/b.raw"]),
        ("a.mhd", "LIST 2\na.raw\nsub/b.raw", ["a.raw", "sub/b.raw"]),
        ("a.mhd", "gone.raw", []),
        ("a.mha", "LOCAL\na.raw", []),
        ("a.nrrd", "a.raw", []),
    ],
)
def test_the_voxels_beside_a_metaimage_header_belong_to_the_image(name, element, others, tmp_path):
    (tmp_path / "sub").mkdir()
    for file in ("a.raw", "sub/b.raw"):
        (tmp_path / file).touch()
    (tmp_path / name).write_text(f"ObjectType = Image\nElementDataFile = {element}\n")
    assert image_files(tmp_path / name) == (tmp_path / name, *(tmp_path / other for other in others))


def test_the_files_of_an_image_that_itk_wrote_are_found(tmp_path):
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(random_array()), str(tmp_path / "a.mhd"))
    assert set(image_files(tmp_path / "a.mhd")) == set(tmp_path.iterdir())
    assert len(image_files(tmp_path / "a.mhd")) == 2


def test_channels_must_lie_on_one_grid(tmp_path):
    paths = [save(tmp_path / name, random_array()) for name in ("a.nii", "b.nii")]
    assert len(read_channels(paths)) == 2
    save(paths[1], random_array(), np.diag([2.0, 1.0, 1.0, 1.0]))
    with pytest.raises(GeometryError, match=r"different grids · .*b\.nii .*a\.nii .*resample"):
        read_channels(paths)
