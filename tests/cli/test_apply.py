import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK

from biasreg.cli.apply import main
from biasreg.core.geometry import Geometry
from biasreg.core.image_io import read_image, read_labels, write_image
from biasreg.core.transform_io import read_displacement, write_displacement

GRID = Geometry.centered((12, 11, 10), (1, 1, 1))
SHIFT = np.broadcast_to(np.float32([2, 0, 0]), (*GRID.shape, 3))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch) -> Path:
    """An image, labels, points, a field that shifts by 2 mm and a matrix that shifts by 1 mm, both along RAS x."""
    rng = np.random.default_rng(0)
    write_image(tmp_path / "image.nii.gz", rng.normal(size=GRID.shape).astype(np.float32), GRID)
    labels = np.zeros(GRID.shape, np.uint8)
    labels[4:8, 3:8, 3:8] = 5
    write_image(tmp_path / "labels.nii.gz", labels, GRID)
    write_displacement(tmp_path / "a_warp.nii.gz", SHIFT, GRID)
    SimpleITK.WriteTransform(SimpleITK.TranslationTransform(3, (-1.0, 0.0, 0.0)), str(tmp_path / "b.mat"))
    (tmp_path / "points.csv").write_text("x,y,z,t,label\n1,2,3,0,7\n-1,0,1,0,7\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(line: str) -> int:
    return main(line.split())


def test_the_field_alone_says_on_which_grid_the_image_lies(folder):
    assert run("-i image.nii.gz -t a_warp.nii.gz -o new/out.nii.gz") == 0
    found, image = read_image("new/out.nii.gz"), read_image("image.nii.gz").array
    assert found.geometry.is_close(GRID)
    np.testing.assert_allclose(found.array[:-2], image[2:], atol=1e-5)
    assert (found.array[-2:] == image.min()).all()


def test_transforms_and_inverses_keep_their_order(folder):
    scale = SimpleITK.ScaleTransform(3, (2.0, 2.0, 2.0))
    SimpleITK.WriteTransform(scale, "scale.tfm")
    cases = {
        "-t a_warp.nii.gz -t scale.tfm": (1.0 - 2) * 2,  # LPS: the field takes x to x - 2
        "-t scale.tfm -t a_warp.nii.gz": 1.0 * 2 - 2,
        "-t scale.tfm --invert a_warp.nii.gz b.mat -t scale.tfm": (1.0 * 2 + 2 + 1) * 2,
    }
    for number, (transforms, x) in enumerate(cases.items()):
        assert run(f"-i points.csv -o out{number}.csv {transforms}") == 0
        assert float(Path(f"out{number}.csv").read_text().splitlines()[1].split(",")[0]) == pytest.approx(x, abs=1e-3)


def test_points_keep_their_columns_and_are_in_lps_unless_ras_is_said(folder):
    assert run("-i points.csv -o lps.csv -t a_warp.nii.gz") == 0
    assert run("-i points.csv -o ras.csv -t a_warp.nii.gz --ras") == 0
    assert Path("lps.csv").read_text() == "x,y,z,t,label\n-1.0,2.0,3.0,0,7\n-3.0,0.0,1.0,0,7\n"
    assert Path("ras.csv").read_text() == "x,y,z,t,label\n3.0,2.0,3.0,0,7\n1.0,0.0,1.0,0,7\n"


def test_a_folder_takes_many_inputs_under_their_names(folder, caplog):
    assert run("-i image.nii.gz labels.nii.gz -i points.csv -o out -t a_warp.nii.gz --interpolation label") == 1
    assert "image.nii.gz failed" in caplog.text
    assert sorted(path.name for path in Path("out").iterdir()) == ["labels.nii.gz", "points.csv"]
    assert set(np.unique(read_labels("out/labels.nii.gz").array)) == {0, 5}


def test_series_stay_series_with_their_time_step(folder):
    array = np.stack([read_image("image.nii.gz").array * factor for factor in (1, 2, 3)], axis=-1)
    image = nibabel.Nifti1Image(array, GRID.affine)
    image.header.set_zooms((1, 1, 1, 2.5))
    image.header.set_xyzt_units("mm", "sec")
    nibabel.save(image, "series.nii.gz")
    assert run("-i series.nii.gz -t a_warp.nii.gz -o out.nii.gz --fill 0") == 0
    found = nibabel.load("out.nii.gz")
    assert found.shape == (*GRID.shape, 3)
    assert found.header.get_zooms()[3] == 2.5
    assert found.header.get_xyzt_units() == ("mm", "sec")
    np.testing.assert_allclose(found.get_fdata()[:-2], array[2:], atol=1e-4)


def test_the_composed_transform_and_its_jacobian_need_no_image(folder):
    command = "-t a_warp.nii.gz -t b.mat --save_transform total.nii.gz --jacobian jacobian.nii.gz"
    assert run(command) == 0
    assert run("-t a_warp.nii.gz b.mat --save_transform total.h5") == 0
    np.testing.assert_allclose(read_displacement("total.nii.gz")[0], SHIFT + np.array([1, 0, 0]), atol=1e-5)
    np.testing.assert_allclose(read_image("jacobian.nii.gz").array, 1, atol=1e-5)
    assert run("-i image.nii.gz -t total.nii.gz -o a.nii.gz") == 0
    assert run("-i image.nii.gz -t total.h5 -o b.nii.gz") == 0
    np.testing.assert_allclose(read_image("a.nii.gz").array, read_image("b.nii.gz").array, atol=1e-5)


def test_a_label_map_that_is_interpolated_linearly_is_warned_of(folder, caplog):
    assert run("-i labels.nii.gz -t a_warp.nii.gz -o out.nii.gz") == 0
    assert "looks like a label map (2 different whole numbers)" in caplog.text
    assert "--interpolation label" in caplog.text


def test_points_and_voxels_out_of_the_field_are_counted(folder, caplog):
    Path("far.csv").write_text("x,y,z\n0,0,0\n900,0,0\n")
    assert run("-i far.csv -o out.csv -t a_warp.nii.gz") == 0
    assert "1 of 2 points of far.csv (50.0 %) lie outside the field" in caplog.text
    affine = GRID.affine
    affine[1, 3] += 8
    write_image("shifted.nii.gz", np.zeros(GRID.shape, np.float32), Geometry.from_affine(affine, GRID.shape))
    assert run("-i image.nii.gz -r shifted.nii.gz -o out.nii.gz -t a_warp.nii.gz") == 0
    assert "960 of 1320 voxels of the reference (72.7 %) lie outside" in caplog.text


def test_a_field_that_folds_is_inverted_with_a_warning(folder, caplog):
    field = SHIFT.copy()
    field[5:] -= np.float32([6, 0, 0])
    write_displacement("folded.nii.gz", field, GRID)
    assert run("-i points.csv -o out.csv --invert folded.nii.gz") == 0
    assert "folded.nii.gz: folds at" in caplog.text


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("-i image.nii.gz -o o.nii.gz", "no transform is given; give one with -t or --invert"),
        ("-t a_warp.nii.gz", "there is nothing to do"),
        ("-i image.nii.gz -o o.nii.gz -t none_warp.nii.gz", "none_warp.nii.gz: there is no such file"),
        ("-i none.nii.gz -o o.nii.gz -t a_warp.nii.gz", "none.nii.gz: there is no such file"),
        ("-i image.nii.gz -o o.nii.gz -t b.mat", "give the fixed image with -r"),
        ("-i image.nii.gz -o o.nii.gz --invert a_warp.nii.gz", "give the fixed image with -r"),
        ("-i image.nii.gz -o o.nii.gz -t [b.mat,1] -r image.nii.gz", "write --invert b.mat"),
        ("-i image.nii.gz -o image.nii.gz -t a_warp.nii.gz", "overwritten by its own result"),
        ("-i image.nii.gz -o ./b/../image.nii.gz -t a_warp.nii.gz", "overwritten by its own result"),
        ("-i image.nii.gz labels.nii.gz -o o.nii.gz -t a_warp.nii.gz", "2 input(s) and 1 output(s)"),
        ("-i image.nii.gz image.nii.gz -o out -t a_warp.nii.gz", "several results would be written to"),
        ("-i image.nii.gz -o o.csv -t a_warp.nii.gz", "cannot become o.csv"),
        ("-i image.nii.gz -o o.nii.gz -t image.nii.gz", "a displacement field is 5-D"),
        ("-i a_warp.nii.gz -o o.nii.gz -t a_warp.nii.gz", "would have to be turned with the image"),
        ("-i image.nii.gz -o o.jpg -t a_warp.nii.gz", "o.jpg: unknown image format"),
        ("-i image.nii.gz -o o.nii.gz -t a_warp.nii.gz --fill nan", "fill value must be a finite number"),
        ("-t a_warp.nii.gz --save_transform o.mha", "is written as .nii.gz or .h5"),
        ("-i labels.nii.gz -o o.nii.gz -t a_warp.nii.gz --interpolation label --fill 3", "leave out --fill"),
    ],
)
def test_what_cannot_be_meant_is_an_error_in_words(folder, line, words, capsys):
    assert run(line) == 2
    assert words in capsys.readouterr().err
    assert not Path("o.nii.gz").exists()


def test_help_comes_without_torch():
    script = (
        "import sys; from biasreg.cli.apply import main\ntry: main(['-h'])\nfinally: assert 'torch' not in sys.modules"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "--save_transform" in result.stdout
