import numpy as np
import pytest

from biasreg.core.errors import PlansError
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


def test_one_odd_case_does_not_dictate_the_field_of_view_and_is_named():
    extents = {f"c{number}": (100.0, 100.0, 100.0) for number in range(40)} | {"odd": (500.0, 100.0, 100.0)}
    decision = grid_rules.choose_field_of_view(extents, 10.0, "the anatomy")
    assert decision.value[0] < 120
    assert "1 of 41 cases are larger (odd)" in decision.why


@pytest.mark.parametrize(("displacement", "side"), [(10.0, 110.0), (0.0, 108.0), (90.0, 130.0)])
def test_the_margin_is_half_of_the_expected_displacement_within_bounds(displacement, side):
    decision = grid_rules.choose_field_of_view({"a": (100.0, 100.0, 100.0)}, displacement, "the anatomy")
    assert decision.value == pytest.approx((side,) * 3)
    assert f"displacement of {displacement:g} mm" in decision.why


def test_cases_that_are_scaled_to_a_reference_get_its_extent_or_the_median():
    extents = {"a": (90.0, 100.0, 80.0), "b": (100.0, 100.0, 100.0), "c": (300.0, 300.0, 300.0)}
    decision = grid_rules.choose_field_of_view(extents, 0.0, "the anatomy", "a")
    assert decision.value == pytest.approx((108.0,) * 3)
    assert "of a, or the median if larger" in decision.why
    assert "are larger" not in decision.why


def test_of_many_larger_cases_the_first_are_named():
    extents = {f"c{number}": (100.0 if number else 1.0,) * 3 for number in range(300)}
    extents |= {f"large{number}": (500.0,) * 3 for number in range(8)}
    assert "8 of 308 cases are larger (large0, large1, large2, large3, large4, …)" in (
        grid_rules.choose_field_of_view(extents, 1.0, "the anatomy").why
    )


@pytest.mark.parametrize(
    ("spacings", "expected"),
    [
        (ISOTROPIC, (1.0, 1.0, 1.0)),
        ([(1.5, 1.5, 8.0)] * 9 + [(1.5, 1.5, 5.0)], (1.5, 1.5, 7.7)),  # the 10th percentile of the coarse axis
        ([(0.6, 0.6, 3.0)] * 9 + [(0.6, 0.6, 0.3)] * 2, (0.6, 0.6, 0.6)),  # no finer than the other axes
        ([(0.8, 2.0, 3.0)] * 3, (0.8, 2.0, 3.0)),  # not three times as coarse as the next coarser axis
        ([(0.5, 0.5, 1.0)] * 3, (0.5, 0.5, 1.0)),
    ],
)
def test_spacing_is_the_median_with_nnunets_rule_for_coarse_axes(spacings, expected):
    decision = grid_rules.choose_spacing(spacings)
    assert decision.value == pytest.approx(expected)
    assert "median" in decision.why


def fits(budget):
    def tell(spacing):
        return np.prod(grid_rules.lay_out(FIELD_OF_VIEW, spacing, 3).value.patch_size) <= budget

    return tell


@pytest.mark.parametrize("budget", [40**3, 64**3, 100**3])
@pytest.mark.parametrize("start", [(1.0, 1.0, 1.0), (0.5, 0.5, 3.0)])
def test_coarsening_ends_where_the_field_of_view_fits_and_never_goes_finer(start, budget):
    decision = grid_rules.coarsen(start, fits(budget), "it fits")
    layout = grid_rules.lay_out(FIELD_OF_VIEW, decision.value, 3).value
    assert np.prod(layout.patch_size) <= budget
    sides = zip(layout.patch_size, decision.value, FIELD_OF_VIEW, strict=True)
    assert all(side * step >= extent - 1e-3 for side, step, extent in sides)
    assert all(step >= first for step, first in zip(decision.value, start, strict=True))
    assert decision.why.endswith("mm until it fits")


def test_what_no_voxel_fits_ends_with_the_remedy():
    with pytest.raises(PlansError, match=r"no grid is coarse enough that it fits · plan for more memory"):
        grid_rules.coarsen((1.0, 2.0, 3.0), lambda spacing: False, "it fits")


