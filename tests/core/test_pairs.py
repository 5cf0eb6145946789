import json
import logging
import re
from pathlib import Path

import pytest

from biasreg.core.errors import DatasetError
from biasreg.core.pairs import PairFiles, read_pairs

REAL_DATA = Path(__file__).resolve().parents[3] / "shared" / "data"


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def pairs_of(source):
    found = read_pairs(source)
    assert found.faults == {}
    return found.pairs


@pytest.mark.parametrize("suffix", ["", "_0000"])
def test_a_flat_folder_gives_its_pairs_by_name(suffix, tmp_path):
    touch(tmp_path, *(f"{pair}_{role}{suffix}.nii.gz" for pair in ("p_2", "p_1") for role in ("moving", "fixed")))
    touch(tmp_path, "p_1_moving_seg.nii.gz", "p_1_fixed_seg.nii.gz", "p_1_moving_points.csv", "p_1_fixed_points.csv")
    touch(tmp_path, "p_1_fixed_mask.nii.gz", ".hidden_moving.nii.gz", "notes.txt")
    first, second = pairs_of(tmp_path)
    assert first == PairFiles(
        identifier="p_1",
        moving=(tmp_path / f"p_1_moving{suffix}.nii.gz",),
        fixed=(tmp_path / f"p_1_fixed{suffix}.nii.gz",),
        moving_seg=tmp_path / "p_1_moving_seg.nii.gz",
        fixed_seg=tmp_path / "p_1_fixed_seg.nii.gz",
        moving_points=tmp_path / "p_1_moving_points.csv",
        fixed_points=tmp_path / "p_1_fixed_points.csv",
        fixed_mask=tmp_path / "p_1_fixed_mask.nii.gz",
    )
    assert (second.identifier, second.moving_seg, second.fixed_mask) == ("p_2", None, None)


def test_channels_come_in_order(tmp_path):
    touch(tmp_path, *(f"p_{role}_{number:04d}.mha" for role in ("moving", "fixed") for number in (1, 0)))
    (pair,) = pairs_of(tmp_path)
    assert [path.name for path in pair.moving] == ["p_moving_0000.mha", "p_moving_0001.mha"]


def test_a_sub_folder_per_pair_is_named_by_the_folder(tmp_path):
    touch(tmp_path, "p1/moving.nii.gz", "p1/fixed.nii.gz", "p1/moving_seg.nii.gz", "p1/fixed_points.csv")
    touch(tmp_path, "p2/moving_T1.nii", "p2/fixed-ct.nii", "p3/moving_0000.nii.gz", "p3/fixed_0000.nii.gz")
    first, second, third = pairs_of(tmp_path)
    assert (first.identifier, second.identifier, third.identifier) == ("p1", "p2", "p3")
    assert first.moving_seg == tmp_path / "p1" / "moving_seg.nii.gz"
    assert first.fixed_points == tmp_path / "p1" / "fixed_points.csv"
    assert second.fixed == (tmp_path / "p2" / "fixed-ct.nii",)


@pytest.mark.parametrize("ending", [".tfm", ".mat", ".h5", ".txt"])
def test_a_transform_of_the_user_belongs_to_its_pair_in_every_form(ending, tmp_path):
    flat, folders, listed = tmp_path / "flat", tmp_path / "folders", tmp_path / "listed"
    touch(flat, "p_moving.nii.gz", "p_fixed.nii.gz", f"p_initial{ending}", "q_moving.nii.gz", "q_fixed.nii.gz")
    first, second = pairs_of(flat)
    assert (first.initial, second.initial) == (flat / f"p_initial{ending}", None)
    touch(folders, "p/moving.nii.gz", "p/fixed.nii.gz", f"p/initial{ending}", f"p/moving_notes{ending}")
    (pair,) = pairs_of(folders)
    assert pair.initial == folders / "p" / f"initial{ending}"
    touch(listed, "m.nii.gz", "f.nii.gz", f"t{ending}")
    (listed / "a.csv").write_text(f"id,moving,fixed,initial\np,m.nii.gz,f.nii.gz,t{ending}\nq,m.nii.gz,f.nii.gz,\n")
    (listed / "b.json").write_text(json.dumps([{"moving": "m.nii.gz", "fixed": "f.nii.gz", "initial": f"t{ending}"}]))
    assert [pair.initial for pair in pairs_of(listed / "a.csv")] == [listed / f"t{ending}", None]
    assert [pair.initial for pair in pairs_of(listed / "b.json")] == [listed / f"t{ending}"]


