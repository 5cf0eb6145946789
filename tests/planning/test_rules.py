import subprocess
import sys

import pytest

from biasreg.planning import rules
from biasreg.planning.fingerprint import AlignmentScores, ChannelStatistics


def statistics(low, high):
    return ChannelStatistics(low, (low, low, 0.0, high, high), high, 0.0, 1.0)


def test_planning_imports_no_torch():
    code = "import sys, biasreg.planning.planner; raise SystemExit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_ct_gets_one_window_and_other_modalities_their_own_percentiles():
    ct = rules.choose_normalization("CT", [statistics(-1000, 800), statistics(-900, 900), statistics(-950, 1000)])
    assert (ct.value.scheme, ct.value.lower, ct.value.upper) == ("window", -950, 900)
    assert rules.choose_normalization("MRI", [statistics(0, 1e6)]).value.scheme == "percentile"


@pytest.mark.parametrize(
    ("scores", "pairing", "expected"),
    [
        ((0.5, 0.51, 0.515), "inter-subject", "none"),
        ((0.2, 0.5, 0.51), "inter-subject", "center"),
        ((0.2, 0.5, 0.6), "inter-subject", "affine"),
        ((0.6, 0.1, 0.65), "inter-subject", "affine"),
        ((0.8, 0.81, 0.9), "intra-subject", "none"),  # no affine map within a subject
        ((0.2, 0.5, 0.9), "intra-subject", "center"),
        ((0.2, 0.5, 0.6, "", 0.61), "inter-subject", "affine"),
        ((0.2, 0.5, 0.6, "", 0.7), "inter-subject", "affine_focus"),
        ((0.7, 0.7, 0.7, "", 0.8), "intra-subject", "none"),
    ],
)
def test_pre_alignment_is_the_simplest_that_nothing_beats(scores, pairing, expected):
    decision = rules.choose_prealignment([AlignmentScores("a", *scores)], pairing)
    assert decision.value == expected
    assert decision.why


@pytest.mark.parametrize(
    ("pairing", "words"),
    [("inter-subject", "reference case"), ("intra-subject", "within subjects"), ("listed", "listed pairs")],
)
def test_the_reason_of_the_pre_alignment_says_what_was_measured(pairing, words):
    assert words in rules.choose_prealignment([AlignmentScores("a", 0.2, 0.5, 0.6)], pairing).why


def test_mixed_modalities_take_mind_and_assume_no_scale():
    assert rules.choose_similarity(["CT", "MRI"]).value == "mind"
    assert rules.choose_modality(["CT", "MRI"]).value == "mixed"
    assert rules.choose_similarity(["CT", "CT"]).value == "lncc"


def test_within_a_subject_residuals_are_not_integrated():
    assert rules.choose_integration("intra-subject").value == 0
    assert rules.choose_integration("inter-subject").value == 7


def test_many_labels_are_segmented_at_half_resolution():
    assert rules.choose_segmentation_level(3).value == 0
    assert rules.choose_segmentation_level(36).value == 1
