import pytest
import torch

from biasreg.spatial.guards import (
    at_least_float32,
    require_field,
    require_same_grid,
    require_same_shape,
    require_volume,
)


@pytest.mark.parametrize("shape", [(2, 3, 4), (1, 1, 4, 0, 4), (1, 1, 1, 4, 4, 4)])
def test_what_is_no_volume_is_refused_with_its_shape(shape):
    with pytest.raises(ValueError, match=r"image has shape .*expected five non-empty axes"):
        require_volume(torch.zeros(shape), "image")


@pytest.mark.parametrize("shape", [(1, 2, 4, 4, 4), (3, 4, 4, 4), (0, 3, 4, 4, 4)])
def test_what_is_no_field_is_refused_with_its_shape(shape):
    with pytest.raises(ValueError, match=r"u has shape .*expected \(B, 3, X, Y, Z\)"):
        require_field(torch.zeros(shape), "u")


def test_unequal_shapes_are_named_both():
    with pytest.raises(ValueError, match=r"a has shape \(2, 3\) but b has shape \(2, 4\)"):
        require_same_shape(torch.zeros(2, 3), torch.zeros(2, 4), ("a", "b"))


def test_same_grid_allows_other_channels_but_no_other_grid_or_batch():
    require_same_grid(torch.zeros(1, 2, 3, 4, 5), torch.zeros(1, 1, 3, 4, 5), ("a", "b"))
    for other in ((1, 2, 3, 4, 6), (2, 2, 3, 4, 5)):
        with pytest.raises(ValueError, match="batch and grid must be the same"):
            require_same_grid(torch.zeros(1, 2, 3, 4, 5), torch.zeros(other), ("a", "b"))


def test_half_precision_becomes_float32_and_double_stays():
    for given, expected in ((torch.float16, torch.float32), (torch.bfloat16, torch.float32), (torch.float64,) * 2):
        assert at_least_float32(torch.zeros(2, dtype=given)).dtype == expected