def test_faulty_names_of_transforms_are_reported(tmp_path, caplog):
    touch(tmp_path, "p_moving.nii.gz", "p_fixed.nii.gz", "p_initial.tfm", "p_initial.mat")
    touch(tmp_path, "q_moving.nii.gz", "q_fixed.nii.gz", "q_inital.mat", "q_initial.nii.gz", "r_initial.h5")
    found = read_pairs(tmp_path)
    assert [pair.identifier for pair in found.pairs] == ["q"]
    assert found.faults["p"] == "p_initial.mat and p_initial.tfm are the same file of the pair (initial); keep one"
    assert "there is no moving image (seen: r_initial.h5)" in found.faults["r"]
    assert "belong to no pair and are not used: q_inital.mat, q_initial.nii.gz" in caplog.text


def test_a_listed_transform_that_is_missing_fails_its_pair(tmp_path):
    touch(tmp_path, "m.nii.gz", "f.nii.gz")
    (tmp_path / "pairs.csv").write_text("moving,fixed,initial\nm.nii.gz,f.nii.gz,t.tfm\n")
    with pytest.raises(DatasetError, match=r"there is no file .*t\.tfm"):
        read_pairs(tmp_path)


def test_images_without_a_pair_are_named_in_a_warning(tmp_path, caplog):
    touch(tmp_path, "p_moving.nii.gz", "p_fixed.nii.gz", "p_other.nii.gz", "out/p_warped.nii.gz")
    with caplog.at_level(logging.WARNING):
        assert len(pairs_of(tmp_path)) == 1
    assert "p_other.nii.gz" in caplog.text
    assert "p_warped.nii.gz" in caplog.text


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["p_moving.nii.gz", "q_fixed.nii.gz"], r"pair p: there is no fixed image \(seen: p_moving\.nii\.gz\)"),
        (["p_moving.nii.gz", "p_fixed.nii", "p_fixed.nii.gz"], r"p_fixed\.nii and p_fixed\.nii\.gz are the same"),
        (["p_moving.nii.gz", "p_moving_0000.nii.gz", "p_fixed.nii.gz"], "are the same file of the pair"),
        (["p_moving_0001.nii.gz", "p_fixed.nii.gz"], "channels of moving must be numbered _0000, _0001"),
        (["p_moving_0000.nii", "p_moving_0001.nii", "p_fixed.nii"], "moving has 2 channels and fixed 1"),
        (["p/moving_seg.nii", "p/fixed.nii"], "pair p: there is no moving image"),
        (["p/moving.nii", "p/moving_T2.nii", "p/fixed.nii"], r"moving\.nii and moving_T2\.nii are the same"),
        (["p_Moving.nii.gz", "p_fixed.nii.gz"], r"p_Moving\.nii\.gz: 'Moving' must be written 'moving'; rename"),
        (["p/moving.nii.gz", "p/FIXED_T1.nii.gz"], r"FIXED_T1\.nii\.gz: 'FIXED' must be written 'fixed'"),
        (["p_moving.nii", "p_fixed.nii", "p_Fixed_seg.nii"], "'Fixed_seg' must be written 'fixed_seg'"),
        (["summary_moving.nii.gz", "summary_fixed.nii.gz"], "names of an evaluation's files; rename the pair"),
        (["Scores/moving.nii.gz", "Scores/fixed.nii.gz"], "names of an evaluation's files; rename the pair"),
    ],
)
def test_a_pair_that_is_not_right_is_a_fault_beside_others_and_an_error_alone(names, message, tmp_path):
    touch(tmp_path, *names)
    with pytest.raises(DatasetError, match=message):
        read_pairs(tmp_path)
    touch(tmp_path, "z_moving.nii", "z_fixed.nii")
    found = read_pairs(tmp_path)
    assert [pair.identifier for pair in found.pairs] == ["z"]
    assert any(re.search(message.removeprefix("pair p: "), fault) for fault in found.faults.values())


def test_a_sub_folder_without_images_is_a_fault_where_the_others_are_pairs(tmp_path):
    touch(tmp_path, "p1/moving.nii.gz", "p1/fixed.nii.gz", "p3/notes.txt", "p4/moving.nii.gz")
    (tmp_path / "p2").mkdir()
    found = read_pairs(tmp_path)
    assert [pair.identifier for pair in found.pairs] == ["p1"]
    assert set(found.faults) == {"p2", "p3", "p4"}
    assert "its folder holds no image; put moving and fixed there" in found.faults["p2"]


