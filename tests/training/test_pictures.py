import logging
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex
from torch import nn

from biasreg.evaluation.figures import FIXED_COLOUR, WARPED_COLOUR
from biasreg.losses.objective import ObjectiveSettings
from biasreg.planning.plans import LossWeights
from biasreg.training.data import CaseSource, to_device
from biasreg.training.observers import clear_pictures
from biasreg.training.pictures import COLUMNS, PairPictures, draw_validation_pair

SETTINGS = ObjectiveSettings("lncc", 5, LossWeights(1, 1, 1, 1, 1), (2.0, 2.0, 2.0), 3, 2)
PAIR = ("case0", "case1")


class Shift(nn.Module):
    """Displaces everything along the first axis, and refuses to do so in training mode."""

    def __init__(self, voxels=0.0):
        super().__init__()
        self.voxels = nn.Parameter(torch.tensor(voxels))

    def forward(self, moving, fixed):
        assert not self.training
        displacement = torch.zeros(len(moving), 3, *moving.shape[2:])
        displacement[:, 0] = self.voxels
        return SimpleNamespace(displacement=displacement)


class Fold(Shift):
    """Maps the first axis onto its mirror image."""

    def forward(self, moving, fixed):
        displacement = torch.zeros(len(moving), 3, *moving.shape[2:])
        displacement[:, 0] = -2 * torch.arange(moving.shape[2], dtype=torch.float32)[:, None, None]
        return SimpleNamespace(displacement=displacement)


def batch_of(source, *pairs):
    return to_device(source.batch(pairs), torch.device("cpu"))


def images(figure):
    """The first image of each panel, by column and row."""
    return [[figure.axes[6 * row + column].images[0].get_array() for row in range(3)] for column in range(6)]


def contour_colours(figure):
    """Colours of the contours in each column of the first row."""
    return [
        {to_hex(colour).upper() for each in axes.collections for colour in each.get_edgecolor() if len(colour)}
        for axes in figure.axes[:6]
    ]


def test_three_planes_and_six_columns_are_drawn_with_a_title_that_says_how_good_it_is(source):
    figure = draw_validation_pair(Shift().train(), batch_of(source, PAIR), SETTINGS, "epoch 3")
    assert tuple(axes.get_title() for axes in figure.axes[:6]) == COLUMNS
    assert [figure.axes[6 * row].get_ylabel().split(",")[0] for row in range(3)] == ["axial", "coronal", "sagittal"]
    title = figure.get_suptitle()
    assert title.startswith("epoch 3  ·  Dice 0.")
    before, after = title.split("Dice ")[1].split(",")[0].split(" → ")
    assert before == after
    assert title.endswith("folding 0.000 %")


def test_the_planes_go_through_the_labels_and_the_differences_are_those_of_the_images(source):
    batch = batch_of(source, PAIR)
    columns = images(draw_validation_pair(Shift(), batch, SETTINGS))
    centre = round(float(batch.fixed_labels[0, 0].nonzero()[:, 2].float().mean()))
    fixed, moving = (image[0, 0, :, :, centre].T.numpy() for image in (batch.fixed, batch.moving))
    np.testing.assert_array_equal(columns[0][0], fixed)
    np.testing.assert_allclose(columns[2][0], moving, atol=1e-5)  # warped by nothing
    np.testing.assert_allclose(columns[3][0], fixed - moving)
    np.testing.assert_allclose(columns[4][0], fixed - moving, atol=1e-5)


def test_the_warped_image_is_the_moving_one_at_the_displaced_places(source):
    columns = images(draw_validation_pair(Shift(2.0), batch_of(source, PAIR), SETTINGS))
    np.testing.assert_allclose(columns[2][0][:, :-2], columns[1][0][:, 2:], atol=1e-5)


def test_contours_show_whose_labels_they_are(source):
    fixed, moving, warped, *_ = contour_colours(draw_validation_pair(Shift(1.0), batch_of(source, PAIR), SETTINGS))
    assert (fixed, moving, warped) == ({FIXED_COLOUR}, {WARPED_COLOUR}, {FIXED_COLOUR, WARPED_COLOUR})


@pytest.mark.parametrize("missing", ["case0", "case1"])
def test_a_case_without_labels_has_no_contours_and_the_pair_no_dice(source, missing):
    known = CaseSource(source.folder, {case: case != missing for case in PAIR})
    figure = draw_validation_pair(Shift(), batch_of(known, PAIR), SETTINGS)
    assert figure.get_suptitle() == "folding 0.000 %"
    fixed, moving, *_ = contour_colours(figure)
    assert (bool(moving), bool(fixed)) == (missing != "case0", missing != "case1")


def test_folding_is_marked_and_counted(source):
    figure = draw_validation_pair(Fold(), batch_of(source, PAIR), SETTINGS)
    assert figure.get_suptitle().endswith("folding 100.000 %")
    assert not figure.axes[5].images[1].get_array().mask.any()


def test_more_than_one_pair_is_refused(source):
    with pytest.raises(ValueError, match="holds 2 pairs, but one picture shows 1"):
        draw_validation_pair(Shift(), batch_of(source, PAIR, PAIR), SETTINGS)


@pytest.mark.parametrize("training", [True, False])
def test_a_picture_is_written_per_epoch_and_neither_mode_nor_random_state_changes(source, tmp_path, training):
    network, state = Shift().train(training), torch.get_rng_state()
    pictures = PairPictures(source, PAIR, tmp_path, SETTINGS)
    pictures(network, 10)
    assert [path.name for path in (tmp_path / "pictures").iterdir()] == ["epoch_0010.png"]
    assert (tmp_path / "pictures" / "epoch_0010.png").read_bytes().startswith(b"\x89PNG")
    assert network.training is training
    assert torch.equal(torch.get_rng_state(), state)
    (tmp_path / "pictures" / "notes.txt").touch()
    clear_pictures(tmp_path)
    assert [path.name for path in (tmp_path / "pictures").iterdir()] == ["notes.txt"]


def test_a_disk_that_refuses_the_picture_is_a_warning(source, tmp_path, caplog):
    (tmp_path / "pictures").touch()
    with caplog.at_level(logging.WARNING, logger="biasreg"):
        PairPictures(source, PAIR, tmp_path, SETTINGS)(Shift(), 1)
    assert "the picture of epoch 1 could not be written" in caplog.text
