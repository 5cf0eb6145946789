import hashlib

import numpy as np
import pytest

from biasreg.core.dataset import read_dataset
from biasreg.core.errors import DatasetError, InputError
from biasreg.core.image_io import read_image, read_labels
from biasreg.core.pairs import read_pairs
from biasreg.core.points_io import read_points
from biasreg.core.verification import verify_dataset
from biasreg.demo.anatomy import LABELS
from biasreg.demo.dataset import cyclic_pairs, heldout_identifiers, make_phantom_dataset, phantom_case
from biasreg.demo.phantom import PhantomSettings, ScannerSettings, true_displacement

SETTINGS = PhantomSettings(
    num_training_cases=3,
    num_test_cases=3,
    num_test_pairs=4,
    num_unlabelled_cases=1,
    scanner=ScannerSettings(spacing_mm=(5.0, 6.0)),
)


@pytest.fixture(scope="module")
def dataset_folder(tmp_path_factory):
    return make_phantom_dataset(tmp_path_factory.mktemp("raw"), settings=SETTINGS, seed=5)


def test_the_dataset_passes_the_integrity_check(dataset_folder):
    dataset = read_dataset(dataset_folder)
    verify_dataset(dataset)
    assert dataset.full_name == "Dataset900_Demo"
    assert dataset.json.labels == LABELS
    assert dataset.json.licence == "CC0-1.0"
    assert [case.labels is None for case in dataset.cases("Tr")] == [False, False, True]
    assert all(case.labels and case.landmarks for case in dataset.cases("Ts"))


def test_test_pairs_are_readable_as_pairs(dataset_folder):
    found = read_pairs(dataset_folder).pairs
    assert len(found) == SETTINGS.num_test_pairs
    assert all(pair.moving_points and pair.fixed_points and pair.moving_seg and pair.fixed_seg for pair in found)


def test_files_hold_the_cases_that_can_be_made_again(dataset_folder):
    name = heldout_identifiers(SETTINGS)[1]
    case = phantom_case(name, settings=SETTINGS, seed=5)
    image = read_image(dataset_folder / "imagesTs" / f"{name}_0000.nii.gz")
    labels = read_labels(dataset_folder / "labelsTs" / f"{name}.nii.gz")
    np.testing.assert_array_equal(image.array, case.image)
    np.testing.assert_array_equal(labels.array, case.labels)
    assert image.geometry.is_close(case.geometry)


def test_stored_landmarks_correspond_through_the_true_displacement(dataset_folder):
    first, second, _ = heldout_identifiers(SETTINGS)
    moving, fixed = (phantom_case(name, settings=SETTINGS, seed=5) for name in (first, second))
    end, start = (read_points(dataset_folder / "landmarksTs" / f"{name}.csv") for name in (first, second))
    assert start.names == end.names
    moved = start.coordinates + true_displacement(moving, fixed, start.coordinates)
    np.testing.assert_allclose(moved, end.coordinates, atol=0.1)


def test_the_same_seed_gives_the_same_files(dataset_folder, tmp_path):
    again = make_phantom_dataset(tmp_path, settings=SETTINGS, seed=5)

    def hashes(folder):
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}

    assert hashes(again) == hashes(dataset_folder)


def test_a_folder_that_is_taken_is_refused(dataset_folder):
    with pytest.raises(DatasetError, match="the folder is not empty"):
        make_phantom_dataset(dataset_folder.parent, settings=SETTINGS, seed=5)


def test_an_unknown_case_is_refused():
    with pytest.raises(InputError, match="no case 'demo_099'; its cases are demo_001 to demo_006"):
        phantom_case("demo_099", settings=SETTINGS, seed=5)


def test_cyclic_pairs_are_distinct_and_use_every_case_equally():
    pairs = cyclic_pairs(("a", "b", "c", "d"), 8)
    assert len(set(pairs)) == 8
    for name in "abcd":
        assert sum(pair.moving == name for pair in pairs) == sum(pair.fixed == name for pair in pairs) == 2
    assert all(pair.moving != pair.fixed for pair in pairs)


def test_more_pairs_than_cases_form_are_refused():
    with pytest.raises(InputError, match="7 test pairs were asked for, but 3 test cases form only 6"):
        cyclic_pairs(("a", "b", "c"), 7)
