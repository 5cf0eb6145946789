import logging
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from biasreg.core.errors import DatasetError, InputError, PlansError
from biasreg.core.geometry import Geometry
from biasreg.core.image_io import read_image, write_image
from biasreg.core.serialization import read_json, write_json
from biasreg.planning.voco import weights_path
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
    assert names == {
        "dataset.json",
        "dataset_fingerprint.json",
        "dataset_fingerprint_cache",
        "biasregPlans.json",
        "splits_final.json",
        cases,
    }
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
    with pytest.raises(PlansError, match="schema version 0"):
        preprocess(roots, "700", OPTIONS)


def test_commands_in_messages_name_the_plans(roots, raw_dataset):
    raw = raw_dataset()
    mine = replace(OPTIONS, plans_name="mine")
    extract_fingerprint(roots, "700", mine)
    with pytest.raises(PlansError, match="run `biasreg_plan_and_preprocess -d 700 -p mine`"):
        preprocess(roots, "700", mine)
    prepare.plan_experiment(roots, "700", mine)
    (raw / "labelsTr" / "c1.nii.gz").unlink()
    extract_fingerprint(roots, "700", mine)
    with pytest.raises(PlansError, match="run `biasreg_plan_experiment -d 700 -p mine`"):
        preprocess(roots, "700", mine)
    (raw / "imagesTr" / "c3_0000.nii.gz").unlink()
    (raw / "labelsTr" / "c3.nii.gz").unlink()
    with pytest.raises(PlansError, match=r"`biasreg_extract_fingerprint -d 700`, then `.*experiment -d 700 -p mine`"):
        preprocess(roots, "700", mine)


@pytest.fixture
def writable(monkeypatch):
    """Folders that may be written to, once the test has named them; root may write everywhere."""
    allowed = []
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: access(path, mode) and (not allowed or Path(path) in allowed))
    return allowed


@pytest.mark.parametrize("step", ["plan_and_preprocess", "extract_fingerprint", "plan_experiment", "preprocess"])
def test_a_folder_that_cannot_be_written_to_is_refused_before_any_work(step, roots, raw_dataset, writable, monkeypatch):
    raw_dataset()
    roots.preprocessed.mkdir()
    if step in ("plan_experiment", "preprocess"):
        extract_fingerprint(roots, "700", OPTIONS)
    before = sorted(roots.preprocessed.rglob("*"))
    writable.append(roots.raw)
    monkeypatch.setattr(prepare, "verify_dataset", None)
    with pytest.raises(InputError, match=r"nothing can be written to .*Dataset700_Blobs: permission denied.*--preproc"):
        getattr(prepare, step)(roots, "700", OPTIONS)
    assert sorted(roots.preprocessed.rglob("*")) == before


def test_a_folder_of_cases_that_cannot_be_written_to_is_refused(roots, raw_dataset, folder, writable):
    raw_dataset()
    plans = plan_and_preprocess(roots, "700", OPTIONS)
    writable.append(folder)
    with pytest.raises(InputError, match=f"nothing can be written to .*biasregPlans_{plans.default_configuration}"):
        preprocess(roots, "700", OPTIONS)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"subjects": {f"c{number}": "s" for number in range(4)}}, r"1 subject\(s\) cannot be split"),
        ({"pairing": "intra-subject"}, "fold 0 of 4 cannot be trained"),
        ({"subjects": {"c0": "s", "c1": "s", "c2": "t", "c3": "t"}}, "fold 0 of 2 cannot be trained"),
        ({"pairing": "listed", "pairs": [{"moving": "c0", "fixed": "c1"}]}, "cannot be trained"),
    ],
)
def test_a_dataset_that_could_not_be_trained_on_is_refused_before_anything_is_written(
    fields, message, roots, raw_dataset, change_dataset
):
    raw_dataset()
    change_dataset(**fields)
    with pytest.raises(DatasetError, match=message):
        plan_and_preprocess(roots, "700", OPTIONS)
    assert not roots.preprocessed.exists()
    extract_fingerprint(roots, "700", OPTIONS)
    with pytest.raises(DatasetError, match=message):
        prepare.plan_experiment(roots, "700", OPTIONS)
    assert [path.name for path in roots.preprocessed.glob("*/*.json")] == ["dataset_fingerprint.json"]


def test_cases_that_were_checked_are_counted_by_split(roots, raw_dataset, caplog):
    raw = raw_dataset()
    for name in ("t", "u"):
        image = read_image(raw / "imagesTr" / "c0_0000.nii.gz")
        write_image(raw / "imagesTs" / f"{name}_0000.nii.gz", image.array, image.geometry)
    with caplog.at_level(logging.INFO):
        plan_and_preprocess(roots, "700", OPTIONS)
    assert caplog.text.count("no faults found in 4 training and 2 held-out cases") == 1


