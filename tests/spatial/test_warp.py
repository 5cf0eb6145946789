import numpy as np
import pytest
import SimpleITK
import torch
from scipy.ndimage import map_coordinates

from biasreg.spatial.warp import (
    identity_grid,
    in_field_of_view,
    sample,
    sample_labels,
    sample_visible,
    warp,
    warp_labels,
)

SHAPE = (7, 5, 6)


def random_coordinates(*, low=-1.5, seed=0, batch=1, points=(4, 5, 3)):
    generator = torch.Generator().manual_seed(seed)
    unit = torch.rand((batch, 3, *points), generator=generator)
    size = torch.tensor(SHAPE, dtype=torch.float32).view(1, 3, 1, 1, 1)
    return low + unit * (size - 1 - 2 * low)


def random_volume(*, channels=2, batch=1, dtype=torch.float32):
    return torch.rand((batch, channels, *SHAPE), generator=torch.Generator().manual_seed(7)).to(dtype)


def test_identity_grid_counts_voxels_along_each_array_axis():
    grid = identity_grid(SHAPE, device="cpu")
    assert grid.shape == (1, 3, *SHAPE)
    assert grid[0, :, 6, 2, 5].tolist() == [6, 2, 5]


def test_identity_grid_refuses_a_plane():
    with pytest.raises(ValueError, match="has 2 axes, expected three"):
        identity_grid((3, 4), device="cpu")


@pytest.mark.parametrize(("padding", "scipy_mode"), [("border", "nearest"), ("zeros", "constant")])
def test_linear_sampling_agrees_with_scipy(padding, scipy_mode):
    volume, coordinates = random_volume(), random_coordinates(low=0.0 if padding == "zeros" else -1.5)
    expected = [map_coordinates(c.numpy(), coordinates[0].numpy(), order=1, mode=scipy_mode) for c in volume[0]]
    np.testing.assert_allclose(sample(volume, coordinates, padding=padding)[0].numpy(), np.stack(expected), atol=1e-5)


def test_what_a_mask_hides_is_not_blended_in():
    volume, coordinates = random_volume(batch=2), random_coordinates(batch=2)
    mask = torch.ones(2, 1, *SHAPE)
    mask[:, :, 4:] = 0
    other = torch.where(mask > 0, volume, 5.0)
    values, share = sample_visible(volume, mask, coordinates)
    hidden_values, hidden_share = sample_visible(other, mask, coordinates)
    torch.testing.assert_close(values, hidden_values)
    torch.testing.assert_close(share, hidden_share)
    torch.testing.assert_close(share, sample(mask, coordinates, padding="zeros"))
    shown = (share > 0.01).expand_as(values)  # the nearest voxels that are shown go on unchanged
    torch.testing.assert_close(values[shown], sample(volume[:, :, :4], coordinates)[shown], atol=1e-4, rtol=0)
    assert share.min() == 0
    assert values[(share == 0).expand_as(values)].abs().max() == 0


def test_of_what_a_mask_hardly_shows_nothing_is_shown():
    mask = torch.zeros(1, 1, *SHAPE)
    mask[:, :, :3] = 1
    for offset, shown in ((0.0, False), (-5e-4, False), (-2e-3, True)):  # the last slice shown is the third
        grid = (
            identity_grid(SHAPE, device="cpu") + torch.tensor([1.0, 0, 0]).view(1, 3, 1, 1, 1) * offset
        ).requires_grad_()
        values, share = sample_visible(random_volume(), mask, grid)
        assert bool((share[0, 0, 3] > 0).all()) is shown
        (slope,) = torch.autograd.grad((values * share.detach()).sum(), grid)
        assert slope[0, 0, 3:].abs().max() < 1e-3  # no cliff where the mask begins


@pytest.mark.parametrize("shape", [(1, 1, 3, 3, 3), (1, 2, *SHAPE), SHAPE])
def test_a_mask_that_does_not_fit_is_refused(shape):
    with pytest.raises(ValueError, match="mask has shape"):
        sample_visible(random_volume(), torch.ones(shape), random_coordinates())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_visible_values_keep_their_type(dtype):
    mask = torch.ones(1, 1, *SHAPE)
    values, share = sample_visible(random_volume(dtype=dtype), mask, random_coordinates())
    assert values.dtype == share.dtype == dtype


