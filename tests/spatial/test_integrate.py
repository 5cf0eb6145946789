import pytest
import torch

from biasreg.spatial.displacement import compose
from biasreg.spatial.integrate import integrate_velocity
from biasreg.spatial.jacobian import jacobian_determinant
from biasreg.spatial.warp import identity_grid

SHAPE = (14, 14, 14)


def test_a_constant_velocity_gives_its_translation():
    velocity = torch.tensor([0.7, -1.2, 2.0]).view(1, 3, 1, 1, 1).expand(1, 3, *SHAPE)
    torch.testing.assert_close(integrate_velocity(velocity, 7), velocity.contiguous())


def test_a_linear_velocity_gives_the_exponential_of_its_matrix():
    matrix = torch.tensor([[0.0, -0.2, 0.0], [0.2, 0.0, 0.0], [0.0, 0.0, 0.0]])
    centred = identity_grid(SHAPE, device="cpu") - 6.5
    velocity = torch.einsum("ab,nbxyz->naxyz", matrix, centred)
    expected = torch.einsum("ab,nbxyz->naxyz", torch.matrix_exp(matrix) - torch.eye(3), centred)
    inner = (..., *[slice(4, -4)] * 3)
    torch.testing.assert_close(integrate_velocity(velocity, 7)[inner], expected[inner], atol=0.02, rtol=0)


def test_no_steps_return_the_velocity(smooth_field):
    velocity = smooth_field(SHAPE, amplitude=2.0)
    assert torch.equal(integrate_velocity(velocity, 0), velocity)


def test_the_negative_velocity_gives_the_inverse(smooth_field):
    velocity = smooth_field(SHAPE, amplitude=1.5)
    there_and_back = compose(integrate_velocity(velocity, 7), integrate_velocity(-velocity, 7))
    assert there_and_back[..., 3:-3, 3:-3, 3:-3].abs().max() < 0.05


def test_integration_does_not_fold_where_the_velocity_as_a_displacement_does(smooth_field):
    velocity = smooth_field((20, 20, 20), amplitude=6.0, sigma=2.0)
    assert jacobian_determinant(velocity).min() < 0
    assert jacobian_determinant(integrate_velocity(velocity, 7)).min() > 0


def test_gradients_of_integration_are_right():
    generator = torch.Generator().manual_seed(0)
    velocity = (0.1 + 0.4 * torch.rand(1, 3, 3, 3, 3, generator=generator, dtype=torch.float64)).requires_grad_()
    assert torch.autograd.gradcheck(lambda v: integrate_velocity(v, 3), velocity)


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="integration steps is -1"):
        integrate_velocity(torch.zeros(1, 3, 4, 4, 4), -1)
    with pytest.raises(ValueError, match=r"velocity has shape \(1, 2, 4, 4, 4\)"):
        integrate_velocity(torch.zeros(1, 2, 4, 4, 4), 2)