def test_a_faulty_dataset_is_refused_before_anything_is_written(roots, raw_dataset):
    folder = raw_dataset()
    (folder / "labelsTr" / "c1.nii.gz").write_bytes(b"broken")
    with pytest.raises(DatasetError, match=r"c1\.nii\.gz"):
        plan_and_preprocess(roots, "700", OPTIONS)
    assert not roots.preprocessed.exists()


@pytest.fixture
def folder(roots):
    return roots.preprocessed / "Dataset700_Blobs"


@pytest.fixture
def change_dataset(roots):
    def change(**fields):
        path = roots.raw / "Dataset700_Blobs" / "dataset.json"
        write_json(path, read_json(path) | fields)

    return change


def test_steps_after_a_change_of_the_dataset_name_the_command_to_run(roots, raw_dataset, change_dataset):
    raw = raw_dataset()
    plan_and_preprocess(roots, "700", OPTIONS)
    change_dataset(pairing="intra-subject", subjects={"c1": "c0", "c3": "c2"})
    for step in (prepare.plan_experiment, preprocess):
        with pytest.raises(PlansError, match=r"has changed.*\(dataset\.json\).*biasreg_extract_fingerprint -d 700"):
            step(roots, "700", OPTIONS)
    image = read_image(raw / "imagesTr" / "c0_0000.nii.gz")
    write_image(raw / "imagesTr" / "c9_0000.nii.gz", image.array, image.geometry)
    with pytest.raises(PlansError, match=r"has changed.*cases c9"):
        preprocess(roots, "700", OPTIONS)


def test_a_change_of_dataset_json_is_followed_up_to_the_cases(roots, raw_dataset, change_dataset, folder):
    raw_dataset()
    first = plan_and_preprocess(roots, "700", OPTIONS)
    assert first.pairing == "inter-subject"
    change_dataset(pairing="intra-subject", subjects={"c1": "c0", "c3": "c2"}, description="of two people")
    second = plan_and_preprocess(roots, "700", OPTIONS)
    assert second.pairing == "intra-subject"
    assert read_json(folder / "dataset.json")["description"] == "of two people"
    cases = folder / f"biasregPlans_{second.default_configuration}"
    assert read_json(cases / "c1.json")["subject"] == "c0"
    (first_fold, _) = read_json(folder / "splits_final.json")
    assert set(first_fold["validation"]) in ({"c0", "c1"}, {"c2", "c3"})


def test_a_new_description_or_new_test_pairs_change_no_fact(roots, raw_dataset, change_dataset, folder, caplog):
    raw_dataset()
    plan_and_preprocess(roots, "700", OPTIONS)
    change_dataset(description="new", test_pairs=[{"moving": "c0", "fixed": "c1"}])
    with caplog.at_level(logging.INFO):
        plan_and_preprocess(roots, "700", OPTIONS)
    assert "fingerprint kept" in caplog.text
    assert "4 of 4 cases are already preprocessed" in caplog.text
    assert read_json(folder / "dataset.json")["test_pairs"]


def test_plans_of_another_fingerprint_are_refused(roots, raw_dataset):
    raw = raw_dataset()
    plan_and_preprocess(roots, "700", OPTIONS)
    (raw / "labelsTr" / "c1.nii.gz").unlink()
    extract_fingerprint(roots, "700", OPTIONS)
    with pytest.raises(PlansError, match=r"another fingerprint.*biasreg_plan_experiment -d 700"):
        preprocess(roots, "700", OPTIONS)


def test_planning_again_with_other_options_leaves_what_still_holds(roots, raw_dataset, folder, caplog):
    raw_dataset()
    first = plan_and_preprocess(roots, "700", OPTIONS)
    times = {path: path.stat().st_mtime_ns for path in folder.rglob("*.np*")}
    gpu = replace(OPTIONS, device="cuda", memory_gib=24.0)
    with caplog.at_level(logging.INFO):
        second = plan_and_preprocess(roots, "700", gpu)
    same = (
        first.configurations[first.default_configuration].preprocessing
        == second.configurations[second.default_configuration].preprocessing
    )
    assert second.device == "cuda"
    assert ({path: path.stat().st_mtime_ns for path in folder.rglob("*.np*")} == times) == same
    assert ("4 of 4 cases are already preprocessed" in caplog.text) == same
    plan_and_preprocess(roots, "700", replace(gpu, plans_name="gpu"))
    assert {path.name for path in folder.glob("*Plans.json")} == {"biasregPlans.json"}
    assert (folder / "gpu.json").is_file()


def test_cases_of_a_resolution_that_is_no_longer_planned_are_named(roots, raw_dataset, folder, caplog):
    raw_dataset()
    plans = plan_and_preprocess(roots, "700", OPTIONS)
    other = {"3d_fullres": "3d_lowres", "3d_lowres": "3d_fullres"}[plans.default_configuration]
    (folder / f"biasregPlans_{other}").mkdir()
    with caplog.at_level(logging.WARNING):
        preprocess(roots, "700", OPTIONS)
    assert f"biasregPlans_{other} belongs to earlier plans" in caplog.text


