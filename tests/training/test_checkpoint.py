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
    load_checkpoint,
    restore_random_states,
    save_checkpoint,
)
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
        CheckpointError, match=r"c\.pth has checkpoint format 1, .* reads format 2 · train this fold again"
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
