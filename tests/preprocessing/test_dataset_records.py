import logging

import pytest

from biasreg.core.errors import PlansError
from biasreg.core.serialization import read_json, write_json
from biasreg.preprocessing.dataset_records import (
    PLANS_NAME,
    check_plans_name,
    read_fingerprint,
    read_plans,
    write_splits,
)

SUBJECTS = {f"c{number}": f"s{number // 2}" for number in range(8)}


@pytest.mark.parametrize(
    "text", ["{}", "[]", '{"schema_version": 0}', '{"schema_version": 2}', '{"schema_version": "1"}']
)
def test_records_of_another_version_are_refused_with_the_command_that_makes_them_anew(text, tmp_path):
    for name in ("dataset_fingerprint.json", "mine.json"):
        (tmp_path / name).write_text(text)
    with pytest.raises(PlansError, match=r"another version.*fingerprint.*biasreg_extract_fingerprint -d 501"):
        read_fingerprint(tmp_path, "501")
    with pytest.raises(PlansError, match=r"another version.*mine.*biasreg_plan_and_preprocess -d 501"):
        read_plans(tmp_path, "mine", "501")


def test_missing_records_are_named_with_their_command(tmp_path):
    with pytest.raises(PlansError, match=r"no fingerprint.*biasreg_extract_fingerprint -d 501"):
        read_fingerprint(tmp_path, "501")
    with pytest.raises(PlansError, match=r"no plans.*mine\.json.*biasreg_plan_and_preprocess -d 501"):
        read_plans(tmp_path, "mine", "501")


@pytest.mark.parametrize("name", ["biasregPlans", "gpu-24.v2", "8GB"])
def test_names_of_letters_and_digits_are_taken(name):
    check_plans_name(name)
    assert PLANS_NAME.fullmatch(name)


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../x", "a b", "ä", "-p", "dataset", "splits_final", "dataset_fingerprint"]
)
def test_other_names_are_refused(name):
    with pytest.raises(PlansError, match="cannot be the name of plans"):
        check_plans_name(name)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "splits_final.json"


def test_folds_that_a_user_made_are_kept_while_they_fit(path, caplog):
    mine = [{"train": ["c0", "c1", "c2", "c3"], "validation": ["c4", "c5", "c6", "c7"]}]
    write_json(path, mine)
    with caplog.at_level(logging.INFO):
        write_splits(path, SUBJECTS)
    assert read_json(path) == mine
    assert "folds kept" in caplog.text


@pytest.mark.parametrize(
    "folds",
    [
        [{"train": ["c0", "c1", "c2", "c3"], "validation": ["c4", "c5"]}],  # two cases are missing
        [{"train": ["c0", "c2", "c3"], "validation": ["c1", "c4", "c5", "c6", "c7"]}],  # a subject on both sides
        [{"train": ["c0"], "validation": ["c1", "c9"]}],  # an unknown case
        [{"train": "c0"}],
        {},
    ],
)
def test_folds_that_do_not_fit_are_made_anew_and_the_old_ones_kept_beside(folds, path, caplog):
    write_json(path, folds)
    with caplog.at_level(logging.WARNING):
        write_splits(path, SUBJECTS)
    assert "made anew" in caplog.text
    assert len(read_json(path)) == 4
    assert read_json(path.with_name("splits_final.json.bak")) == folds
