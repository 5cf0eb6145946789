import pytest
import torch

from biasreg.network.mac import LARGEST_HEAD, MAC, OUTPUT_STD, Concatenation, Enhancement, channel_attention, head_size


@pytest.mark.parametrize(("channels", "size"), [(4, 4), (8, 8), (16, 16), (24, 12), (32, 16), (128, 16), (17, 1)])
def test_heads_divide_the_channels(channels, size):
    assert head_size(channels) == size <= LARGEST_HEAD


def test_channel_attention_is_the_written_formula():
    query, key, value = torch.randn(3, 1, 4, 2, 3, 2).unbind()
    temperature = torch.tensor([2.0, 0.5]).reshape(2, 1, 1)
    result = channel_attention(query, key, value, temperature)
    for head, channels in enumerate((slice(0, 2), slice(2, 4))):
        q, k, v = (t[0, channels].flatten(1) for t in (query, key, value))
        cosine = (q / q.norm(dim=1, keepdim=True)) @ (k / k.norm(dim=1, keepdim=True)).T
        expected = torch.softmax(temperature[head] * cosine, dim=-1) @ v
        torch.testing.assert_close(result[0, channels].flatten(1), expected)


def test_channel_attention_does_not_depend_on_the_order_of_the_voxels():
    query, key, value = torch.randn(3, 1, 4, 3, 1, 1).unbind()
    order = torch.tensor([2, 0, 1])
    temperature = torch.ones(1, 1, 1)
    shuffled = channel_attention(query[:, :, order], key[:, :, order], value[:, :, order], temperature)
    torch.testing.assert_close(shuffled, channel_attention(query, key, value, temperature)[:, :, order])


def test_channel_attention_of_zero_features_is_finite():
    zero = torch.zeros(1, 4, 2, 2, 2, requires_grad=True)
    result = channel_attention(zero, zero, zero, torch.ones(1, 1, 1))
    result.sum().backward()
    assert result.isfinite().all()
    assert zero.grad.isfinite().all()


@pytest.mark.parametrize("feed_forward", [True, False])
@pytest.mark.parametrize("channels", [4, 24])
def test_a_new_mac_nearly_keeps_the_semantic_features_but_lets_the_intensity_decoder_learn(channels, feed_forward):
    semantic = torch.randn(2, channels, 4, 4, 4)
    intensity = torch.randn(2, channels, 4, 4, 4, requires_grad=True)
    enhanced = MAC(channels, feed_forward=feed_forward)(semantic, intensity)
    change = (enhanced - semantic).abs().mean()
    assert 0 < change < 20 * OUTPUT_STD
    enhanced.square().sum().backward()
    assert intensity.grad.abs().max() > 0


def test_the_gate_closes_the_flow():
    mac = MAC(4, feed_forward=False)
    torch.nn.init.constant_(mac.gate.bias, -1e4)
    semantic = torch.randn(1, 4, 2, 2, 2)
    assert torch.equal(mac(semantic, torch.randn(1, 4, 2, 2, 2)), semantic)


@pytest.mark.parametrize("module", [MAC, Concatenation])
def test_one_voxel_is_enough(module):
    assert module(4)(torch.randn(1, 4, 1, 1, 1), torch.randn(1, 4, 1, 1, 1)).isfinite().all()


def test_a_single_stream_passes_as_it_is():
    features = (torch.randn(1, 4, 2, 2, 2),)
    enhancement = Enhancement(())
    assert enhancement(features, None) is features
    assert enhancement(None, features) is features


def test_no_stream_at_all_is_refused():
    with pytest.raises(ValueError, match="neither semantic nor intensity"):
        Enhancement(())(None, None)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_each_level_has_its_own_module_and_deeper_features_are_left_out(checkpointing):
    levels = (Concatenation(4), MAC(8))
    semantic = tuple(torch.randn(1, channels, *(4 >> level,) * 3) for level, channels in enumerate((4, 8, 8)))
    intensity = tuple(torch.randn_like(features) for features in semantic)
    enhanced = Enhancement(levels, checkpointing)(semantic, intensity)
    assert len(enhanced) == 2
    for level, features in enumerate(enhanced):
        torch.testing.assert_close(features, levels[level](semantic[level], intensity[level]))
