import pytest
import torch

from biasreg.network.biaf import BIAF, align
from biasreg.network.blocks import upsample


def gated_trilinear_fusion(fusion, deep, skip):
    """What METHOD calls the starting point of BIAF, written out from its layers."""
    upsampled = upsample(fusion.project(deep), skip.shape[2:])
    gate = torch.sigmoid(fusion.gate(torch.cat([upsampled, skip], dim=1)))
    fused = gate * upsampled + (1 - gate) * skip
    return fused + fusion.refine(fused)


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("shape", [(2, 2, 2), (1, 3, 5), (4, 1, 2)])
def test_biaf_is_gated_trilinear_fusion_at_initialisation(aligned, shape):
    fusion = BIAF(6, 4, aligned=aligned)
    deep, skip = torch.randn(2, 6, *shape), torch.randn(2, 4, *(2 * side for side in shape))
    expected = gated_trilinear_fusion(fusion, deep, skip)
    torch.testing.assert_close(fusion(deep, skip), expected, atol=1e-5, rtol=1e-4)


def test_without_alignment_there_are_no_offset_parameters():
    names = {name.split(".")[0] for name, _ in BIAF(6, 4, aligned=False).named_parameters()}
    assert names == {"project", "gate", "refine"}


def test_zero_offsets_align_to_trilinear_upsampling_and_to_the_skip_itself():
    deep, skip = torch.randn(1, 2, 3, 4, 5), torch.randn(1, 2, 6, 8, 10)
    aligned_deep, aligned_skip = align(deep, skip, torch.zeros(1, 6, 6, 8, 10))
    torch.testing.assert_close(aligned_deep, upsample(deep, aligned_deep.shape[2:]), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(aligned_skip, skip, atol=1e-5, rtol=1e-5)


def test_an_axis_that_is_not_halved_is_aligned_voxel_by_voxel():
    deep, skip = torch.randn(1, 2, 3, 4, 5), torch.randn(1, 2, 6, 8, 5)
    aligned_deep, _ = align(deep, skip, torch.zeros(1, 6, 6, 8, 5))
    torch.testing.assert_close(aligned_deep, upsample(deep, (6, 8, 5)), atol=1e-5, rtol=1e-5)


def test_offsets_count_voxels_of_the_fine_grid():
    deep, skip = torch.randn(1, 1, 5, 5, 5), torch.randn(1, 1, 10, 10, 10)
    offsets = torch.zeros(1, 6, 10, 10, 10)
    offsets[:, 0] = 2  # deep, along x: one coarse voxel
    offsets[:, 5] = -1  # skip, along z
    aligned_deep, aligned_skip = align(deep, skip, offsets)
    torch.testing.assert_close(
        aligned_deep[:, :, :7], upsample(deep, aligned_deep.shape[2:])[:, :, 2:9], atol=1e-5, rtol=1e-5
    )
    torch.testing.assert_close(aligned_skip[..., 1:], skip[..., :-1], atol=1e-5, rtol=1e-5)


def test_the_offsets_learn_from_the_first_step():
    fusion = BIAF(6, 4)
    fusion(torch.randn(1, 6, 3, 3, 3), torch.randn(1, 4, 6, 6, 6)).square().sum().backward()
    assert fusion.offsets[-1].weight.grad.abs().max() > 0