def test_what_fits_is_not_coarsened():
    assert grid_rules.coarsen((1.0, 2.0, 3.0), lambda spacing: True, "") == ((1.0, 2.0, 3.0), "")


def test_coarsening_makes_voxels_isotropic_before_it_makes_them_large():
    spacing = grid_rules.coarsen((0.5, 0.5, 1.4), lambda spacing: spacing[0] > 1.2, "").value
    assert spacing[0] == spacing[1]
    assert spacing[0] < spacing[2] == 1.4
    assert grid_rules.coarsen((0.5, 0.5, 1.4), lambda spacing: spacing[0] > 1.6, "").value[2] > 1.4


@pytest.mark.parametrize(("side", "limit", "halvings"), [(160, 4, 5), (40, 4, 3), (24, 4, 3), (400, 3, 4)])
def test_the_pyramid_is_as_deep_as_the_smallest_side_allows(side, limit, halvings):
    layout = grid_rules.lay_out((side, 500.0, 500.0), (1.0, 1.0, 1.0), limit).value
    assert layout.strides == ((2, 2, 2),) * halvings
    assert layout.is_isotropic
    assert all(length % 2**halvings == 0 for length in layout.patch_size)


@pytest.mark.parametrize(
    ("field_of_view", "spacing", "expected"),
    [
        ((240.0, 240.0, 96.0), (1.5, 1.5, 8.0), ["221", "221", "222", "222", "221"]),  # 8 mm wait for 6 mm
        ((180.0, 180.0, 90.0), (0.6, 0.6, 3.0), ["221", "221", "222", "222", "222"]),
        ((200.0, 200.0, 200.0), (1.0, 1.0, 2.0), ["221", "222", "222", "222", "222"]),
        ((200.0, 200.0, 200.0), (1.0, 1.0, 1.9), ["222"] * 5),
        ((200.0, 200.0, 8.0), (1.0, 1.0, 1.0), ["222", "221", "221", "221", "221"]),  # a thin slab
        ((100.0, 100.0, 4.0), (1.0, 1.0, 4.0), ["221", "221", "221", "221", "221"]),  # an axis too short to halve
    ],
)
def test_long_axes_are_halved_once_the_others_have_caught_up(field_of_view, spacing, expected):
    decision = grid_rules.lay_out(field_of_view, spacing, 4)
    assert ["".join(map(str, step)) for step in decision.value.strides] == expected
    divisor = np.prod(decision.value.strides, axis=0)
    assert all(side % factor == 0 for side, factor in zip(decision.value.patch_size, divisor, strict=True))
    assert ("halved less often" in decision.why) == (not decision.value.is_isotropic)


@pytest.mark.parametrize("step", [0.78125, 0.9765625, 1 / 3, 0.0123456789])
@pytest.mark.parametrize("budget", [30**3, 10**9])
def test_rounding_never_makes_voxels_finer_nor_the_grid_larger_than_the_budget(step, budget):
    field_of_view = (97 * step, 64 * step, 51 * step)

    def fits(spacing):
        return np.prod(grid_rules.lay_out(field_of_view, spacing, 2).value.patch_size) <= budget

    spacing = grid_rules.coarsen(grid_rules.choose_spacing([(step,) * 3] * 3).value, fits, "").value
    assert min(spacing) >= step
    assert max(spacing) < step * (1.001 if budget == 10**9 else 4)
    assert fits(spacing)


def test_headers_round_off_leaves_no_trace():
    assert grid_rules.choose_spacing([(1.0000000149,) * 3] * 3).value == (1.0, 1.0, 1.0)
    assert grid_rules.rounded_spacing((1.0000000149, 2, 3.00001)) == (1.0, 2.0, 3.0001)


def test_a_tiny_structure_gets_one_stage_and_a_grid_of_one_block():
    layout = grid_rules.lay_out((3.0, 3.0, 3.0), (1.0, 1.0, 1.0), 4).value
    assert layout == ((4, 4, 4), ((2, 2, 2), (2, 2, 2)))
