import json

import pytest

from biasreg.core.pairs import read_pairs
from biasreg.core.serialization import write_json
from biasreg.report.predictions import locate_images, read_predictions


def test_fields_of_levels_and_inverses_are_no_pairs_of_their_own(study):
    study.add_pair("a")
    study.add_levels("a")
    (study.predictions / "a_inverse_warp.nii.gz").write_bytes(b"")
    (study.predictions / "b_inverse_warp.nii.gz").write_bytes(b"")  # a pair that is called b_inverse
    pairs = read_predictions(study.predictions)
    assert [pair.name for pair in pairs] == ["a", "b_inverse"]
    names = {name: path.name for name, path in pairs[0].level_fields.items()}
    coarser = {f"level {level}": f"a_level{level}_warp.nii.gz" for level in (3, 2, 1)}
    assert list(names.items()) == list({**coarser, "level 0, the result": "a_warp.nii.gz"}.items())
    (study.predictions / "a_level0_warp.nii.gz").write_bytes(b"")
    refined = {name: path.name for name, path in read_predictions(study.predictions)[0].level_fields.items()}
    assert refined == {**coarser, "level 0": "a_level0_warp.nii.gz", "refined, the result": "a_warp.nii.gz"}


def test_a_record_of_this_version_is_read(study):
    study.add_pair("a")
    study.add_trust("a")
    (pair,) = read_predictions(study.predictions)
    assert (pair.record.trust.status, pair.record.trust.checks[0].text) == ("WARN", "2 % of voxels fold")
    assert pair.record.quality.inverse_error.percentile95_mm == 0.2
    assert pair.record.provenance.model == "Dataset700_Kind/x (fold_0)"
    assert [each.role for each in pair.record.inputs] == ["moving", "fixed", "moving_seg", "fixed_seg"]


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data | {"from_the_future": 1, "quality": data["quality"] | {"more": 2}},
        lambda data: {name: value for name, value in data.items() if name not in ("settings", "prealignment")},
        lambda data: {name: value for name, value in data.items() if name != "trust"} | {"save": []},
    ],
)
def test_records_of_other_versions_are_read_as_far_as_they_go(study, change):
    study.add_pair("a")
    path = study.predictions / "a.json"
    write_json(path, change(json.loads(path.read_text())))
    (pair,) = read_predictions(study.predictions)
    assert pair.record.provenance.versions == {"biasreg": "0.1"}
    assert pair.record.accuracy.dice_after == {"3": 0.8, "7": 0.9}


@pytest.mark.parametrize("content", ["{", "[1]", '{"seconds": 3.0}', '{"trust": {"status": "GREAT"}}'])
def test_a_record_of_another_tool_is_none(study, content):
    study.add_pair("a")
    (study.predictions / "a.json").write_text(content)
    (pair,) = read_predictions(study.predictions)
    assert pair.record is None
    assert "neither a record" in locate_images(pair, {}).missing


def test_images_are_found_where_the_record_says(study):
    study.add_pair("a")
    (pair,) = read_predictions(study.predictions)
    found = locate_images(pair, {})
    assert found.images.fixed == (study.references / "a_fixed.nii.gz",)
    assert found.images.fixed_seg == study.references / "a_fixed_seg.nii.gz"


def test_images_that_moved_are_found_among_the_references(study):
    study.add_pair("a")
    moved = study.references.rename(study.folder / "moved")
    (pair,) = read_predictions(study.predictions)
    assert "moving image is not at" in locate_images(pair, {}).missing
    references = {each.identifier: each for each in read_pairs(moved).pairs}
    assert locate_images(pair, references).images.fixed == (moved / "a_fixed.nii.gz",)


def test_an_image_that_is_not_the_registered_one_does_not_count(study):
    study.add_pair("a")
    study.add_pair("b", shift_mm=(1.0, 0.0, 0.0))
    image, other = (study.references / f"{name}_moving.nii.gz" for name in "ab")
    image.write_bytes(other.read_bytes())
    pair = read_predictions(study.predictions)[0]
    found = locate_images(pair, {})
    assert found.images is None
    assert "its bytes are others" in found.missing
