import nibabel
import numpy as np
import pytest
import SimpleITK
from scipy.ndimage import gaussian_filter

from biasreg.core.errors import ImageError
from biasreg.core.geometry import Geometry, ras_to_lps
from biasreg.core.image_io import Image, write_image
from biasreg.core.transform_io import write_displacement
from biasreg.inference.check_transform import check_transform
from biasreg.spatial.native import warp_image

GRID = Geometry((24, 26, 28), (2.0, 2.0, 2.0), (10.0, -20.0, 30.0), ((-1.0, 0, 0), (0, 1.0, 0), (0, 0, 1.0)))


def smooth(shape, seed=0, sigma=3.0) -> np.ndarray:
    noise = gaussian_filter(np.random.default_rng(seed).normal(size=shape), (sigma, sigma, sigma, 0)[: len(shape)])
    return noise / np.abs(noise).max()


FIELD = (3 * smooth((*GRID.shape, 3)) + [4.0, -3.0, 2.0]).astype(np.float32)


@pytest.fixture
def pair(tmp_path):
    """A moving image, the field, and the fixed image that is the moving one warped by it."""
    moving = Image((smooth(GRID.shape, 1, 1.5) * 1000).astype(np.float32), GRID)
    write_image(tmp_path / "moving.nii.gz", moving.array, GRID)
    write_image(tmp_path / "fixed.nii.gz", warp_image(moving, FIELD, GRID), GRID)
    write_displacement(tmp_path / "a_warp.nii.gz", FIELD, GRID)
    return tmp_path


def verdicts(report) -> dict[str, str]:
    return {line.name: line.verdict for line in report.lines}


def text(report, name: str) -> str:
    return next(line.text for line in report.lines if line.name == name)


def test_a_sound_field_passes_every_test(pair):
    report = check_transform(pair / "a_warp.nii.gz", pair / "fixed.nii.gz", pair / "moving.nii.gz")
    names = ["form", "finite", "size", "folding", "there and back", "reference", "moving", "reading"]
    assert verdicts(report) == dict.fromkeys(names, "PASS")
    assert not report.failed
    lengths = np.linalg.norm(FIELD, axis=-1)
    assert report.displacements.largest == pytest.approx(lengths.max(), rel=1e-5)
    assert report.displacements.percentile95 == pytest.approx(np.percentile(lengths, 95), rel=1e-5)
    assert report.displacements.mean == pytest.approx(lengths.mean(), rel=1e-5)


def test_the_centre_is_explained_in_lps_and_ras(tmp_path):
    write_displacement(tmp_path / "a.nii.gz", np.broadcast_to(np.float32([6, -4, 3]), FIELD.shape), GRID)
    last = check_transform(tmp_path / "a.nii.gz").explanation[-1]
    assert "(13.00, -5.00, 57.00) is found at (7.00, -1.00, 60.00) in LPS mm" in last
    assert "(-13.00, 5.00, 57.00) at (-7.00, 1.00, 60.00) in RAS mm" in last


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (ras_to_lps, "x and y negated"),
        (lambda field: field / GRID.spacing * [-1, 1, 1] * [-1, -1, 1], "voxels for mm"),
        (lambda field: -field, "its inverse"),
    ],
)
def test_misreadings_are_suspected_by_the_images(change, words, pair):
    write_displacement(pair / "b.nii.gz", change(FIELD).astype(np.float32), GRID)
    report = check_transform(pair / "b.nii.gz", pair / "fixed.nii.gz", pair / "moving.nii.gz")
    assert verdicts(report)["reading"] == "WARN"
    assert words in text(report, "reading").rpartition("more alike")[2]


def save(path, array, intent=1007, name=""):
    image = nibabel.Nifti1Image(array.astype(np.float32), GRID.affine)
    image.header["intent_code"] = intent
    image.header["intent_name"] = name.encode()
    nibabel.save(image, path)
    return path


@pytest.mark.parametrize(
    ("array", "intent", "words"),
    [
        (FIELD, 0, "Learn2Reg"),
        (FIELD, 2006, "FSL"),
        (FIELD[:, :, :, None], 1006, "intent 1006"),
        (FIELD[:, :, :, None], 0, "without the vector intent"),
        (FIELD[:, :, :, None, :2], 1007, "2-D field"),
        (FIELD[..., 0], 0, "it is an image"),
        (np.full_like(FIELD, np.nan)[:, :, :, None], 1007, "NaN or infinite"),
    ],
)
def test_forms_that_tools_misread_fail_and_are_named(array, intent, words, tmp_path):
    report = check_transform(save(tmp_path / "a.nii.gz", array, intent))
    assert report.failed
    assert words in text(report, "form")


