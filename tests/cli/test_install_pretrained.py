import pytest
import torch

from biasreg.cli.install_pretrained import main
from biasreg.network.encoder import SwinEncoder
from biasreg.planning.voco import VOCO_ENCODERS, VocoEncoder


@pytest.fixture
def weights(tmp_path, monkeypatch):
    monkeypatch.setitem(VOCO_ENCODERS, "voco_b", VocoEncoder("VoCo-B", "VoCo_B_SSL_head.pt", 4, (1,), (2,), 2))
    path = tmp_path / "VoCo_B_SSL_head.pt"
    torch.save(SwinEncoder(1, 4, (1,), (2,), 2).state_dict(), path)
    return path


def test_the_place_of_the_installed_file_is_printed(weights, tmp_path, capsys):
    results = tmp_path / "results"
    assert main([str(weights), "--results", str(results)]) == 0
    assert capsys.readouterr().out == f"{results / 'pretrained' / 'voco_b.pth'}\n"


def test_a_file_that_cannot_be_used_ends_with_code_2(weights, tmp_path, capsys):
    results = ["--results", str(tmp_path / "results")]
    assert main([str(weights), "--sha256", "1234", *results]) == 2
    assert "expected 1234" in capsys.readouterr().err
    assert main([str(tmp_path / "absent.pt"), *results]) == 2
    assert "error: there is no file of weights" in capsys.readouterr().err


def test_without_a_root_of_the_results_it_is_said_how_to_give_one(weights, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("BIASREG_ROOT", "biasreg_results"):
        monkeypatch.delenv(name, raising=False)
    assert main([str(weights)]) == 2
    assert "give --results" in capsys.readouterr().err
