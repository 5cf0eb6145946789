import pytest
import torch

from biasreg.spatial.displacement import compose, resize, voxels_to_mm
from biasreg.spatial.warp import identity_grid, warp

SHAPE = (10, 12, 9)


def translation(x, y, z, shape=SHAPE):
    return torch.tensor([x, y, z], dtype=torch.float32).view(1, 3, 1, 1, 1).expand(1, 3, *shape).clone()


def linear_field(matrix, shape=SHAPE):
    return torch.einsum("ab,nbxyz->naxyz", torch.tensor(matrix), identity_grid(shape, device="cpu"))


def test_composition_of_translations_is_exact():
    composed = compose(translation(0.3, -2.0, 1.5), translation(0.2, 1.0, -0.5))
    torch.testing.assert_close(composed, translation(0.5, -1.0, 1.0))


def test_composition_with_nothing_changes_nothing(smooth_field):
    field, nothing = smooth_field(SHAPE, amplitude=1.5), torch.zeros(1, 3, *SHAPE)
    torch.testing.assert_close(compose(field, nothing), field)
    torch.testing.assert_close(compose(nothing, field), field, atol=1e-5, rtol=0)


def test_warping_with_a_composition_is_warping_with_second_and_then_with_first(smooth_field):
    ramp = linear_field([[0.5, 0.2, 0.0], [0.0, 1.0, 0.1], [0.3, 0.0, 0.7]])
    first, second = smooth_field(SHAPE, amplitude=0.8, seed=1), smooth_field(SHAPE, amplitude=0.8, seed=2)
    at_once = warp(ramp, compose(first, second))
    in_turn = warp(warp(ramp, second), first)
    inner = (..., *[slice(2, -2)] * 3)
    torch.testing.assert_close(at_once[inner], in_turn[inner], atol=1e-4, rtol=0)


def test_gradients_of_composition_are_right():
    generator = torch.Generator().manual_seed(0)
    first, second = (
        (0.2 + 0.5 * torch.rand(1, 3, 3, 3, 3, generator=generator, dtype=torch.float64)).requires_grad_() for _ in "ab"
    )
    assert torch.autograd.gradcheck(compose, (first, second))


def test_resizing_keeps_the_physical_displacement():
    resized = resize(translation(2.0, 3.0, -1.0), (20, 6, 9))
    torch.testing.assert_close(resized, translation(4.0, 1.5, -1.0, (20, 6, 9)))


def test_resizing_a_linear_field_keeps_positions_in_the_common_field_of_view():
    coarse = linear_field([[0.1, 0.0, 0.0], [0.0, 0.0, 0.05], [0.0, 0.0, 0.0]])
    fine = resize(coarse, [2 * size for size in coarse.shape[2:]])
    expected = 2 * torch.einsum(
        "ab,nbxyz->naxyz",
        torch.tensor([[0.1, 0.0, 0.0], [0.0, 0.0, 0.05], [0.0, 0.0, 0.0]]),
        (identity_grid(fine.shape[2:], device="cpu") + 0.5) / 2 - 0.5,
    )
    inner = (..., *[slice(1, -1)] * 3)
    torch.testing.assert_close(fine[inner], expected[inner], atol=1e-5, rtol=1e-5)


def test_resizing_to_the_same_grid_changes_nothing(smooth_field):
    field = smooth_field(SHAPE, amplitude=1.0)
    assert torch.equal(resize(field, SHAPE), field)


def test_half_precision_displacements_become_float32():
    half = translation(1.0, 2.0, 3.0).half()
    for result in (
        resize(half, [2 * size for size in half.shape[2:]]),
        compose(half, half),
        voxels_to_mm(half, (1, 1, 1)),
    ):
        assert result.dtype == torch.float32


def test_millimetres_are_voxels_times_the_spacing_of_each_case(smooth_field):
    field = smooth_field(SHAPE, amplitude=2.0).expand(2, -1, -1, -1, -1)
    per_case = torch.tensor([[1.0, 2.0, 3.0], [0.5, 0.5, 4.0]])
    in_mm = voxels_to_mm(field, per_case)
    torch.testing.assert_close(in_mm[1, 2], field[1, 2] * 4)
    torch.testing.assert_close(in_mm[:1], voxels_to_mm(field[:1], (1.0, 2.0, 3.0)))


def test_bad_shapes_are_refused_with_both_shapes():
    field = torch.zeros(1, 3, 4, 4, 4)
    with pytest.raises(ValueError, match=r"first has shape \(1, 3, 4, 4, 4\) but second has shape \(1, 3, 4, 4, 5\)"):
        compose(field, torch.zeros(1, 3, 4, 4, 5))
    with pytest.raises(ValueError, match=r"second has shape \(1, 1, 4, 4, 4\)"):
        compose(field, torch.zeros(1, 1, 4, 4, 4))
    with pytest.raises(ValueError, match=r"new grid shape \(4, 0, 4\)"):
        resize(field, (4, 0, 4))
    with pytest.raises(ValueError, match=r"spacing has shape \(2,\) but the displacement has shape"):
        voxels_to_mm(field, (1.0, 2.0))
