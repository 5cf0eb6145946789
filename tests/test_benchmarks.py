"""Every benchmark runs, at settings so small that its numbers mean nothing."""

import importlib
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from biasreg.core.dataset import read_dataset
from biasreg.core.geometry import Geometry, apply_affine, index_corners
from biasreg.core.image_io import Image
from biasreg.core.serialization import to_json, write_json, write_record
from biasreg.demo.dataset import make_phantom_dataset
from biasreg.demo.phantom import PhantomSettings, ScannerSettings
from biasreg.evaluation.records import Evaluation, MethodSummary, Sources, Statistic
from biasreg.inference.prediction import FieldQuality
from biasreg.inference.record import PredictionRecord, Provenance, Settings
from biasreg.inference.trust import Trust
from biasreg.network.build import build_network
from biasreg.network.checkpoint import BEST, Identity, RunSettings, capture, save_checkpoint
from biasreg.planning.files import read_plans
from biasreg.planning.fingerprint import extract_fingerprint
from biasreg.planning.planner import Target, plan_experiment
from biasreg.planning.splits import Fold
from biasreg.preprocessing.alignment_scores import measure_alignment
from biasreg.preprocessing.preprocess import preprocess_dataset
from biasreg.preprocessing.reference_files import copy_reference, reference_hash
from biasreg.preprocessing.storage import configuration_folder

ROOT = Path(__file__).resolve().parents[1]
SECONDS = {"read": 0.5, "network": 1.5, "total": 2.0}


