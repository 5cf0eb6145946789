import errno
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from torch import nn

from biasreg.core.errors import CheckpointError
from biasreg.core.serialization import content_hash
from biasreg.network.checkpoint import (
    Identity,
    RunSettings,
    capture,
    check_reference,
    describe_size,
    load_checkpoint,
    load_network_state,
    network_state,
    restore_random_states,
    save_checkpoint,
)
from biasreg.network.lora import LoraLinear
from biasreg.training.optimization import build_optimizer


@pytest.fixture
def identity(configuration):
    return Identity("Dataset901_Blobs", "tiny", "main", configuration, None, RunSettings("all", 2, 3, 0, "cases"))


@pytest.fixture
def network():
    return nn.Linear(4, 3)


def trained(network):
    optimizer = build_optimizer(network, 0.1)
    network(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    return optimizer


def test_a_checkpoint_comes_back_whole_and_loads_without_pickled_code(tmp_path, identity, network):
    optimizer = trained(network)
    path = tmp_path / "checkpoint_latest.pth"
    save_checkpoint(path, capture(identity, {"iteration": 7, "best": None}, network, optimizer))
    assert isinstance(torch.load(path, weights_only=True), dict)
    loaded = load_checkpoint(path, content_hash(identity.configuration))
    assert loaded.identity == identity
    assert loaded.progress == {"iteration": 7, "best": None}
    assert loaded.versions["torch"] == torch.__version__
    torch.testing.assert_close(loaded.network, dict(network.state_dict()), rtol=0, atol=0)
    other = build_optimizer(network, 0.5)
    other.load_state_dict(loaded.optimizer)
    torch.testing.assert_close(other.state_dict(), optimizer.state_dict(), rtol=0, atol=0)


class Adapted(nn.Module):
    """A frozen layer with a table beside it, one with an adapter, and one that trains."""

    def __init__(self):
        super().__init__()
        self.frozen = nn.Linear(4, 4).requires_grad_(False)
        self.frozen.register_buffer("table", torch.arange(3))
        self.adapted = LoraLinear(nn.Linear(4, 4), rank=2, alpha=2.0)
        self.trained = nn.Linear(4, 3)
        self.trained.register_buffer("mean", torch.rand(3))


OWN = {"adapted.lora_down", "adapted.lora_up", "trained.weight", "trained.bias", "trained.mean"}


def test_a_checkpoint_of_an_adapted_network_goes_without_the_base_that_has_a_file_of_its_own(tmp_path, identity):
    network = Adapted()
    checkpoint = capture(replace(identity, pretrained_hash="a" * 64), {}, network, None)
    save_checkpoint(tmp_path / "c.pth", checkpoint)
    loaded = load_checkpoint(tmp_path / "c.pth")
    assert set(loaded.network) == OWN
    assert loaded.identity.pretrained_hash == "a" * 64
    other = Adapted()
    base = {name: tensor.clone() for name, tensor in other.state_dict().items() if name not in OWN}
    load_network_state(other, loaded.network)
    for name, tensor in other.state_dict().items():
        assert torch.equal(tensor, base[name] if name in base else network.state_dict()[name])


def test_a_frozen_base_that_is_in_no_file_of_its_own_is_kept(identity):
    network, other = Adapted(), Adapted()
    checkpoint = capture(identity, {}, network, None)
    assert set(checkpoint.network) == set(network.state_dict())
    load_network_state(other, checkpoint.network)
    torch.testing.assert_close(other.state_dict(), network.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("name", ["adapted.lora_up", "trained.mean"])
def test_a_state_is_loaded_strictly_but_for_the_base(name):
    state = network_state(Adapted())
    network = Adapted()
    load_network_state(network, state)
    with pytest.raises(RuntimeError, match=f"Missing key.*{name}"):
        load_network_state(network, {each: tensor for each, tensor in state.items() if each != name})
    with pytest.raises(RuntimeError, match=r"Unexpected key.*other"):
        load_network_state(network, {**state, "other": torch.zeros(1)})
    with pytest.raises(RuntimeError, match="size mismatch"):
        load_network_state(network, {**state, name: torch.zeros(7)})
    with pytest.raises(RuntimeError, match=r"Missing key.*frozen\.bias"):
        load_network_state(network, {**state, "frozen.weight": torch.zeros(4, 4)})


def test_the_size_tells_adapters_and_what_is_left_out():
    assert describe_size(Adapted()) == (
        "0.00 MB of weights in each checkpoint, 0.00 MB of them adapters, 0.00 MB of frozen weights stay in their own "
        "file"
    )
    large = nn.Linear(1000, 500, bias=False)
    assert describe_size(large) == "2.00 MB of weights in each checkpoint"
    assert "2.00 MB of frozen weights" in describe_size(large.requires_grad_(False))
    assert describe_size(large, with_base=True) == "2.00 MB of weights in each checkpoint"


def test_prediction_takes_averaged_weights_where_there_are_any(tmp_path, identity, network):
    plain = capture(identity, {}, network, None)
    assert plain.averaged is None
    torch.testing.assert_close(plain.weights, plain.network)
    averaged = {"weight": torch.full((3, 4), 2.0)}
    save_checkpoint(tmp_path / "c.pth", capture(identity, {}, network, None, averaged))
    loaded = load_checkpoint(tmp_path / "c.pth")
    torch.testing.assert_close(loaded.averaged, averaged)
    torch.testing.assert_close(loaded.weights, {"weight": averaged["weight"], "bias": network.bias.detach()})
    torch.testing.assert_close(loaded.network, dict(network.state_dict()))


def test_random_states_come_back(tmp_path, identity, network):
    torch.manual_seed(3)
    save_checkpoint(tmp_path / "c.pth", capture(identity, {}, network, None))
    expected = torch.rand(3)
    torch.rand(10)
    restore_random_states(load_checkpoint(tmp_path / "c.pth"))
    assert torch.equal(torch.rand(3), expected)


def test_weights_come_with_their_configuration(tmp_path, identity, network):
    save_checkpoint(tmp_path / "c.pth", capture(identity, {}, network, None))
    found = load_checkpoint(tmp_path / "c.pth")
    assert found.identity.configuration == identity.configuration
    assert set(found.network) == {"weight", "bias"}


def test_another_configuration_is_refused(tmp_path, identity, network, configuration):
    save_checkpoint(tmp_path / "c.pth", capture(identity, {}, network, None))
    other = replace(configuration, training=replace(configuration.training, learning_rate=1.0))
    with pytest.raises(CheckpointError, match="another configuration"):
        load_checkpoint(tmp_path / "c.pth", content_hash(other))


def test_a_missing_or_damaged_file_is_refused_by_name(tmp_path, identity, network):
    with pytest.raises(CheckpointError, match="no checkpoint"):
        load_checkpoint(tmp_path / "c.pth")
    save_checkpoint(tmp_path / "c.pth", capture(identity, {}, network, None))
    content = (tmp_path / "c.pth").read_bytes()
    (tmp_path / "c.pth").write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match=r"c\.pth cannot be read"):
        load_checkpoint(tmp_path / "c.pth")
    torch.save({"state_dict": {}}, tmp_path / "foreign.pth")
    with pytest.raises(CheckpointError, match="checkpoint format None"):
        load_checkpoint(tmp_path / "foreign.pth")


def test_a_checkpoint_of_an_earlier_format_asks_to_train_again_before_its_records_are_read(tmp_path, identity, network):
    path = tmp_path / "c.pth"
    save_checkpoint(path, capture(identity, {}, network, None))
    content = torch.load(path, weights_only=True)
    torch.save(content | {"format_version": 1, "identity": {"of": "another layout"}}, path)
    with pytest.raises(
        CheckpointError, match=r"c\.pth has checkpoint format 1, .* reads format 3 · train this fold again"
    ):
        load_checkpoint(path)


def test_a_file_that_may_not_be_read_is_not_called_damaged(tmp_path, identity, network, monkeypatch):
    path = tmp_path / "c.pth"
    save_checkpoint(path, capture(identity, {}, network, None))

    def refuse(*arguments, **options):
        raise PermissionError(errno.EACCES, "Permission denied")  # root may read everything

    monkeypatch.setattr(torch, "load", refuse)
    with pytest.raises(CheckpointError, match=r"c\.pth cannot be read: permission denied"):
        load_checkpoint(path)


def test_what_is_known_without_the_weights_can_be_read_lazily(tmp_path, identity, network):
    path = tmp_path / "c.pth"
    for progress, expected in (({}, (0, False)), ({"history": [{}, {}], "best": {"epoch": 1}}, (2, True))):
        save_checkpoint(path, capture(identity, progress, network, None))
        checkpoint = load_checkpoint(path, lazy=True)
        assert (checkpoint.epochs_done, checkpoint.is_validated) == expected


def test_another_reference_image_is_refused_with_both_hashes(tmp_path, identity):
    check_reference(tmp_path / "c.pth", identity, None)
    aligned = replace(identity, reference_hash="a" * 64)
    check_reference(tmp_path / "c.pth", aligned, "a" * 64)
    with pytest.raises(CheckpointError, match=r"reference\.nii\.gz.*hash bbbbbbbbbbbb\).*aaaaaaaaaaaa.*c\.pth"):
        check_reference(tmp_path / "c.pth", aligned, "b" * 64)


def test_a_full_disk_keeps_the_last_good_checkpoint(tmp_path, identity, network, monkeypatch):
    path = tmp_path / "c.pth"
    save_checkpoint(path, capture(identity, {"iteration": 1}, network, None))

    def fail(content, file):
        file.write_bytes(b"half of it")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(CheckpointError, match=r"No space left on device.*c\.pth.*still there and whole.*make room"):
        save_checkpoint(path, capture(identity, {"iteration": 2}, network, None))
    assert load_checkpoint(path).progress == {"iteration": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["c.pth"]


LIMITED = """
import resource, signal, sys
from pathlib import Path
import torch
from biasreg.core.errors import CheckpointError
from biasreg.network.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from dataclasses import replace
path = Path(sys.argv[1])
checkpoint = load_checkpoint(path)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
try:
    save_checkpoint(path, replace(checkpoint, progress={"iteration": 2}, network={"a": torch.zeros(1_000_000)}))
except CheckpointError as error:
    print(error)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits the size of files as Linux does")
def test_a_real_write_error_of_torch_is_reported_and_harmless(tmp_path, identity, network):
    path = tmp_path / "c.pth"
    save_checkpoint(path, capture(identity, {"iteration": 1}, network, None))
    result = subprocess.run([sys.executable, "-c", LIMITED, path], capture_output=True, text=True, check=True)
    assert "could not be written" in result.stdout
    assert load_checkpoint(path).progress == {"iteration": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["c.pth"]
