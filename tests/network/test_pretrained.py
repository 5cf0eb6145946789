import os
from collections import OrderedDict

import pytest
import torch

from biasreg.core.errors import WeightsError
from biasreg.core.serialization import write_record
from biasreg.network.build import build_encoder
from biasreg.network.encoder import SwinEncoder
from biasreg.network.lora import add_lora
from biasreg.network.pretrained import (
    EncoderWeights,
    installed_weights,
    load_base,
    load_weights,
    read_weights,
    size_of,
    tensors_hash,
)
from biasreg.planning.voco import VOCO_ENCODERS, InstalledEncoder, weights_path

WINDOW = 7**3  # tokens


def voco_layout(width):
    """Names and shapes of the tensors in a file `VoCo_*_SSL_head.pt`."""
    shapes = {"swinViT.patch_embed.proj.weight": (width, 1, 2, 2, 2), "swinViT.patch_embed.proj.bias": (width,)}
    for stage in range(4):
        channels, heads = width * 2**stage, 3 * 2**stage
        for block in range(2):
            attended = {
                "norm1": (channels,),
                "attn.qkv": (3 * channels, channels),
                "attn.proj": (channels, channels),
                "norm2": (channels,),
                "mlp.linear1": (4 * channels, channels),
                "mlp.linear2": (channels, 4 * channels),
            }
            prefix = f"swinViT.layers{stage + 1}.0.blocks.{block}."
            shapes[prefix + "attn.relative_position_bias_table"] = (13**3, heads)
            shapes[prefix + "attn.relative_position_index"] = (WINDOW, WINDOW)
            for name, shape in attended.items():
                shapes |= {f"{prefix}{name}.weight": shape, f"{prefix}{name}.bias": shape[:1]}
        prefix = f"swinViT.layers{stage + 1}.0.downsample."
        shapes[prefix + "reduction.weight"] = (2 * channels, 8 * channels)
        shapes |= {f"{prefix}norm.{each}": (8 * channels,) for each in ("weight", "bias")}
        shapes |= residual_block(f"swinViT.layers{stage + 1}c.0", channels)
    shapes |= residual_block("encoder1", width) | {
        "encoder1.layer.conv1.conv.weight": (width, 1, 3, 3, 3),
        "encoder1.layer.conv3.conv.weight": (width, 1, 1, 1, 1),
    }
    for name, factor in (("encoder2", 1), ("encoder3", 2), ("encoder4", 4), ("encoder10", 16)):
        shapes |= residual_block(name, factor * width)
    return shapes


def residual_block(name, channels):
    return {f"{name}.layer.conv{index}.conv.weight": (channels, channels, 3, 3, 3) for index in (1, 2)}


def position_index():
    """Number of each pair of tokens of a 7×7×7 window by how far they lie from each other."""
    places = torch.cartesian_prod(*[torch.arange(7)] * 3)
    distance = places[:, None] - places[None] + 6
    return (distance * torch.tensor([13 * 13, 13, 1])).sum(-1)


@pytest.fixture
def voco_b():
    """What a file of VoCo-B holds; each tensor repeats its last axis, so that it takes little room on the disk."""
    return {
        name: position_index() if name.endswith("index") else torch.randn(shape[-1]).expand(shape)
        for name, shape in voco_layout(48).items()
    }


@pytest.fixture
def save(tmp_path):
    def save(content, name="file.pt"):
        torch.save(content, tmp_path / name)
        return tmp_path / name

    return save


def state(encoder):
    """A tiny VoCo file's content: a state that differs from that of every other encoder."""
    return OrderedDict((name, tensor.clone()) for name, tensor in encoder.state_dict().items())


def test_a_file_of_vocos_layout_fills_the_encoder_completely(voco_b, save):
    assert len(voco_b) == 145
    path = save({"state_dict": {f"module.backbone.{name}": tensor for name, tensor in voco_b.items()}})
    weights = read_weights(path)
    assert size_of(weights) == "voco_b"
    encoder = SwinEncoder(1, 48, (2, 2, 2, 2), (3, 6, 12, 24), 7)
    report = load_weights(encoder, weights)
    assert (len(report.copied), len(weights.indices)) == (137, 8)
    assert report.is_complete
    for name, tensor in encoder.state_dict().items():
        assert torch.equal(tensor, voco_b[name]), name


