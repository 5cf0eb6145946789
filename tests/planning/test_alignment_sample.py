import pytest

from biasreg.core.dataset import Case
from biasreg.core.dataset_json import DatasetJson, PairNames
from biasreg.core.geometry import Geometry
from biasreg.planning.alignment_sample import by_typicality, most_typical, sample_pairs
from biasreg.planning.fingerprint_records import CaseFingerprint, ChannelStatistics


def facts(name, extent, labelled=True):
    statistics = ChannelStatistics(0.0, (0.0,) * 5, 1.0, 0.5, 0.1)
    geometry = Geometry.centered((20, 16, 12), (1.0, 1.0, 1.0))
    volumes = {"1": 5.0} if labelled else None
    return CaseFingerprint(
        identifier=name,
        subject=name,
        modality="MRI",
        geometry=geometry,
        world_spacing=(1.0, 1.0, 1.0),
        field_of_view_mm=extent,
        foreground_center=(0.0, 0.0, 0.0),
        foreground_extent_mm=extent,
        channels=(statistics,),
        label_volumes_mm3=volumes,
        label_extent_mm=extent if labelled else None,
        landmarks=None,
        source_hash="hash",
    )


def test_the_reference_is_the_most_typical_case_and_has_labels_if_any_has():
    extents = {"a": (100.0,) * 3, "b": (50.0,) * 3, "c": (98.0,) * 3, "d": (200.0,) * 3, "e": (97.0,) * 3}
    assert most_typical([facts(name, extent) for name, extent in extents.items()]) == "c"
    assert most_typical([facts(name, extent, labelled=name in "bd") for name, extent in extents.items()]) == "b"
    assert most_typical([facts(name, extent, labelled=False) for name, extent in extents.items()]) == "c"
    assert most_typical([facts("z", (5.0,) * 3), facts("y", (5.0,) * 3)]) == "y"


def test_cases_are_ordered_by_how_typical_they_are_those_with_labels_first():
    sides = {"a": 100.0, "b": 50.0, "c": 98.0, "d": 200.0, "e": 97.0}
    every = [facts(name, (side,) * 3) for name, side in sides.items()]
    assert by_typicality(every)[:3] == ["c", "e", "a"]
    some = [facts(name, (side,) * 3, labelled=name in "bd") for name, side in sides.items()]
    assert by_typicality(some) == ["b", "d", "c", "e", "a"]


@pytest.fixture
def cases(tmp_path):
    def make(count, labelled=(), per_subject=1):
        return [
            Case(
                f"c{number:02d}",
                f"s{number // per_subject}",
                "MRI",
                (),
                tmp_path if number in labelled else None,
                None,
                None,
            )
            for number in range(count)
        ]

    return make


def make_json(pairing, pairs=()):
    names = tuple(PairNames(moving, fixed) for moving, fixed in pairs)
    return DatasetJson("Tiny", {"0": "MRI"}, {"background": 0}, ".nii.gz", pairing, pairs=names)


def identifiers(pairs):
    return [(first.identifier, second.identifier) for first, second in pairs]


def test_between_subjects_evenly_spaced_cases_are_laid_on_each_other_but_not_on_the_reference(cases):
    pairs = identifiers(sample_pairs(cases(40), "c03", make_json("inter-subject")))
    assert len(pairs) == 8
    fixed = [int(name[1:]) for name, _ in pairs]
    assert fixed == sorted(fixed)
    assert (fixed[0], fixed[-1]) == (0, 39)
    assert [moving for _, moving in pairs] == [name for name, _ in pairs[1:]] + ["c00"]
    assert "c03" not in {name for pair in pairs for name in pair}
    three = identifiers(sample_pairs(cases(3), "c01", make_json("inter-subject")))
    assert three == [("c00", "c01"), ("c01", "c02"), ("c02", "c00")]
    assert identifiers(sample_pairs(cases(2), "c01", make_json("inter-subject"))) == [("c00", "c01")]
    assert sample_pairs(cases(1), "c00", make_json("inter-subject")) == []


def test_two_cases_of_one_subject_are_no_pair_between_subjects(cases):
    pairs = sample_pairs(cases(8, per_subject=2), "c07", make_json("inter-subject"))
    assert pairs
    assert all(fixed.subject != moving.subject for fixed, moving in pairs)


def test_within_subjects_a_case_is_laid_on_the_first_of_its_subject(cases):
    assert identifiers(sample_pairs(cases(6, per_subject=3), "c04", make_json("intra-subject"))) == [
        ("c00", "c01"),
        ("c00", "c02"),
        ("c03", "c04"),
        ("c03", "c05"),
    ]
    assert sample_pairs(cases(4), "c00", make_json("intra-subject")) == []


def test_listed_pairs_are_laid_on_each_other_as_they_are_registered(cases):
    listed = [("c04", "c01"), ("c04", "c02"), ("c00", "c03")]
    pairs = sample_pairs(cases(6), "c05", make_json("listed", listed))
    assert identifiers(pairs) == [(fixed, moving) for moving, fixed in listed]
    labelled = sample_pairs(cases(6, labelled=(0, 3, 4)), "c05", make_json("listed", listed))
    assert identifiers(labelled) == [("c03", "c00")]
    many = [(f"c{number:02d}", f"c{number + 1:02d}") for number in range(30)]
    assert len(sample_pairs(cases(31), "c05", make_json("listed", many))) == 8


def test_cases_with_labels_are_preferred(cases):
    pairs = identifiers(sample_pairs(cases(20, labelled=(3, 7, 11, 15)), "c07", make_json("inter-subject")))
    assert pairs == [("c03", "c11"), ("c11", "c15"), ("c15", "c03")]
    assert len(sample_pairs(cases(20, labelled=(3,)), "c07", make_json("inter-subject"))) == 8
