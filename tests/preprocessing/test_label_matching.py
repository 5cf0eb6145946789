import json

import pytest

from biasreg.core.errors import DatasetError, InputError, RecordError
from biasreg.preprocessing.label_matching import close_names, match_labels, read_label_map, restrict

CLASSES = {"liver": 5, "kidney_left": 3, "kidney_right": 2, "vertebrae_L1": 31, "lung_upper_lobe_left": 10}


def match(labels, given=None, classes=CLASSES):
    return match_labels(labels, classes, given or {}, "the tool")


@pytest.mark.parametrize("label", ["kidney_left", "Kidney Left", "kidney-left", " kidney  left ", "left kidney"])
def test_names_match_whatever_their_capitals_separators_and_order_of_words(label):
    assert match([label]) == {label: {"kidney_left": 3}}


def test_the_same_spelling_counts_before_a_similar_one():
    assert match(["Liver", "liver"], classes={"liver": 1, "Liver": 2}) == {"Liver": {"Liver": 2}, "liver": {"liver": 1}}


def test_labels_without_a_class_are_left_out():
    assert list(match(["liver", "tumour"])) == ["liver"]


def test_a_label_may_be_made_of_several_classes_and_an_empty_list_keeps_it_from_being_made():
    given = {"kidneys": ("kidney_left", "Kidney Right"), "liver": ()}
    assert match(["kidneys", "liver"], given) == {"kidneys": {"kidney_left": 3, "kidney_right": 2}}


def test_values_stand_for_classes_and_any_value_where_the_tool_names_none():
    assert match(["organ"], {"organ": (5,)}) == {"organ": {"liver": 5}}
    assert match(["organ"], {"organ": (77, 3)}, classes={}) == {"organ": {"77": 77, "3": 3}}


def test_all_mistakes_are_named_together_with_what_is_like_them():
    given = {"livre": ("liver",), "kidneys": ("kidney_lef", 99), "liver": ("liver",), "organ": ("liver",)}
    with pytest.raises(DatasetError) as error:
        match(["liver", "kidneys", "organ"], given)
    text = str(error.value)
    assert "there is no label 'livre' (like it: liver)" in text
    assert "knows no class 'kidney_lef' (like it: kidney_left, kidney_right)" in text
    assert "knows no class 99" in text
    assert "class 'liver' belongs to liver and organ; a voxel has one label" in text


def test_without_any_match_near_names_and_the_remedy_are_told():
    with pytest.raises(DatasetError) as error:
        match(["livers", "nothing alike"])
    assert "livers (like it: liver), nothing alike · its classes (5) are liver, kidney_left" in str(error.value)
    assert "--label_map" in str(error.value)


def test_a_subset_keeps_labels_all_of_whose_classes_are_wanted():
    matched = match(["liver", "kidneys"], {"kidneys": ("kidney_left", "kidney_right")})
    assert restrict(matched, (), "the tool") == matched
    assert list(restrict(matched, ("liver", "kidney_left"), "the tool")) == ["liver"]
    with pytest.raises(InputError, match=r"leaves no label.*kidneys: kidney_left \+ kidney_right"):
        restrict(matched, ("kidney_left",), "the tool")
    with pytest.raises(InputError, match="'livr' \\(like it: liver\\)"):
        restrict(matched, ("livr",), "the tool")


def test_the_users_assignment_is_read_strictly(tmp_path):
    path = tmp_path / "map.json"
    path.write_text(json.dumps({"a": "liver", "b": ["x", 2], "c": 4, "d": []}))
    assert read_label_map(path) == {"a": ("liver",), "b": ("x", 2), "c": (4,), "d": ()}
    path.write_text('{"a": 1.5}')
    with pytest.raises(RecordError, match=r"map\.json: a"):
        read_label_map(path)


def test_close_names_come_as_they_are_written():
    assert close_names("Vertebrae l1", CLASSES)[0] == "vertebrae_L1"
