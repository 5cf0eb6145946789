import pytest

from biasreg.core.errors import InputError
from biasreg.demo.run import DemoOptions, run_demo


def test_a_folder_that_cannot_be_written_to_is_refused_before_the_dataset_is_made(tmp_path, monkeypatch):
    monkeypatch.setattr("os.access", lambda path, mode: False)  # root may write everywhere
    with pytest.raises(InputError, match=r"nothing can be written to .*new: permission denied.* -o"):
        run_demo(tmp_path / "new", DemoOptions())
    assert list(tmp_path.iterdir()) == []


def test_an_earlier_demo_is_not_overwritten(tmp_path):
    (tmp_path / "raw").mkdir()
    with pytest.raises(InputError, match="earlier demo"):
        run_demo(tmp_path, DemoOptions())
