import logging

import numpy as np
import pytest

from biasreg.core.dataset import read_dataset
from biasreg.core.errors import DatasetError, PlansError
from biasreg.core.geometry import Geometry
from biasreg.core.image_io import write_image
from biasreg.core.serialization import read_json, write_json
from biasreg.planning.fingerprint import FINGERPRINT_SCHEMA_VERSION
from biasreg.preprocessing.dataset_records import (
    PLANS_NAME,
    check_plans_name,
    read_fingerprint,
    settle_folds,
    write_folds,
)


def test_a_missing_fingerprint_or_one_of_another_version_is_refused_with_the_remedy(tmp_path):
    path = tmp_path / "dataset_fingerprint.json"
    with pytest.raises(PlansError, match=r"no fingerprint · .*fingerprint\.json · make it"):
        read_fingerprint(path, "make it")
    for text in ("{}", "[]", '{"schema_version": 0}', '{"schema_version": "1"}'):
        path.write_text(text)
        expected = rf"this biasreg reads version {FINGERPRINT_SCHEMA_VERSION} · .*fingerprint\.json · make it"
        with pytest.raises(PlansError, match=expected):
            read_fingerprint(path, "make it")


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


@pytest.fixture
def make_dataset(tmp_path):
    """Return a function that writes a dataset of eight cases, two of each of four subjects."""

    def make(subjects=None, **changes):
        folder = tmp_path / "Dataset700_Tiny"
        subjects = {f"c{number}": f"s{number // 2}" for number in range(8)} if subjects is None else subjects
        for number in range(8):
            image = np.arange(8.0).reshape(2, 2, 2)
            write_image(folder / "imagesTr" / f"c{number}.nii.gz", image, Geometry.centered((2, 2, 2), (1, 1, 1)))
        content = {"name": "Tiny", "channel_names": {"0": "MRI"}, "labels": {"background": 0}, "subjects": subjects}
        content |= {"file_ending": ".nii.gz", "pairing": "inter-subject"}
        write_json(folder / "dataset.json", content | changes)
        return read_dataset(folder)

    return make


def test_folds_are_settled_without_writing_them(path, make_dataset):
    folds = settle_folds(path, make_dataset())
    assert len(folds) == 4
    assert not path.exists()
    write_folds(path, folds)
    assert settle_folds(path, make_dataset()) == folds


def test_folds_that_a_user_made_are_kept_while_they_fit(path, make_dataset, caplog):
    mine = [{"train": ["c0", "c1", "c2", "c3"], "validation": ["c4", "c5", "c6", "c7"]}]
    write_json(path, mine)
    with caplog.at_level(logging.INFO):
        write_folds(path, settle_folds(path, make_dataset()))
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
def test_folds_that_do_not_fit_are_made_anew_and_the_old_ones_kept_beside(folds, path, make_dataset, caplog):
    write_json(path, folds)
    with caplog.at_level(logging.WARNING):
        write_folds(path, settle_folds(path, make_dataset()))
    assert "made anew" in caplog.text
    assert len(read_json(path)) == 4
    assert read_json(path.with_name("splits_final.json.bak")) == folds


def test_folds_that_were_kept_beside_are_never_lost(path, make_dataset):
    old = [[{"train": ["c0"], "validation": [f"c{number}"]}] for number in (1, 2, 3)]
    for folds in old:
        write_json(path, folds)
        write_folds(path, settle_folds(path, make_dataset()))
    kept = [read_json(path.with_name(f"splits_final.json.bak{number}")) for number in ("", "2", "3")]
    assert kept == old


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"subjects": {f"c{number}": "s" for number in range(8)}}, r"1 subject\(s\) cannot be split"),
        ({"subjects": {}, "pairing": "intra-subject"}, "fold 0 of 5 cannot be trained: .*two cases of one subject"),
        (
            {"pairing": "listed", "pairs": [{"moving": "c0", "fixed": "c2"}]},
            "cannot be trained: .*needs a listed pair",
        ),
    ],
)
def test_a_dataset_whose_folds_could_not_be_trained_is_refused(changes, message, path, make_dataset):
    with pytest.raises(DatasetError, match=message):
        settle_folds(path, make_dataset(**changes))


def test_folds_of_a_user_that_could_not_be_trained_are_refused_with_their_file(path, make_dataset):
    rest = [f"c{number}" for number in range(2, 8)]
    write_json(path, [{"train": ["c0", "c1"], "validation": rest}, {"train": rest, "validation": ["c0", "c1"]}])
    with pytest.raises(DatasetError, match=r"splits_final\.json: fold 0 of 2 cannot be trained"):
        settle_folds(path, make_dataset())