def test_zeros_blend_to_nothing_over_one_voxel():
    coordinates = torch.tensor([0.0, -0.25, -1.0, -3.0]).view(1, 1, 4, 1, 1) * torch.tensor([1.0, 0, 0]).view(
        1, 3, 1, 1, 1
    )
    values = sample(torch.ones(1, 1, *SHAPE), coordinates, padding="zeros").flatten()
    torch.testing.assert_close(values, torch.tensor([1.0, 0.75, 0.0, 0.0]))


@pytest.mark.parametrize("mode", ["linear", "nearest"])
def test_zeros_hold_also_along_an_axis_of_one_voxel(mode):
    coordinates = torch.zeros(1, 3, 4, 1, 1)
    coordinates[0, 2, :, 0, 0] = torch.tensor([0.0, 0.25, 1.0, -3.0])
    values = sample(torch.ones(1, 1, 4, 4, 1), coordinates, mode=mode, padding="zeros").flatten()
    expected = [1.0, 0.75 if mode == "linear" else 1.0, 0.0, 0.0]
    torch.testing.assert_close(values, torch.tensor(expected))


@pytest.mark.parametrize(
    ("mode", "interpolator"), [("linear", SimpleITK.sitkLinear), ("nearest", SimpleITK.sitkNearestNeighbor)]
)
def test_a_number_as_padding_follows_itk(mode, interpolator):
    volume = random_volume(channels=1)
    image = SimpleITK.GetImageFromArray(volume[0, 0].permute(2, 1, 0).numpy())
    grid = SimpleITK.Image([18, 14, 16], SimpleITK.sitkFloat32)
    grid.SetOrigin([-1.06, -0.83, -1.21])
    grid.SetSpacing([0.53, 0.49, 0.51])
    resampled = SimpleITK.Resample(image, grid, SimpleITK.Transform(), interpolator, -7.0)
    expected = SimpleITK.GetArrayFromImage(resampled).transpose(2, 1, 0)
    scale = torch.tensor(grid.GetSpacing()).view(1, 3, 1, 1, 1)
    coordinates = identity_grid(grid.GetSize(), device="cpu") * scale
    coordinates = coordinates + torch.tensor(grid.GetOrigin()).view(1, 3, 1, 1, 1)
    result = sample(volume, coordinates, mode=mode, padding=-7.0)[0, 0]
    assert (result == -7.0).any()
    np.testing.assert_allclose(result.numpy(), expected, atol=1e-5)


def test_field_of_view_is_half_open_and_leaves_out_not_a_number():
    coordinates = torch.full((1, 3, 5, 1, 1), 2.0)
    coordinates[0, 0, :, 0, 0] = torch.tensor([-0.5, -0.51, 6.49, 6.5, torch.nan])
    assert in_field_of_view(coordinates, SHAPE).flatten().tolist() == [True, False, True, False, False]


def test_nearest_rounds_halves_to_the_even_voxel():
    volume = torch.arange(5.0).view(1, 1, 5, 1, 1)
    coordinates = torch.zeros(1, 3, 4, 1, 1)
    coordinates[0, 0, :, 0, 0] = torch.tensor([0.5, 1.5, 2.5, 2.6])
    assert sample(volume, coordinates, mode="nearest").flatten().tolist() == [0, 2, 2, 3]


def test_warping_by_a_whole_number_of_voxels_shifts_the_array():
    volume = random_volume()
    displacement = torch.zeros(1, 3, *SHAPE)
    displacement[:, 0], displacement[:, 2] = 2.0, -1.0
    warped = warp(volume, displacement)
    torch.testing.assert_close(warped[:, :, :5, :, 1:], volume[:, :, 2:, :, :-1])


def test_the_dtype_of_the_volume_is_kept_and_integers_are_sampled_nearest():
    displacement = torch.zeros(1, 3, *SHAPE)
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        assert warp(random_volume(dtype=dtype), displacement).dtype == dtype
    labels = torch.randint(0, 300, (1, 1, *SHAPE), dtype=torch.int16)
    assert torch.equal(warp(labels, displacement, mode="nearest", padding=0.0), labels)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_positions_keep_their_precision_under_autocast(dtype):
    line = torch.arange(250.0).view(1, 1, 250, 1, 1)
    displacement = torch.zeros(1, 3, 250, 1, 1)
    displacement[:, 0] = 0.3
    with torch.autocast("cpu", dtype=dtype):
        warped = warp(line, displacement)
    assert warped.dtype == torch.float32
    torch.testing.assert_close(warped.flatten()[:-1], torch.arange(249.0) + 0.3, atol=1e-3, rtol=0)


