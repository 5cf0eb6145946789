import pytest
import torch

from biasreg.network.progressive import ProgressiveRegistration, RegistrationLevel, local_correlation, update_field

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


def translation(*voxels):
    return torch.tensor(voxels, dtype=torch.float32).reshape(1, 3, 1, 1, 1).expand(1, 3, 5, 6, 7).contiguous()


def test_updating_a_translation_by_a_translation_is_exact():
    updated = update_field(translation(0.25, -1.5, 2.0), translation(1.0, 0.5, -3.0))
    torch.testing.assert_close(updated, translation(1.25, -1.0, -1.0), atol=0, rtol=0)


def test_the_update_samples_the_previous_field_where_the_residual_points():
    previous = torch.zeros(1, 3, 6, 4, 4)
    previous[:, 1] = torch.arange(6.0).reshape(1, 6, 1, 1)  # y displacement grows along x
    residual = torch.zeros(1, 3, 6, 4, 4)
    residual[:, 0] = 1.0
    updated = update_field(residual, previous)
    torch.testing.assert_close(updated[0, 1, :5, 2, 2], torch.arange(1.0, 6.0), atol=1e-5, rtol=0)
    torch.testing.assert_close(updated[0, 0], residual[0, 0])


def test_the_first_field_is_the_residual():
    residual = torch.randn(1, 3, 2, 2, 2)
    assert update_field(residual, None) is residual


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