@pytest.fixture
def run(tmp_path):
    def run_script(script, *arguments):
        output = tmp_path / "result.json"
        command = [sys.executable, str(ROOT / "benchmarks" / script), *map(str, arguments), "--output", str(output)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        result = json.loads(output.read_text(encoding="utf-8"))
        assert result["command"].startswith(f"python benchmarks/{script}")
        assert result["machine"].keys() >= {"device", "cpu", "cores", "load_average"}
        assert result["versions"].keys() >= {"biasreg", "python"}
        return result, done.stdout

    return run_script


def write_predictions(folder):
    folder.mkdir()
    for index, seconds in enumerate((9.0, 2.0, 4.0)):
        record = PredictionRecord(
            pair=f"pair{index}",
            written=f"2026-01-01T00:00:0{index}+00:00",
            provenance=Provenance("a model", {}, "a device", {}),
            inputs=(),
            settings=Settings(),
            outputs=(),
            prealignment="affine",
            seconds={**SECONDS, "total": seconds},
            quality=FieldQuality(0.0, 0.1, None),
            trust=Trust("PASS", ()),
            accuracy=None,
            notices=(),
        )
        write_record(folder / f"pair{index}.json", record)


def test_a_training_step_is_timed_and_weighed(run):
    size = ("--size", 8, 8, 8, "--stages", 1, "--decoder_channels", 2, 2, 2, "--feature_size", 3, "--window", 2)
    kernels = ("--kernels", "plain", "channels_last")
    short = ("--encoders", "residual", "--consistency", "on", *kernels, "--warmup", 1, "--steps", 1, "--device", "cpu")
    result, printed = run("training_step.py", *size, *short)
    (measured, last) = result["results"]
    assert (measured["kernels"], last["kernels"]) == ("plain", "channels_last")
    assert all(measured["seconds"][stage] > 0 for stage in ("forward", "objective", "backward", "optimizer"))
    assert measured["bytes_per_voxel_and_channel"] > 0
    assert f"{measured['bytes_per_voxel_and_channel']:.0f} bytes per voxel and channel" in printed


@pytest.fixture
def preprocessed(tmp_path):
    """Prepare a small dataset in the roots below `tmp_path`, and give the options that name them."""
    scanner = ScannerSettings(spacing_mm=(8.0, 9.0))
    settings = PhantomSettings(num_training_cases=2, num_test_cases=2, num_test_pairs=1, scanner=scanner)
    dataset = read_dataset(make_phantom_dataset(tmp_path / "raw", settings=settings, seed=0))
    folder = tmp_path / "preprocessed" / dataset.full_name
    with ThreadPoolExecutor(1) as executor:
        fingerprint = extract_fingerprint(dataset, measure_alignment, executor)
        plans = plan_experiment(fingerprint, dataset.json, Target("cpu", 8.0))
        cases = configuration_folder(folder, plans.plans_name, plans.default_configuration)
        chosen = plans.configurations[plans.default_configuration].preprocessing
        preprocess_dataset(dataset, fingerprint, chosen, cases, executor)
    write_record(folder / "dataset_fingerprint.json", fingerprint)
    write_record(folder / "biasregPlans.json", plans)
    return "-d", "900", "--raw", tmp_path / "raw", "--preprocessed", tmp_path / "preprocessed"


def test_preprocessing_is_timed_and_leaves_the_dataset_alone(run, preprocessed, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    result, _ = run("preprocessing.py", "--cases", 1, *preprocessed)
    assert result["results"]["seconds_per_case"]["preprocess"]["median"] > 0
    assert result["settings"]["cases"] == 1
    assert all(path.stat().st_mtime_ns == time for path, time in before.items() if path != tmp_path)


def test_workers_are_compared_and_loading_is_timed(run, preprocessed, tmp_path):
    result, printed = run("preprocessing.py", "--cases", 1, "--workers", 1, 2, *preprocessed)
    assert [entry["workers"] for entry in result["results"]["workers"]] == [1, 2]
    assert "2 worker(s)" in printed
    (folder,) = (tmp_path / "preprocessed").glob("*/biasregPlans_*")
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    result, printed = run("loading.py", folder, "--cases", 2, "--repeats", 1)
    assert set(result["results"]) == {"npy", "npz", "nii.gz"}
    assert all(kind["milliseconds_per_case"]["cold"]["median"] > 0 for kind in result["results"].values())
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_pre_alignment_is_scored_on_held_out_and_training_pairs(run, preprocessed):
    result, _ = run("prealignment.py", "--training_pairs", 2, *preprocessed)
    for name in ("held_out", "training"):
        measured = result["results"][name]
        assert len(measured["pairs"]) == 2
        assert measured["mean_dice_affine"] > 0.3
        assert measured["mirrored_or_lost"] == []


def test_variants_of_the_recipe_are_compared_and_leave_nothing_behind(run, preprocessed, tmp_path):
    (folder,) = (tmp_path / "preprocessed").iterdir()
    cases = tuple(sorted(path.stem.removesuffix("_mask") for path in folder.rglob("*_mask.npy")))
    write_json(folder / "splits_final.json", [to_json(Fold(cases, ()))])
    before = {path for path in tmp_path.rglob("*")}
    variants = (
        "--variant",
        "whole",
        "--variant",
        "narrow",
        "network.mac=false",
        "--variant",
        "bare",
        "ablate=biaf,ardc",
    )
    short = ("--epochs", 1, "--steps", 1, "--validate_every", 1, "--device", "cpu", "--root", tmp_path)
    result, printed = run("recipe.py", *preprocessed[:2], *variants, *short)
    sizes = [entry["million_parameters"] for entry in result["results"]]
    assert sizes[1] < sizes[0]
    assert sizes[2] < sizes[0]
    assert [entry["variant"] for entry in result["results"]] == ["whole", "narrow", "bare"]
    assert result["results"][2]["losses"]["consistency"] == 0
    assert "Dice" in printed
    assert {path for path in tmp_path.rglob("*")} - before == {tmp_path / "result.json"}


def test_an_encoder_that_has_learnt_is_frozen_adapted_or_trained_on(run, preprocessed, tmp_path):
    (folder,) = (tmp_path / "preprocessed").iterdir()
    cases = tuple(sorted(path.stem.removesuffix("_mask") for path in folder.rglob("*_mask.npy")))
    write_json(folder / "splits_final.json", [to_json(Fold(cases, ()))])
    short = ("--epochs", 1, "--source_epochs", 1, "--steps", 1, "--device", "cpu", "--root", tmp_path)
    result, printed = run("tuning.py", *preprocessed[:2], "--source", preprocessed[1], *short)
    trained = {entry["tuning"]: entry.get("encoder_parameters_trained") for entry in result["results"]}
    assert list(trained) == ["start", "scratch", "frozen", "lora", "full"]
    assert trained["frozen"] == 0 < trained["lora"] < trained["full"] == trained["scratch"]
    assert "Dice" in printed


def test_a_step_is_set_beside_what_the_device_could_do(run, preprocessed, tmp_path):
    (plans,) = (tmp_path / "preprocessed").glob("*/biasregPlans.json")
    result, printed = run("step_limits.py", "--plans", plans, "--steps", 1, "--device", "cpu")
    (measured,) = result["results"]
    with_ardc, without = measured["with_ardc"], measured["without_ardc"]
    assert 1.9 < with_ardc["flops"] / without["flops"] < 2.1
    assert without["seconds"] > without["arithmetic_limit_seconds"] > 0
    assert sum(measured["forward_share"].values()) == pytest.approx(1)
    assert "times the larger limit" in printed


def test_stages_are_summed_up_without_the_first_pair(run, tmp_path):
    write_predictions(tmp_path / "out")
    result, printed = run("predict_stages.py", tmp_path / "out")
    assert result["results"]["total"] == {"median": 3.0, "min": 2.0, "max": 4.0}
    assert result["machine"]["device"] == "a device"
    assert "network" in printed


@pytest.fixture
def untrained(preprocessed, tmp_path):
    """Put an untrained model of the small dataset, fold 0, among the results, and give the dataset's raw folder."""
    (folder,) = (tmp_path / "preprocessed").iterdir()
    plans = read_plans(folder / "biasregPlans.json", "")
    name = plans.default_configuration
    configuration = plans.configurations[name]
    model = tmp_path / "results" / folder.name / f"biasregPlans__{name}"
    cases = configuration_folder(folder, "biasregPlans", name)
    reference = reference_hash(cases, configuration.preprocessing)
    identity = Identity(folder.name, "biasregPlans", name, configuration, reference, RunSettings(0, 1, 1, 0, "cases"))
    network = build_network(configuration.network)
    save_checkpoint(model / "fold_0" / BEST, capture(identity, {"history": [], "best": None}, network, None))
    write_record(model / "plans.json", plans)
    copy_reference(cases, model, configuration.preprocessing)
    return tmp_path / "raw" / folder.name


def test_a_batch_is_timed_stage_by_stage_and_its_memory_followed(run, untrained):
    result, printed = run(
        "predict_batch.py", untrained, "--results", untrained.parents[1] / "results", "-d", "900", "--count", 4
    )
    measured = result["results"]
    assert measured["seconds_per_pair"] >= max(measured["stage_seconds_per_pair"].values())
    assert measured["over_slowest_stage"] >= 1 >= 0.3 * measured["over_all_stages"]
    assert measured["memory_mib"]["largest"] > 50
    assert "over_slowest_stage" in printed


def test_pairs_are_made_wrong_and_judged(run, untrained):
    root = untrained.parents[1]
    foreign = next((untrained / "imagesTr").iterdir())
    wrong = ("--wrong_pairs", 1, "--foreign", foreign, "--device", "cpu", "--root", root)
    result, printed = run("trust.py", untrained, "-d", "900", *wrong)
    assert len(result["results"]) == 9
    for kind in result["results"].values():
        assert kind["pairs"] == sum(kind["verdicts"].values()) == 1
    noise, right = result["results"]["noise in its shape"], result["results"]["right"]
    assert noise["likeness_percent"][0] > right["likeness_percent"][1] > 0
    assert "turned by 90 degrees" in printed


def test_constants_of_refinement_are_measured_on_held_back_cases(run, untrained):
    root = untrained.parents[1]
    (folder,) = (root / "preprocessed").iterdir()
    names = tuple(sorted(path.stem.removesuffix("_mask") for path in folder.rglob("*_mask.npy")))
    write_json(folder / "splits_final.json", [to_json(Fold(names, names))])
    settings = ("--setting", "stiff", "ELASTIC_SIGMA=3", "--setting", "hurried", "DEFAULT_STEPS=1")
    result, _ = run("refinement.py", "-d", "900", "--pairs", 2, *settings, "--device", "cpu", "--root", root)
    without, default, stiff, hurried = (result["results"][name] for name in ("without", "default", "stiff", "hurried"))
    assert [set(each["pair"]) for each in default["pairs"]] == [set(names)] * 2
    assert default["mean"]["dice"] > without["mean"]["dice"]
    assert without["mean"]["log_jacobian_std"] < stiff["mean"]["log_jacobian_std"] < default["mean"]["log_jacobian_std"]
    assert hurried["mean"]["dice"] != default["mean"]["dice"]


@pytest.fixture
def speed(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module("registration_speed")


def test_images_of_another_shape_cover_the_same_field_of_view(speed):
    affine = np.array([[0.0, -2.0, 0.0, 5.0], [3.0, 0.0, 0.0, -7.0], [0.0, 0.0, 4.0, 1.0], [0.0, 0.0, 0.0, 1.0]])
    geometry = Geometry.from_affine(affine, (8, 10, 6))
    ramp = apply_affine(affine, np.stack(np.indices(geometry.shape), axis=-1)) @ np.array([1.0, 2.0, 3.0])
    found = speed.resample(Image(ramp.astype(np.float32), geometry), (16, 15, 9))
    assert found.array.shape == found.geometry.shape == (16, 15, 9)
    for old, new in zip(
        *(index_corners(g, [(0, n) for n in g.shape]) for g in (geometry, found.geometry)), strict=True
    ):
        np.testing.assert_allclose(old, new)
    inner = (slice(1, -1),) * 3  # beyond the outermost voxel centres nothing can be interpolated
    places = apply_affine(found.geometry.affine, np.stack(np.indices(found.geometry.shape), axis=-1))
    np.testing.assert_allclose(found.array[inner], (places @ np.array([1.0, 2.0, 3.0]))[inner], atol=1e-3)


def test_rounds_of_a_method_are_summed_up_without_the_first_pair_of_each_command(speed):
    runs = [speed.Run(10.0, [{"total": 4.0}, {"total": 2.0}]), speed.Run(8.0, [{"total": 3.0}, {"total": 1.0}])]
    found = speed.describe(runs)
    assert found["seconds_per_pair"]["total"] == {"median": 1.5, "min": 1.0, "max": 2.0}
    assert found["first_pair_seconds"]["median"] == 3.5
    assert found["start_seconds"] == {"median": 4.0, "min": 4.0, "max": 4.0}


def test_the_times_that_peers_print_are_found(speed):
    assert speed.PEER_LINE.findall("Executing with 2 threads\na_to_b: 12.34 s\nb: 0.50 s\n") == ["12.34", "0.50"]


def test_peers_that_are_not_installed_are_named(tmp_path):
    missing = tmp_path / "python"
    command = [sys.executable, ROOT / "benchmarks/registration_speed.py", "--case", "a", "1", tmp_path]
    done = subprocess.run([*command, "--interop", missing], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert f"{missing}: no such Python; run `make interop`" in done.stderr


def test_an_evaluation_is_collected_with_its_commands(run, tmp_path):
    dice = Statistic(mean=0.75, std=0.1, count=2)
    summary = MethodSummary("biasreg", 2, dice, None, None, None, None, None, None, unmeasured_hd95=0, labels=())
    sources = Sources("/pairs", {"biasreg": "/out"})
    write_record(tmp_path / "summary.json", Evaluation(3, sources, (summary,), (), (), "biasreg", (), (), ()))
    write_predictions(tmp_path / "out")
    options = ("--name", "x", "--command", "biasreg_train 501 0", "--predictions", tmp_path / "out")
    result, _ = run("accuracy.py", tmp_path / "summary.json", *options)
    assert result["results"]["methods"]["biasreg"] == {"pairs": 2, "dice": {"mean": 0.75, "std": 0.1, "count": 2}}
    assert result["settings"]["commands"] == ["biasreg_train 501 0"]
    assert [entry["model"] for entry in result["settings"]["predicted_by"]] == ["a model"]
