import nibabel
import numpy as np
import pytest
import SimpleITK

from biasreg.core.errors import GeometryError, ImageError
from biasreg.core.geometry import Geometry
from biasreg.core.image_io import Image, write_image
from biasreg.core.image_objects import to_channels

AFFINE = np.array([[0, -2.0, 0, 10], [1.5, 0, 0, -20], [0, 0, 3.0, 5], [0, 0, 0, 1]])
SHAPE = (4, 5, 6)
GEOMETRY = Geometry.from_affine(AFFINE, SHAPE)


@pytest.fixture
def image():
    array = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
    return Image(array, Geometry.from_affine(AFFINE, SHAPE))


@pytest.fixture
def forms(image, tmp_path):
    write_image(tmp_path / "a.nii.gz", image.array, image.geometry)
    write_image(tmp_path / "a.mha", image.array, image.geometry)
    return {
        "path": tmp_path / "a.nii.gz",
        "text": str(tmp_path / "a.nii.gz"),
        "simpleitk": SimpleITK.ReadImage(str(tmp_path / "a.mha")),
        "simpleitk of nifti": SimpleITK.ReadImage(str(tmp_path / "a.nii.gz")),
        "nibabel": nibabel.load(tmp_path / "a.nii.gz"),
        "mgh": nibabel.MGHImage(image.array, AFFINE),
        "array": (image.array, AFFINE),
        "lists": (image.array.astype(np.float64), AFFINE.tolist()),
        "image": image,
    }


FORMS = ("path", "text", "simpleitk", "simpleitk of nifti", "nibabel", "mgh", "array", "lists", "image")


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_image(forms, image, form):
    (channel,) = to_channels(forms[form])
    np.testing.assert_array_equal(channel.array, image.array)
    assert channel.array.dtype == np.float32
    assert channel.geometry.is_close(image.geometry)


def test_channels_may_come_in_different_forms(forms, image):
    assert len(to_channels([forms["simpleitk"], forms["path"], forms["array"]])) == 3


def test_channels_on_different_grids_are_refused(image):
    moved = AFFINE.copy()
    moved[0, 3] += 5
    with pytest.raises(GeometryError, match="channels of the fixed image lie on different grids"):
        to_channels([image, (image.array, moved)], "fixed")


NOT_FINITE = np.full(SHAPE, np.nan)
SHEARED = AFFINE + np.array([[0, 0, 1.0, 0]] + 3 * [[0] * 4])


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        ((np.zeros((4, 5, 1)), AFFINE), ImageError, r"the image is 2-D \(4×5×1 voxels\)"),
        (Image(np.full(SHAPE, np.nan, np.float32), GEOMETRY), ImageError, "120 voxels of the moving image are NaN"),
        (
            Image(np.zeros((5, 5, 6), np.float32), GEOMETRY),
            ImageError,
            r"shape \(5, 5, 6\), but its geometry \(4, 5, 6\)",
        ),
        (np.zeros(SHAPE), ImageError, "moving image is ndarray; give a path, a SimpleITK"),
        (None, ImageError, "moving image is NoneType"),
        ([], ImageError, "moving image has no channels"),
        ((np.zeros((4, 5)), AFFINE), ImageError, r"the moving image: the image is 2-D \(4×5 voxels\)"),
        ((np.zeros((4, 5, 6, 2)), AFFINE), ImageError, "holds more than one volume"),
        ((NOT_FINITE, AFFINE), ImageError, "120 voxels of the moving image are NaN"),
        ((np.zeros(SHAPE, dtype=complex), AFFINE), ImageError, "type complex128"),
        ((np.zeros(SHAPE), SHEARED), GeometryError, "the moving image: .*right angles"),
        (SimpleITK.Image(4, 5, SimpleITK.sitkFloat32), ImageError, "has 2 dimensions and 1 values"),
        (SimpleITK.Image([4, 5, 6], SimpleITK.sitkVectorFloat32, 3), ImageError, "has 3 dimensions and 3 values"),
    ],
)
def test_what_is_no_image_is_refused_in_words(source, error, message):
    with pytest.raises(error, match=message):
        to_channels(source, "moving")


def test_trailing_axes_of_length_one_are_dropped_as_in_files(image):
    for source in ((image.array[..., None], AFFINE), nibabel.Nifti1Image(image.array[..., None], AFFINE)):
        (channel,) = to_channels(source)
        np.testing.assert_array_equal(channel.array, image.array)


def test_a_tuple_of_two_simpleitk_images_is_two_channels(forms):
    assert len(to_channels((forms["simpleitk"], forms["simpleitk"]))) == 2


def test_an_image_is_given_back_as_it_is(image):
    assert to_channels(image)[0] is image
