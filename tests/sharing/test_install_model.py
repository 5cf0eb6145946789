from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from biasreg.core.errors import ArchiveError
from biasreg.inference.models import ModelRequest, find_model
from biasreg.inference.predict import PredictOptions, predict_pairs
from biasreg.inference.predictor import Predictor
from biasreg.network.build import build_network
from biasreg.network.checkpoint import Identity, RunSettings, capture, load_checkpoint, save_checkpoint
from biasreg.network.encoder import SwinEncoder
from biasreg.network.install_pretrained import install_pretrained
from biasreg.network.pretrained import load_base
from biasreg.planning.plans import EncoderPlans, LoraPlans
from biasreg.planning.voco import VOCO_ENCODERS, VocoEncoder, installed_hash
from biasreg.sharing.export_model import ExportOptions, export_model
from biasreg.sharing.install_model import install_model

CPU = torch.device("cpu")
DATE = "2025-01-31"


@pytest.fixture
def elsewhere(tmp_path):
    return tmp_path / "other computer" / "results"


def fields(model, pairs, output):
    assert predict_pairs(pairs, output, model, CPU, PredictOptions()) == {}
    return {path.name: path.read_bytes() for path in sorted(output.glob("*.nii.gz"))}


def test_an_installed_model_gives_the_same_bytes_as_the_trained_one(model, archive, elsewhere, write_pair, tmp_path):
    write_pair(tmp_path / "pairs", "a")
    folder = install_model(str(archive), elsewhere)
    assert folder == elsewhere / "Dataset901_Blobs" / "tiny__main"
    installed = find_model(elsewhere, ModelRequest())
    assert [path.name for path in installed.checkpoints] == ["checkpoint_best.pth"] * 2
    trained = fields(model, tmp_path / "pairs", tmp_path / "one")
    assert trained == fields(installed, tmp_path / "pairs", tmp_path / "two")
    assert "a_warp.nii.gz" in trained


def test_a_model_aligned_to_a_reference_predicts_the_same(aligned_model, elsewhere, write_pair, tmp_path):
    write_pair(tmp_path / "pairs", "a", labels=False)
    export_model(aligned_model, tmp_path / "m.zip", ExportOptions(include_reference=True))
    install_model(str(tmp_path / "m.zip"), elsewhere)
    installed = find_model(elsewhere, ModelRequest())
    trained = fields(aligned_model, tmp_path / "pairs", tmp_path / "one")
    assert trained == fields(installed, tmp_path / "pairs", tmp_path / "two")


def test_a_reference_that_came_by_another_way_serves(aligned_model, elsewhere, tmp_path, caplog):
    export_model(aligned_model, tmp_path / "m.zip", ExportOptions(without_reference=True))
    with caplog.at_level("WARNING", logger="biasreg"):
        folder = install_model(str(tmp_path / "m.zip"), elsewhere)
    assert "without reference.nii.gz, which prediction needs" in caplog.text
    (folder / "reference.nii.gz").write_bytes((aligned_model.folder / "reference.nii.gz").read_bytes())
    assert len(Predictor.from_model(find_model(elsewhere, ModelRequest()), CPU).networks) == 1


def test_what_was_installed_is_packed_again_to_the_same_bytes(archive, elsewhere, tmp_path):
    install_model(str(archive), elsewhere)
    options = ExportOptions(licence="CC-BY-4.0", date=DATE)
    export_model(find_model(elsewhere, ModelRequest()), tmp_path / "again.zip", options)
    assert (tmp_path / "again.zip").read_bytes() == archive.read_bytes()


def test_checkpoints_hold_no_optimiser_no_random_states_and_the_course(archive, elsewhere):
    folder = install_model(str(archive), elsewhere)
    checkpoint = load_checkpoint(folder / "fold_1" / "checkpoint_best.pth")
    assert (checkpoint.optimizer, checkpoint.averaged, checkpoint.random_states) == (None, None, {})
    assert (checkpoint.epochs_done, checkpoint.is_validated) == (2, True)
    assert checkpoint.progress["shared"]["scores"]["dice_after"] == pytest.approx(0.8)


def test_a_model_of_the_same_name_is_replaced_only_by_force(archive, elsewhere):
    folder = install_model(str(archive), elsewhere)
    (folder / "mine.txt").write_text("mine")
    with pytest.raises(ArchiveError, match=r"such a model already .* --force"):
        install_model(str(archive), elsewhere)
    assert (folder / "mine.txt").exists()
    install_model(str(archive), elsewhere, force=True)
    assert not (folder / "mine.txt").exists()
    assert (folder / "fold_0" / "checkpoint_best.pth").exists()
    assert [path.name for path in elsewhere.iterdir()] == ["Dataset901_Blobs"]


def test_a_model_comes_back_when_it_cannot_be_replaced(archive, elsewhere, monkeypatch):
    folder = install_model(str(archive), elsewhere)
    (folder / "mine.txt").write_text("mine")
    rename = Path.rename

    def fail(self, target):
        if self.name == "made":
            raise OSError("no more room")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(OSError, match="no more room"):
        install_model(str(archive), elsewhere, force=True)
    assert (folder / "mine.txt").read_text() == "mine"