def test_one_set_of_coordinates_serves_a_whole_batch():
    volume, coordinates = random_volume(batch=3), random_coordinates()
    torch.testing.assert_close(sample(volume, coordinates)[2:], sample(volume[2:], coordinates))


@pytest.mark.parametrize("padding", ["border", "zeros", 0.5])
def test_gradients_of_sampling_are_right(padding):
    volume = torch.rand(1, 1, 3, 4, 3, dtype=torch.float64, requires_grad=True)
    generator = torch.Generator().manual_seed(3)
    coordinates = (torch.rand(1, 3, 2, 2, 2, generator=generator, dtype=torch.float64) * 1.8).requires_grad_()
    assert torch.autograd.gradcheck(lambda v, c: sample(v, c, padding=padding), (volume, coordinates))


def test_labels_never_become_values_that_were_not_there():
    labels = torch.randint(0, 2, (1, 1, *SHAPE)) * 6 + torch.randint(0, 2, (1, 1, *SHAPE)) * 3
    warped = warp_labels(labels, torch.full((1, 3, *SHAPE), 0.37), [3, 6, 9])
    assert warped.dtype == labels.dtype
    assert set(warped.unique().tolist()) <= {0, 3, 6, 9}


def test_label_sampling_is_the_argmax_of_linearly_sampled_one_hots():
    labels = torch.randint(0, 4, (2, 1, *SHAPE), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    coordinates = random_coordinates(low=0.0, batch=2)
    one_hot = torch.cat([(labels == value).float() for value in range(4)], dim=1)
    expected = sample(one_hot, coordinates).argmax(dim=1, keepdim=True)
    assert torch.equal(sample_labels(labels, coordinates, [1, 2, 3]).long(), expected)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.int16, torch.int32, torch.int64])
def test_zero_displacement_keeps_labels_of_every_integer_type(dtype):
    labels = torch.randint(0, 5, (1, 1, *SHAPE)).to(dtype)
    warped = warp_labels(labels, torch.zeros(1, 3, *SHAPE), [1, 2, 3, 4])
    assert warped.dtype == dtype
    assert torch.equal(warped.long(), labels.long())


def test_labels_outside_the_field_of_view_and_unlisted_ones_are_background():
    labels = torch.full((1, 1, *SHAPE), 2)
    displacement = torch.zeros(1, 3, *SHAPE)
    displacement[:, 0] = 4.0
    warped = warp_labels(labels, displacement, [2])
    assert (warped[:, :, :3] == 2).all()
    assert (warped[:, :, 3:] == 0).all()
    assert (warp_labels(labels, displacement, [1, 3]) == 0).all()


def test_negative_label_values_are_kept():
    labels = torch.full((1, 1, *SHAPE), -3)
    assert (warp_labels(labels, torch.zeros(1, 3, *SHAPE), [-3, 5]) == -3).all()


@pytest.mark.parametrize(
    ("volume", "coordinates", "message"),
    [
        ((1, 4, 4, 4), (1, 3, 4, 4, 4), r"volume has shape \(1, 4, 4, 4\)"),
        ((1, 1, 4, 4, 4), (1, 2, 4, 4, 4), r"coordinates has shape \(1, 2, 4, 4, 4\)"),
        ((2, 1, 4, 4, 4), (3, 3, 4, 4, 4), r"\(2, 1, 4, 4, 4\) but coordinates have shape \(3, 3, 4, 4, 4\)"),
    ],
)
def test_bad_shapes_are_refused(volume, coordinates, message):
    with pytest.raises(ValueError, match=message):
        sample(torch.zeros(volume), torch.zeros(coordinates))


def test_bad_arguments_are_refused():
    volume, coordinates = torch.zeros(1, 1, 4, 4, 4), torch.zeros(1, 3, 4, 4, 4)
    with pytest.raises(ValueError, match="unknown mode 'cubic'"):
        sample(volume, coordinates, mode="cubic")
    with pytest.raises(ValueError, match="unknown padding 'reflect'"):
        sample(volume, coordinates, padding="reflect")
    with pytest.raises(ValueError, match=r"linear sampling of torch\.int64 values"):
        sample(volume.long(), coordinates)
    with pytest.raises(ValueError, match="expected integers"):
        sample_labels(volume, coordinates, [1])
