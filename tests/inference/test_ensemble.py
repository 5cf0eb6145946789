from types import SimpleNamespace

import pytest
import torch
from torch import nn

from biasreg.inference.ensemble import Views, ensemble, mirror_field
from biasreg.spatial.warp import warp

PLAIN = Views()


@pytest.fixture
def images():
    torch.manual_seed(0)
    return torch.rand(2, 1, 1, 8, 8, 8).unbind()


class Following(nn.Module):
    """Says of each voxel how the images differ there, so that its field follows what it is shown."""

    def forward(self, moving, fixed):
        field = torch.cat([moving - fixed, 2 * moving, fixed], dim=1)
        logits = torch.cat([fixed, moving], dim=1)
        return SimpleNamespace(
            displacement=field, fields=(field, field[..., ::2, ::2, ::2]), moving_logits=logits, fixed_logits=-logits
        )


class Halving(nn.Module):
    """Moves everything by one voxel of a grid with half as many voxels along each axis."""

    def forward(self, moving, fixed):
        fields = torch.ones(1, 3, 8, 8, 8), torch.ones(1, 3, 4, 4, 4)
        return SimpleNamespace(displacement=fields[0], fields=fields, moving_logits=None, fixed_logits=None)


def test_one_network_gives_its_own_displacement(make_network, configuration, images):
    network = make_network(configuration, (1.0, -2.0, 0.5)).eval()
    found = ensemble([network], *images, PLAIN)
    assert found.displacement.shape == (1, 3, 8, 8, 8)
    assert found.displacement.dtype == torch.float32
    torch.testing.assert_close(found.displacement, network(*images).displacement.detach())
    assert found.covariance is None
    assert found.levels == ()


def test_several_networks_are_averaged_and_their_covariance_is_that_of_the_population(
    make_network, configuration, images
):
    networks = [make_network(configuration, shift).eval() for shift in ((1.0, 0.0, 0.0), (2.0, 0.0, -3.0))]
    found = ensemble(networks, *images, Views(covariance=True))
    expected = torch.tensor([1.5, 0.0, -1.5])[None, :, None, None, None].expand_as(found.displacement)
    torch.testing.assert_close(found.displacement, expected)
    covariance = torch.tensor([[0.25, 0.0, -0.75], [0.0, 0.0, 0.0], [-0.75, 0.0, 2.25]])
    torch.testing.assert_close(found.covariance, covariance[..., None, None, None].expand_as(found.covariance))


def test_no_gradient_is_kept(make_network, configuration, images):
    network = make_network(configuration).eval()
    assert not ensemble([network], *images, PLAIN).displacement.requires_grad


def test_levels_are_given_in_voxels_of_the_finest(make_network, configuration, images):
    _, coarse = ensemble([Halving()], *images, Views(levels=True)).levels
    torch.testing.assert_close(coarse, torch.full((1, 3, 8, 8, 8), 2.0))  # a voxel of the coarse grid is two fine ones


def test_the_segmentations_are_probabilities_of_the_foreground(make_network, configuration, images):
    moving, fixed = ensemble([make_network(configuration).eval()], *images, Views()).semantics
    assert moving.shape == fixed.shape == (1, configuration.network.num_labels - 1, 8, 8, 8)
    assert moving.min() >= 0
    assert moving.sum(dim=1).max() <= 1


def test_a_network_leaves_the_device_after_its_turn_if_asked(make_network, configuration, images):
    network = make_network(configuration).eval()
    ensemble([network], *images, Views(one_at_a_time=True))
    assert next(network.parameters()).device.type == "cpu"


@pytest.mark.parametrize("axes", [(0,), (1,), (2,), (0, 2), (0, 1, 2)])
def test_a_mirrored_field_moves_a_mirrored_image_as_the_field_moves_the_image(axes, images):
    image, displacement = images[0], 2 * torch.rand(1, 3, 8, 8, 8) - 1
    mirrored = [axis + 2 for axis in axes]
    expected = warp(image, displacement).flip(mirrored)
    torch.testing.assert_close(warp(image.flip(mirrored), mirror_field(displacement, axes)), expected)
    torch.testing.assert_close(mirror_field(mirror_field(displacement, axes), axes), displacement)


def test_mirroring_averages_what_the_network_says_of_each_mirrored_pair(images):
    network, (moving, fixed) = Following(), images
    found = ensemble([network], moving, fixed, Views(mirror_axes=(0, 1), covariance=True))
    views = [
        mirror_field(network(*(each.flip([a + 2 for a in axes]) for each in images)).displacement, axes)
        for axes in ((), (0,), (1,), (0, 1))
    ]
    torch.testing.assert_close(found.displacement, torch.stack(views).mean(dim=0))
    variance = torch.stack([found.covariance[axis, axis] for axis in range(3)])
    torch.testing.assert_close(variance, torch.stack(views).var(dim=0, correction=0)[0])


class Positional(nn.Module):
    """Takes what lies on one side for the left kidney, and what lies on the other for the right one."""

    def forward(self, moving, fixed):
        field = torch.zeros(1, 3, 8, 8, 8)
        logits = torch.zeros(1, 3, 8, 8, 8)
        logits[:, 1, :4] = logits[:, 2, 4:] = 10
        return SimpleNamespace(displacement=field, fields=(field,), moving_logits=logits, fixed_logits=logits)


def test_mirroring_does_not_exchange_left_and_right_in_the_segmentation(images):
    plain = ensemble([Positional()], *images, Views()).semantics
    seen = ensemble([Positional(), Positional()], *images, Views(mirror_axes=(0,))).semantics
    torch.testing.assert_close(seen, plain)


def test_a_small_scatter_around_a_large_displacement_is_not_lost(make_network, configuration, images):
    shifts = [(40.3 + step, 0.0, 0.0) for step in (-0.008, -0.004, 0.0, 0.004, 0.008)]
    found = ensemble([make_network(configuration, shift).eval() for shift in shifts], *images, Views(covariance=True))
    assert found.covariance[0, 0].sqrt().mean().item() == pytest.approx(0.00566, rel=0.05)