@pytest.mark.parametrize("name", ["voco_l", "voco_h"])
def test_larger_encoders_are_told_by_their_width(name, tmp_path):
    width = VOCO_ENCODERS[name].feature_size
    first = {"swinViT.patch_embed.proj.weight": torch.zeros(width, 1, 2, 2, 2)}
    assert size_of(EncoderWeights(tmp_path, first, {}, (), "")) == name


@pytest.mark.parametrize("wrapper", [None, "state_dict", "network_weights", "net", "student"])
@pytest.mark.parametrize("prefix", ["", "module.", "backbone.", "module.backbone."])
def test_wrappers_and_prefixes_are_taken_off_and_heads_are_ignored(make_encoder, save, wrapper, prefix):
    source = make_encoder()
    content = {prefix + name.replace("swinViT", "swin_vit"): tensor for name, tensor in state(source).items()}
    content |= {f"{prefix}decoder5.conv.weight": torch.zeros(3), "proj_head.weight": torch.zeros(3)}
    path = save(content if wrapper is None else {wrapper: content, "epoch": 7, "teacher": {"encoder1": 1}})
    encoder = make_encoder()
    report = load_weights(encoder, read_weights(path))
    assert (len(report.copied), len(report.ignored)) == (len(list(source.parameters())), 2)
    assert tensors_hash(encoder.state_dict()) == tensors_hash(source.state_dict())


def changed(content, change):
    name = "swinViT.layers1.0.blocks.0.attn.qkv.weight"
    if change == "missing":
        return {each: tensor for each, tensor in content.items() if not each.startswith("encoder10.")}
    if change == "unexpected":
        return {**content, "swinViT.layers3.0.blocks.0.attn.qkv.weight": torch.zeros(3, 3)}
    if change == "shape":
        return {**content, name: torch.zeros(3, 3)}
    return {**content, name.replace("qkv.weight", "relative_position_index"): torch.zeros(8, 8, dtype=torch.int64)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("missing", r"2 missing \(encoder10.layer.conv1.conv.weight, encoder10.layer.conv2.conv.weight\), 0 unexp"),
        ("unexpected", r"0 missing, 1 unexpected \(swinViT.layers3.0.blocks.0.attn.qkv.weight\)"),
        ("shape", r"1 of another shape \(swinViT.layers1.0.blocks.0.attn.qkv.weight\)"),
        ("index", r"1 of another shape \(swinViT.layers1.0.blocks.0.attn.relative_position_index\)"),
    ],
)
def test_an_incomplete_or_foreign_encoder_is_refused_with_counts_and_names_and_changes_nothing(
    make_encoder, save, change, message
):
    path = save(changed(state(make_encoder()), change))
    encoder = make_encoder()
    before = tensors_hash(encoder.state_dict())
    with pytest.raises(WeightsError, match=rf"do not fit the encoder: \d+ copied, .*{message}.* · .*file\.pt"):
        load_weights(encoder, read_weights(path))
    assert tensors_hash(encoder.state_dict()) == before


def test_index_tables_follow_from_the_shape_and_need_not_be_in_a_file(make_encoder, save):
    source = make_encoder()
    path = save({name: tensor for name, tensor in state(source).items() if tensor.is_floating_point()})
    encoder = make_encoder()
    assert load_weights(encoder, read_weights(path)).is_complete
    assert tensors_hash(encoder.state_dict()) == tensors_hash(source.state_dict())


def test_several_channels_share_what_was_made_for_one(make_encoder, save):
    source, encoder = make_encoder(), make_encoder(in_channels=3)
    load_weights(encoder, read_weights(save(state(source))))
    image = torch.rand(1, 1, 8, 8, 16)
    for one, three in zip(source(image), encoder(image.expand(-1, 3, -1, -1, -1)), strict=True):
        torch.testing.assert_close(three, one, atol=1e-5, rtol=1e-4)


def test_weights_and_adapters_may_come_in_either_order(make_encoder, save):
    path = save(state(make_encoder()))
    first, second = make_encoder(), make_encoder()
    load_weights(first, read_weights(path))
    add_lora(first, rank=2, alpha=2.0, mlp=True)
    add_lora(second, rank=2, alpha=2.0, mlp=True)
    load_weights(second, read_weights(path))
    image = torch.rand(1, 1, 8, 8, 8)
    for one, other in zip(first(image), second(image), strict=True):
        assert torch.equal(one, other)


