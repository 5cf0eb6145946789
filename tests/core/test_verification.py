import time
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK

from biasreg.core.dataset import read_dataset
from biasreg.core.errors import BiasregError, DatasetError
from biasreg.core.verification import verify_dataset

REAL_DATA = Path(__file__).resolve().parents[3] / "shared" / "data"


def faults_of(folder: Path, executor=None) -> list[str]:
    with pytest.raises(DatasetError) as error:
        verify_dataset(read_dataset(folder), executor)
    return str(error.value).splitlines()


def test_a_sound_dataset_passes(make_dataset, save_volume, labels):
    folder = make_dataset(channels=2)
    save_volume(folder / "masksTr" / "a.nii.gz", labels)
    (folder / "landmarksTr").mkdir()
    (folder / "landmarksTr" / "a.csv").write_text("x,y,z,name\n-1,-2,3,tip\n")
    (folder / "labelsTr" / "b.nii.gz").unlink()
    verify_dataset(read_dataset(folder))


def test_moved_label_maps_are_named_with_both_grids(make_dataset, save_volume, labels):
    folder = make_dataset()
    affine = np.eye(4)
    affine[0, 3] = 5.0
    save_volume(folder / "labelsTr" / "b.nii.gz", labels, affine)
    (line,) = faults_of(folder)
    for words in ("case b:", "labelsTr/b.nii.gz", "at (5, 0, 0) RAS", "b_0000.nii.gz", "at (0, 0, 0) RAS", "resample"):
        assert words in line


def test_a_small_difference_of_grids_is_shown_with_its_digits(make_dataset, save_volume, labels):
    folder = make_dataset()
    affine = np.eye(4)
    affine[0, 0] = 1.001
    save_volume(folder / "labelsTs" / "t.nii.gz", labels, affine)
    (line,) = faults_of(folder)
    assert "1.001" in line


def test_differing_shapes_and_channel_grids_are_found(make_dataset, save_volume, image, labels):
    folder = make_dataset(channels=2)
    save_volume(folder / "labelsTr" / "a.nii.gz", labels[:5])
    save_volume(folder / "imagesTs" / "u_0001.nii.gz", image, np.diag([1.0, 1.0, 2.0, 1.0]))
    _, first, second = faults_of(folder)
    assert "5×7×8" in first
    assert "6×7×8" in first
    assert "case u:" in second
    assert "imagesTs/u_0001.nii.gz" in second


def test_unknown_and_absent_label_values_are_found(make_dataset, save_volume, labels):
    folder = make_dataset()
    labels[0, 0, 0] = 7
    save_volume(folder / "labelsTr" / "a.nii.gz", labels)
    save_volume(folder / "labelsTr" / "b.nii.gz", np.zeros_like(labels))
    _, first, second = faults_of(folder)
    assert "case a:" in first
    assert "holds the label values [7], but dataset.json knows [0, 1, 3]" in first
    assert "labelsTr/b.nii.gz: holds background only" in second


def test_damaged_and_unusable_images_are_found(make_dataset, save_volume, image):
    folder = make_dataset(train=("a", "b", "c", "d"))
    image[1, 2, 3] = np.nan
    save_volume(folder / "imagesTr" / "a_0000.nii.gz", image)
    save_volume(folder / "imagesTr" / "b_0000.nii.gz", np.stack([image, image], axis=-1))
    whole = folder / "imagesTr" / "c_0000.nii.gz"
    whole.write_bytes(whole.read_bytes()[:600])
    sheared = np.eye(4)
    sheared[0, 1] = 0.3
    volume = nibabel.Nifti1Image(np.ones(image.shape, np.float32), sheared)
    volume.set_sform(sheared, code=1)
    volume.set_qform(None, code=0)
    nibabel.save(volume, folder / "imagesTr" / "d_0000.nii.gz")
    _, nan, four, cut, shear = faults_of(folder)
    assert "case a:" in nan
    assert "NaN" in nan
    assert "more than one volume" in four
    assert "cut off" in cut
    assert "sheared" in shear


@pytest.mark.parametrize("split", ["Tr", "Ts"])
def test_constant_images_are_found_with_their_value_among_the_other_faults(split, make_dataset, save_volume, image):
    folder = make_dataset(train=("a", "b"), test=("c", "d"))
    name = {"Tr": "b", "Ts": "d"}[split]
    save_volume(folder / f"images{split}" / f"{name}_0000.nii.gz", np.full_like(image, -1000))
    (folder / "labelsTr" / "a.nii.gz").write_bytes(b"broken")
    text = "\n".join(faults_of(folder))
    assert "2 faults" in text
    assert f"case {name}: {folder}/images{split}/{name}_0000.nii.gz: every voxel has the value -1000" in text


@pytest.mark.parametrize("file", ["imagesTr/b_0000.nii.gz", "labelsTs/t.nii.gz", "landmarksTr/a.csv"])
def test_files_without_permission_are_not_called_damaged(file, make_dataset, forbid_reading):
    folder = make_dataset()
    (folder / "landmarksTr").mkdir()
    (folder / "landmarksTr" / "a.csv").write_text("x,y,z,name\n-1,-2,3,tip\n")
    forbid_reading(folder / file)
    (line,) = faults_of(folder)
    assert f"{folder / file}: permission denied" in line
    assert "damaged" not in line


def test_label_maps_of_a_foreign_format_are_found(make_dataset):
    folder = make_dataset()
    (folder / "labelsTr" / "c.nii.gz").rename(folder / "labelsTr" / "c.mgz")
    (line,) = faults_of(folder)
    assert "labelsTr/c.mgz does not end in .nii.gz" in line


