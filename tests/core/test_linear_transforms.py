from itertools import product

import numpy as np
import pytest
import SimpleITK

from biasreg.core.errors import ImageError
from biasreg.core.geometry import apply_affine, ras_to_lps
from biasreg.core.transform_io import LINEAR_ENDINGS, read_linear_transform

POINTS = np.random.default_rng(0).uniform(-100, 100, (20, 3))


def rigid():
    transform = SimpleITK.Euler3DTransform()
    transform.SetRotation(0.3, -0.2, 0.5)
    transform.SetTranslation((4.0, -7.0, 11.0))
    transform.SetCenter((20.0, -10.0, 5.0))
    return transform


def affine():
    transform = SimpleITK.AffineTransform(3)
    transform.SetMatrix((1.1, 0.1, 0.0, -0.2, 0.9, 0.05, 0.0, 0.1, 1.2))
    transform.SetTranslation((1.0, 2.0, 3.0))
    transform.SetCenter((5.0, 6.0, 7.0))
    return transform


def similarity():
    transform = SimpleITK.Similarity3DTransform()
    transform.SetScale(1.3)
    transform.SetRotation((0.0, 0.6, 0.8), 0.4)
    transform.SetTranslation((1.0, 0.0, -9.0))
    return transform


def versor():
    return SimpleITK.VersorRigid3DTransform((0.0, 0.6, 0.8), 0.7, (3.0, 0.0, 1.0), (1.0, 2.0, 3.0))


def composite(*parts):
    transform = SimpleITK.CompositeTransform(3)
    for part in parts:
        transform.AddTransform(part)
    return transform


def field():
    return SimpleITK.DisplacementFieldTransform(SimpleITK.Image([4, 4, 4], SimpleITK.sitkVectorFloat64))


TRANSFORMS = {
    "translation": SimpleITK.TranslationTransform(3, (3.0, -4.0, 5.0)),
    "versor": versor(),
    "euler": rigid(),
    "similarity": similarity(),
    "affine": affine(),
    "composite": composite(affine(), rigid(), SimpleITK.TranslationTransform(3, (1.0, 2.0, 3.0))),
}


@pytest.mark.parametrize(
    ("name", "ending"),
    # ITK has no composite transforms in MATLAB files.
    [item for item in product(TRANSFORMS, LINEAR_ENDINGS) if item != ("composite", ".mat")],
)
def test_a_linear_transform_maps_points_as_simpleitk_does(name, ending, tmp_path):
    path = tmp_path / f"t{ending}"
    SimpleITK.WriteTransform(TRANSFORMS[name], str(path))
    expected = [TRANSFORMS[name].TransformPoint(point) for point in ras_to_lps(POINTS).tolist()]
    found = ras_to_lps(apply_affine(read_linear_transform(path), POINTS))
    np.testing.assert_allclose(found, expected, atol=1e-9)


def test_a_shift_of_the_file_is_in_lps_and_that_inside_in_ras(tmp_path):
    SimpleITK.WriteTransform(SimpleITK.TranslationTransform(3, (3.0, -4.0, 5.0)), str(tmp_path / "t.tfm"))
    assert read_linear_transform(tmp_path / "t.tfm")[:3, 3].tolist() == [-3, 4, 5]


TEXT = """#Insight Transform File V1.0
#Transform 0
Transform: {kind}_3_3
Parameters: {numbers}
FixedParameters: 0 0 0
"""


@pytest.mark.parametrize("kind", ["MatrixOffsetTransformBase_double", "AffineTransform_float"])
def test_other_writers_names_of_an_affine_map_are_known(kind, tmp_path):
    (tmp_path / "t.txt").write_text(TEXT.format(kind=kind, numbers="1 0 0 0 1 0 0 0 1 7 0 0"))
    assert read_linear_transform(tmp_path / "t.txt")[:3, 3].tolist() == [-7, 0, 0]


def write_text(path, numbers="1 0 0 0 1 0 0 0 1 0 0 0", kind="AffineTransform_double"):
    path.write_text(TEXT.format(kind=kind, numbers=numbers))


def write_two(path):
    write_text(path)
    path.write_text(path.read_text() + path.read_text().split("\n", 1)[1])


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (lambda path: None, "there is no such file"),
        (lambda path: path.write_text("1 0 0 0\n0 1 0 0\n0 0 1 0\n0 0 0 1\n"), "no transform that ITK reads"),
        (
            lambda path: SimpleITK.WriteTransform(composite(affine(), field()), str(path)),
            "holds DisplacementField.*0Gen",
        ),
        (lambda path: SimpleITK.WriteTransform(field(), str(path)), "holds DisplacementFieldTransform"),
        (lambda path: SimpleITK.WriteTransform(SimpleITK.BSplineTransform(3), str(path)), "holds BSplineTransform"),
        (lambda path: SimpleITK.WriteTransform(SimpleITK.Euler2DTransform(), str(path)), "2 dimensions; 3 are needed"),
        (write_two, r"2 transforms side by side \(AffineTransform, AffineTransform\)"),
        (lambda path: path.write_text(TEXT.format(kind="AffineTransform_double", numbers="")[:80]), "cut off"),
        (lambda path: write_text(path, "1 0 0 0 1 0 0 0 nan 0 0 0"), "no transform that ITK reads"),
        (lambda path: write_text(path, "1 0 0 0 1 0 0 0 1e-4 0 0 0"), r"is singular.*to 0\.0001 of"),
        (lambda path: write_text(path, "1 0 0 0 1 0 0 0 0 0 0 0"), "is singular"),
        (lambda path: write_text(path, "-1 0 0 0 1 0 0 0 1 0 0 0"), r"mirrors the image \(determinant -1\)"),
    ],
)
def test_what_is_no_linear_map_is_refused_by_name(write, words, tmp_path):
    path = tmp_path / "t.tfm"
    write(path)
    with pytest.raises(ImageError, match=rf"t\.tfm: .*{words}"):
        read_linear_transform(path)


def test_numbers_that_are_not_finite_are_refused(tmp_path):
    transform = SimpleITK.TranslationTransform(3, (np.inf, 0.0, 0.0))
    SimpleITK.WriteTransform(transform, str(tmp_path / "t.mat"))
    with pytest.raises(ImageError, match="NaN or infinite"):
        read_linear_transform(tmp_path / "t.mat")


def test_another_ending_is_refused(tmp_path):
    (tmp_path / "t.lta").touch()
    with pytest.raises(ImageError, match=r"ends in \.tfm, \.txt, \.mat, \.h5"):
        read_linear_transform(tmp_path / "t.lta")
