import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from biasreg.core.errors import InputError
from biasreg.core.geometry import Geometry
from biasreg.network.build import build_network
from biasreg.preprocessing.storage import StoredCase
from biasreg.training import overfit
from biasreg.training.check_lines import CheckLine, listed, log_lines, refuse_failures
from biasreg.training.data import CaseSource
from biasreg.training.overfit import check_learning, judge_losses
from biasreg.training.self_check import (
    check_data,
    check_headers,
    check_label_coverage,
    check_leakage,
    check_pairs,
    check_stored_cases,
    judge_dice,
    judge_overlap,
    sample_pairs,
)
from biasreg.training.workspace import open_workspace, read_fold_data

FRAME = ((1.0, 0.0, 0.0, 0.0), (0.0, 1.0, 0.0, 0.0), (0.0, 0.0, 1.0, 0.0), (0.0, 0.0, 0.0, 1.0))
MIRROR = ((-1.0, 0.0, 0.0, 0.0), *FRAME[1:])
CPU = torch.device("cpu")


def record(name, **changes):
    geometry = Geometry.centered((16, 16, 16), (2.0, 2.0, 2.0))
    made = StoredCase(name, f"subject of {name}", "CT", True, (1, 2), FRAME, geometry, 0.0, f"hash of {name}")
    return replace(made, **changes)


@pytest.fixture
def opened(write_dataset):
    """Return a function that writes a dataset and opens fold 0: where its cases are, and what it trains on."""

    def open_fold(*arguments, **options):
        roots = write_dataset(*arguments, **options)
        folder = roots.preprocessed / "Dataset901_Blobs" / "tiny_main"
        for number, path in enumerate(sorted(folder.glob("case?.json"))):  # the phantoms share one hash of files
            path.write_text(json.dumps(json.loads(path.read_text()) | {"source_hash": str(number)}))
        workspace = open_workspace(roots, "901", "tiny", None)
        data = read_fold_data(workspace, 0)
        return CaseSource(workspace.cases_folder, data.annotated), data

    return open_fold


def change(source, case, ending, function):
    """Change a stored array."""
    path = source.folder / f"{case}{ending}"
    array = np.load(path)
    np.save(path, function(array))


def put(value):
    def change_one_voxel(array):
        array[(*np.zeros(array.ndim, dtype=int),)] = value
        return array

    return change_one_voxel


def test_good_data_pass_every_check(opened, configuration):
    source, data = opened()
    lines = list(check_data(source, data, configuration))
    assert [line.name for line in lines] == [
        "stored cases",
        "headers",
        "leakage",
        "label coverage",
        "overlap",
        "identity Dice",
    ]
    assert {line.verdict for line in lines} == {"PASS"}, "\n".join(map(str, lines))
    assert "all 6 cases have 16×16×16 voxels" in lines[0].text
    assert "4 training and 2 held-out cases" in lines[2].text


@pytest.mark.parametrize(
    ("ending", "function", "message"),
    [
        (".npy", put(np.nan), r"case3: intensities from nan to nan, not in \[0, 1\]"),
        (".npy", put(2.0), r"case3: intensities from .* to 2, not in \[0, 1\]"),
        (
            ".npy",
            lambda array: array[:, :8],
            r"case3: its image has shape \(1, 8, 16, 16\), planned is \(1, 16, 16, 16\)",
        ),
        ("_seg.npy", put(7), r"case3: its labels: values from 0 to 7, the plans know 0 to 2"),
        ("_seg.npy", lambda array: array.astype(np.int16) - 1, r"case3: its labels: values from -1 to 1"),
        ("_seg.npy", lambda array: array / 2, r"case3: its labels: stored as float64, not as integers"),
        ("_mask.npy", lambda array: array * 5, r"case3: its mask: values from 5 to 5"),
        ("_mask.npy", lambda array: array[:8], r"case3: its mask has shape"),
    ],
)
def test_arrays_that_cannot_be_trained_on_fail_by_name(opened, configuration, ending, function, message):
    source, data = opened()
    change(source, "case3", ending, function)
    lines = list(check_data(source, data, configuration))
    assert lines[0].verdict == "FAIL"
    with pytest.raises(InputError, match=rf"(?s)self-check before training failed:.*{message}.*--clean"):
        refuse_failures(lines)
    assert "overlap" not in [line.name for line in lines]  # pairs of such cases cannot be measured