def test_the_hash_is_that_of_the_values_whatever_the_file(make_encoder, save):
    content = state(make_encoder())
    plain = read_weights(save(content))
    wrapped = read_weights(save({"net": {f"module.{name}": content[name] for name in reversed(content)}}, "other.pt"))
    assert plain.sha256 == wrapped.sha256
    content["encoder1.layer.conv1.conv.weight"][0, 0, 0, 0, 0] += 1
    assert read_weights(save(content)).sha256 != plain.sha256


def test_files_that_are_no_encoder_are_refused_by_name(make_encoder, save, tmp_path):
    with pytest.raises(WeightsError, match=r"no file of weights .*absent\.pt"):
        read_weights(tmp_path / "absent.pt")
    with pytest.raises(WeightsError, match=r"no VoCo encoder: none of its 1 tensors .*file\.pt · run `biasreg_install"):
        read_weights(save({"weight": torch.zeros(3)}))
    with pytest.raises(WeightsError, match="none of its 0 tensors"):
        read_weights(save([torch.zeros(3)]))
    content = state(make_encoder())
    content["encoder1.layer.conv1.conv.weight"][0] = torch.nan
    with pytest.raises(WeightsError, match=r"not finite: encoder1\.layer.conv1.conv.weight"):
        read_weights(save(content))
    content = state(make_encoder())
    with pytest.raises(WeightsError, match="is there twice"):
        read_weights(save({**content, **{f"module.{name}": tensor for name, tensor in content.items()}}))
    with pytest.raises(WeightsError, match=r"width 5 is none of VoCo's \(VoCo-B 4, VoCo-L 96, VoCo-H 192\)"):
        size_of(read_weights(save({"swinViT.patch_embed.proj.weight": torch.zeros(5, 1, 2, 2, 2)})))


class Code:
    def __reduce__(self):
        return os.system, ("exit 1",)


def test_damaged_files_and_files_with_code_are_refused(make_encoder, save):
    path = save(state(make_encoder()))
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(WeightsError, match=r"cannot be read as weights \(.*file\.pt · it is damaged"):
        read_weights(path)
    with pytest.raises(WeightsError, match="holds code or other things than tensors, which are never run") as error:
        read_weights(save({"state_dict": {}, "hook": Code()}))
    assert "weights_only" not in str(error.value)  # torch advises to switch its safety off


@pytest.mark.parametrize(
    ("content", "words"), [(b"", "it is empty"), (b"\n<!DOCTYPE html><html>sign in</html>", "it is a web page")]
)
def test_files_that_are_no_weights_at_all_are_called_what_they_are(tmp_path, content, words):
    (tmp_path / "file.pt").write_bytes(content)
    with pytest.raises(WeightsError, match=words):
        read_weights(tmp_path / "file.pt")


@pytest.fixture
def install(make_encoder, tmp_path):
    """Give a function that puts weights into a root of results, and returns their hash."""

    def install(encoder=None, recorded=None):
        path = weights_path(tmp_path, "voco_b")
        path.parent.mkdir(exist_ok=True)
        torch.save(dict((encoder or make_encoder()).named_parameters()), path)
        found = read_weights(path).sha256
        write_record(path.with_suffix(".json"), InstalledEncoder(recorded or found, 1, "somewhere", "", ""))
        return found

    return install


def test_the_base_is_loaded_as_the_plans_say(make_voco_plans, make_encoder, install, tmp_path, caplog):
    source = make_encoder()
    found = install(source)
    encoder = build_encoder(make_voco_plans("lora").encoder, 1)
    with caplog.at_level("INFO", logger="biasreg"):
        report = load_base(encoder, "voco_b", tmp_path, found)
    assert report.sha256 == found
    assert "VoCo-B loaded: " in caplog.text
    image = torch.rand(1, 1, 8, 8, 8)
    for one, other in zip(encoder(image), source(image), strict=True):
        assert torch.equal(one, other)
    assert load_base(encoder, "scratch", tmp_path) is None


def test_other_weights_than_expected_and_changed_ones_are_refused(install, tmp_path):
    with pytest.raises(WeightsError, match="VoCo-B are not installed"):
        installed_weights(tmp_path, "voco_b")
    found = install()
    with pytest.raises(WeightsError, match=rf"other weights .* \(hash {found[:12]}, from somewhere\) .* \(hash bbbb"):
        installed_weights(tmp_path, "voco_b", "b" * 64)
    install(recorded="c" * 64)
    with pytest.raises(WeightsError, match=r"have changed: hash .* installed with cccccccccccc"):
        installed_weights(tmp_path, "voco_b")
