import numpy as np
import pytest

from biasreg.core.geometry import Geometry
from biasreg.planning import grid_rules

ISOTROPIC = [(1.0, 1.0, 1.0)] * 5
FIELD_OF_VIEW = (160.0, 192.0, 160.0)


@pytest.mark.parametrize(
    ("spacing", "expected"),
    [
        ((1.0, 1.0, 3.0), False),
        ((1.0001, 1.0, 3.0), False),  # rounding
        ((1.0, 1.0, 2.5), False),  # the anisotropy rule made it finer
        ((1.02, 1.0, 3.0), True),
        ((1.0, 1.0, 3.1), True),
    ],
)
def test_a_plan_is_coarser_than_the_data_if_it_is_along_any_axis(spacing, expected):
    assert grid_rules.is_coarser(spacing, [(0.5, 1.0, 2.0), (1.0, 1.0, 3.0), (2.0, 1.0, 4.0)]) == expected


def test_one_odd_case_does_not_dictate_the_field_of_view_and_is_counted():
    extents = [(100.0, 100.0, 100.0)] * 40 + [(500.0, 100.0, 100.0)]
    decision = grid_rules.choose_field_of_view(extents)
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
    decision = grid_rules.choose_spacing(spacings, (30.0, 30.0, 30.0), 8, 10**9)
    assert decision.value == pytest.approx(expected)
    assert "median" in decision.why


@pytest.mark.parametrize("budget", [40**3, 64**3, 100**3])
@pytest.mark.parametrize("spacings", [ISOTROPIC, [(0.5, 0.5, 3.0)] * 4])
def test_the_padded_field_of_view_fits_the_budget_and_is_never_finer_than_the_data(spacings, budget):
    spacing = grid_rules.choose_spacing(spacings, FIELD_OF_VIEW, 16, budget).value
    shape = grid_rules.choose_patch_size(FIELD_OF_VIEW, spacing, 16).value
    assert np.prod(shape) <= budget
    assert all(side % 16 == 0 for side in shape)
    assert all(side * step >= extent - 1e-3 for side, step, extent in zip(shape, spacing, FIELD_OF_VIEW, strict=True))
    assert all(step >= finest for step, finest in zip(spacing, spacings[0], strict=True))


def test_coarsening_makes_voxels_isotropic_before_it_makes_them_large():
    spacing = grid_rules.choose_spacing([(0.5, 0.5, 1.4)] * 3, (100.0, 100.0, 100.0), 8, 110**3).value
    assert spacing[0] == spacing[1]
    assert spacing[0] < spacing[2] == 1.4


@pytest.mark.parametrize(
    ("side", "limit", "stages"), [(160, 4, 4), (40, 4, 2), (24, 4, 2), (12, 4, 1), (6, 4, 1), (400, 3, 3)]
)
def test_the_pyramid_is_as_deep_as_the_smallest_side_allows(side, limit, stages):
    decision = grid_rules.choose_stages((side, 500.0, 500.0), (1.0, 1.0, 1.0), limit)
    assert decision.value == stages


def test_spacing_is_given_along_the_axes_of_the_world():
    affine = np.array([[0, 0, -3.0, 0], [1.0, 0, 0, 0], [0, 2.0, 0, 0], [0, 0, 0, 1]])
    assert grid_rules.world_spacing(Geometry.from_affine(affine, (4, 4, 4))) == pytest.approx((3.0, 1.0, 2.0))


def test_each_array_axis_counts_once_however_oblique_the_grid():
    half = np.sqrt(0.5)
    affine = np.eye(4)
    affine[:3, :3] = np.array([[half, -half, 0], [half, half, 0], [0, 0, 1]]) * [1.0, 4.0, 2.0]
    assert sorted(grid_rules.world_spacing(Geometry.from_affine(affine, (4, 4, 4)))) == pytest.approx([1.0, 2.0, 4.0])


@pytest.mark.parametrize("step", [0.78125, 0.9765625, 1 / 3, 0.0123456789])
@pytest.mark.parametrize("budget", [30**3, 10**9])
def test_rounding_never_makes_voxels_finer_nor_the_grid_larger_than_the_budget(step, budget):
    field_of_view = (97 * step, 64 * step, 51 * step)
    spacing = grid_rules.choose_spacing([(step,) * 3] * 3, field_of_view, 8, budget).value
    assert min(spacing) >= step
    assert max(spacing) < step * (1.001 if budget == 10**9 else 4)
    assert np.prod(grid_rules.choose_patch_size(field_of_view, spacing, 8).value) <= budget


def test_headers_round_off_leaves_no_trace():
    spacing = grid_rules.choose_spacing([(1.0000000149,) * 3] * 3, (50.0,) * 3, 8, 10**9).value
    assert spacing == (1.0, 1.0, 1.0)


def test_a_tiny_structure_gets_one_stage_and_a_grid_of_one_block():
    stages = grid_rules.choose_stages((3.0, 3.0, 3.0), (1.0, 1.0, 1.0), 4)
    assert stages.value == 1
    assert grid_rules.choose_patch_size((3.0, 3.0, 3.0), (1.0, 1.0, 1.0), 4).value == (4, 4, 4)


def test_the_devices_limit_of_depth_is_said():
    assert "would not fit the device" in grid_rules.choose_stages((500.0,) * 3, (1.0,) * 3, 3).why
    assert "would not fit the device" not in grid_rules.choose_stages((40.0,) * 3, (1.0,) * 3, 3).why