def test_an_array_that_is_gone_fails(opened, configuration):
    source, data = opened()
    (source.folder / "case3_mask.npy").unlink()
    line = check_stored_cases(source, data.fold.train, configuration)
    assert line.verdict == "FAIL"
    assert "case3: an array cannot be read" in line.text


def test_images_and_masks_that_show_nothing_are_a_warning(opened, configuration):
    source, data = opened()
    change(source, "case3", ".npy", np.zeros_like)
    change(source, "case4", "_mask.npy", np.zeros_like)
    line = check_stored_cases(source, data.fold.train, configuration)
    assert line.verdict == "WARN"
    assert "case3: all voxels are 0, case4: no voxel counts in its mask" in line.text


def test_of_many_cases_a_sample_is_read_and_that_is_said(opened, configuration, monkeypatch):
    source, data = opened()
    monkeypatch.setattr("biasreg.training.self_check.MAX_CASES", 2)
    first, second = (check_stored_cases(source, data.fold.train, configuration) for _ in range(2))
    assert first == second
    assert first.text.startswith("2 of 4 cases")


def test_the_pairs_that_are_looked_at_are_of_both_kinds_and_always_the_same(opened):
    _, data = opened()
    pairs = sample_pairs(data)
    assert pairs == sample_pairs(data)
    assert set(data.validation) <= set(pairs)
    assert len(pairs) > len(data.validation)


def test_headers_of_another_unit_or_beside_the_grid_are_a_warning_and_mirrors_fail():
    usual = [record(name) for name in "abc"]
    in_cm = record("d", geometry=Geometry.centered((16, 16, 16), (0.2, 0.2, 0.2)))
    assert check_headers(usual).verdict == "PASS"
    line = check_headers([*usual, in_cm])
    assert line.verdict == "WARN"
    assert line.text.startswith("d measures 5.5")
    line = check_headers([*usual, record("e", foreground_outside=0.25)])
    assert line.verdict == "WARN"
    assert "e has 25% of its anatomy beside the grid" in line.text
    line = check_headers([*usual, record("f", frame=MIRROR)])
    assert line.verdict == "FAIL"
    assert "left and right: f" in line.text


def test_a_subject_on_both_sides_fails_and_the_same_files_are_a_warning():
    train = [record("a"), record("b")]
    assert check_leakage(train, [record("c")]).verdict == "PASS"
    line = check_leakage(train, [record("c", subject="subject of a")])
    assert (line.verdict, "subject of a" in line.text) == ("FAIL", True)
    line = check_leakage(train, [record("c", source_hash="hash of b")])
    assert (line.verdict, "b and c" in line.text) == ("WARN", True)


def test_labels_that_too_few_training_cases_show_are_named(configuration):
    both = [record(name) for name in "abc"]
    line = check_label_coverage(both, configuration)
    assert line.verdict == "PASS"
    line = check_label_coverage([record(name, label_presence=(1,)) for name in "abc"], configuration)
    assert line.verdict == "WARN"
    assert "small by no case" in line.text
    assert "large" not in line.text
    line = check_label_coverage(
        [*both[:1], record("d", label_presence=(2,)), record("e", annotated=False)], configuration
    )
    assert line.verdict == "WARN"
    assert "2 of 3 training cases have labels" in line.text
    assert "large by 1 case, small by 2 cases" in line.text


def test_a_dataset_without_labels_is_told_apart_from_one_whose_labels_are_elsewhere(configuration):
    none = [record(name, annotated=False, label_presence=()) for name in "abc"]
    assert check_label_coverage(none, configuration).verdict == "WARN"
    preprocessing = replace(configuration.preprocessing, label_values=(), label_names=())
    unlabelled = replace(
        configuration, preprocessing=preprocessing, network=replace(configuration.network, num_labels=1)
    )
    assert check_label_coverage(none, unlabelled).verdict == "PASS"


def test_the_overlap_is_the_share_of_the_fixed_values(opened):
    source, _ = opened()
    change(source, "case1", "_mask.npy", lambda array: np.where(np.indices(array.shape)[0] < 4, array, 0))
    overlap, dice = check_pairs(source, (("case1", "case0"), ("case0", "case1")), 3)
    assert overlap.verdict == "WARN"
    assert "covers 62% of the fixed one (median of 2 pairs; least 25%, case1 -> case0)" in overlap.text
    assert dice.verdict == "PASS"


