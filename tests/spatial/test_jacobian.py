import numpy as np
import pytest
import torch
from scipy.ndimage import correlate

from biasreg.spatial.jacobian import (
    folding_fraction,
    jacobian_determinant,
    learn2reg_log_jacobian_std,
    log_jacobian_std,
)
from biasreg.spatial.warp import identity_grid

SHAPE = (9, 8, 10)


def test_the_determinant_of_an_affine_transform_is_its_matrix_determinant_everywhere():
    matrix = torch.tensor([[1.1, 0.2, -0.1], [0.05, 0.9, 0.3], [-0.2, 0.1, 1.3]])
    field = torch.einsum("ab,nbxyz->naxyz", matrix - torch.eye(3), identity_grid(SHAPE, device="cpu"))
    determinant = jacobian_determinant(field)
    assert determinant.shape == (1, *SHAPE)
    torch.testing.assert_close(determinant, torch.linalg.det(matrix).expand(1, *SHAPE), atol=1e-4, rtol=0)
    assert log_jacobian_std(determinant).item() == pytest.approx(0, abs=1e-4)


def test_a_reflection_folds_everywhere_and_nothing_folds_nowhere():
    reflection = torch.zeros(1, 3, *SHAPE)
    reflection[:, 0] = -2 * identity_grid(SHAPE, device="cpu")[:, 0]
    determinants = jacobian_determinant(torch.cat([reflection, torch.zeros(1, 3, *SHAPE)]))
    assert folding_fraction(determinants).tolist() == [1.0, 0.0]
    spread = log_jacobian_std(determinants)
    assert spread[0].isnan()
    assert spread[1] == 0


def test_not_a_number_counts_as_folded():
    assert folding_fraction(torch.tensor([1.0, torch.nan, 0.0, 2.0]).view(1, 1, 2, 2)).item() == 0.5


def test_the_logarithm_leaves_out_folded_voxels():
    determinant = torch.tensor([1.0, np.e, -1.0, 0.0]).view(1, 1, 2, 2)
    assert log_jacobian_std(determinant).item() == pytest.approx(0.5)


def test_learn2reg_spread_follows_its_published_definition(smooth_field):
    field = torch.cat([smooth_field(SHAPE, amplitude=a, sigma=1.0) for a in (1.0, 6.0)])
    kernel = np.array([-0.5, 0.0, 0.5])
    for case, spread in zip(
        field.double().numpy(), learn2reg_log_jacobian_std(jacobian_determinant(field)), strict=True
    ):
        gradient = np.stack(
            [[correlate(u, kernel.reshape(np.roll([-1, 1, 1], a)), mode="constant") for a in range(3)] for u in case]
        )
        jacobian = np.moveaxis(gradient, (0, 1), (-2, -1))[2:-2, 2:-2, 2:-2] + np.eye(3)
        expected = np.log((np.linalg.det(jacobian) + 3).clip(1e-9, 1e9)).std()
        assert spread.item() == pytest.approx(expected, rel=1e-4)


def test_gradients_of_the_determinant_are_right():
    field = torch.rand(1, 3, 3, 2, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(jacobian_determinant, field)


def test_fields_too_small_for_a_derivative_are_refused():
    with pytest.raises(ValueError, match=r"\(1, 3, 1, 4, 4\); a derivative needs 2 voxels"):
        jacobian_determinant(torch.zeros(1, 3, 1, 4, 4))
    with pytest.raises(ValueError, match=r"\(1, 4, 9, 9\).*at least 5"):
        learn2reg_log_jacobian_std(torch.zeros(1, 4, 9, 9))
    with pytest.raises(ValueError, match=r"displacement has shape \(3, 4, 4, 4\)"):
        jacobian_determinant(torch.zeros(3, 4, 4, 4))
