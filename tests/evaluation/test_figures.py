from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from biasreg.evaluation.figures import VIEWS, Panel, pair_figure

SHAPE = (20, 24, 16)


def volumes() -> dict[str, np.ndarray]:
    x, y, z = np.indices(SHAPE)
    ball = ((x - 9) ** 2 + (y - 11) ** 2 + (z - 7) ** 2 < 30).astype(np.float32)
    displacement = np.zeros((3, *SHAPE), dtype=np.float32)
    displacement[0] = np.sin(y / 3)
    return {
        "fixed": ball,
        "moving": np.roll(ball, 2, axis=0),
        "warped": np.roll(ball, 1, axis=0),
        "displacement_voxels": displacement,
        "determinant": np.where(x > 15, -1.0, 1.2),
    }


def draw(path: Path, **options) -> np.ndarray:
    pair_figure(path, **{**volumes(), "spacing": (1.0, 1.0, 2.0), "title": "a pair", **options})
    return matplotlib.image.imread(path)


def rendered(volume: np.ndarray, view: int, spacing=(1.0, 1.0, 1.0)) -> np.ndarray:
    """One view alone on a square canvas, as brightness (row from the top, column from the left)."""
    figure = Figure(figsize=(1, 1), dpi=96, facecolor="black")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    panel = Panel(axes, VIEWS[view], volume.shape[VIEWS[view].cut] // 2, spacing)
    panel.show(panel.cut_out(volume), cmap="gray", vmin=0, vmax=1)
    axes.set_axis_off()
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., 0].astype(float)


@pytest.mark.parametrize(
    ("view", "corner", "at_top", "at_left"),
    [
        (0, (0, -1, slice(None)), True, False),  # axial: anterior on top, the patient's left on the right
        (0, (-1, 0, slice(None)), False, True),
        (1, (-1, slice(None), -1), True, True),  # coronal: superior on top, the patient's right on the left
        (2, (slice(None), -1, -1), True, True),  # sagittal: superior on top, the face to the left
        (2, (slice(None), 0, 0), False, False),
    ],
)
def test_views_are_upright_and_radiological(view: int, corner, at_top: bool, at_left: bool) -> None:
    volume = np.zeros((4, 4, 4))
    volume[corner] = 1.0
    picture = rendered(volume, view)
    rows, columns = np.nonzero(picture > 200)
    middle = picture.shape[0] / 2
    assert (rows.mean() < middle) == at_top
    assert (columns.mean() < middle) == at_left


def test_voxels_are_drawn_at_their_physical_aspect() -> None:
    volume = np.zeros((9, 9, 9))
    volume[3:6, 4, 3:6] = 1.0
    rows, columns = np.nonzero(rendered(volume, view=1, spacing=(1.0, 1.0, 3.0)) > 200)
    height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
    assert height / width == pytest.approx(3.0, abs=0.4)


@pytest.mark.parametrize("with_labels", [True, False])
def test_the_picture_is_a_png_with_all_columns(tmp_path: Path, with_labels: bool) -> None:
    labels = {name: volumes()[name[:-7]].astype(np.uint8) for name in ("fixed_labels", "warped_labels")}
    picture = draw(tmp_path / "pair.png", **(labels if with_labels else {}))
    height, width = picture.shape[:2]
    assert width > 1000
    assert 0.3 < height / width < 1.5


def test_folding_is_marked_in_a_colour_of_its_own(tmp_path: Path) -> None:
    def cyan(picture: np.ndarray) -> int:
        return int((np.abs(picture[..., :3] * 255 - [0x00, 0xE5, 0xEE]).max(axis=-1) < 3).sum())

    assert cyan(draw(tmp_path / "folded.png")) > 100
    assert cyan(draw(tmp_path / "smooth.png", determinant=np.full(SHAPE, 1.2))) == 0


def test_constant_images_and_no_displacement_can_be_drawn(tmp_path: Path) -> None:
    zeros = np.zeros(SHAPE)
    picture = draw(
        tmp_path / "zeros.png",
        fixed=zeros,
        moving=zeros,
        warped=zeros,
        displacement_voxels=np.zeros((3, *SHAPE)),
        determinant=np.ones(SHAPE),
        fixed_labels=zeros.astype(int),
        warped_labels=np.ones(SHAPE, dtype=int),
    )
    assert picture.size


def test_arrays_on_different_grids_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"determinant has shape \(5, 5, 5\), expected \(20, 24, 16\)"):
        draw(tmp_path / "pair.png", determinant=np.ones((5, 5, 5)))
    assert not list(tmp_path.iterdir())