def test_an_empty_folder_beside_a_flat_layout_and_files_of_other_kinds_are_ignored(tmp_path, caplog):
    touch(tmp_path, "p_moving.nii.gz", "p_fixed.nii.gz", "README.txt", ".DS_Store", "_moving.docx")
    (tmp_path / "out").mkdir()
    assert len(pairs_of(tmp_path)) == 1
    assert caplog.text == ""


def test_images_of_formats_that_are_not_read_are_named_in_the_warning(tmp_path, caplog):
    touch(tmp_path, "p_moving.nii.gz", "p_fixed.nii.gz", "q_moving.mgz", "q_fixed.mgz")
    assert len(pairs_of(tmp_path)) == 1
    assert len(caplog.records) == 1
    assert "q_fixed.mgz, q_moving.mgz" in caplog.text


def test_a_folder_without_pairs_is_refused_with_what_was_seen(tmp_path):
    with pytest.raises(DatasetError, match=r"seen: nothing.*use <pair>_moving"):
        read_pairs(tmp_path)
    touch(tmp_path, *(f"scan{number:02d}.nii.gz" for number in range(20)))
    with pytest.raises(DatasetError, match=r"seen: scan00\.nii\.gz, .* and 8 more"):
        read_pairs(tmp_path)
    with pytest.raises(DatasetError, match="no such file or folder"):
        read_pairs(tmp_path / "none")


@pytest.mark.parametrize("by_folder", [True, False])
def test_a_json_list_names_files_relative_to_itself(by_folder, tmp_path):
    touch(tmp_path, "a/one_0000.nii.gz", "two.nii.gz", "two_seg.nii.gz", "two.csv")
    entries = [
        {"moving": "a/one_0000.nii.gz", "fixed": "two.nii.gz", "fixed_seg": "two_seg.nii.gz"},
        {
            "id": "back",
            "moving": ["two.nii.gz"],
            "fixed": [str(tmp_path / "a/one_0000.nii.gz")],
            "moving_points": "two.csv",
        },
    ]
    (tmp_path / "pairs.json").write_text(json.dumps(entries))
    first, second = pairs_of(tmp_path if by_folder else tmp_path / "pairs.json")
    assert first.identifier == "one_to_two"
    assert first.moving == (tmp_path / "a" / "one_0000.nii.gz",)
    assert (first.moving_seg, first.fixed_seg) == (None, tmp_path / "two_seg.nii.gz")
    assert second.identifier == "back"
    assert second.fixed == first.moving
    assert second.moving_points == tmp_path / "two.csv"


def test_a_csv_list_names_files_and_channels(tmp_path):
    touch(tmp_path, "a0.nii", "a1.nii", "b0.nii", "b1.nii", "s.nii")
    (tmp_path / "pairs.csv").write_text(
        "id,moving,fixed,moving_seg\nx,a0.nii; a1.nii,b0.nii;b1.nii,\ny,a0.nii,b0.nii,s.nii\n"
    )
    first, second = pairs_of(tmp_path / "pairs.csv")
    assert [path.name for path in first.moving] == ["a0.nii", "a1.nii"]
    assert first.moving_seg is None
    assert second.moving_seg == tmp_path / "s.nii"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("pairs.json", "[]", "lists no pair"),
        ("pairs.json", "{}", "expected a list"),
        ("pairs.json", '[{"moving": "a.nii"}]', r"pairs\.json: \[0\]\.fixed: this field is missing"),
        ("pairs.json", '[{"moving": "a.nii", "fixed": "b.nii", "mask": "c"}]', r"\[0\]\.mask: unknown field"),
        ("pairs.json", '[{"moving": "a.nii", "fixed": "c.nii"}]', r"pair a_to_c: there is no file .*c\.nii"),
        ("pairs.json", '[{"moving": [], "fixed": "b.nii"}]', "must each name at least one file"),
        ("pairs.json", '[{"moving": ["a.nii", "b.nii"], "fixed": "b.nii"}]', "moving has 2 channels and fixed 1"),
        ("pairs.json", '[{"id": "x/y", "moving": "a.nii", "fixed": "b.nii"}]', "id names files"),
        ("pairs.json", '[{"moving": "a.nii", "fixed": "b.nii"}, {"moving": "a.nii", "fixed": "b.nii"}]', "a_to_b"),
        ("pairs.json", "[", "not valid JSON"),
        ("pairs.csv", "moving,fixed\n", "lists no pair"),
        ("pairs.csv", "moving,fixed\na.nii,\n", r"line 2: fixed: this field is missing"),
        ("pairs.csv", "moving,fixed\na.nii,b.nii,c.nii\n", "line 2: has more cells than the header"),
        ("pairs.csv", "moving;fixed\na.nii;b.nii\n", "columns are separated by ';', but commas are needed"),
        ("pairs.csv", "moving\tfixed\na.nii\tb.nii\n", "columns are separated by tabs, but commas are needed"),
        ("pairs.txt", "a b", r"a list of pairs is a \.json or \.csv file"),
    ],
)
def test_faulty_lists_are_refused(name, text, message, tmp_path):
    touch(tmp_path, "a.nii", "b.nii")
    (tmp_path / name).write_text(text)
    with pytest.raises(DatasetError, match=message) as error:
        read_pairs(tmp_path / name)
    assert name in str(error.value)


