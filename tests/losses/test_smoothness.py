import pytest
import torch

from biasreg.losses.smoothness import diffusion_loss
from biasreg.spatial.warp import identity_grid

SHAPE = (5, 6, 7)


def test_a_translation_is_perfectly_smooth():
    assert diffusion_loss(torch.full((1, 3, *SHAPE), 2.5), (1.0, 2.0, 3.0)) == 0


def test_a_linear_field_gives_the_mean_square_of_its_gradient_in_mm_per_mm():
    gradient_mm = torch.tensor([[0.1, 0.2, 0.0], [0.0, -0.3, 0.0], [0.5, 0.0, 0.4]])
    spacing = (1.0, 2.0, 0.5)
    s = torch.tensor(spacing)
    in_voxels = gradient_mm * s[None, :] / s[:, None]
    field = torch.einsum("ca,naxyz->ncxyz", in_voxels, identity_grid(SHAPE, device="cpu"))
    torch.testing.assert_close(diffusion_loss(field, spacing), gradient_mm.square().mean())


def test_the_loss_of_the_same_physical_field_does_not_depend_on_the_grid():
    coarse = 0.1 * identity_grid(SHAPE, device="cpu")
    fine = 0.1 * identity_grid([2 * size for size in SHAPE], device="cpu")
    torch.testing.assert_close(diffusion_loss(coarse, (2.0, 2.0, 2.0)), diffusion_loss(fine, (1.0, 1.0, 1.0)))


def test_a_change_from_voxel_to_voxel_is_seen():
    field = torch.zeros(1, 3, *SHAPE)
    field[:, 0, ::2] = 1.0
    assert diffusion_loss(field, (1.0, 1.0, 1.0)).item() == pytest.approx(1 / 9)


def test_gradients_are_right_and_half_precision_is_not_used():
    field = torch.rand(1, 3, 2, 3, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda u: diffusion_loss(u, (1.0, 2.0, 3.0)), field)
    assert diffusion_loss(field.bfloat16(), (1.0, 1.0, 1.0)).dtype == torch.float32


def test_bad_shapes_are_refused():
    with pytest.raises(ValueError, match=r"displacement has shape \(1, 2, 4, 4, 4\)"):
        diffusion_loss(torch.zeros(1, 2, 4, 4, 4), (1.0, 1.0, 1.0))
    with pytest.raises(ValueError, match=r"displacement has shape \(1, 3, 1, 4, 4\); a gradient needs 2"):
        diffusion_loss(torch.zeros(1, 3, 1, 4, 4), (1.0, 1.0, 1.0))
    with pytest.raises(ValueError, match=r"spacing has shape \(2,\) but the displacement has shape"):
        diffusion_loss(torch.zeros(1, 3, 4, 4, 4), (1.0, 1.0))