def test_overlap_and_dice_are_judged_by_their_thresholds():
    assert judge_overlap({"a": 0.9, "b": 0.8}).verdict == "PASS"
    assert judge_overlap({"a": 0.9, "b": 0.1}).verdict == "WARN"
    assert judge_overlap({"a": 0.0, "b": 0.9, "c": 0.01}).verdict == "FAIL"
    assert judge_dice({"a": 0.5, "b": 0.4}, 2).verdict == "PASS"
    alike = judge_dice({"a": 0.97, "b": 0.98}, 2)
    assert (alike.verdict, "next to nothing to learn" in alike.text) == ("WARN", True)
    apart = judge_dice({"a": 0.5, "b -> c": 0.0, "d": 0.6}, 3)
    assert (apart.verdict, "least 0.000, b -> c" in apart.text) == ("WARN", True)
    assert "pre-alignment failed" in apart.text


def test_pairs_without_a_common_label_are_a_warning_and_pairs_without_labels_are_none(opened):
    source, _ = opened()
    change(source, "case1", "_seg.npy", np.zeros_like)
    *_, line = check_pairs(source, (("case0", "case1"),), 3)
    assert (line.verdict, "not measured" in line.text) == ("WARN", True)
    *_, line = check_pairs(CaseSource(source.folder, dict.fromkeys(source.annotated, False)), (("case0", "case1"),), 3)
    assert line.verdict == "PASS"


def new_network(configuration):
    torch.manual_seed(0)
    return build_network(configuration.network)


@pytest.mark.slow
def test_one_pair_is_learned_and_the_random_state_is_left_alone(opened, configuration):
    source, data = opened()
    network, again = new_network(configuration), new_network(configuration)
    state, numbers = torch.get_rng_state(), np.random.get_state()[1].copy()
    line = check_learning(source, data, network, configuration)
    assert line.verdict == "PASS", line
    assert "in 20 steps" in line.text
    assert torch.equal(torch.get_rng_state(), state)
    np.testing.assert_array_equal(np.random.get_state()[1], numbers)
    assert check_learning(source, data, again, configuration) == line


def test_a_loss_that_is_not_finite_fails(opened, configuration):
    source, data = opened()
    for case in data.fold.train:
        change(source, case, ".npy", lambda array: np.full_like(array, np.nan))
    line = check_learning(source, data, new_network(configuration), configuration)
    assert line.verdict == "FAIL"
    assert "not finite in step 1" in line.text


def test_a_network_that_does_not_learn_is_a_warning(opened, configuration):
    source, data = opened()
    frozen = replace(configuration, training=replace(configuration.training, learning_rate=0.0))
    line = check_learning(source, data, new_network(configuration), frozen)
    assert (line.verdict, "does not fall" in line.text) == ("WARN", True)


def test_time_bounds_the_attempt(opened, configuration, monkeypatch):
    clock = iter(range(0, 1000, 10))
    monkeypatch.setattr(overfit, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    line = check_learning(*opened(), new_network(configuration), configuration)
    assert (line.verdict, "in 2 steps" in line.text, "too few to judge" in line.text) == ("WARN", True, True)


def test_losses_are_judged_relative_to_their_size():
    pair = ("a", "b")
    assert judge_losses([2.0, 1.9, 1.8, 1.8, 1.7], pair).verdict == "PASS"
    assert judge_losses([2.0, 1.9, 1.8, 1.8, 1.995], pair).verdict == "WARN"
    assert judge_losses([2.0, float("nan")], pair).verdict == "FAIL"


def test_lines_are_logged_by_their_verdict_and_only_failures_stop(caplog):
    lines = [CheckLine("one", "PASS", "well"), CheckLine("two", "WARN", "look")]
    with caplog.at_level("INFO", logger="biasreg"):
        log_lines(lines)
    assert [record.levelname for record in caplog.records] == ["INFO", "WARNING"]
    assert "self-check: WARN two: look" in caplog.text
    refuse_failures(lines)
    with pytest.raises(InputError, match=r"failed:\n  FAIL three: bad\n  FAIL four: worse$"):
        refuse_failures([*lines, CheckLine("three", "FAIL", "bad"), CheckLine("four", "FAIL", "worse")])


def test_a_long_list_is_cut():
    assert listed([str(number) for number in range(7)]) == "0, 1, 2, 3, 4 and 2 more"
