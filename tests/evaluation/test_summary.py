import csv
from pathlib import Path

import pytest

from biasreg.core.errors import InputError
from biasreg.core.serialization import read_record
from biasreg.evaluation.records import Evaluation, Failure, LabelScore, LandmarkScore, PairScores, Sources
from biasreg.evaluation.summary import check_replaceable, mean_of_known, summarize, write_evaluation
from biasreg.evaluation.tables import format_table


def pair_scores(pair: str, method: str, dice: float | None, hd95: float | None = 1.0, **others) -> PairScores:
    labels = (LabelScore(3, "liver", dice, hd95, None if hd95 is not None else "gone"),)
    return PairScores(
        pair=pair,
        method=method,
        moving_image=f"moving {pair}",
        fixed_image=f"fixed {pair}",
        labels=labels,
        dice=dice,
        hd95_mm=hd95,
        **{
            "landmarks": None,
            "folding_percent": 0.25,
            "log_jacobian_std": 0.1,
            "learn2reg_log_jacobian_std": None,
            "deformation_mm": 1.5,
            **others,
        },
    )


def evaluation_of(*scores: PairScores, failures: tuple[Failure, ...] = ()) -> Evaluation:
    methods = {score.method: f"/{score.method}" for score in scores if score.method != "identity"}
    return summarize(Sources("/references", methods), scores, failures)


def test_mean_leaves_out_what_is_not_known() -> None:
    assert mean_of_known([1.0, None, 3.0]) == 2.0
    assert mean_of_known([None]) is None


def test_statistics_are_over_the_pairs_that_have_the_metric() -> None:
    scores = (
        pair_scores("a", "biasreg", 0.5),
        pair_scores("b", "biasreg", 0.9, None),
        pair_scores("c", "biasreg", None),
    )
    _, method = evaluation_of(*scores).methods
    assert (method.num_pairs, method.dice.count, method.hd95_mm.count) == (3, 2, 2)
    assert (round(method.dice.mean, 6), round(method.dice.std, 6)) == (0.7, 0.2)
    assert method.unmeasured_hd95 == 1
    assert method.learn2reg_log_jacobian_std is None
    assert method.labels[0].dice == method.dice


def test_the_table_shows_only_metrics_that_some_method_has() -> None:
    table = format_table(evaluation_of(pair_scores("a", "identity", 0.5), pair_scores("a", "biasreg", 0.75)))
    head, identity, biasreg = table.splitlines()[:3]
    assert head.split("  ")[0] == "method"
    assert "TRE" not in head
    assert "s/pair" not in head
    assert identity.split() == ["identity", "1", "0.500", "1.00", "0.250", "0.100"]
    assert biasreg.split()[2] == "0.750"
    assert "3 liver" in table


def test_the_table_shows_landmarks_seconds_and_spread_over_pairs() -> None:
    landmarks = LandmarkScore(1.5, 0.5, 2.0, 4)
    scores = [
        pair_scores(pair, "biasreg", dice, landmarks=landmarks, seconds=2.0) for pair, dice in (("a", 0.5), ("b", 0.7))
    ]
    table = format_table(evaluation_of(*scores))
    assert "0.600 ± 0.100" in table
    assert "1.50 ± 0.00" in table
    assert "s/pair" in table


def test_the_table_names_failures_vanished_and_left_out_labels() -> None:
    scores = (
        pair_scores("a", "identity", None, None),
        pair_scores("a", "biasreg", 0.0, None),
    )
    table = format_table(
        evaluation_of(*scores, failures=(Failure("b", "biasreg", "no field"), Failure("c", None, "bad")))
    )
    assert "biasreg: 1 label(s) vanished in warping" in table
    assert "1 label(s) are not in both label maps" in table
    assert "FAILED b (biasreg): no field" in table
    assert "FAILED c (references): bad" in table


def test_an_evaluation_in_which_everything_failed_is_still_a_table_and_strict_json(tmp_path: Path) -> None:
    evaluation = summarize(Sources("/references", {"biasreg": "/out"}), (), (Failure("a", None, "bad"),))
    assert evaluation.is_empty
    write_evaluation(evaluation, tmp_path)
    assert read_record(tmp_path / "summary.json", Evaluation) == evaluation
    assert (tmp_path / "summary.txt").read_text(encoding="utf-8").splitlines()[2] == "biasreg   0"


def test_a_pair_without_labels_has_one_row(tmp_path: Path) -> None:
    score = PairScores("a", "biasreg", "m", "f", (), None, None, None, 0.5, 0.1, 0.2, 1.5, 3.0)
    write_evaluation(evaluation_of(score), tmp_path)
    with (tmp_path / "scores.csv").open(newline="", encoding="utf-8") as stream:
        (row,) = csv.DictReader(stream)
    assert (row["label"], row["dice"], row["pair_folding_percent"], row["pair_seconds"]) == ("", "", "0.5", "3.0")


def test_an_evaluation_is_replaced_only_by_one_of_the_same_folders_or_more(tmp_path: Path) -> None:
    check_replaceable(tmp_path, Sources("/references", {"biasreg": "/biasreg"}))
    write_evaluation(evaluation_of(pair_scores("a", "biasreg", 0.5)), tmp_path)
    check_replaceable(tmp_path, Sources("/references", {"biasreg": "/biasreg"}))
    check_replaceable(tmp_path, Sources("/references", {"other": "/other", "biasreg": "/biasreg"}))
    for sources in (
        Sources("/references", {"biasreg": "/elsewhere"}),
        Sources("/references", {"other": "/other"}),
        Sources("/others", {"biasreg": "/biasreg"}),
    ):
        with pytest.raises(InputError, match=r"summary\.json is another evaluation.*of biasreg \(/biasreg\) on /refer"):
            check_replaceable(tmp_path, sources)


@pytest.mark.parametrize("name", ["scores.csv", "summary.txt"])
def test_files_of_something_else_are_not_replaced(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(InputError, match=rf"{name} is of no evaluation.*another folder with -o"):
        check_replaceable(tmp_path, Sources("/references", {}))


def test_a_summary_of_something_else_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text('{"pair": "summary"}')
    with pytest.raises(InputError, match=r"summary\.json is no evaluation of this version.*another folder with -o"):
        check_replaceable(tmp_path, Sources("/references", {}))