def test_a_half_installed_model_is_never_found(archive, elsewhere, monkeypatch):
    found = []

    def look(path, checkpoint):
        save_checkpoint(path, checkpoint)
        with pytest.raises(Exception, match="there is no trained model"):
            find_model(elsewhere, ModelRequest())
        found.append(path)

    monkeypatch.setattr("biasreg.sharing.install_model.save_checkpoint", look)
    install_model(str(archive), elsewhere)
    assert len(found) == 2


def test_an_address_is_read_over_https_alone_and_a_file_address_serves(archive, elsewhere):
    with pytest.raises(ArchiveError, match="not taken over http://"):
        install_model("http://example.org/model.zip", elsewhere)
    assert install_model(archive.as_uri(), elsewhere).is_dir()


def test_a_download_that_fails_is_one_error_and_leaves_nothing(elsewhere, monkeypatch):
    def fail(request, timeout):
        raise TimeoutError("timed out")

    monkeypatch.setattr("biasreg.core.download._OPENER.open", fail)
    with pytest.raises(ArchiveError, match=r"could not be downloaded: timed out · https://example\.org/m\.zip"):
        install_model("https://example.org/m.zip", elsewhere)
    assert list(elsewhere.iterdir()) == []


@pytest.fixture
def adapted_model(configuration, write_model, tmp_path, monkeypatch):
    """A model that adapts a tiny VoCo-B, with adapters that are not zero, in results where VoCo is installed."""
    monkeypatch.setitem(VOCO_ENCODERS, "voco_b", VocoEncoder("VoCo-B", "VoCo_B_SSL_head.pt", 4, (2,), (2,), 2))
    torch.manual_seed(3)
    torch.save(SwinEncoder(1, 4, (2,), (2,), 2).state_dict(), tmp_path / "voco.pt")
    results = tmp_path / "results"
    install_pretrained(str(tmp_path / "voco.pt"), results)
    encoder = EncoderPlans("swin", "voco_b", "lora", LoraPlans(2, 4.0, mlp=True), 4, (2,), (2,), 2, ((2, 2, 2),) * 2)
    adapted = replace(configuration, network=replace(configuration.network, encoder=encoder))
    folder = write_model(adapted)
    network = build_network(adapted.network)
    load_base(network.encoder, "voco_b", results)
    for name, parameter in network.named_parameters():
        if name.endswith(("lora_up", "residual.weight")):
            torch.nn.init.normal_(parameter, std=0.3)
    identity = Identity(
        "Dataset901_Blobs",
        "tiny",
        "main",
        adapted,
        None,
        RunSettings(0, 1, 1, 0, ""),
        installed_hash(results, "voco_b"),
    )
    progress = {"history": [], "best": None}
    save_checkpoint(folder / "fold_0" / "checkpoint_best.pth", capture(identity, progress, network, None))
    (folder / "dataset.json").write_text(
        '{"name": "Blobs", "channel_names": {"0": "MRI"}, "labels": {"background": 0}, "file_ending": ".nii.gz",'
        ' "pairing": "inter-subject"}'
    )
    return find_model(results, ModelRequest())


def displacement(model, draw_anatomy, make_grid):
    images = [[draw_anatomy(make_grid(name), (0, 0, 0))[0]] for name in ("RAS", "oblique")]
    return Predictor.from_model(model, CPU).register(*images).displacement


def test_adapters_travel_without_the_weights_that_they_adapt(
    adapted_model, elsewhere, tmp_path, draw_anatomy, make_grid, caplog
):
    export_model(adapted_model, tmp_path / "m.zip", ExportOptions())
    with caplog.at_level("WARNING", logger="biasreg"):
        folder = install_model(str(tmp_path / "m.zip"), elsewhere)
    assert "`biasreg_install_pretrained voco_b`" in caplog.text
    assert not any("qkv.weight" in name for name in load_checkpoint(folder / "fold_0" / "checkpoint_best.pth").network)
    assert "VoCo's own weights are not in the archive" in (folder / "MODEL_CARD.md").read_text()
    install_pretrained(str(tmp_path / "voco.pt"), elsewhere)
    expected = displacement(adapted_model, draw_anatomy, make_grid)
    assert np.abs(expected).max() > 0.01
    found = displacement(find_model(elsewhere, ModelRequest()), draw_anatomy, make_grid)
    np.testing.assert_array_equal(found, expected)


def test_merged_adapters_need_no_other_weights_and_predict_the_same(
    adapted_model, elsewhere, tmp_path, draw_anatomy, make_grid
):
    manifest = export_model(adapted_model, tmp_path / "m.zip", ExportOptions(merge_lora=True))
    folder = install_model(str(tmp_path / "m.zip"), elsewhere)
    assert manifest.merged
    assert "that licence holds for them" in (folder / "MODEL_CARD.md").read_text()
    found = displacement(find_model(elsewhere, ModelRequest()), draw_anatomy, make_grid)
    np.testing.assert_array_equal(found, displacement(adapted_model, draw_anatomy, make_grid))
