import csv
import json
from pathlib import Path

import pytest

from biasreg.core.errors import InputError
from biasreg.core.serialization import read_record, write_json
from biasreg.evaluation.records import Evaluation, Failure, LandmarkScore, PairScores, Sources
from biasreg.evaluation.summary import check_replaceable, mean_of_known, summarize, write_evaluation
from biasreg.evaluation.tables import format_table


def evaluation_of(*scores: PairScores, failures: tuple[Failure, ...] = ()) -> Evaluation:
    methods = {score.method: f"/{score.method}" for score in scores if score.method != "identity"}
    return summarize(Sources("/references", methods), scores, failures)


def test_mean_leaves_out_what_is_not_known() -> None:
    assert mean_of_known([1.0, None, 3.0]) == 2.0
    assert mean_of_known([None]) is None


def test_statistics_are_over_the_pairs_that_have_the_metric(pair_scores) -> None:
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


def test_the_table_shows_only_metrics_that_some_method_has(pair_scores) -> None:
    table = format_table(evaluation_of(pair_scores("a", "identity", 0.5), pair_scores("a", "biasreg", 0.75)))
    head, identity, biasreg = table.splitlines()[:3]
    assert head.split("  ")[0] == "method"
    assert "TRE" not in head
    assert "s/pair" not in head
    assert identity.split() == ["identity", "1", "0.500", "1.00", "0.250", "0.100"]
    assert biasreg.split()[2] == "0.750"
    assert "3 liver" in table


def test_the_table_shows_landmarks_seconds_and_spread_over_pairs(pair_scores) -> None:
    landmarks = LandmarkScore(1.5, 0.5, 2.0, 4)
    scores = [
        pair_scores(pair, "biasreg", dice, landmarks=landmarks, seconds=2.0) for pair, dice in (("a", 0.5), ("b", 0.7))
    ]
    table = format_table(evaluation_of(*scores))
    assert "0.600 ± 0.100" in table
    assert "1.50 ± 0.00" in table
    assert "s/pair" in table


def test_a_mean_of_fewer_pairs_than_another_methods_says_so(pair_scores) -> None:
    whole = [pair_scores(pair, "identity", 0.5, 2.0) for pair in "abc"]
    distances = dict(zip("abc", (3.0, 3.0, None), strict=True))
    lost = [pair_scores(pair, "biasreg", 0.75, distances[pair]) for pair in "abc"]
    table = format_table(evaluation_of(*whole, *lost))
    _, identity, biasreg = table.splitlines()[:3]
    assert table.count("(2 of 3)") == 2, "of all labels, and of the one label"
    assert "3.00 ± 0.00 (2 of 3)" in biasreg
    assert "0.750 ± 0.000 (" not in biasreg
    assert " of 3)" not in identity


def test_the_table_names_failures_vanished_and_left_out_labels(pair_scores) -> None:
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


def test_an_evaluation_is_replaced_only_by_one_of_the_same_folders_or_more(pair_scores, tmp_path: Path) -> None:
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


def evaluation_of_many(pair_scores, count: int, **options) -> Evaluation:
    scores = []
    for index in range(count):
        for method, dice in (("identity", 0.1), ("biasreg", 0.8), ("other", 0.7)):
            made = pair_scores(f"p{index}", method, dice + 0.01 * index, deformation_mm=1.0 + index, **options)
            scores += [] if (method, index) == ("other", 0) else [made]
    return evaluation_of(*scores)


def test_the_table_compares_methods_and_divides_the_pairs(pair_scores) -> None:
    lines = format_table(evaluation_of_many(pair_scores, 9)).splitlines()
    rows = [" ".join(line.split()) for line in lines]
    assert "compared with biasreg, pair by pair (difference: method - biasreg; effect > 0: better)" in rows
    assert "Dice identity 9 -0.700 0/0/9 -1.00 0.008" in rows  # twice 2 / 2⁹, by Holm
    assert "Dice other 8 -0.100 0/0/8 -1.00 0.008" in rows
    assert "folding % other 8 +0.000 0/8/0 +0.00 – (all pairs are equal)" in rows
    title = "by misalignment (identity's Dice): small 0.160 to 0.180 (3 pairs), medium 0.130 to 0.150 (3 pairs), large"
    assert any(row.startswith(title) for row in rows)
    assert "other 0.770 ± 0.008 0.740 ± 0.008 0.715 ± 0.005 (2)" in [row.split(" 1.00")[0] for row in rows]
    assert "worst pairs of biasreg, worst first" in rows
    assert "p0 0.800 0.100 – large initial misalignment" in rows
    assert "p1 0.810 0.110 0.710 other large initial misalignment" in rows


def test_the_table_says_that_pairs_share_images(pair_scores) -> None:
    table = format_table(evaluation_of_many(pair_scores, 7, fixed_image="atlas"))
    assert "The 7 pairs are made of 8 images: p takes pairs as independent and is too small" in table
    assert "the intervals allow for it, but so few images make them too narrow." in table
    assert "the intervals allow for it." in format_table(evaluation_of_many(pair_scores, 12, fixed_image="atlas"))
    assert "made of" not in format_table(evaluation_of_many(pair_scores, 7))


def test_the_table_says_that_few_pairs_have_no_thirds(pair_scores) -> None:
    table = format_table(evaluation_of_many(pair_scores, 4))
    assert "no thirds by misalignment or deformation: 4 pair(s), fewer than 6" in table
    assert "by deformation" not in table
    assert "– (4 pair(s), fewer than the 6 that a test needs)" in table


def test_the_first_method_is_the_reference_although_it_lacks_the_first_pair(pair_scores) -> None:
    scores = [pair_scores("a", "identity", 0.1), pair_scores("a", "second", 0.5)]
    scores += [pair_scores("b", method, 0.5) for method in ("identity", "first", "second")]
    sources = Sources("/references", {"first": "/first", "second": "/second"})
    evaluation = summarize(sources, scores, ())
    assert evaluation.reference_method == "first"
    assert {comparison.reference for comparison in evaluation.comparisons} == {"first"}
    assert [case.method for case in evaluation.worst] == ["first"]
    assert summarize(sources, scores, (), "second").reference_method == "second"


def test_comparisons_strata_and_worst_pairs_survive_their_file(pair_scores, tmp_path: Path) -> None:
    evaluation = evaluation_of_many(pair_scores, 8)
    assert evaluation.comparisons
    assert evaluation.strata
    assert len(evaluation.worst) == 5
    write_evaluation(evaluation, tmp_path)
    assert read_record(tmp_path / "summary.json", Evaluation) == evaluation
    with (tmp_path / "scores.csv").open(newline="", encoding="utf-8") as stream:
        assert [row["pair_deformation_mm"] for row in csv.DictReader(stream)][:4] == ["1.0", "1.0", "2.0", "2.0"]


def test_a_summary_of_the_layout_before_is_not_replaced(pair_scores, tmp_path: Path) -> None:
    write_evaluation(evaluation_of(pair_scores("a", "biasreg", 0.5)), tmp_path)
    record = json.loads((tmp_path / "summary.json").read_text(encoding="utf-8"))
    for field in ("reference_method", "comparisons", "strata", "worst"):
        del record[field]
    write_json(tmp_path / "summary.json", record | {"schema_version": 2})
    with pytest.raises(InputError, match=r"summary\.json is no evaluation of this version"):
        check_replaceable(tmp_path, Sources("/references", {"biasreg": "/biasreg"}))
