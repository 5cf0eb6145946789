import csv
from concurrent.futures import Executor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np
import pytest

from biasreg.core.errors import BiasregError, DatasetError, InputError
from biasreg.core.geometry import Geometry
from biasreg.core.image_io import read_labels, write_image
from biasreg.core.points_io import Points
from biasreg.core.serialization import read_record, write_json
from biasreg.core.transform_io import write_displacement
from biasreg.evaluation.evaluate import evaluate_predictions
from biasreg.evaluation.records import Evaluation, PairScores

SHIFT = (3.0, 0.0, 0.0)
LOW, HIGH = np.array([3.5, 2.5, 2.5]), np.array([9.5, 8.5, 8.5])  # a cube of 6 voxels of the default grid


def scores_of(evaluation: Evaluation, method: str, pair: str = "p") -> PairScores:
    (found,) = [score for score in evaluation.pairs if (score.pair, score.method) == (pair, method)]
    return found


@pytest.fixture
def shifted_cube(workspace, grid: Geometry, draw_box):
    """One pair whose moving cube lies 3 mm to the right of the fixed one, and the field that knows it."""
    workspace.write_pair("p", draw_box(grid, LOW + SHIFT, HIGH + SHIFT), draw_box(grid, LOW, HIGH))
    workspace.write_shift("p", SHIFT)
    return workspace


def test_the_true_shift_gives_dice_one_beside_the_known_identity(shifted_cube) -> None:
    evaluation = evaluate_predictions(shifted_cube.predictions, shifted_cube.references)
    identity, predicted = scores_of(evaluation, "identity"), scores_of(evaluation, "biasreg")
    assert identity.dice == pytest.approx(0.5)
    assert identity.hd95_mm == pytest.approx(3.0)
    assert identity.labels[0].name == "1"
    assert (predicted.dice, predicted.hd95_mm, predicted.folding_percent) == (1.0, 0.0, 0.0)
    assert predicted.log_jacobian_std == pytest.approx(0.0, abs=1e-6)
    assert (predicted.landmarks, predicted.seconds, evaluation.failures) == (None, None, ())


def test_hd95_is_in_mm_of_an_anisotropic_fixed_grid(workspace, draw_box) -> None:
    grid = Geometry.from_affine(np.diag([1.0, 1.0, 3.0, 1.0]), (14, 14, 10))
    fixed = draw_box(grid, (3, 3, 7), (9, 9, 20))
    workspace.write_pair("p", np.roll(fixed, 1, axis=2), fixed, grid, grid)
    workspace.write_shift("p", (0, 0, 3), grid)
    evaluation = evaluate_predictions(workspace.predictions, workspace.references)
    assert scores_of(evaluation, "identity").hd95_mm == pytest.approx(3.0)
    assert scores_of(evaluation, "biasreg").hd95_mm == 0.0


def test_identity_and_field_go_through_the_world_between_different_grids(
    workspace, grid: Geometry, oblique: Geometry, draw_box
) -> None:
    fine = Geometry.from_affine(
        np.diag([-0.5, -0.5, 0.5, 1.0]) + np.array([[0, 0, 0, 15.0]] * 2 + [[0] * 4] * 2), (30, 30, 24)
    )
    for name, moving_grid in (("same", grid), ("fine", fine), ("oblique", oblique)):
        workspace.write_pair(
            name, draw_box(moving_grid, LOW + SHIFT, HIGH + SHIFT), draw_box(grid, LOW, HIGH), moving_grid
        )
        workspace.write_shift(name, SHIFT)
    evaluation = evaluate_predictions(workspace.predictions, workspace.references)
    for name in ("fine", "oblique"):
        assert scores_of(evaluation, "identity", name).dice == pytest.approx(0.5, abs=0.06)
        assert scores_of(evaluation, "biasreg", name).dice > 0.93


def test_a_label_in_one_image_only_is_listed_but_not_counted(workspace, grid: Geometry, draw_box) -> None:
    moving = draw_box(grid, LOW, HIGH).astype(np.uint8)
    fixed = moving.copy()
    moving[0, 0, 0], fixed[1, 0, 0] = 2, 3
    workspace.write_pair("p", moving, fixed)
    workspace.write_shift("p", (0, 0, 0))
    names = {"background": 0, "cube": 1, "dot": 2, "spot": 3, "ghost": 4}
    predicted = scores_of(evaluate_predictions(workspace.predictions, workspace.references, names), "biasreg")
    assert predicted.dice == 1.0
    assert [(label.name, label.dice, label.reason) for label in predicted.labels] == [
        ("cube", 1.0, None),
        ("dot", None, "not in the fixed label map"),
        ("spot", None, "not in the moving label map"),
        ("ghost", None, "in neither label map"),
    ]