def test_absolute_positions_fail_by_their_header_and_by_their_numbers(tmp_path):
    points = np.moveaxis(np.indices(GRID.shape), 0, -1) @ GRID.affine[:3, :3].T + GRID.affine[:3, 3]
    vectors = (points + FIELD)[:, :, :, None]
    assert "SPM" in text(check_transform(save(tmp_path / "a.nii.gz", vectors, name="Mapping")), "form")
    report = check_transform(save(tmp_path / "b.nii.gz", vectors))
    assert verdicts(report)["size"] == "FAIL"


def test_folding_and_a_broken_inverse_are_seen(tmp_path):
    wild = np.random.default_rng(0).normal(size=FIELD.shape).astype(np.float32) * 4
    write_displacement(tmp_path / "a.nii.gz", wild, GRID)
    found = verdicts(check_transform(tmp_path / "a.nii.gz"))
    assert found["folding"] == "FAIL"
    assert found["there and back"] == "FAIL"


def test_another_reference_and_a_moving_image_out_of_reach_fail(pair):
    affine = GRID.affine
    affine[0, 3] += 500
    elsewhere = Geometry.from_affine(affine, GRID.shape)
    write_image(pair / "far.nii.gz", np.zeros(GRID.shape, np.float32), elsewhere)
    report = check_transform(pair / "a_warp.nii.gz", reference=pair / "far.nii.gz")
    assert verdicts(report)["reference"] == "FAIL"
    assert verdicts(check_transform(pair / "a_warp.nii.gz", moving=pair / "far.nii.gz"))["moving"] == "FAIL"


def test_a_reference_that_the_field_covers_in_part_is_a_warning(pair):
    affine = GRID.affine
    affine[1, 3] += 20
    write_image(pair / "b.nii.gz", np.zeros(GRID.shape, np.float32), Geometry.from_affine(affine, GRID.shape))
    report = check_transform(pair / "a_warp.nii.gz", reference=pair / "b.nii.gz")
    assert verdicts(report)["reference"] == "WARN"
    assert "% of the reference lies outside the field" in text(report, "reference")


def test_matrices_are_described_and_unusual_ones_named(tmp_path):
    transform = SimpleITK.CompositeTransform(3)
    transform.AddTransform(SimpleITK.ScaleTransform(3, (3.0, 1.0, 1.0)))
    transform.AddTransform(SimpleITK.VersorTransform((0.0, 0.0, 1.0), np.radians(30.0)))
    SimpleITK.WriteTransform(transform, str(tmp_path / "a.h5"))
    report = check_transform(tmp_path / "a.h5")
    lines = [line for line in report.lines if line.name == "matrix"]
    assert [line.verdict for line in lines] == ["PASS", "WARN"]
    assert "turns by 30.0°" in lines[0].text
    assert "stretches by 1.000 to 3.000, changes volumes 3.000-fold" in lines[1].text
    assert "VersorTransform" in report.explanation[1]


def test_a_mirroring_or_singular_matrix_fails(tmp_path):
    for name, factor, word in (("a.mat", -1.0, "mirrors"), ("b.mat", 1e-9, "singular")):
        SimpleITK.WriteTransform(SimpleITK.ScaleTransform(3, (factor, 1.0, 1.0)), str(tmp_path / name))
        report = check_transform(tmp_path / name)
        assert report.failed
        assert word in text(report, "form")


def test_no_displacement_at_all_is_a_warning(tmp_path):
    write_displacement(tmp_path / "a.nii.gz", np.zeros_like(FIELD), GRID)
    assert verdicts(check_transform(tmp_path / "a.nii.gz"))["size"] == "WARN"


def test_what_cannot_be_read_is_an_error(tmp_path):
    (tmp_path / "a.nii.gz").write_bytes(b"no NIfTI")
    with pytest.raises(ImageError, match="cannot be read as NIfTI"):
        check_transform(tmp_path / "a.nii.gz")
