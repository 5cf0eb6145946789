import pytest
import torch

from biasreg.network.dual_decoder import Decoder, DualDecoder

ENCODER_CHANNELS = (4, 4, 8)
CHANNELS = (4, 6, 8)


@pytest.fixture
def maps():
    return tuple(torch.randn(2, channels, *(8 >> level,) * 3) for level, channels in enumerate(ENCODER_CHANNELS))


def make_decoder(**changes):
    return Decoder(ENCODER_CHANNELS, CHANNELS, **{"biaf": True, **changes})


def make_dual_decoder(semantic=True, intensity=True, num_labels=3, level=1):
    return DualDecoder(
        make_decoder() if semantic else None,
        make_decoder() if intensity else None,
        segmentation_level=level,
        segmentation_channels=CHANNELS[level],
        num_labels=num_labels,
    )


def test_features_have_the_planned_channels_on_the_grids_of_the_maps(maps):
    features = make_decoder()(maps)
    assert [tuple(f.shape) for f in features] == [(2, 4, 8, 8, 8), (2, 6, 4, 4, 4), (2, 8, 2, 2, 2)]


def test_the_deepest_map_reaches_the_finest_features(maps):
    for features in maps:
        features.requires_grad_()
    make_decoder()(maps)[0].square().sum().backward()
    assert all(features.grad.abs().max() > 0 for features in maps)


def test_checkpointing_changes_nothing(maps):
    plain, saving = make_decoder(), make_decoder(checkpointing=True)
    saving.load_state_dict(plain.state_dict())
    for one, other in zip(plain(maps), saving(maps), strict=True):
        assert torch.equal(one, other)


def test_the_two_decoders_share_no_weight(maps):
    decoder = make_dual_decoder()
    semantic = {id(parameter) for parameter in decoder.semantic.parameters()}
    assert semantic.isdisjoint(id(parameter) for parameter in decoder.intensity.parameters())
    features = decoder(maps)
    assert not torch.allclose(features.semantic[0], features.intensity[0])


@pytest.mark.parametrize(("level", "side"), [(0, 8), (1, 4), (2, 2)])
def test_logits_lie_on_the_grid_of_the_segmentation_level(maps, level, side):
    assert make_dual_decoder(level=level)(maps).logits.shape == (2, 3, side, side, side)


def test_logits_supervise_the_semantic_decoder_alone(maps):
    decoder = make_dual_decoder()
    decoder(maps).logits.square().sum().backward()
    assert all(parameter.grad is None for parameter in decoder.intensity.parameters())
    assert any(parameter.grad is not None for parameter in decoder.semantic.parameters())


@pytest.mark.parametrize(("semantic", "num_labels"), [(True, 1), (False, 3)])
def test_there_is_no_segmentation_without_labels_or_without_semantic_decoder(maps, semantic, num_labels):
    decoder = make_dual_decoder(semantic=semantic, num_labels=num_labels)
    assert decoder(maps).logits is None
    assert decoder.segmentation_head is None
