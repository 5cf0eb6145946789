import pytest
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter

from biasreg.losses.similarity import box_mean, dissimilarity, local_ncc_loss, mind_ssc, mind_ssc_loss
from biasreg.spatial.warp import warp

SHAPE = (12, 10, 11)


def textured_image(*, channels=1, seed=0, sigma=1.0):
    noise = torch.rand((channels, *SHAPE), generator=torch.Generator().manual_seed(seed)).numpy()
    smooth = torch.from_numpy(gaussian_filter(noise, (0, sigma, sigma, sigma)))[None]
    return (smooth - smooth.min()) / (smooth.max() - smooth.min())


def shifted(image, voxels):
    displacement = torch.zeros(image.shape[0], 3, *SHAPE)
    displacement[:, 0] = voxels
    return warp(image, displacement)


@pytest.mark.parametrize("window", [1, 3, 5, 9, 15])
def test_the_box_mean_is_average_pooling_over_the_voxels_inside_the_grid(window):
    image = torch.rand(2, 3, *SHAPE)
    pooled = F.avg_pool3d(F.pad(image, (8,) * 6), window, 1)
    counts = F.avg_pool3d(F.pad(torch.ones_like(image), (8,) * 6), window, 1)
    start = 8 - window // 2
    crop = (..., *[slice(start, start + size) for size in SHAPE])
    torch.testing.assert_close(box_mean(image, window), pooled[crop] / counts[crop])


def test_gradients_of_the_box_mean_are_right():
    assert torch.autograd.gradcheck(
        lambda image: box_mean(image, 3), torch.rand(1, 2, 3, 4, 2, dtype=torch.float64, requires_grad=True)
    )


@pytest.mark.parametrize("window", [0, 4])
def test_windows_without_a_centre_voxel_are_refused(window):
    with pytest.raises(ValueError, match=f"the window is {window} voxels; it must be odd"):
        box_mean(torch.zeros(1, 1, 4, 4, 4), window)


def test_local_ncc_of_an_image_with_itself_is_no_loss():
    image = textured_image()
    assert local_ncc_loss(image, image).item() == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize(("gain", "offset"), [(2.0, 0.3), (0.5, -0.2), (-1.0, 1.0)])
def test_local_ncc_ignores_gain_and_offset(gain, offset):
    moving, fixed = textured_image(seed=1), textured_image(seed=2)
    changed = local_ncc_loss(gain * moving + offset, fixed)
    torch.testing.assert_close(changed, local_ncc_loss(moving, fixed), atol=2e-3, rtol=0)


@pytest.mark.parametrize("loss", [local_ncc_loss, mind_ssc_loss])
def test_the_loss_grows_with_misalignment(loss):
    image = textured_image()
    losses = [loss(shifted(image, voxels), image).item() for voxels in (0.0, 0.5, 1.0, 2.0)]
    assert losses == sorted(losses)
    assert losses[0] < 1e-3 < losses[1]


def test_local_ncc_is_the_squared_correlation_within_the_window():
    warped, fixed = torch.rand(1, 1, 3, 3, 3), torch.rand(1, 1, 3, 3, 3)
    centre = torch.zeros_like(fixed)
    centre[..., 1, 1, 1] = 1.0
    expected = 1 - torch.corrcoef(torch.stack([warped.flatten(), fixed.flatten()]))[0, 1] ** 2
    torch.testing.assert_close(local_ncc_loss(warped, fixed, window=3, weight=centre), expected, atol=1e-4, rtol=0)


def test_local_ncc_looks_only_inside_the_mask():
    moving, fixed = textured_image(seed=1), textured_image(seed=2)
    mask = torch.zeros(1, 1, *SHAPE)
    mask[..., 4:, :, :] = 1.0
    cut = [image[..., 4:, :, :] for image in (moving, fixed)]
    torch.testing.assert_close(local_ncc_loss(moving, fixed, window=5, mask=mask), local_ncc_loss(*cut, window=5))


