from concurrent.futures import ThreadPoolExecutor

import pytest

from biasreg.core.errors import DatasetError, PlansError
from biasreg.core.serialization import read_json, write_json
from biasreg.preprocessing import prepare
from biasreg.preprocessing.prepare import PrepareOptions, extract_fingerprint, plan_and_preprocess, preprocess

OPTIONS = PrepareOptions("cpu", 8.0)


@pytest.fixture(autouse=True)
def threads_for_processes(monkeypatch):
    monkeypatch.setattr(prepare, "process_executor", lambda workers: ThreadPoolExecutor(1))


def test_one_call_leads_from_raw_files_to_cases_that_can_be_trained_on_and_a_second_changes_nothing(roots, raw_dataset):
    raw_dataset()
    plans = plan_and_preprocess(roots, "700", OPTIONS)
    folder = roots.preprocessed / "Dataset700_Blobs"
    names = {path.name for path in folder.iterdir()}
    cases = f"biasregPlans_{plans.default_configuration}"
    assert names == {"dataset.json", "dataset_fingerprint.json", "biasregPlans.json", "splits_final.json", cases}
    assert {path.name for path in (folder / cases).glob("c*.json")} == {f"c{number}.json" for number in range(4)}
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert plan_and_preprocess(roots, "Blobs", OPTIONS) == plans
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_a_changed_raw_file_gives_a_new_fingerprint(roots, raw_dataset):
    folder = raw_dataset()
    first = extract_fingerprint(roots, "700", OPTIONS)
    (folder / "labelsTr" / "c1.nii.gz").unlink()
    second = extract_fingerprint(roots, "700", OPTIONS)
    assert first != second
    assert next(case for case in second.cases if case.identifier == "c1").label_volumes_mm3 is None


def test_steps_out_of_order_name_the_command_to_run(roots, raw_dataset):
    raw_dataset()
    with pytest.raises(PlansError, match="biasreg_extract_fingerprint -d 700"):
        prepare.plan_experiment(roots, "700", OPTIONS)
    extract_fingerprint(roots, "700", OPTIONS)
    with pytest.raises(PlansError, match="biasreg_plan_and_preprocess -d 700"):
        preprocess(roots, "700", OPTIONS)


def test_files_of_another_version_are_refused(roots, raw_dataset):
    raw_dataset()
    plan_and_preprocess(roots, "700", OPTIONS)
    path = roots.preprocessed / "Dataset700_Blobs" / "biasregPlans.json"
    write_json(path, read_json(path) | {"schema_version": 0})
    with pytest.raises(PlansError, match="schema 0"):
        preprocess(roots, "700", OPTIONS)


def test_a_faulty_dataset_is_refused_before_anything_is_written(roots, raw_dataset):
    folder = raw_dataset()
    (folder / "labelsTr" / "c1.nii.gz").write_bytes(b"broken")
    with pytest.raises(DatasetError, match=r"c1\.nii\.gz"):
        plan_and_preprocess(roots, "700", OPTIONS)
    assert not roots.preprocessed.exists()
