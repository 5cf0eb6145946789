import json

import numpy as np
import pytest

from biasreg.core.dataset import Case
from biasreg.core.errors import GeometryError, InputError, RecordError
from biasreg.core.geometry import Geometry
from biasreg.core.image_io import Image, write_image
from biasreg.preprocessing.segmenters import open_label_folder

GRID = Geometry.centered((6, 5, 4), (2.0, 2.0, 2.0))
LABELS = np.arange(120).reshape(GRID.shape).astype(np.uint8) % 3


@pytest.fixture
def case(tmp_path):
    return Case("a", "a", "CT", (tmp_path / "a_0000.nii.gz",), None, None, None)


@pytest.fixture
def folder(tmp_path):
    write_image(tmp_path / "maps" / "a.nii.gz", LABELS, GRID)
    return tmp_path / "maps"


def test_label_maps_are_taken_as_they_are(folder, case):
    segmenter = open_label_folder(folder, ".nii.gz")
    assert segmenter.source(case) == folder / "a.nii.gz"
    assert segmenter.classes == segmenter.prepare(()) == {}
    image = Image(np.zeros(GRID.shape, np.float32), GRID)
    np.testing.assert_array_equal(segmenter.segment(case, image, ()).array, LABELS)


def test_classes_are_named_by_the_folders_dataset_json_regions_left_out(folder):
    content = {"labels": {"background": 0, "liver": 5, "tumour": [1, 2], "ignore": 9}, "anything": "else"}
    (folder / "dataset.json").write_text(json.dumps(content))
    assert open_label_folder(folder, ".nii.gz").classes == {"liver": 5, "ignore": 9}
    (folder / "dataset.json").write_text("[]")
    with pytest.raises(RecordError, match='no table "labels"'):
        open_label_folder(folder, ".nii.gz")


def test_another_grid_is_refused_with_both(folder, case):
    image = Image(np.zeros(GRID.shape, np.float32), Geometry.centered(GRID.shape, (2.0, 2.0, 2.5)))
    with pytest.raises(GeometryError, match=r"a\.nii\.gz: its grid .* is not that of .*a_0000\.nii\.gz .* resample"):
        open_label_folder(folder, ".nii.gz").segment(case, image, ())


def test_a_folder_that_is_missing_or_holds_no_map_is_refused(tmp_path, folder):
    with pytest.raises(InputError, match="there is no folder"):
        open_label_folder(tmp_path / "nowhere", ".nii.gz")
    with pytest.raises(InputError, match=r"holds no file that ends in \.nrrd"):
        open_label_folder(folder, ".nrrd")