@pytest.mark.parametrize("loss", [local_ncc_loss, mind_ssc_loss])
def test_nothing_outside_the_mask_is_seen(loss):
    moving, fixed = textured_image(channels=2, seed=1), textured_image(channels=2, seed=2)
    mask = torch.zeros(1, 1, *SHAPE)
    mask[..., 4:, :, :] = 1.0
    hidden = [torch.where(mask > 0, image, other) for image, other in ((moving, 0.0), (fixed, 5.0))]
    torch.testing.assert_close(loss(*hidden, mask=mask), loss(moving, fixed, mask=mask))
    assert loss(hidden[0], moving, mask=mask).item() == pytest.approx(0, abs=1e-3)  # an image's end is no structure
    assert loss(moving, fixed, mask=torch.zeros_like(mask)) == 0
    everywhere = torch.ones_like(mask)
    torch.testing.assert_close(loss(moving, fixed, mask=everywhere), loss(moving, fixed))


@pytest.mark.parametrize("loss", [local_ncc_loss, mind_ssc_loss])
def test_the_gradient_is_zero_outside_the_mask_and_finite(loss):
    moving, fixed = textured_image(seed=1).requires_grad_(), textured_image(seed=2)
    mask = torch.zeros(1, 1, *SHAPE)
    mask[..., 4:, :, :] = 1.0
    (slope,) = torch.autograd.grad(loss(moving, fixed, mask=mask), moving)
    assert slope.isfinite().all()
    assert slope[..., :4, :, :].abs().max() == 0
    assert slope[..., 4:, :, :].abs().min() > 0


@pytest.mark.parametrize("loss", [local_ncc_loss, mind_ssc_loss])
def test_constant_images_give_finite_losses_and_gradients(loss):
    constant = torch.full((1, 1, *SHAPE), 0.5, requires_grad=True)
    for fixed in (torch.zeros(1, 1, *SHAPE), textured_image()):
        value = loss(constant, fixed)
        (gradient,) = torch.autograd.grad(value, constant)
        assert value.isfinite()
        assert gradient.isfinite().all()


def test_flat_windows_are_not_rewarded():
    flat = torch.zeros(1, 1, *SHAPE)
    assert local_ncc_loss(flat, textured_image()).item() == pytest.approx(1)


@pytest.mark.parametrize("loss", [local_ncc_loss, mind_ssc_loss])
def test_channels_count_alike(loss):
    moving, fixed = textured_image(channels=2, seed=1), textured_image(channels=2, seed=2)
    apart = torch.stack([loss(moving[:, c : c + 1], fixed[:, c : c + 1]) for c in range(2)]).mean()
    torch.testing.assert_close(loss(moving, fixed), apart)


@pytest.mark.parametrize("loss", [local_ncc_loss, mind_ssc_loss])
def test_only_weighted_voxels_count(loss):
    moving, fixed = textured_image(channels=2, seed=1), textured_image(channels=2, seed=2)
    weight = torch.zeros(1, 1, *SHAPE)
    assert loss(moving, fixed, weight=weight) == 0
    weight[..., 6:, :, :] = 2.0
    other = moving.clone()
    other[..., :1, :, :] = 0.0  # beyond the reach of every weighted voxel's window and patch
    kwargs = {"window": 3} if loss is local_ncc_loss else {}
    torch.testing.assert_close(
        loss(moving, fixed, weight=weight, **kwargs), loss(other, fixed, weight=weight, **kwargs)
    )
    torch.testing.assert_close(loss(moving, fixed, weight=torch.ones_like(weight)), loss(moving, fixed))


def test_half_precision_images_are_compared_in_float32():
    image = textured_image().to(torch.bfloat16)
    for loss in (local_ncc_loss, mind_ssc_loss):
        assert loss(image, image).dtype == torch.float32


@pytest.mark.parametrize("kind", ["lncc", "mind"])
@pytest.mark.parametrize("masked", [False, True])
def test_gradients_of_the_losses_are_right(kind, masked):
    generator = torch.Generator().manual_seed(0)
    warped = torch.rand(2, 2, 4, 3, 4, dtype=torch.float64, generator=generator, requires_grad=True)
    fixed, mask = (torch.rand(2, size, 4, 3, 4, dtype=torch.float64, generator=generator) for size in (2, 1))
    mask[:, :, 3:] = 0
    assert torch.autograd.gradcheck(
        lambda image: dissimilarity(kind, image, fixed, window=3, mask=mask if masked else None), warped
    )


