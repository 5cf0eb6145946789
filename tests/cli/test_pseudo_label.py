import json
import shutil
import subprocess
import sys

import pytest

from biasreg.cli.pseudo_label import main
from biasreg.core.dataset import read_dataset
from biasreg.preprocessing.pseudo_labels import PseudoLabelOptions
from biasreg.preprocessing.segmenter_choice import SegmenterOptions


@pytest.fixture
def maps(tiny_dataset, tmp_path):
    """Label maps of another program for all cases, two of which have none of their own any more."""
    shutil.copytree(tiny_dataset / "labelsTr", tmp_path / "maps")
    for name in ("c1", "c3"):
        (tiny_dataset / "labelsTr" / f"{name}.nii.gz").unlink()
    return tmp_path / "maps"


def test_label_maps_of_another_program_are_taken(tiny_dataset, maps, tmp_path, flags, capsys):
    (tmp_path / "map.json").write_text(json.dumps({"blob": 1}))
    arguments = ["-d", "700", "--from", str(maps), "--label_map", str(tmp_path / "map.json"), *flags]
    assert main(arguments) == 0
    assert [case.pseudo is not None for case in read_dataset(tiny_dataset).cases("Tr")] == [False, True, False, True]
    assert capsys.readouterr().out == ""
    record = tiny_dataset / "pseudo_labelsTr" / "c1.json"
    before = record.stat().st_mtime_ns
    assert main(arguments) == 0
    assert record.stat().st_mtime_ns == before
    assert main([*arguments, "--clean"]) == 0
    assert record.stat().st_mtime_ns != before


def test_every_option_reaches_the_function(tiny_dataset, tmp_path, flags, monkeypatch):
    asked = []
    monkeypatch.setattr(
        "biasreg.preprocessing.pseudo_labels.make_pseudo_labels",
        lambda roots, name, options: asked.append((roots.raw, name, options)),
    )
    options = [
        "--task",
        "total",
        "--fast",
        "-device",
        "cpu",
        "--roi_subset",
        "liver",
        "spleen",
        "--download",
        "--clean",
    ]
    assert main(["-d", "Tiny", *options, "--label_map", "m.json", *flags]) == 0
    ((raw, name, given),) = asked
    assert (raw, name) == (tmp_path / "raw", "Tiny")
    segmenter = SegmenterOptions("total", True, "cpu", True, ("liver", "spleen"), given.segmenter.label_map, None)
    assert given == PseudoLabelOptions(segmenter, clean=True)
    assert given.segmenter.label_map.name == "m.json"


def test_without_totalsegmentator_the_extra_is_named_in_one_line(maps, flags, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "totalsegmentator", None)
    assert main(["-d", "700", *flags]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: TotalSegmentator is not installed here")


@pytest.mark.parametrize("option", [["--task", "total"], ["--fast"], ["-device", "cpu"], ["--download"]])
def test_options_of_totalsegmentator_are_refused_with_label_maps(option, maps, flags, capsys):
    assert main(["-d", "700", "--from", str(maps), *option, *flags]) == 2
    assert "error: --from takes label maps as they are" in capsys.readouterr().err


def test_help_comes_without_torch():
    code = (
        "import sys\nfrom biasreg.cli.pseudo_label import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit as end:\n    assert end.code == 0\n"
        "assert not {'torch', 'SimpleITK', 'totalsegmentator'} & set(sys.modules)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "--roi_subset" in result.stdout
