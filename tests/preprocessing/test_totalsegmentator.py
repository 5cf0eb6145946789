"""What biasreg does around TotalSegmentator, with a stand-in; tests/interoperability runs the real one."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest

from biasreg.core.dataset import Case
from biasreg.core.errors import BiasregError, ImageError, InputError, WeightsError
from biasreg.core.geometry import Geometry
from biasreg.core.image_io import Image
from biasreg.preprocessing.totalsegmentator import intensities_for_rounding, open_totalsegmentator

GRID = Geometry.centered((6, 5, 4), (2.0, 2.0, 2.0))
RAMP = np.arange(120, dtype=np.float32).reshape(GRID.shape) * 10 - 600
CT = Image(RAMP, GRID)

# The parts of TotalSegmentator's modules that biasreg calls, with the same meaning.
MODULES = {
    "__init__": "",
    "bin/__init__": "",
    "map_to_binary": """
class_map = {"total": {1: "spleen", 2: "liver"}, "total_mr": {1: "spleen"}, "face": {1: "face"}, "teeth": {1: "tooth"}}
""",
    "map_tasks_config": """
TASK_CONFIGS = {"total": {}, "total_mr": {}, "face": {}, "teeth": {}}
TASK_ID_WEIGHTS_CONFIGS = {
    number: {"foldername": f"Dataset{number}_x", "rel_path": "sub" if number == 303 else None}
    for number in (291, 292, 297, 298, 303, 850, 852, 113)
}
""",
    "bin/totalseg_download_weights": """
TASK_TO_ID = {"total": [291, 292, 298], "total_fast": [297, 298], "total_mr": [850], "total_fast_mr": [852]}
""",
    "config": """
import json, os
from pathlib import Path
def get_totalseg_dir():
    return Path(os.environ["TOTALSEG_HOME_DIR"])
def get_weights_dir():
    return Path(os.environ.get("TOTALSEG_WEIGHTS_PATH") or get_totalseg_dir() / "nnunet/results")
def get_config():
    path = get_totalseg_dir() / "config.json"
    return json.loads(path.read_text()) if path.exists() else {}
def get_license_number():
    return get_config().get("license_number", "")
""",
    "python_api": """
import sys
import numpy as np, nibabel
from totalsegmentator import config
from totalsegmentator.map_tasks_config import TASK_ID_WEIGHTS_CONFIGS
CALLS, FAIL = [], []
def download_pretrained_weights(number):
    CALLS.append(("download", number))
    folder = config.get_weights_dir() / TASK_ID_WEIGHTS_CONFIGS[number]["foldername"] / "t" / "fold_0"
    if FAIL:
        raise ConnectionError("no route to host")
    folder.mkdir(parents=True)
    (folder / "checkpoint_final.pth").write_bytes(b"weights")
def get_task_config(task, fast=False, quiet=False):
    plan = {"crop": None, "crop_model": None, "cascade": None, "robust_crop": False}
    if task == "face" and not config.get_license_number():
        print("It requires a license.")
        sys.exit(1)
    if task == "face" and fast:
        raise ValueError("task face does not work with option --fast")
    if task == "teeth":
        return plan | {"task_id": 113, "crop": ["x"], "crop_model": "total_mr"}
    return plan | {"task_id": {"total": 297 if fast else [291, 292], "total_mr": [850], "face": 303}[task]}
def totalsegmentator(image, output, **options):
    print("If you use this tool please cite")
    CALLS.append(("segment", options, config.get_config(), image.affine))
    if FAIL:
        raise FAIL[0]
    if options["roi_subset"]:
        download_pretrained_weights(298)
    return nibabel.Nifti1Image((np.asarray(image.dataobj) > 0).astype(np.uint8) * 2, image.affine)