@pytest.mark.parametrize("loss", [local_ncc_loss, mind_ssc_loss])
@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.float64])
def test_a_mask_may_be_of_any_type(loss, dtype):
    moving, fixed = textured_image(seed=1), textured_image(seed=2)
    mask = textured_image(seed=3) > 0.5
    assert loss(moving, fixed, mask=mask.to(dtype)) == loss(moving, fixed, mask=mask.float())


@pytest.mark.parametrize("loss", [local_ncc_loss, mind_ssc_loss])
def test_a_mask_on_another_grid_is_refused(loss):
    image = textured_image()
    with pytest.raises(ValueError, match="mask has shape"):
        loss(image, image, mask=torch.ones(1, 1, 3, 3, 3))
    with pytest.raises(ValueError, match="mask has shape"):
        loss(image, image, mask=torch.ones(SHAPE))
    with pytest.raises(ValueError, match="one channel"):
        loss(image, image, mask=torch.ones(1, 2, *SHAPE))


def test_mind_does_not_take_what_no_patch_sees_for_alike():
    moving, fixed = textured_image(seed=1), textured_image(seed=2)
    losses = []
    for slices in (2, 3, 6, 12):
        mask = torch.zeros(1, 1, *SHAPE)
        mask[..., :slices, :, :] = 1
        losses.append(mind_ssc_loss(moving, fixed, mask=mask).item())
    assert losses[0] == 0  # two slices show nothing of a pair of neighbours two voxels apart
    assert min(losses[1:]) > 0.5 * losses[-1]


def test_gradients_of_mind_ssc_are_right():
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(1, 1, 4, 3, 4, dtype=torch.float64, generator=generator, requires_grad=True)
    weights = torch.rand(1, 12, 4, 3, 4, dtype=torch.float64, generator=generator)

    assert torch.autograd.gradcheck(lambda volume: (mind_ssc(volume, radius=1, dilation=1) * weights).sum(), image)


def test_mind_ssc_has_twelve_channels_between_zero_and_one_with_a_best_pair():
    descriptor = mind_ssc(textured_image())
    assert descriptor.shape == (1, 12, *SHAPE)
    assert descriptor.min() > 0
    torch.testing.assert_close(descriptor.amax(dim=1), torch.ones(1, *SHAPE))


@pytest.mark.parametrize(("gain", "offset"), [(-1.0, 1.0), (3.0, -0.5), (-0.25, 100.0)])
def test_mind_ssc_ignores_gain_of_either_sign_and_offset(gain, offset):
    image = textured_image().double()
    torch.testing.assert_close(mind_ssc(gain * image + offset), mind_ssc(image), atol=1e-6, rtol=0)


def test_mind_ssc_follows_its_definition():
    image = textured_image().double()
    moved = {
        name: torch.roll(image, shift, axis)[..., 3:-3, 3:-3, 3:-3]
        for name, shift, axis in (("-x", 2, 2), ("+x", -2, 2), ("-y", 2, 3), ("+y", -2, 3), ("-z", 2, 4), ("+z", -2, 4))
    }
    pairs = [(a, b) for i, a in enumerate(moved) for b in list(moved)[i + 1 :] if a[1] != b[1]]
    distance = torch.cat([(moved[a] - moved[b]) ** 2 for a, b in pairs], dim=1)
    distance = distance - distance.amin(dim=1, keepdim=True)
    expected = torch.exp(-distance / distance.mean(dim=1, keepdim=True))
    torch.testing.assert_close(mind_ssc(image, radius=0)[..., 3:-3, 3:-3, 3:-3], expected)


def test_bad_shapes_are_refused_with_both_shapes():
    image = torch.zeros(1, 1, 4, 4, 4)
    for loss in (local_ncc_loss, mind_ssc_loss):
        with pytest.raises(
            ValueError, match=r"warped has shape \(1, 1, 4, 4, 4\) but fixed has shape \(1, 1, 4, 4, 5\)"
        ):
            loss(image, torch.zeros(1, 1, 4, 4, 5))
        with pytest.raises(ValueError, match=r"weight has shape \(1, 1, 3, 4, 4\)"):
            loss(image, image, weight=torch.zeros(1, 1, 3, 4, 4))
    with pytest.raises(ValueError, match=r"image of shape \(1, 2, 4, 4, 4\)"):
        mind_ssc(torch.zeros(1, 2, 4, 4, 4))
