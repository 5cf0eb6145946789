from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest

from biasreg.core.dataset import Case
from biasreg.core.geometry import Geometry
from biasreg.core.image_io import Image, write_image
from biasreg.demo.dataset import phantom_case
from biasreg.demo.phantom import PhantomSettings, ScannerSettings
from biasreg.preprocessing import reference_choice
from biasreg.preprocessing.prealign import translation
from biasreg.preprocessing.reference_choice import (
    REFERENCE_CANDIDATES,
    REFERENCE_SAMPLE,
    choose_reference_by_alignment,
    label_overlap,
    measure_reference,
)


def case(name, images=(), labels=None):
    return Case(name, name, "MRI", images, labels, None, None)


def choose(candidates, sample, measure):
    with ThreadPoolExecutor(1) as executor:
        return choose_reference_by_alignment(candidates, sample, executor, measure)


def test_the_candidate_of_the_highest_score_is_chosen_and_of_equal_ones_the_most_typical():
    cases = [case(name) for name in "abcd"]
    scores = {"a": 0.4, "b": 0.5, "c": 0.5, "d": 0.1}
    assert choose(cases, cases, lambda each, _: scores[each.identifier]) == ("b", scores)


def test_candidates_and_sample_are_bounded_and_the_sample_is_spread():
    cases = [case(f"c{number:02d}") for number in range(30)]
    seen = []

    def measure(candidate, sample):
        seen.append([each.identifier for each in sample])
        return 0.0

    choice = choose(cases, cases, measure)
    assert choice.reference == "c00"
    assert len(seen) == len(choice.scores) == REFERENCE_CANDIDATES
    assert all(names == seen[0] for names in seen)
    assert (len(seen[0]), seen[0][0], seen[0][-1]) == (REFERENCE_SAMPLE, "c00", "c29")


def test_without_a_choice_nothing_is_measured():
    def fail(*_):
        raise AssertionError

    assert choose([case("a")], [case("a"), case("b")], fail) == ("a", {})
    assert choose([case("a"), case("b")], [case("a")], fail) == ("a", {})


def test_of_the_most_typical_cases_with_labels_the_one_is_chosen_that_serves_pairs_best(monkeypatch, tmp_path):
    facts = [
        SimpleNamespace(identifier=name, foreground_extent_mm=(side,) * 3, label_volumes_mm3={"1": 2.0})
        for name, side in {"a": 100.0, "b": 50.0, "c": 98.0, "d": 97.0}.items()
    ]
    cases = [case(name, labels=tmp_path if name != "c" else None) for name in "abcd"]
    seen = {}

    def measure(candidate, sample):
        seen[candidate.identifier] = [each.identifier for each in sample]
        return {"a": 0.4, "b": 0.5, "d": 0.3}[candidate.identifier]

    monkeypatch.setattr(reference_choice, "measure_reference", measure)
    with ThreadPoolExecutor(1) as executor:
        assert reference_choice.choose_reference(facts, cases, executor) == "b"
    assert seen == {name: ["a", "b", "d"] for name in "abd"}


@pytest.mark.parametrize("labelled", [True, False])
def test_pairs_of_the_same_anatomy_lie_on_each_other_through_a_reference(labelled, tmp_path):
    phantom = phantom_case("demo_001", settings=PhantomSettings(scanner=ScannerSettings(spacing_mm=(4.6, 5.4))), seed=0)
    turned = translation([-12.0, 8.0, 5.0])
    turned[:2, :2] = [[0.98, -0.199], [0.199, 0.98]]
    u, _, v = np.linalg.svd(turned[:3, :3])
    turned[:3, :3] = u @ v
    cases = []
    for name, matrix in (("a", np.eye(4)), ("b", translation([20.0, -15.0, 10.0])), ("c", turned)):
        geometry = Geometry.from_affine(matrix @ phantom.geometry.affine, phantom.image.shape)
        image, labels = tmp_path / f"{name}.nii.gz", tmp_path / f"{name}_labels.nii.gz"
        write_image(image, phantom.image, geometry)
        write_image(labels, phantom.labels, geometry)
        cases.append(case(name, (image,), labels if labelled else None))
    score = measure_reference(cases[0], cases)
    assert score > 0.8
    assert score == measure_reference(cases[0], cases)


def test_the_overlap_of_labels_is_the_mean_dice_of_those_that_both_show():
    geometry = Geometry.centered((20, 20, 20), (2.0, 2.0, 2.0))
    labels = np.zeros(geometry.shape, np.uint8)
    labels[4:12, 4:12, 4:12], labels[14:18, 4:8, 4:8] = 3, 9
    image = Image(labels, geometry)
    assert label_overlap(image, image, np.eye(4)) == 1.0
    assert label_overlap(image, image, translation([8.0, 0.0, 0.0])) == pytest.approx(
        0.25
    )  # ½ of one, none of the other
    assert label_overlap(image, image, translation([90.0, 0.0, 0.0])) == 0.0
    other = Image(np.where(labels == 9, 0, labels + np.uint8(1) * (labels > 0)).astype(np.uint8), geometry)
    assert label_overlap(image, other, np.eye(4)) == 0.0
