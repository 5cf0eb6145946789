import pytest
import torch

from biasreg.network.build import build_network


def pair(side=8, batch=1, channels=1):
    return torch.rand(batch, channels, side, side, 2 * side), torch.rand(batch, channels, side, side, 2 * side)


def enlarge_residuals(network):
    """Give the fields a size that differences can be seen in."""
    for level in network.registration.levels:
        torch.nn.init.normal_(level.residual.weight, std=0.1)


def test_output_has_the_promised_shapes(make_plans):
    network = build_network(make_plans(2, in_channels=2, registration_levels=3, segmentation_level=1))
    output = network(*pair(batch=2, channels=2))
    assert [tuple(field.shape) for field in output.fields] == [(2, 3, 8, 8, 16), (2, 3, 4, 4, 8), (2, 3, 2, 2, 4)]
    assert output.displacement is output.fields[0]
    assert output.moving_logits.shape == output.fixed_logits.shape == (2, 3, 4, 4, 8)


def test_a_network_without_residuals_is_the_identity(make_plans):
    network = build_network(make_plans(2))
    for level in network.registration.levels:
        torch.nn.init.zeros_(level.residual.weight)
    assert network(*pair()).displacement.abs().max() == 0


@pytest.mark.parametrize("family", ["swin", "residual"])
def test_swapping_the_pairs_of_a_batch_swaps_the_outputs(make_plans, family):
    network = build_network(make_plans(2, family))
    enlarge_residuals(network)
    moving, fixed = pair(batch=2)
    output, swapped = network(moving, fixed), network(moving.flip(0), fixed.flip(0))
    assert output.displacement.abs().max() > 0.1
    torch.testing.assert_close(swapped.displacement.flip(0), output.displacement, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(swapped.moving_logits.flip(0), output.moving_logits, atol=1e-4, rtol=1e-3)


def test_moving_and_fixed_share_encoder_and_decoders(make_plans):
    network = build_network(make_plans(2))
    moving, fixed = pair()
    output, exchanged = network(moving, fixed), network(fixed, moving)
    torch.testing.assert_close(exchanged.fixed_logits, output.moving_logits, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(exchanged.moving_logits, output.fixed_logits, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("family", ["swin", "residual"])
@pytest.mark.parametrize("stages", [1, 2, 3, 4])
def test_the_smallest_size_that_the_divisor_allows_is_enough(make_plans, family, stages):
    plans = make_plans(stages, family, registration_levels=stages + 2)
    image = torch.rand(1, 1, *plans.divisor)
    assert build_network(plans)(image, image.flip(2)).displacement.isfinite().all()


def test_a_size_that_is_no_multiple_of_the_divisor_is_refused_by_name(make_plans):
    network = build_network(make_plans(2))
    image = torch.rand(1, 1, 8, 12, 16)
    with pytest.raises(ValueError, match=r"size \(8, 12, 16\).*multiples of \(8, 8, 8\)"):
        network(image, image)


def test_images_of_different_shape_are_refused(make_plans):
    network = build_network(make_plans(1))
    with pytest.raises(ValueError, match=r"\(1, 1, 4, 4, 4\), fixed \(1, 1, 4, 4, 8\)"):
        network(torch.rand(1, 1, 4, 4, 4), torch.rand(1, 1, 4, 4, 8))


@pytest.mark.parametrize("family", ["swin", "residual"])
def test_every_parameter_gets_a_finite_gradient(make_plans, family):
    network = build_network(make_plans(3, family, correlation_levels=(1,), integration_steps=2))
    output = network(*pair(16))
    (output.displacement.square().sum() + output.moving_logits.square().mean() + output.fixed_logits.mean()).backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("family", ["swin", "residual"])
def test_checkpointing_gives_the_same_output_and_gradients(make_plans, family):
    networks = [build_network(make_plans(2, family, checkpointing=on)) for on in (False, True)]
    enlarge_residuals(networks[0])
    networks[1].load_state_dict(networks[0].state_dict())
    images = pair()
    outputs = [network(*images) for network in networks]
    torch.testing.assert_close(outputs[1].displacement, outputs[0].displacement, atol=1e-5, rtol=1e-5)
    for output in outputs:
        (output.displacement.square().mean() + output.moving_logits.square().mean()).backward()
    for plain, saving in zip(*(network.parameters() for network in networks), strict=True):
        torch.testing.assert_close(saving.grad, plain.grad, atol=1e-5, rtol=1e-3)


def test_displacement_is_float32_under_autocast(make_plans, monkeypatch):
    # oneDNN reads uninitialized memory in the bfloat16 weight gradient of a plain Conv3d on a map of 2×2×4 voxels
    # (torch 2.13, CPUs with AVX-512). Training on a CPU is in float32, where it does not.
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", False)
    network = build_network(make_plans(2, "swin"))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = network(*pair())
    assert all(field.dtype == torch.float32 for field in output.fields)
    (output.displacement.square().sum() + output.moving_logits.float().square().sum()).backward()
    assert all(parameter.grad.isfinite().all() for parameter in network.parameters())


def test_training_and_evaluation_mode_compute_the_same(make_plans):
    network = build_network(make_plans(2, "swin"))
    images = pair()
    training = network.train()(*images).displacement
    torch.testing.assert_close(network.eval()(*images).displacement, training, atol=0, rtol=0)


def test_the_network_learns_a_shift(make_plans):
    network = build_network(make_plans(2, registration_levels=3))
    axis = torch.arange(16.0)
    squares = [(axis - center).square() for center in (7.5, 7.5, 6.0, 9.0)]

    def blob(x):
        distance = x[:, None, None] + squares[0][None, :, None] + squares[1][None, None, :]
        return torch.exp(-distance / 12)[None, None]

    moving, fixed = blob(squares[2]), blob(squares[3])
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        displacement = network(moving, fixed).displacement
        error = ((displacement - torch.tensor([-3.0, 0, 0]).reshape(1, 3, 1, 1, 1)) * fixed).square().mean()
        error.backward()
        optimizer.step()
    with torch.no_grad():
        center = network(moving, fixed).displacement[0, :, 8:10, 7:9, 7:9].mean(dim=(1, 2, 3))
    torch.testing.assert_close(center, torch.tensor([-3.0, 0, 0]), atol=0.5, rtol=0)
