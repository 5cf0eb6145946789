import pytest

from biasreg.core.errors import WeightsError
from biasreg.core.serialization import write_record
from biasreg.planning.voco import (
    VOCO_ENCODERS,
    InstalledEncoder,
    installed_encoders,
    installed_hash,
    read_installed,
    weights_path,
)

RECORD = InstalledEncoder("a" * 64, 137, "VoCo_L_SSL_head.pt", "b" * 64, "2025-11-23T00:00:00+00:00")


def test_an_encoder_is_installed_once_weights_and_record_are_there(tmp_path):
    assert installed_encoders(tmp_path) == {}
    path = weights_path(tmp_path, "voco_l")
    path.parent.mkdir()
    path.touch()
    assert installed_encoders(tmp_path) == {}
    write_record(path.with_suffix(".json"), RECORD)
    assert installed_encoders(tmp_path) == {"voco_l": path}
    assert read_installed(tmp_path, "voco_l") == RECORD
    assert installed_hash(tmp_path, "voco_l") == "a" * 64


def test_an_encoder_that_is_not_installed_names_the_file_its_place_and_the_command(tmp_path):
    with pytest.raises(WeightsError) as error:
        installed_hash(tmp_path, "voco_b")
    for part in (
        "voco_b.pth",
        "biasreg_install_pretrained voco_b",
        "VoCo_B_SSL_head.pt from https://huggingface.co/Luffy503/VoCo",
    ):
        assert part in str(error.value)
    assert installed_hash(tmp_path, "scratch") is None


def test_the_sizes_differ_by_width_alone():
    assert [voco.feature_size for voco in VOCO_ENCODERS.values()] == [48, 96, 192]
    assert len({voco[3:] for voco in VOCO_ENCODERS.values()}) == 1