def test_an_executor_of_the_caller_is_used_and_left_open(roots, raw_dataset, monkeypatch):
    raw_dataset()
    monkeypatch.setattr(prepare, "process_executor", None)
    with ThreadPoolExecutor(1) as executor:
        plan_and_preprocess(roots, "700", OPTIONS, executor)
        assert executor.submit(len, "open").result() == 4


def test_clean_makes_everything_anew(roots, raw_dataset, folder):
    raw_dataset()
    plan_and_preprocess(roots, "700", OPTIONS)
    times = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    plan_and_preprocess(roots, "700", replace(OPTIONS, clean=True))
    kept = {path.name for path, time in times.items() if path.stat().st_mtime_ns == time}
    assert kept == {"splits_final.json"}


def test_a_damaged_fingerprint_is_taken_anew(roots, raw_dataset, folder):
    raw_dataset()
    first = extract_fingerprint(roots, "700", OPTIONS)
    for text in ('{"schema_version": 1}', "[]", "{"):
        (folder / "dataset_fingerprint.json").write_text(text)
        assert extract_fingerprint(roots, "700", OPTIONS) == first


def test_a_raw_file_that_changes_after_the_fingerprint_is_refused_with_the_remedy(roots, raw_dataset, folder):
    raw = raw_dataset()
    mine = replace(OPTIONS, plans_name="mine")
    plans = plan_and_preprocess(roots, "700", mine)
    cases = folder / f"mine_{plans.default_configuration}"
    times = {path: path.stat().st_mtime_ns for path in cases.glob("c?.json")}
    reference = plans.configurations[plans.default_configuration].preprocessing.reference_case
    name = next(f"c{number}" for number in range(4) if f"c{number}" != reference)
    path = raw / "imagesTr" / f"{name}_0000.nii.gz"
    image = read_image(path)
    affine = image.geometry.affine
    affine[0, 3] += 1.0
    for file in (path, raw / "labelsTr" / f"{name}.nii.gz"):
        write_image(file, read_image(file).array, Geometry.from_affine(affine, image.array.shape))
    with pytest.raises(PlansError, match=rf"\(cases {name}\) · .*run `biasreg_plan_and_preprocess -d 700 -p mine`"):
        preprocess(roots, "700", mine)
    assert {path: path.stat().st_mtime_ns for path in times} == times
    plan_and_preprocess(roots, "700", mine)
    assert (cases / f"{name}.json").stat().st_mtime_ns != times[cases / f"{name}.json"]


def test_a_users_configuration_survives_planning_again_and_is_preprocessed_on_request(roots, raw_dataset, folder):
    raw_dataset()
    plans = plan_and_preprocess(roots, "700", OPTIONS)
    default = plans.default_configuration
    content = read_json(folder / "biasregPlans.json")
    content["configurations"]["mine"] = content["configurations"][default] | {}
    content["configurations"]["mine"]["training"] = content["configurations"][default]["training"] | {"epochs": 7}
    write_json(folder / "biasregPlans.json", content)
    again = prepare.plan_experiment(roots, "700", OPTIONS)
    assert again.configurations["mine"].training.epochs == 7
    assert again.default_configuration == default
    made = preprocess(roots, "700", replace(OPTIONS, configuration="mine"))
    assert made.name == "biasregPlans_mine"
    assert (made / "c0.json").is_file()
    with pytest.raises(PlansError, match=f"no configuration 'other' .* there is: {default}"):
        preprocess(roots, "700", replace(OPTIONS, configuration="other"))


def test_plans_that_cannot_be_read_are_made_anew_with_a_copy_of_the_old(roots, raw_dataset, folder, caplog):
    raw_dataset()
    plans = plan_and_preprocess(roots, "700", OPTIONS)
    (folder / "biasregPlans.json").write_text('{"schema_version": 1}')
    assert prepare.plan_experiment(roots, "700", OPTIONS) == plans
    assert "nothing is taken over from them" in caplog.text
    assert (folder / "biasregPlans.json.bak").read_text() == '{"schema_version": 1}'


def test_encoders_are_looked_for_in_the_root_of_the_results(roots, raw_dataset, monkeypatch):
    raw_dataset()
    extract_fingerprint(roots, "700", OPTIONS)
    gpu = replace(OPTIONS, device="cuda", memory_gib=24.0, encoder="voco_b")
    with pytest.raises(PlansError, match="voco_b, but its weights are not installed"):
        prepare.plan_experiment(roots, "700", gpu)
    path = weights_path(roots.results, "voco_b")
    path.parent.mkdir(parents=True)
    path.touch()
    path.with_suffix(".json").touch()
    with pytest.raises(PlansError, match="voco_b, but a Swin encoder halves all axes at once"):  # the images are thin
        prepare.plan_experiment(roots, "700", gpu)
    assert not (roots.preprocessed / "Dataset700_Blobs" / "biasregPlans.json").exists()