def test_label_values_without_a_name_are_left_out_with_a_warning(shifted_cube, caplog) -> None:
    evaluation = evaluate_predictions(shifted_cube.predictions, shifted_cube.references, {"background": 0, "other": 9})
    assert [label.name for label in scores_of(evaluation, "biasreg").labels] == ["other"]
    assert "label values [1] have no name" in caplog.text


def test_a_label_warped_away_has_dice_zero_and_no_hd95_but_a_reason(shifted_cube) -> None:
    shifted_cube.write_shift("p", (100, 0, 0))
    evaluation = evaluate_predictions(shifted_cube.predictions, shifted_cube.references)
    (label,) = scores_of(evaluation, "biasreg").labels
    assert (label.dice, label.hd95_mm) == (0.0, None)
    assert "nothing of the label is left" in label.reason
    assert [method.unmeasured_hd95 for method in evaluation.methods] == [0, 1]


def test_landmark_error_is_measured_beside_that_of_identity(shifted_cube) -> None:
    fixed = np.array([[4.0, 5, 6], [8, 3, 3]])
    shifted_cube.write_points("p", Points(("b", "a"), fixed[::-1] + SHIFT), Points(("a", "b"), fixed))
    evaluation = evaluate_predictions(shifted_cube.predictions, shifted_cube.references)
    assert scores_of(evaluation, "identity").landmarks.mean_mm == pytest.approx(3.0)
    predicted = scores_of(evaluation, "biasreg").landmarks
    assert predicted.mean_mm == pytest.approx(0.0, abs=1e-5)
    assert predicted.count == 2


def test_a_pair_without_labels_and_points_still_has_field_metrics(workspace) -> None:
    workspace.write_pair("p", None, None)
    workspace.write_shift("p", SHIFT)
    predicted = scores_of(evaluate_predictions(workspace.predictions, workspace.references), "biasreg")
    assert (predicted.labels, predicted.dice, predicted.folding_percent) == ((), None, 0.0)


def test_a_missing_field_is_reported_by_name_and_does_not_stop_the_others(
    shifted_cube, grid: Geometry, draw_box
) -> None:
    shifted_cube.write_pair("lost", draw_box(grid, LOW, HIGH), draw_box(grid, LOW, HIGH))
    evaluation = evaluate_predictions(shifted_cube.predictions, shifted_cube.references)
    (failure,) = evaluation.failures
    assert (failure.pair, failure.method) == ("lost", "biasreg")
    assert "lost_warp.nii.gz: this pair has no displacement field" in failure.reason
    assert scores_of(evaluation, "biasreg", "p").dice == 1.0
    assert [method.num_pairs for method in evaluation.methods] == [2, 1]


def test_a_field_on_another_grid_is_refused_with_both_grids(shifted_cube) -> None:
    shifted_cube.write_shift("p", SHIFT, Geometry.centered((16, 14, 12), (1, 1, 1)))
    (failure,) = evaluate_predictions(shifted_cube.predictions, shifted_cube.references).failures
    assert "p_warp.nii.gz: grid 16×14×12 voxels of 1×1×1 mm at (-7.5, -6.5, -5.5)" in failure.reason
    assert "is not that of the image" in failure.reason
    assert "p_fixed.nii.gz, 16×14×12 voxels of 1×1×1 mm at (0, 0, 0)" in failure.reason
    assert "corners up to 11.3 mm apart" in failure.reason


@pytest.mark.parametrize("role", ["moving", "fixed"])
def test_a_label_map_on_another_grid_than_its_image_gives_no_scores(shifted_cube, role) -> None:
    path = shifted_cube.references / f"p_{role}_seg.nii.gz"
    labels = read_labels(path)
    write_image(path, labels.array, Geometry.centered(labels.geometry.shape, (1, 1, 1)))
    evaluation = evaluate_predictions(shifted_cube.predictions, shifted_cube.references)
    (failure,) = evaluation.failures
    assert evaluation.pairs == ()
    assert f"p_{role}_seg.nii.gz: grid 16×14×12" in failure.reason
    assert f"is not that of the image {shifted_cube.references / f'p_{role}.nii.gz'}" in failure.reason


