from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from biasreg.inference import estimation
from biasreg.inference.ensemble import Ensemble
from biasreg.inference.refinement import Level, refine, smooth
from biasreg.spatial.warp import warp

SHAPE = (20, 22, 24)


@pytest.fixture
def pair():
    """Two images on the canonical grid, the second shifted by 1.5 voxels."""
    torch.manual_seed(0)
    moving, inside = smooth(torch.rand(1, 1, *SHAPE), 2.0), torch.ones(1, 1, *SHAPE)
    shift = torch.zeros(1, 3, *SHAPE)
    shift[:, 0] = 1.5
    return Level(moving, warp(moving, shift), inside, inside, channels=1)


@pytest.fixture
def semantics():
    """Of 6 labels, on a grid half as fine: 1 and 4 in both images, 0 and 2 in one alone, a trace of 3, and no 5."""
    moving, fixed = torch.zeros(1, 6, *(size // 2 for size in SHAPE)), torch.zeros(1, 6, *(size // 2 for size in SHAPE))
    for label, start in ((1, 2), (4, 5)):
        moving[:, label, start : start + 3, 3:8, 2:9] = 0.9
        fixed[:, label, start - 1 : start + 2, 3:8, 2:9] = 0.8
    moving[:, 0, 8:] = fixed[:, 2, 8:] = 1.0
    moving[:, 3, 0, 0, 0] = fixed[:, 3, 0, 0, 0] = 0.01
    return moving, fixed


def test_labels_that_one_image_does_not_show_take_no_memory_and_change_nothing(configuration, pair, semantics):
    zero = torch.zeros(1, 3, *SHAPE)
    few = estimation._with_semantics(pair, Ensemble(zero, semantics=semantics))
    assert few.moving.shape == few.fixed.shape == (1, 1 + 2, *SHAPE)
    moving, fixed = (
        torch.cat([image, F.interpolate(maps, size=SHAPE, mode="trilinear", align_corners=False)], dim=1)
        for image, maps in zip((pair.moving, pair.fixed), semantics, strict=True)
    )
    plans = configuration.training
    found, expected = (refine(zero, [level], plans, 10) for level in (few, replace(pair, moving=moving, fixed=fixed)))
    assert torch.equal(found, expected)
    assert not torch.equal(found, refine(zero, [pair], plans, 10)), "the labels do count"


def test_without_a_label_that_both_images_show_intensities_count_alone(pair, semantics):
    moving, fixed = semantics[0][:, :3:2], semantics[1][:, :3:2]
    alone = estimation._with_semantics(pair, Ensemble(torch.zeros(1, 3, *SHAPE), semantics=(moving, fixed)))
    assert torch.equal(alone.moving, pair.moving)
    assert torch.equal(alone.fixed, pair.fixed)
