import json

import pytest

from biasreg.core.errors import PlansError, RecordError
from biasreg.core.serialization import to_json, write_record
from biasreg.planning.files import command_line, read_dataset_plans, read_folds, read_plans
from biasreg.planning.plans import PLANS_SCHEMA_VERSION, Plans

PLANS = Plans(PLANS_SCHEMA_VERSION, "mine", "Dataset501_Tiny", "0", "cpu", 8.0, "inter-subject", "main", {}, {})


@pytest.mark.parametrize("version", [None, 0, 99, "1"])
def test_plans_of_another_version_are_refused_with_both_versions_and_the_remedy(version, tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({} if version is None else {"schema_version": version}))
    message = (
        rf"another version of biasreg: schema version {version}, this biasreg reads version \d+ · .*mine\.json · again"
    )
    with pytest.raises(PlansError, match=message):
        read_plans(path, "again")


def test_missing_plans_are_named_with_the_remedy(tmp_path):
    with pytest.raises(PlansError, match=r"no plans 'mine' · .*mine\.json · make it"):
        read_plans(tmp_path / "mine.json", "make it")


@pytest.mark.parametrize("text", ["[]", "7"])
def test_plans_that_are_no_object_are_refused(text, tmp_path):
    (tmp_path / "mine.json").write_text(text)
    with pytest.raises(PlansError, match="schema version None"):
        read_plans(tmp_path / "mine.json", "")


def test_plans_of_a_dataset_are_read_by_name_and_missing_ones_bring_their_command(tmp_path):
    write_record(tmp_path / "mine.json", PLANS)
    assert read_dataset_plans(tmp_path, "mine", "501") == PLANS
    with pytest.raises(PlansError, match=r"no plans 'other'.*run `biasreg_plan_and_preprocess -d 501 -p other`"):
        read_dataset_plans(tmp_path, "other", "501")


def test_copied_plans_that_keep_their_old_name_are_refused(tmp_path):
    write_record(tmp_path / "copy.json", PLANS)
    with pytest.raises(PlansError, match=r"called 'mine', their file 'copy' · .*copy\.json · give both one name"):
        read_dataset_plans(tmp_path, "copy", "501")


def test_folds_are_read_and_damaged_ones_named(tmp_path):
    path = tmp_path / "splits_final.json"
    path.write_text('[{"train": ["a"], "validation": ["b"]}]')
    assert to_json(read_folds(path)) == json.loads(path.read_text())
    path.write_text('[{"train": "a", "val": []}]')
    with pytest.raises(RecordError, match=r"(?s)splits_final\.json: 3 faults.*\[0\]\.train: expected a list"):
        read_folds(path)


def test_commands_name_the_plans_unless_they_are_the_default_ones():
    assert command_line("biasreg_preprocess", "501") == "biasreg_preprocess -d 501"
    assert command_line("biasreg_preprocess", "501", "biasregPlans") == "biasreg_preprocess -d 501"
    assert command_line("biasreg_preprocess", "My data", "mine") == "biasreg_preprocess -d 'My data' -p mine"
