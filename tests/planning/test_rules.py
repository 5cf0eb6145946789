import subprocess
import sys

import numpy as np
import pytest

from biasreg.core.geometry import Geometry
from biasreg.planning import rules
from biasreg.planning.fingerprint import AlignmentScores, ChannelStatistics
from biasreg.planning.memory import step_memory_gib, voxel_budget

ISOTROPIC = [(1.0, 1.0, 1.0)] * 5
FIELD_OF_VIEW = (160.0, 192.0, 160.0)


def statistics(low, high):
    return ChannelStatistics(low, (low, low, 0.0, high, high), high, 0.0, 1.0)


def test_planning_imports_no_torch():
    code = "import sys, biasreg.planning.planner; raise SystemExit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_one_odd_case_does_not_dictate_the_field_of_view_and_is_counted():
    extents = [(100.0, 100.0, 100.0)] * 40 + [(500.0, 100.0, 100.0)]
    decision = rules.choose_field_of_view(extents)
    assert decision.value[0] < 120
    assert "1 of 41 cases are larger" in decision.why


@pytest.mark.parametrize(
    ("spacings", "expected"),
    [
        (ISOTROPIC, (1.0, 1.0, 1.0)),
        ([(1.5, 1.5, 8.0)] * 9 + [(1.5, 1.5, 5.0)], (1.5, 1.5, 7.7)),  # the 10th percentile of the coarse axis
        ([(0.5, 0.5, 1.0)] * 3, (0.5, 0.5, 1.0)),
    ],
)
def test_spacing_is_the_median_with_nnunets_rule_for_coarse_axes(spacings, expected):
    decision = rules.choose_spacing(spacings, (30.0, 30.0, 30.0), 8, 10**9)
    assert decision.value == pytest.approx(expected)
    assert "median" in decision.why


@pytest.mark.parametrize("budget", [40**3, 64**3, 100**3])
@pytest.mark.parametrize("spacings", [ISOTROPIC, [(0.5, 0.5, 3.0)] * 4])
def test_the_padded_field_of_view_fits_the_budget_and_is_never_finer_than_the_data(spacings, budget):
    spacing = rules.choose_spacing(spacings, FIELD_OF_VIEW, 16, budget).value
    shape = rules.choose_patch_size(FIELD_OF_VIEW, spacing, 16).value
    assert np.prod(shape) <= budget
    assert all(side % 16 == 0 for side in shape)
    assert all(side * step >= extent - 1e-3 for side, step, extent in zip(shape, spacing, FIELD_OF_VIEW, strict=True))
    assert all(step >= finest for step, finest in zip(spacing, spacings[0], strict=True))


def test_coarsening_makes_voxels_isotropic_before_it_makes_them_large():
    spacing = rules.choose_spacing([(0.5, 0.5, 1.4)] * 3, (100.0, 100.0, 100.0), 8, 110**3).value
    assert spacing[0] == spacing[1]
    assert spacing[0] < spacing[2] == 1.4


@pytest.mark.parametrize(
    ("side", "limit", "stages"), [(160, 4, 4), (40, 4, 2), (24, 4, 2), (12, 4, 1), (6, 4, 1), (400, 3, 3)]
)
def test_the_pyramid_is_as_deep_as_the_smallest_side_allows(side, limit, stages):
    decision = rules.choose_stages((side, 500.0, 500.0), (1.0, 1.0, 1.0), limit)
    assert decision.value == stages


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
        ((0.2, 0.5, 0.6), "intra-subject", "none"),
    ],
)
def test_pre_alignment_is_the_simplest_that_nothing_beats(scores, pairing, expected):
    decision = rules.choose_prealignment([AlignmentScores("a", *scores)], pairing)
    assert decision.value == expected
    assert decision.why


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


def test_spacing_is_given_along_the_axes_of_the_world():
    affine = np.array([[0, 0, -3.0, 0], [1.0, 0, 0, 0], [0, 2.0, 0, 0], [0, 0, 0, 1]])
    assert rules.world_spacing(Geometry.from_affine(affine, (4, 4, 4))) == pytest.approx((3.0, 1.0, 2.0))


@pytest.mark.parametrize("memory", [8.0, 24.0, 80.0])
def test_more_memory_gives_more_voxels_and_the_prediction_fits(memory):
    voxels = voxel_budget("cuda", memory, 16)
    assert voxels > voxel_budget("cuda", memory / 2, 16)
    assert step_memory_gib(voxels, 16) <= memory + 1e-6


def test_a_cpu_is_bounded_by_time():
    assert voxel_budget("cpu", 500.0, 8) == voxel_budget("cpu", 1000.0, 8)