""",
}


@pytest.fixture
def api(tmp_path, monkeypatch):
    """Stand-in for the package; returns its module `python_api`."""
    for name, text in MODULES.items():
        path = tmp_path / "site" / "totalsegmentator" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    metadata = tmp_path / "site" / "TotalSegmentator-2.18.0.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text("Metadata-Version: 2.1\nName: TotalSegmentator\nVersion: 2.18.0\n")
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("TOTALSEG_HOME_DIR", str(tmp_path / "home"))
    monkeypatch.delenv("TOTALSEG_WEIGHTS_PATH", raising=False)
    real = [name for name in sys.modules if name.partition(".")[0] == "totalsegmentator"]
    for name in real:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path / "site")
    from totalsegmentator import python_api  # noqa: PLC0415  it exists only now

    yield python_api
    for name in [name for name in sys.modules if name.partition(".")[0] == "totalsegmentator"]:
        del sys.modules[name]


@pytest.fixture
def weights(tmp_path):
    def make(*numbers):
        for number in numbers:
            folder = tmp_path / "home" / "nnunet" / "results" / f"Dataset{number}_x" / "trainer" / "fold_0"
            folder.mkdir(parents=True)
            (folder / "checkpoint_final.pth").write_text(str(number))

    return make


def case(modality="CT"):
    return Case("a", "a", modality, (Path("a_0000.nii.gz"),), None, None, None)


def opened(task="total", device="cpu", fast=False, download=False):
    return open_totalsegmentator(task, device, fast=fast, download=download)


def test_a_task_knows_its_classes_and_itself(api):
    segmenter = opened(fast=True)
    assert segmenter.classes == {"spleen": 1, "liver": 2}
    record = segmenter.record
    assert (record.name, record.version, record.task) == ("TotalSegmentator", "2.18.0", "total")
    assert record.settings == {"fast": "true"}
    assert segmenter.source(case()) is None


def test_without_the_package_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "totalsegmentator", None)
    with pytest.raises(
        InputError, match=r"not installed here.* pip install -c constraints\.txt 'biasreg\[pseudolabels\]'"
    ):
        opened()


def test_an_unknown_task_is_refused_with_those_like_it(api):
    with pytest.raises(InputError, match="no task 'totl_mr' · give --task one of its tasks, like total_mr"):
        opened("totl_mr")


@pytest.mark.parametrize("device", ["gpu:99", "cuda:99", "tpu"])
def test_a_device_that_is_not_there_is_refused(api, weights, device):
    weights(297)
    with pytest.raises(InputError, match="is not available here"):
        opened(device=device, fast=True).prepare(["liver"])


def test_missing_weights_are_one_error_that_says_which_file_goes_where(api, weights, tmp_path):
    weights(291)
    with pytest.raises(WeightsError) as error:
        opened().prepare(["liver"])
    text = str(error.value)
    assert text.startswith("weights of TotalSegmentator are missing: Dataset292_x, Dataset298_x · ")
    assert f"{tmp_path / 'home' / 'nnunet' / 'results'} must hold <each of them>/" in text
    assert "/fold_0/checkpoint_final.pth · run `totalseg_download_weights -t total`" in text
    assert "--download" in text
    assert api.CALLS == []


def test_the_weights_of_the_model_that_crops_are_looked_for_too(api):
    for task, needed in (("total_mr", "Dataset850_x"), ("teeth", "Dataset113_x, Dataset850_x")):
        with pytest.raises(WeightsError, match=f"are missing: {needed} ·"):
            opened(task).prepare(opened(task).classes)


def test_where_all_is_there_the_checkpoints_are_hashed_and_nothing_is_downloaded(api, weights):
    weights(297)
    hashes = opened(fast=True).prepare(["liver"])
    assert list(hashes) == ["Dataset297_x/fold_0"]
    assert len(hashes["Dataset297_x/fold_0"]) == 64
    assert api.CALLS == []


def test_weights_are_downloaded_only_where_that_is_allowed(api, weights, tmp_path):
    weights(291)
    assert list(opened(download=True).prepare(["liver"])) == [f"Dataset{n}_x/fold_0" for n in (291, 292, 298)]
    assert api.CALLS == [("download", 292), ("download", 298)]


def test_a_download_that_fails_says_where_the_weights_belong(api):
    api.FAIL.append(1)
    with pytest.raises(
        WeightsError, match=r"could not be downloaded: no route to host · they belong in .*Dataset297_x"
    ):
        opened(fast=True, download=True).prepare(["liver"])


def test_a_task_under_licence_asks_for_a_number_and_takes_the_users(api, tmp_path, capsys):
    with pytest.raises(WeightsError, match=r"needs a licence number, .*`totalseg_set_license -l NUMBER`"):
        opened("face").prepare(["face"])
    (tmp_path / "home" / "config.json").write_text('{"license_number": "aca_123"}')
    with pytest.raises(WeightsError, match=r"Dataset303_x · .*results/sub must hold"):
        opened("face").prepare(["face"])
    with pytest.raises(InputError, match=r"refuses task 'face': .* · leave --fast out"):
        opened("face", fast=True).prepare(["face"])
    assert capsys.readouterr().out == ""


def test_it_runs_with_statistics_off_and_leaves_the_users_settings_alone(api, weights, tmp_path, capsys):
    weights(297)
    settings = tmp_path / "home" / "config.json"
    settings.write_text('{"send_usage_stats": true, "prediction_counter": 7, "license_number": "aca_123"}')
    before = settings.read_bytes()
    result = opened(fast=True).segment(case(), CT, ["liver"])
    np.testing.assert_array_equal(result.array, (RAMP > 0) * 2)
    ((_, options, seen, affine),) = api.CALLS
    assert seen["send_usage_stats"] is False
    assert seen["license_number"] == "aca_123"
    assert (options["task"], options["fast"], options["device"], options["ml"]) == ("total", True, "cpu", True)
    np.testing.assert_allclose(affine, GRID.affine)
    assert settings.read_bytes() == before
    assert capsys.readouterr().out == ""


def test_only_the_wanted_classes_are_asked_for_where_that_spares_work(api, weights):
    weights(291, 292, 297, 298)
    for fast, classes in ((True, ["liver"]), (False, ["liver", "spleen"])):
        opened(fast=fast).segment(case(), CT, classes)
        assert api.CALLS.pop()[1]["roi_subset"] is None
    api.download_pretrained_weights = lambda number: None  # it is there
    opened().segment(case(), CT, ["liver"])
    assert api.CALLS[0][1]["roi_subset"] == ["liver"]


def test_a_download_in_the_middle_of_a_run_is_an_error_instead(api):
    with pytest.raises(WeightsError, match="are missing: Dataset298_x"):
        opened().segment(case(), CT, ["liver"])
    assert [call[0] for call in api.CALLS] == ["segment"]


@pytest.mark.parametrize("failure", [RuntimeError("CUDA out of memory"), SystemExit("ERROR: no input")])
def test_its_failures_name_the_image_and_what_it_printed(api, failure):
    api.FAIL.append(failure)
    with pytest.raises(BiasregError) as error:
        opened(fast=True).segment(case(), CT, ["liver"])
    assert f"{type(failure).__name__}: {failure} (it printed: If you use this tool please cite)" in str(error.value)
    assert "a_0000.nii.gz" in str(error.value)


def test_the_environment_is_as_it_was_after_a_failure(api, tmp_path, monkeypatch):
    api.FAIL.append(RuntimeError("x"))
    with pytest.raises(BiasregError):
        opened(fast=True).segment(case(), CT, ["liver"])
    assert os.environ["TOTALSEG_HOME_DIR"] == str(tmp_path / "home")
    assert "TOTALSEG_WEIGHTS_PATH" not in os.environ


def test_intensities_without_unit_are_stretched_so_that_rounding_does_not_wipe_them_out():
    small = (RAMP - RAMP.min()) / np.ptp(RAMP)
    stretched, (notice,) = intensities_for_rounding(small, case("MRI"))
    np.testing.assert_allclose(stretched, small * 1000, rtol=1e-5)
    assert "stretched from 0..1 to 0..1000" in notice
    same, notices = intensities_for_rounding(RAMP, case("MRI"))
    assert same is RAMP
    assert notices == ()


def test_a_ct_that_is_not_in_hounsfield_units_is_refused():
    with pytest.raises(ImageError, match="values from 0 to 1 are no Hounsfield units"):
        intensities_for_rounding((RAMP - RAMP.min()) / np.ptp(RAMP), case("CT"))
