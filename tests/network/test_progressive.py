import pytest
import torch

from biasreg.network.progressive import ProgressiveRegistration, RegistrationLevel, local_correlation
from biasreg.spatial.displacement import resize

CHANNELS = (4, 6, 8)


def make_registration(levels=3, checkpointing=False, **options):
    channels = CHANNELS[:levels]
    return ProgressiveRegistration(
        [
            RegistrationLevel(width, coarser, **options)
            for width, coarser in zip(channels, (*channels[1:], 0), strict=True)
        ],
        checkpointing,
    )


def make_pyramid(batch=1, side=8):
    return [torch.randn(batch, width, *(side >> level,) * 3) for level, width in enumerate(CHANNELS)]


def test_a_level_samples_the_field_so_far_where_its_residual_points():
    level = RegistrationLevel(4, 6)
    torch.nn.init.zeros_(level.residual.weight)
    level.residual.bias.data = torch.tensor([1.0, 0.0, 0.0])
    field = torch.zeros(1, 3, 3, 2, 2)
    field[:, 1] = torch.tensor([0.0, 1.0, 4.0]).view(1, 3, 1, 1)  # its y displacement grows along x
    features = torch.rand(2, 1, 4, 6, 4, 4)
    updated, _ = level(*features, field, torch.rand(1, 6, 3, 2, 2))
    expected = resize(field, (6, 4, 4)).roll(-1, dims=2)
    expected[:, 0] = 1.0
    torch.testing.assert_close(updated[:, :, :5], expected[:, :, :5], atol=1e-5, rtol=0)


@pytest.mark.parametrize("integration_steps", [0, 7])
def test_zero_residual_weights_give_the_identity(integration_steps):
    registration = make_registration(integration_steps=integration_steps)
    for level in registration.levels:
        torch.nn.init.zeros_(level.residual.weight)
    for field in registration(make_pyramid(), make_pyramid()):
        assert torch.equal(field, torch.zeros_like(field))


def test_a_new_registration_is_nearly_the_identity():
    for field in make_registration()(make_pyramid(), make_pyramid()):
        assert 0 < field.abs().max() < 1e-2


def test_a_residual_of_a_coarse_level_is_doubled_by_each_finer_level():
    registration = make_registration()
    for level in registration.levels:
        torch.nn.init.zeros_(level.residual.weight)
    with torch.no_grad():
        registration.levels[2].residual.bias.copy_(torch.tensor([0.5, 0.0, -0.25]))
    fields = registration(make_pyramid(), make_pyramid())
    for level, factor in enumerate((4, 2, 1)):
        assert fields[level].shape == (1, 3, *(8 >> level,) * 3)
        torch.testing.assert_close(fields[level][0, :, 1, 1, 1], factor * torch.tensor([0.5, 0.0, -0.25]))


def test_a_level_sees_the_moving_features_warped_by_the_field_so_far():
    level = RegistrationLevel(4, 6)
    moving, fixed = torch.randn(1, 4, 8, 8, 8), torch.randn(1, 4, 8, 8, 8)
    field, hidden = torch.zeros(1, 3, 4, 4, 4), torch.randn(1, 6, 4, 4, 4)
    field[:, 0] = 1.0  # two voxels of the fine grid along x
    shifted = torch.cat([moving[:, :, 2:], moving[:, :, -1:], moving[:, :, -1:]], dim=2)
    _, by_field = level(moving, fixed, field, hidden)
    _, by_hand = level(shifted, fixed, torch.zeros_like(field), hidden)
    torch.testing.assert_close(by_field, by_hand, atol=1e-4, rtol=1e-4)


def test_correlation_finds_the_shift_between_the_features():
    moving = torch.nn.functional.normalize(torch.randn(1, 64, 6, 6, 6), dim=1)
    fixed = torch.roll(moving, shifts=(-1, 0, 1), dims=(2, 3, 4))  # fixed(x) = moving(x + d) with d = (1, 0, -1)
    volume = local_correlation(moving, fixed)
    assert volume.shape == (1, 27, 6, 6, 6)
    inner = volume[:, :, 1:-1, 1:-1, 1:-1]
    assert (inner.argmax(dim=1) == 2 * 9 + 1 * 3 + 0).all()
    torch.testing.assert_close(local_correlation(3 * moving, 0.5 * fixed), volume, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(volume.mean(dim=1), torch.zeros(1, 6, 6, 6), atol=1e-4, rtol=0)


def test_the_unit_scales_what_a_level_adds():
    features = torch.randn(1, 4, 5, 5, 5), torch.randn(1, 4, 5, 5, 5)
    whole = RegistrationLevel(4)
    half = RegistrationLevel(4, unit=(0.5, 0.5, 0.25))
    half.load_state_dict(whole.state_dict())
    unit = torch.tensor([0.5, 0.5, 0.25]).view(1, 3, 1, 1, 1)
    torch.testing.assert_close(half(*features, None, None)[0], unit * whole(*features, None, None)[0])


@pytest.mark.parametrize("options", [{}, {"correlation": True}, {"integration_steps": 3}, {"checkpointing": True}])
def test_all_levels_learn(options):
    registration = make_registration(**options)
    fields = registration(make_pyramid(2), make_pyramid(2))
    fields[0].square().sum().backward()
    for name, parameter in registration.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_fields_stay_float32_under_autocast():
    registration = make_registration(integration_steps=2, correlation=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        fields = registration(make_pyramid(), make_pyramid())
    assert all(field.dtype == torch.float32 for field in fields)