def test_blanks_around_the_cells_of_a_csv_list_do_not_matter(tmp_path):
    touch(tmp_path, "a.nii", "b.nii")
    (tmp_path / "pairs.csv").write_text('id, moving , fixed\nx, "a.nii", b.nii \n')
    (pair,) = pairs_of(tmp_path)
    assert (pair.moving, pair.fixed) == ((tmp_path / "a.nii",), (tmp_path / "b.nii",))


def test_a_listed_pair_whose_file_is_missing_does_not_hide_the_others(tmp_path):
    touch(tmp_path, "a.nii", "b.nii")
    (tmp_path / "pairs.csv").write_text("id,moving,fixed\nx,a.nii,gone.nii\ny,a.nii,b.nii\nsummary,b.nii,a.nii\n")
    found = read_pairs(tmp_path)
    assert [pair.identifier for pair in found.pairs] == ["y"]
    assert set(found.faults) == {"x", "summary"}
    assert f"there is no file {tmp_path / 'gone.nii'}; correct the path" in found.faults["x"]


def test_two_lists_in_a_folder_are_refused(tmp_path):
    touch(tmp_path, "pairs.json", "pairs.csv")
    with pytest.raises(DatasetError, match="both"):
        read_pairs(tmp_path)


def test_a_dataset_gives_its_test_pairs_with_labels_mask_and_landmarks(make_dataset):
    folder = make_dataset(test_pairs=[{"moving": "t", "fixed": "u"}, {"moving": "a", "fixed": "t"}])
    touch(folder, "masksTs/u.nii.gz", "landmarksTs/t.csv")
    first, second = pairs_of(folder)
    assert first == PairFiles(
        identifier="t_to_u",
        moving=(folder / "imagesTs" / "t_0000.nii.gz",),
        fixed=(folder / "imagesTs" / "u_0000.nii.gz",),
        moving_seg=folder / "labelsTs" / "t.nii.gz",
        fixed_seg=folder / "labelsTs" / "u.nii.gz",
        moving_points=folder / "landmarksTs" / "t.csv",
        fixed_points=None,
        fixed_mask=folder / "masksTs" / "u.nii.gz",
    )
    assert second.moving_seg == folder / "labelsTr" / "a.nii.gz"


def test_test_pairs_of_training_cases_are_named(make_dataset, caplog):
    pairs_of(make_dataset(test_pairs=[{"moving": "t", "fixed": "u"}, {"moving": "a", "fixed": "t"}]))
    (message,) = caplog.messages
    assert message.endswith("dataset.json: test pairs with a case of imagesTr, seen in training: a_to_t")


@pytest.mark.parametrize("name", ["a_inverse", "a_level1", "a_level12"])
def test_a_pair_that_is_called_as_a_further_field_of_another_is_faulty_and_does_not_hide_it(tmp_path, name):
    touch(tmp_path, *(f"{pair}_{role}.nii.gz" for pair in ("a", name) for role in ("moving", "fixed")))
    found = read_pairs(tmp_path)
    assert [pair.identifier for pair in found.pairs] == ["a"]
    assert found.faults == {name: f"pair a also writes {name}_warp.nii.gz; rename one of them"}


def test_a_dataset_without_test_pairs_is_refused(make_dataset):
    with pytest.raises(DatasetError, match=r"dataset\.json: lists no test_pairs"):
        read_pairs(make_dataset())


@pytest.mark.skipif(not REAL_DATA.is_dir(), reason="the real datasets of shared/data are not here")
@pytest.mark.parametrize("name", ["Dataset501_Hippocampus", "Dataset502_BrainOASIS", "Dataset503_HeadNeckCT"])
def test_real_test_pairs_are_complete(name):
    pairs = pairs_of(REAL_DATA / name)
    assert len(pairs) >= 5
    assert all(pair.moving_seg and pair.fixed_seg for pair in pairs)
