import numpy as np
import pytest
import SimpleITK

from biasreg.core.errors import ImageError, TransformError
from biasreg.core.geometry import Geometry, ras_to_lps
from biasreg.core.transform_io import write_composite_transform, write_displacement
from biasreg.core.transforms import FieldPart, LinearPart, default_reference, read_transform

GRID = Geometry.centered((6, 7, 8), (2.0, 2.0, 3.0))


def shift(x: float) -> SimpleITK.Transform:
    return SimpleITK.TranslationTransform(3, (x, 0.0, 0.0))


def composite(*parts: SimpleITK.Transform) -> SimpleITK.Transform:
    transform = SimpleITK.CompositeTransform(3)
    for part in parts:
        transform.AddTransform(part)
    return transform


def some_field() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(*GRID.shape, 3)).astype(np.float32)


@pytest.mark.parametrize("ending", [".nii.gz", ".nii", ".mha", ".nrrd", ".h5"])
def test_a_field_is_one_part_with_its_grid_in_every_form(ending, tmp_path):
    write_displacement(tmp_path / "a.nii.gz", some_field(), GRID)
    path = tmp_path / f"b{ending}"
    if ending == ".h5":
        write_composite_transform(path, some_field(), GRID)
    elif ending != ".nii.gz":
        SimpleITK.WriteImage(SimpleITK.ReadImage(str(tmp_path / "a.nii.gz")), str(path))
    else:
        path = tmp_path / "a.nii.gz"
    (part,) = read_transform(path)
    assert isinstance(part, FieldPart)
    np.testing.assert_allclose(part.displacement, some_field(), atol=1e-6)
    assert part.geometry.is_close(GRID)
    assert part.source == str(path)


def test_the_last_part_that_was_added_to_a_composite_comes_first(tmp_path):
    SimpleITK.WriteTransform(composite(shift(1), shift(2), shift(3)), str(tmp_path / "a.h5"))
    parts = read_transform(tmp_path / "a.h5")
    assert [part.matrix[0, 3] for part in parts if isinstance(part, LinearPart)] == [-3, -2, -1]  # RAS


def test_a_composite_is_taken_apart_in_the_order_that_itk_applies_it(tmp_path):
    scale = SimpleITK.ScaleTransform(3, (2.0, 2.0, 2.0))
    mixed = composite(shift(1), scale, shift(5), shift(7))
    SimpleITK.WriteTransform(mixed, str(tmp_path / "a.h5"))
    parts = read_transform(tmp_path / "a.h5")
    point = np.zeros(4)
    point[3] = 1
    for part in parts:
        assert isinstance(part, LinearPart)
        point = part.matrix @ point
    assert len(parts) == 4
    np.testing.assert_allclose(ras_to_lps(point[:3]), mixed.TransformPoint((0.0, 0.0, 0.0)))


def test_the_reference_is_the_grid_of_a_field_that_comes_first(tmp_path):
    write_displacement(tmp_path / "a.nii.gz", some_field(), GRID)
    SimpleITK.WriteTransform(shift(1), str(tmp_path / "b.mat"))
    field, linear = read_transform(tmp_path / "a.nii.gz"), read_transform(tmp_path / "b.mat")
    assert default_reference((*field, *linear)).is_close(GRID)
    assert default_reference((*linear, *field)) is None
    assert default_reference(()) is None


def test_what_is_no_transform_is_refused_with_what_to_do(tmp_path):
    with pytest.raises(ImageError, match="there is no such file"):
        read_transform(tmp_path / "a.h5")
    with pytest.raises(ImageError, match="there is no such file"):
        read_transform(tmp_path / "a_warp.nii.gz")
    with pytest.raises(ImageError, match=r"unknown form of a transform; fields end in \.nii\.gz"):
        read_transform(tmp_path / "a.lta")
    SimpleITK.WriteTransform(SimpleITK.BSplineTransform(3), str(tmp_path / "b.tfm"))
    with pytest.raises(ImageError, match=r"holds BSplineTransform.*TransformToDisplacementField"):
        read_transform(tmp_path / "b.tfm")
    SimpleITK.WriteTransform(SimpleITK.Euler2DTransform(), str(tmp_path / "c.tfm"))
    with pytest.raises(ImageError, match="of 2 dimensions; 3 are needed"):
        read_transform(tmp_path / "c.tfm")
    mirror = SimpleITK.ScaleTransform(3, (-1.0, 1.0, 1.0))
    SimpleITK.WriteTransform(composite(shift(1), mirror), str(tmp_path / "d.h5"))
    with pytest.raises(TransformError, match=r"d\.h5: mirrors the image \(determinant -1\)"):
        read_transform(tmp_path / "d.h5")


@pytest.mark.parametrize(("flag", "advice"), [("1", "--invert"), ("0", "-t"), ("true", "--invert")])
def test_the_brackets_of_ants_are_answered_by_the_option_to_use(flag, advice):
    with pytest.raises(ImageError, match=f"write {advice} a.mat"):
        read_transform(f"[a.mat,{flag}]")
