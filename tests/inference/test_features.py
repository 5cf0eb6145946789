from dataclasses import replace

import numpy as np
import pytest
import torch

from biasreg.inference.features import feature_maps, principal_components
from biasreg.network.biaf import BIAF


@pytest.fixture
def images():
    torch.manual_seed(0)
    return torch.rand(2, 1, 1, 8, 8, 8).unbind()


def with_offsets(network):
    for module in network.modules():
        if isinstance(module, BIAF):
            torch.nn.init.normal_(module.offsets[-1].weight, std=0.5)
    return network.eval()


def test_each_kind_is_given_for_both_images_and_all_levels(make_network, configuration, images):
    maps = feature_maps(make_network(configuration).eval(), *images)
    kinds = ("semantic", "intensity", "enhanced", "semantic_without_biaf", "intensity_without_biaf")
    assert set(maps) == {f"{role}_{kind}_level{k}" for role in ("moving", "fixed") for kind in kinds for k in (0, 1)}
    assert all(array.shape[0] == 3 and array.dtype == np.float16 for array in maps.values())
    assert all(np.isfinite(array).all() for array in maps.values())


def test_without_biaf_differs_once_offsets_are_learnt_and_the_network_is_left_as_it_was(
    make_network, configuration, images
):
    network = make_network(configuration).eval()
    untrained = feature_maps(network, *images)
    np.testing.assert_allclose(
        untrained["fixed_semantic_level0"], untrained["fixed_semantic_without_biaf_level0"], atol=2e-2
    )
    trained = feature_maps(with_offsets(network), *images)
    assert np.abs(trained["fixed_semantic_level0"] - trained["fixed_semantic_without_biaf_level0"]).max() > 0.1
    assert all(module.offsets is not None for module in network.modules() if isinstance(module, BIAF))
    np.testing.assert_array_equal(
        feature_maps(network, *images)["fixed_enhanced_level0"], trained["fixed_enhanced_level0"]
    )


@pytest.mark.parametrize("streams", ["semantic", "intensity"])
def test_a_decoder_that_is_not_there_has_no_features(make_network, configuration, images, streams):
    ablated = replace(configuration, network=replace(configuration.network, streams=streams, mac=False))
    maps = feature_maps(make_network(ablated).eval(), *images)
    assert {name.split("_")[1] for name in maps} == {streams}


def test_components_are_uncorrelated_and_fall_in_strength():
    torch.manual_seed(0)
    scales = torch.tensor([5.0, 1.0, 3.0, 0.1]).view(1, 4, 1, 1, 1)
    found = principal_components(scales * torch.randn(2, 4, 6, 7, 8)).astype(np.float64)
    flat = np.moveaxis(found, 1, 0).reshape(3, -1)
    covariance = np.cov(flat)
    np.testing.assert_allclose(np.sqrt(np.diag(covariance)), [5, 3, 1], rtol=0.1)
    assert np.abs(covariance - np.diag(np.diag(covariance))).max() < 0.05


def test_missing_components_are_zero():
    found = principal_components(torch.rand(2, 2, 4, 4, 4))
    assert found.shape == (2, 3, 4, 4, 4)
    assert not found[:, 2].any()