def test_unusable_references_fail_for_every_method_but_only_their_pair(shifted_cube) -> None:
    name = Points(("a",), np.zeros((1, 3))), Points(("b",), np.zeros((1, 3)))
    shifted_cube.write_points("p", *name)
    (failure,) = evaluate_predictions(shifted_cube.predictions, shifted_cube.references).failures
    assert failure.method is None
    assert "no landmark has the same name" in failure.reason


@pytest.mark.parametrize("record", [{"seconds": 2.5}, {"seconds": {"network": 1.0, "total": 2.5}}])
def test_seconds_come_from_the_predictions_record(shifted_cube, record) -> None:
    write_json(shifted_cube.predictions / "p.json", record)
    evaluation = evaluate_predictions(shifted_cube.predictions, shifted_cube.references)
    assert scores_of(evaluation, "biasreg").seconds == 2.5
    assert scores_of(evaluation, "identity").seconds is None


def test_several_methods_are_measured_beside_one_identity(shifted_cube, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    shifted_cube.write_shift("p", (2, 0, 0), folder=tmp_path / "other")
    methods = {"ours": shifted_cube.predictions, "theirs": tmp_path / "other"}
    evaluation = evaluate_predictions(methods, shifted_cube.references)
    assert [method.method for method in evaluation.methods] == ["identity", "ours", "theirs"]
    assert [score.dice for score in evaluation.pairs] == pytest.approx([1 / 2, 1, 5 / 6])


def test_pairs_of_the_same_images_are_known_by_their_content(workspace, grid: Geometry, draw_box) -> None:
    atlas, first, second = (draw_box(grid, LOW + shift, HIGH + shift) for shift in (0, 1, 2))
    for name, moving in (("a", first), ("b", second)):
        workspace.write_pair(name, moving, atlas)
        workspace.write_shift(name, SHIFT)
    evaluation = evaluate_predictions(workspace.predictions, workspace.references)
    a, b = scores_of(evaluation, "biasreg", "a"), scores_of(evaluation, "biasreg", "b")
    assert a.fixed_image == b.fixed_image
    assert len({a.fixed_image, a.moving_image, b.moving_image}) == 3
    assert {comparison.num_images for comparison in evaluation.comparisons} == {3}


def test_the_reference_method_is_the_first_or_the_one_that_is_named(shifted_cube, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    shifted_cube.write_shift("p", (2, 0, 0), folder=tmp_path / "other")
    methods = {"ours": shifted_cube.predictions, "theirs": tmp_path / "other"}
    for given, expected in ((None, "ours"), ("theirs", "theirs")):
        evaluation = evaluate_predictions(methods, shifted_cube.references, reference_method=given)
        assert evaluation.reference_method == expected
        assert {comparison.reference for comparison in evaluation.comparisons} == {expected}
    with pytest.raises(DatasetError, match="no method 'mine' to compare with; choose one of ours, theirs"):
        evaluate_predictions(methods, shifted_cube.references, reference_method="mine")


def test_deformation_is_measured_where_both_maps_have_a_label(workspace, grid: Geometry, draw_box) -> None:
    moving = draw_box(grid, LOW, HIGH).astype(np.uint8)
    fixed = moving.copy()
    fixed[12:, :, :] = 2  # not in the moving map
    workspace.write_pair("p", moving, fixed)
    field = np.zeros((*grid.shape, 3), dtype=np.float32)
    field[12:, ::2] = 5.0
    write_displacement(workspace.predictions / "p_warp.nii.gz", field, grid)
    evaluation = evaluate_predictions(workspace.predictions, workspace.references)
    assert scores_of(evaluation, "biasreg").deformation_mm == pytest.approx(0.0, abs=1e-6)
    assert scores_of(evaluation, "identity").deformation_mm == 0.0
    workspace.write_pair("p", fixed, fixed)
    assert scores_of(evaluate_predictions(workspace.predictions, workspace.references), "biasreg").deformation_mm > 1


def test_a_missing_folder_and_a_reserved_name_are_refused(shifted_cube, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="predictions of method 'biasreg': no folder"):
        evaluate_predictions(tmp_path / "nowhere", shifted_cube.references)
    with pytest.raises(DatasetError, match="cannot be called 'identity'"):
        evaluate_predictions({"identity": shifted_cube.predictions}, shifted_cube.references)


def test_an_executor_gives_the_same_scores(shifted_cube, grid: Geometry, draw_box) -> None:
    shifted_cube.write_pair("q", draw_box(grid, LOW, HIGH), draw_box(grid, LOW, HIGH))
    shifted_cube.write_shift("q", (1, 1, 0))
    with ThreadPoolExecutor(2) as executor:
        pooled = evaluate_predictions(shifted_cube.predictions, shifted_cube.references, executor=executor)
    assert pooled == evaluate_predictions(shifted_cube.predictions, shifted_cube.references)


def test_the_written_results_can_be_read_back(shifted_cube, tmp_path: Path) -> None:
    output = tmp_path / "scores"
    evaluation = evaluate_predictions(shifted_cube.predictions, shifted_cube.references, {"cube": 1}, output)
    assert read_record(output / "summary.json", Evaluation) == evaluation
    with (output / "scores.csv").open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert [(row["pair"], row["method"], row["name"], float(row["dice"])) for row in rows] == [
        ("p", "identity", "cube", 0.5),
        ("p", "biasreg", "cube", 1.0),
    ]
    assert (output / "summary.txt").read_text(encoding="utf-8").startswith("method")


def test_a_pair_that_is_not_complete_is_a_failure_beside_the_others(shifted_cube) -> None:
    (shifted_cube.references / "half_moving.nii.gz").touch()
    evaluation = evaluate_predictions(shifted_cube.predictions, shifted_cube.references)
    (failure,) = evaluation.failures
    assert (failure.pair, failure.method) == ("half", None)
    assert "there is no fixed image" in failure.reason
    assert scores_of(evaluation, "biasreg").dice == 1.0


def test_the_same_evaluation_may_be_done_again_and_with_more_methods(shifted_cube, tmp_path: Path) -> None:
    output = tmp_path / "scores"
    for methods in ({"biasreg": shifted_cube.predictions}, {"biasreg": shifted_cube.predictions} | {"copy": tmp_path}):
        for _ in range(2):
            evaluation = evaluate_predictions(methods, shifted_cube.references, output=output)
            assert read_record(output / "summary.json", Evaluation) == evaluation


def test_results_of_another_evaluation_are_refused_before_any_work(shifted_cube, tmp_path: Path, monkeypatch) -> None:
    output = tmp_path / "scores"
    evaluate_predictions({"ours": shifted_cube.predictions}, shifted_cube.references, output=output)
    before = (output / "summary.json").read_bytes()
    monkeypatch.setattr("biasreg.evaluation.evaluate.evaluate_pair", lambda task: 1 / 0)
    with pytest.raises(InputError, match="is another evaluation and is not replaced"):
        evaluate_predictions({"theirs": shifted_cube.predictions}, shifted_cube.references, output=output)
    assert (output / "summary.json").read_bytes() == before


def test_an_output_that_cannot_be_written_to_is_refused_before_any_work(
    shifted_cube, tmp_path: Path, monkeypatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr("biasreg.evaluation.evaluate.evaluate_pair", lambda task: 1 / 0)
    with pytest.raises(InputError, match=r"nothing can be written to .*file.*another folder with -o"):
        evaluate_predictions(shifted_cube.predictions, shifted_cube.references, output=tmp_path / "file")


def test_nothing_is_written_where_no_field_can_be_measured(shifted_cube, tmp_path: Path, caplog) -> None:
    evaluation = evaluate_predictions(tmp_path, shifted_cube.references, output=tmp_path / "scores")
    assert evaluation.is_empty
    assert [failure.pair for failure in evaluation.failures] == ["p"]
    assert not (tmp_path / "scores").exists()
    assert f"nothing is written to {tmp_path / 'scores'}" in caplog.text


def test_a_worker_that_dies_is_explained(shifted_cube) -> None:
    class DeadPool(Executor):
        def submit(self, *arguments, **options):
            raise BrokenProcessPool

    with pytest.raises(BiasregError, match=r"a worker died.*memory.*-np"):
        evaluate_predictions(shifted_cube.predictions, shifted_cube.references, executor=DeadPool())