def test_other_files_among_the_cases_are_named_once_and_are_no_fault(make_dataset, caplog):
    folder = make_dataset()
    for name in ("imagesTr/readme.txt", "imagesTr/a.csv", "labelsTr/notes.json", "imagesTs/.hidden"):
        (folder / name).touch()
    (folder / "imagesTr" / "old").mkdir()
    verify_dataset(read_dataset(folder))
    images, labels = caplog.messages
    assert images == f"{folder}/imagesTr: left aside, because such files are not read: a.csv, old, readme.txt"
    assert "labelsTr" in labels
    assert "notes.json" in labels


def test_the_voxels_beside_an_mhd_are_no_foreign_file(make_dataset, image, labels, caplog):
    folder = make_dataset(train=("a",), test=(), file_ending=".mhd")
    (folder / "imagesTr" / "a_0000.nii.gz").unlink()
    (folder / "labelsTr" / "a.nii.gz").unlink()
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(image), str(folder / "imagesTr" / "a_0000.mhd"))
    for kind in ("labels", "masks"):
        (folder / f"{kind}Tr").mkdir(exist_ok=True)
        SimpleITK.WriteImage(SimpleITK.GetImageFromArray(labels), str(folder / f"{kind}Tr" / "a.mhd"))
    assert [len(list(folder.glob(f"{kind}Tr/a*.raw"))) for kind in ("images", "labels", "masks")] == [1, 1, 1]
    verify_dataset(read_dataset(folder))
    assert caplog.messages == []


def test_missing_doubled_and_orphan_files_are_found(make_dataset, save_volume, image, labels):
    folder = make_dataset(train=("a", "b", "c"))
    save_volume(folder / "imagesTr" / "a.nii.gz", image)
    (folder / "imagesTr" / "c_0000.nii.gz").unlink()
    save_volume(folder / "labelsTr" / "b.mha.nii.gz", labels)
    (folder / "labelsTr" / "b.mha").touch()
    (folder / "landmarksTr").mkdir()
    (folder / "landmarksTr" / "q.csv").touch()
    text = "\n".join(faults_of(folder))
    assert "5 faults" in text
    assert "imagesTr/a.nii.gz and imagesTr/a_0000.nii.gz are the same channel" in text
    assert "case c: labelsTr/c.nii.gz belongs to no image in imagesTr" in text
    assert "labelsTr/b.mha does not end in .nii.gz" in text
    assert "case b.mha: labelsTr/b.mha.nii.gz belongs to no image" in text
    assert "case q: landmarksTr/q.csv belongs to no image" in text


def test_a_missing_channel_is_reported_once_and_its_labels_are_no_orphan(make_dataset):
    folder = make_dataset(channels=2)
    (folder / "imagesTr" / "b_0001.nii.gz").unlink()
    (line,) = faults_of(folder)
    assert "case b: imagesTr/b_0001.nii.gz is missing" in line


def test_a_case_that_is_both_trained_on_and_held_out_is_found(make_dataset):
    (line,) = faults_of(make_dataset(train=("a", "b"), test=("b",)))
    assert "case b: lies in both imagesTr and imagesTs" in line


def test_a_subject_that_is_both_trained_on_and_held_out_is_found(make_dataset):
    subjects = {"a": "s", "c": "s", "t": "s", "b": "p", "u": "q"}
    (line,) = faults_of(make_dataset(subjects=subjects))
    assert "subject s: has a, c in imagesTr and t in imagesTs" in line


def test_a_worker_that_dies_is_explained(make_dataset):
    class DeadPool(Executor):
        def submit(self, *arguments, **options):
            raise BrokenProcessPool

    with pytest.raises(BiasregError, match=r"a worker died.*memory.*-np"):
        verify_dataset(read_dataset(make_dataset()), DeadPool())


def test_unusable_masks_and_landmarks_are_found(make_dataset, save_volume, labels):
    folder = make_dataset()
    save_volume(folder / "masksTr" / "a.nii.gz", np.zeros_like(labels))
    save_volume(folder / "masksTr" / "b.nii.gz", labels, np.diag([2.0, 1.0, 1.0, 1.0]))
    (folder / "landmarksTr").mkdir()
    (folder / "landmarksTr" / "a.csv").write_text("x,y\n1,2\n")
    (folder / "landmarksTr" / "b.csv").write_text("x,y,z\n3,4,5\n")  # RAS written by mistake
    text = "\n".join(faults_of(folder))
    assert "4 faults" in text
    assert "masksTr/a.nii.gz: the mask is empty" in text
    assert "masksTr/b.nii.gz: its grid" in text
    assert "landmarksTr/a.csv: line 1: there is no column z" in text
    assert "landmarksTr/b.csv: none of the 1 landmarks lies inside" in text


def test_a_dataset_without_training_images_is_refused(make_dataset):
    folder = make_dataset(train=())
    (folder / "imagesTr").mkdir()
    (line,) = faults_of(folder)
    assert "imagesTr holds no complete case" in line


def test_workers_find_the_same_faults_in_the_same_order(make_dataset, save_volume, labels):
    folder = make_dataset()
    for case in ("a", "c"):
        save_volume(folder / "labelsTr" / f"{case}.nii.gz", np.zeros_like(labels))
    expected = faults_of(folder)
    with ThreadPoolExecutor(2) as threads:
        assert faults_of(folder, threads) == expected
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as processes:
        assert faults_of(folder, processes) == expected


@pytest.mark.skipif(not REAL_DATA.is_dir(), reason="the real datasets of shared/data are not here")
@pytest.mark.parametrize("name", ["Dataset501_Hippocampus", "Dataset502_BrainOASIS", "Dataset503_HeadNeckCT"])
def test_real_datasets_are_sound_and_quickly_verified(name):
    start = time.perf_counter()
    verify_dataset(read_dataset(REAL_DATA / name))
    assert time.perf_counter() - start < 20
