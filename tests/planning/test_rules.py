import subprocess
import sys
from dataclasses import replace

import pytest

from biasreg.planning import rules
from biasreg.planning.fingerprint_records import ChannelStatistics, Misalignment, PairFingerprint

WAYS = ("none", "center", "affine", "affine_focus")


def statistics(low, high):
    return ChannelStatistics(low, (low, low, 0.0, high, high), high, 0.0, 1.0)


def pair(*scores, surface=None, centroid=None):
    alignments = {
        name: Misalignment(
            score, surface and (0.0, centroid or 0.0, centroid or 0.0), surface and (0.0, surface, surface)
        )
        for name, score in zip(WAYS, scores, strict=False)
    }
    return PairFingerprint("a", "b", 1.0, 0.0, alignments)


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
        (
            (0.5, 0.519, 0.521),
            "inter-subject",
            "center",
        ),  # not better than none by 0.02, but the simplest near the best
        ((0.2, 0.5, 0.6), "inter-subject", "affine"),
        ((0.6, 0.1, 0.65), "inter-subject", "affine"),
        ((0.8, 0.81, 0.9), "intra-subject", "none"),  # no affine map within a subject
        ((0.2, 0.5, 0.9), "intra-subject", "center"),
        ((0.2, 0.5, 0.6, 0.61), "inter-subject", "affine"),
        ((0.2, 0.5, 0.6, 0.7), "inter-subject", "affine_focus"),
        ((0.7, 0.7, 0.7, 0.8), "intra-subject", "none"),
    ],
)
def test_pre_alignment_is_the_simplest_that_nothing_beats(scores, pairing, expected):
    decision = rules.choose_prealignment([pair(*scores)], pairing)
    assert decision.value == expected
    assert decision.why


def test_a_rigid_map_is_taken_where_an_affine_one_gains_nothing():
    found = pair(0.2, 0.5, 0.71)
    found = replace(found, alignments={**found.alignments, "rigid": Misalignment(0.7)})
    assert rules.choose_prealignment([found], "inter-subject").value == "rigid"


def test_a_way_that_was_not_measured_on_every_pair_is_not_chosen():
    assert rules.choose_prealignment([pair(0.1, 0.2, 0.9), pair(0.1, 0.2)], "inter-subject").value == "center"


@pytest.mark.parametrize(("pairing", "expected"), [("inter-subject", "center"), ("intra-subject", "none")])
def test_without_a_sample_subjects_are_centred_and_one_subject_is_left_as_it_is(pairing, expected):
    assert rules.choose_prealignment([], pairing).value == expected


@pytest.mark.parametrize(
    ("pairing", "words"),
    [("inter-subject", "reference case"), ("intra-subject", "within subjects"), ("listed", "listed pairs")],
)
def test_the_reason_of_the_pre_alignment_says_what_was_measured(pairing, words):
    assert words in rules.choose_prealignment([pair(0.2, 0.5, 0.6)], pairing).why


@pytest.mark.parametrize(
    ("pairs", "expected", "words"),
    [
        ([pair(0.2, 0.5, 0.6, surface=8.0)] * 4, 8.0, "keep 8 mm (upper quartile of 4 sampled pairs)"),
        ([pair(0.2, 0.5, 0.6, surface=8.0, centroid=11.0)], 11.0, "11 mm"),
        ([pair(0.2, 0.5, 0.6, surface=8.0)] * 3 + [pair(0.2, 0.5, 0.6)], 8.0, "of 3 sampled pairs"),
        ([pair(0.2, 0.5, 0.6, surface=8.0)] * 7 + [pair(0.2, 0.5, 0.6, surface=90.0)], 8.0, "8 mm"),  # one failed
        ([pair(0.2, 0.5, 0.6, surface=80.0)], 25.0, "more than is planned for"),
        ([pair(0.2, 0.5, 0.6)], 10.0, "unknown without labels: 10 %"),
        ([], 10.0, "unknown without labels"),
    ],
)
def test_the_expected_displacement_is_what_pre_alignment_leaves(pairs, expected, words):
    decision = rules.choose_displacement(pairs, "affine", [(100.0, 120.0, 80.0)] * 3)
    assert decision.value == expected
    assert words in decision.why


@pytest.mark.parametrize(
    ("labels", "prealignment", "expected"),
    [
        ([(50.0, 50.0, 50.0)] * 3, "affine_focus", "labels"),
        ([(50.0, 50.0, 50.0), None, (60.0, 50.0, 50.0)], "affine_focus", "labels"),
        ([(90.0, 90.0, 90.0)] * 3, "affine_focus", "anatomy"),
        ([(50.0, 50.0, 50.0)] * 3, "affine", "anatomy"),
        ([None] * 3, "affine_focus", "anatomy"),
    ],
)
def test_the_grid_is_cropped_to_labels_only_where_they_show_a_part_that_is_found_again(labels, prealignment, expected):
    assert rules.choose_crop([(100.0, 100.0, 100.0)] * 3, labels, prealignment).value == expected


def test_where_the_users_transforms_align_a_pair_they_decide_what_is_left():
    given = replace(
        pair(0.2, 0.5, surface=8.0), alignments={"given": Misalignment(0.9, (1.0, 2.0, 2.0), (1.0, 3.0, 3.0))}
    )
    assert rules.choose_displacement([given] * 3, "center", [(100.0, 120.0, 80.0)] * 3).value == 3.0


def test_mixed_modalities_take_mind_and_assume_no_scale():
    assert rules.choose_similarity(["CT", "MRI"]).value == "mind"
    assert rules.choose_modality(["CT", "MRI"]).value == "mixed"
    assert rules.choose_similarity(["CT", "CT"]).value == "lncc"
