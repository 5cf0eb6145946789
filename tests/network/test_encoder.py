import math

import pytest
import torch

from biasreg.network.encoder import PatchMerging, ResidualEncoder, SwinEncoder, encoder_channels

# Of each feature map: mean of the magnitudes, then the values at five positions spread evenly over the flattened map.
MONAI_1_3_2 = (
    (0.55929, 0.48206, -0.02254, -0.01477, -0.01654, -0.01826),
    (0.57566, -0.06588, -0.03815, -0.0588, -0.06814, -0.06827),
    (0.58918, 0.51746, 1.36054, 1.03014, 0.01944, -0.00495),
    (0.57225, 1.67025, -0.01098, 0.89183, -0.01099, -0.00946),
    (0.90091, 0.70694, 0.28964, -0.39498, 0.49914, -0.59912),
    (0.57612, 2.02326, -0.024, -0.02585, -0.01389, -0.00096),
)
HEADS = (2, 4, 8, 16)


def fill_with_waves(module):
    """Set every parameter by a formula, so that another process can do the same without torch's random numbers."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            wave = torch.sin(1.7 * torch.arange(parameter.numel(), dtype=torch.float64) + len(name))
            wave = wave.reshape(parameter.shape)
            is_scale = "norm" in name and name.endswith("weight")
            parameter.copy_(1 + 0.1 * wave if is_scale else wave / math.sqrt(parameter[0].numel()))


def wave_image(side):
    x, y, z = torch.meshgrid(*[torch.arange(side, dtype=torch.float32)] * 3, indexing="ij")
    return (0.5 + 0.5 * torch.sin(0.31 * x + 0.023 * y * z) * torch.cos(0.17 * y - 0.2 * z))[None, None]


def make_encoder(family, stages, *, checkpointing=False, in_channels=1):
    if family == "swin":
        return SwinEncoder(in_channels, 4, (2,) * stages, HEADS[:stages], 2, checkpointing)
    return ResidualEncoder(in_channels, 4, (1,) * stages, checkpointing=checkpointing)


def test_swin_encoder_computes_what_monai_1_3_2_computes():
    """The numbers were made in a process with MONAI 1.3.2, which VoCo's weights were trained with.

    There, `SwinUNETR((64, 64, 64), in_channels=1, out_channels=2, feature_size=12, use_v2=True)` was filled by
    `fill_with_waves`, in evaluation mode, and given `wave_image(64)`; the maps are encoder1(x), encoder2(h0),
    encoder3(h1), encoder4(h2), h3 and encoder10(h4) with h = swinViT(x, True).
    """
    encoder = SwinEncoder(1, 12, (2, 2, 2, 2), (3, 6, 12, 24), 7).eval()
    fill_with_waves(encoder)
    with torch.no_grad():
        maps = encoder(wave_image(64))
    for features, expected in zip(maps, MONAI_1_3_2, strict=True):
        flat = features.flatten()
        values = torch.stack([flat.abs().mean(), *flat[torch.linspace(0, flat.numel() - 1, 5).long()]])
        torch.testing.assert_close(values, torch.tensor(expected), atol=2e-4, rtol=2e-4)


def test_patch_merging_keeps_the_order_of_monai_1_4():
    tokens = torch.arange(8.0).reshape(1, 2, 2, 2, 1)  # value 4x + 2y + z
    merging = PatchMerging(1, norm_layer=torch.nn.Identity)
    with torch.no_grad():
        merging.reduction.weight.copy_(torch.tensor([[10.0**-k for k in range(8)], [0.0] * 8]))
    merged = merging(tokens)
    assert merged.shape == (1, 1, 1, 1, 2)
    assert f"{merged[0, 0, 0, 0, 0].item():.4f}" == "0.4215"  # (0,0,0), (1,0,0), (0,1,0), (0,0,1), (1,0,1), …
    weights = torch.tensor([0.0, 4, 2, 1, 5, 2, 1, 7])
    torch.testing.assert_close(merged[0, 0, 0, 0, 0], (weights * merging.reduction.weight[0]).sum())


def test_patch_merging_refuses_two_axes():
    with pytest.raises(ValueError, match="2 spatial axes"):
        PatchMerging(4, spatial_dims=2)


def test_swin_encoder_has_the_145_tensors_of_a_voco_file():
    state = SwinEncoder(1, 12, (2, 2, 2, 2), (3, 6, 12, 24), 7).state_dict()
    assert len(state) == 145
    assert {name.split(".")[0] for name in state} == {
        "swinViT",
        "encoder1",
        "encoder2",
        "encoder3",
        "encoder4",
        "encoder10",
    }
    assert state["swinViT.layers4.0.downsample.reduction.weight"].shape == (192, 768)
    assert state["encoder10.layer.conv1.conv.weight"].shape == (192, 192, 3, 3, 3)


@pytest.mark.parametrize("family", ["swin", "residual"])
@pytest.mark.parametrize("stages", [1, 2, 3, 4])
def test_maps_halve_the_grid_and_have_the_announced_channels_down_to_one_voxel(family, stages):
    encoder = make_encoder(family, stages, in_channels=2)
    divisor = 2 ** (stages + 1)
    maps = encoder(torch.rand(1, 2, divisor, divisor, 2 * divisor))
    assert encoder.channels == encoder_channels(4, stages) == tuple(features.shape[1] for features in maps)
    for level, features in enumerate(maps):
        assert features.shape[2:] == (divisor >> level, divisor >> level, 2 * divisor >> level)
        assert features.isfinite().all()
    assert len(maps) == stages + 2


@pytest.mark.parametrize("family", ["swin", "residual"])
def test_checkpointing_changes_nothing_but_memory(family):
    image = torch.rand(1, 1, 8, 8, 8)
    plain = make_encoder(family, 2)
    saving = make_encoder(family, 2, checkpointing=True)
    saving.load_state_dict(plain.state_dict())
    for encoder in (plain, saving):
        sum(features.square().sum() for features in encoder(image)).backward()
    for one, other in zip(plain.parameters(), saving.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)


@pytest.mark.parametrize("family", ["swin", "residual"])
def test_a_sample_does_not_depend_on_its_neighbours_in_the_batch(family):
    encoder = make_encoder(family, 2)
    images = torch.rand(2, 1, 8, 16, 8)
    for together, alone in zip(encoder(images), encoder(images[1:]), strict=True):
        torch.testing.assert_close(together[1:], alone, atol=1e-5, rtol=1e-4)
