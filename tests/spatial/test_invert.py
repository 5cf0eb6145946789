import pytest
import torch

from biasreg.spatial.displacement import compose
from biasreg.spatial.invert import invert
from biasreg.spatial.jacobian import jacobian_determinant
from biasreg.spatial.warp import identity_grid

SHAPE = (16, 18, 14)


def test_the_inverse_of_a_translation_is_exact():
    field = torch.tensor([1.25, -3.5, 0.5]).view(1, 3, 1, 1, 1).expand(1, 3, *SHAPE)
    inversion = invert(field)
    assert torch.equal(inversion.displacement, -field)
    assert inversion.residual.shape == (1, *SHAPE)
    assert inversion.residual.max() < 1e-5


@pytest.mark.parametrize("seed", range(4))
def test_smooth_random_fields_are_inverted_to_a_twentieth_of_a_voxel(smooth_field, seed):
    field = smooth_field(SHAPE, amplitude=2.5, seed=seed)
    assert jacobian_determinant(field).min() > 0
    inversion = invert(field)
    assert inversion.residual.max() < 0.05
    there_and_back = compose(field, inversion.displacement)
    assert there_and_back[..., 4:-4, 4:-4, 4:-4].norm(dim=1).max() < 0.1


def test_damping_inverts_a_stretch_on_which_the_plain_iteration_diverges():
    field = 1.5 * (identity_grid(SHAPE, device="cpu") - 7.0)
    expected = (1 / 2.5 - 1) * (identity_grid(SHAPE, device="cpu") - 7.0)
    inversion = invert(field, tolerance_voxels=1e-3)
    assert inversion.residual.max() < 1e-3
    torch.testing.assert_close(inversion.displacement, expected, atol=5e-3, rtol=0)


def test_the_residual_tells_where_a_fold_has_no_inverse(smooth_field):
    field = smooth_field(SHAPE, amplitude=8.0, sigma=2.0)
    assert jacobian_determinant(field).min() < 0
    inversion = invert(field)
    assert inversion.residual.max() > 0.5
    assert inversion.displacement.isfinite().all()


def test_each_case_of_a_batch_is_inverted_by_itself(smooth_field):
    fields = torch.cat([smooth_field(SHAPE, amplitude=a, seed=3) for a in (0.5, 2.5)])
    together = invert(fields, iterations=10, tolerance_voxels=0.0)
    alone = invert(fields[:1], iterations=10, tolerance_voxels=0.0)
    torch.testing.assert_close(together.displacement[:1], alone.displacement)


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match=r"displacement has shape \(1, 2, 4, 4, 4\)"):
        invert(torch.zeros(1, 2, 4, 4, 4))
    with pytest.raises(ValueError, match=r"0 iterations to a tolerance of 0\.1 voxels"):
        invert(torch.zeros(1, 3, 4, 4, 4), iterations=0, tolerance_voxels=0.1)
