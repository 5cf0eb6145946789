import pytest
import torch
from torch.nn import functional as F

from biasreg.network.blocks import ChannelNorm, ConvolutionBlock, InstanceNorm, convolution, recompute, upsample


def test_instance_norm_is_torchs_where_there_is_more_than_one_voxel():
    features = torch.randn(2, 3, 2, 1, 1)
    torch.testing.assert_close(InstanceNorm(3)(features), F.instance_norm(features))


@pytest.mark.parametrize("affine", [True, False])
def test_instance_norm_of_one_voxel_keeps_the_differences_between_channels(affine):
    features = torch.tensor([1.0, 2.0, 5.0]).reshape(1, 3, 1, 1, 1)
    normalized = InstanceNorm(3, affine=affine)(features).flatten().detach()
    assert normalized.mean().abs() < 1e-6
    assert normalized.std(unbiased=False).item() == pytest.approx(1, abs=1e-4)
    assert torch.equal(normalized.argsort(), torch.arange(3))


def test_channel_norm_normalizes_each_voxel_by_itself():
    features = torch.randn(2, 5, 3, 4, 2)
    normalized = ChannelNorm(5)(features)
    assert normalized.mean(dim=1).abs().max() < 1e-6
    torch.testing.assert_close(normalized[:, :, 1:2], ChannelNorm(5)(features[:, :, 1:2]))


@pytest.mark.parametrize("bias", [True, False])
def test_pointwise_convolution_is_a_convolution(bias):
    layer = convolution(3, 5, 1, bias=bias)
    if layer.bias is not None:
        torch.nn.init.normal_(layer.bias)
    features = torch.randn(2, 3, 4, 3, 2)
    torch.testing.assert_close(layer(features), F.conv3d(features, layer.weight, layer.bias))


def test_a_stride_of_two_halves_the_grid():
    assert ConvolutionBlock(2, 3, stride=2)(torch.randn(1, 2, 4, 6, 8)).shape == (1, 3, 2, 3, 4)


def test_upsampling_keeps_a_linear_ramp():
    ramp = torch.arange(6.0).reshape(1, 1, 6, 1, 1).expand(1, 1, 6, 2, 2)
    doubled = upsample(ramp, (12, 4, 4))
    assert doubled.shape == (1, 1, 12, 4, 4)
    torch.testing.assert_close(doubled[0, 0, 1:-1, 0, 0], (torch.arange(12.0)[1:-1] + 0.5) / 2 - 0.5)


def test_recomputing_keeps_values_and_gradients():
    layer = ConvolutionBlock(1, 2)
    features = torch.randn(1, 1, 4, 4, 4)
    results = []
    for enabled in (False, True):
        layer.zero_grad()
        output = recompute(layer, features, enabled=enabled)
        output.square().sum().backward()
        results.append((output.detach(), layer[0].weight.grad.clone()))
    assert torch.equal(results[0][0], results[1][0])
    torch.testing.assert_close(results[0][1], results[1][1])


@pytest.mark.parametrize("shape", [(6, 5, 8), (6, 5, 7), (3, 4, 1), (2, 2, 2), (4, 3, 3)])
def test_a_cubic_convolution_of_one_sample_is_torchs(shape):
    layer = convolution(3, 4, 3)
    features = torch.randn(1, 3, *shape, dtype=torch.float32, requires_grad=True)
    expected = F.conv3d(features, layer.weight, layer.bias, padding=1)
    torch.testing.assert_close(layer(features), expected, atol=1e-5, rtol=1e-5)
    weights = torch.randn_like(expected)
    mine = torch.autograd.grad((layer(features) * weights).sum(), [features, layer.weight])
    torchs = torch.autograd.grad((expected * weights).sum(), [features, layer.weight])
    torch.testing.assert_close(mine, torchs, atol=1e-4, rtol=1e-4)
