import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from biasreg.losses.objective import ObjectiveSettings
from biasreg.planning.plans import LossWeights
from biasreg.training.data import CaseSource
from biasreg.training.validation import PairScore, Validation, ValidationResult, labels_present, mean_dice

SETTINGS = ObjectiveSettings("lncc", 5, LossWeights(1, 1, 1, 1, 1), (2.0, 2.0, 2.0), 3, 2)


class Shift(nn.Module):
    """Displaces everything by a constant along the first axis."""

    def __init__(self, voxels: float) -> None:
        super().__init__()
        self.voxels = nn.Parameter(torch.tensor(voxels))

    def forward(self, moving, fixed):
        displacement = torch.zeros(len(moving), 3, *moving.shape[2:])
        displacement[:, 0] = self.voxels
        return SimpleNamespace(displacement=displacement)


def validation(write_dataset, pairs, *, annotated=True):
    roots = write_dataset(cases=6, annotated=annotated)
    folder = roots.preprocessed / "Dataset901_Blobs" / "tiny_main"
    names = {f"case{index}": annotated for index in range(6)}
    return Validation(CaseSource(folder, names), pairs, "both", SETTINGS)


def test_dice_of_halves_is_two_thirds_and_labels_of_one_image_alone_do_not_count():
    labels = torch.tensor([1, 1, 0, 0, 2, 0])
    reference = torch.tensor([1, 1, 1, 1, 0, 3])
    present = labels_present(labels, 4)
    assert present.tolist() == [True, True, True, False]
    assert mean_dice(labels, reference, present) == pytest.approx(2 / 3)


def test_a_label_that_the_warp_lost_counts_as_zero():
    present = torch.tensor([True, True, True])
    assert mean_dice(torch.tensor([1, 1, 0]), torch.tensor([1, 1, 2]), present) == pytest.approx(0.5)


def test_no_common_label_gives_no_dice():
    labels = torch.tensor([0, 1])
    assert mean_dice(labels, torch.tensor([2, 0]), labels_present(labels, 3)) is None


def test_the_identity_scores_as_before_and_folds_nowhere(write_dataset):
    (score,) = validation(write_dataset, (("case0", "case1"),)).scores(Shift(0.0))
    assert (score.moving, score.fixed) == ("case0", "case1")
    assert 0 < score.dice_before < 1
    assert score.dice_after == pytest.approx(score.dice_before)
    assert score.folding_fraction == 0


def test_a_case_matches_itself_and_a_shift_spoils_it(write_dataset):
    pairs = (("case0", "case0"),)
    (still,) = validation(write_dataset, pairs).scores(Shift(0.0))
    (shifted,) = validation(write_dataset, pairs).scores(Shift(2.0))
    assert still.dice_before == still.dice_after == 1
    assert shifted.dice_before == 1
    assert shifted.dice_after < 0.9
    assert shifted.similarity_loss > still.similarity_loss


def test_without_labels_only_similarity_and_folding_are_measured(write_dataset):
    (score,) = validation(write_dataset, (("case0", "case1"),), annotated=False).scores(Shift(0.0))
    assert score.dice_before is None
    assert score.dice_after is None
    result = ValidationResult(1, "both", (score,))
    assert result.score == -score.similarity_loss


def test_the_network_is_back_in_training_mode_after_each_pair(write_dataset):
    network = Shift(0.0).train()
    seen = []
    network.register_forward_pre_hook(lambda module, arguments: seen.append(module.training))
    list(validation(write_dataset, (("case0", "case1"), ("case1", "case0"))).scores(network))
    assert seen == [False, False]
    assert network.training


def test_the_score_is_dice_minus_ten_times_folding():
    pairs = (PairScore("a", "b", 0.4, 0.8, 0.1, 0.5), PairScore("b", "c", None, None, 0.3, 0.7))
    result = ValidationResult(3, "both", pairs)
    assert result.dice_before == pytest.approx(0.4)
    assert result.score == pytest.approx(0.8 - 10 * 0.2)
    assert result.similarity_loss == pytest.approx(0.6)


def test_a_network_that_gives_nonsense_scores_worse_than_doing_nothing(write_dataset):
    for annotated in (True, False):
        pairs = validation(write_dataset, (("case0", "case1"),), annotated=annotated)
        nonsense, nothing = (
            ValidationResult(1, "both", tuple(pairs.scores(Shift(shift)))) for shift in (math.nan, 0.0)
        )
        assert nonsense.folding_fraction == 1
        assert nonsense.score < nothing.score


def test_a_similarity_that_is_not_finite_is_no_score():
    assert ValidationResult(1, "both", (PairScore("a", "b", None, None, 1.0, None),)).score == -math.inf
