from dataclasses import replace
from itertools import permutations

import pytest
from torch import nn

from biasreg.core.errors import ModelNotFoundError
from biasreg.core.paths import Roots
from biasreg.core.serialization import read_record, to_json, write_json, write_record
from biasreg.network.checkpoint import BEST, LATEST, Identity, RunSettings, capture, save_checkpoint
from biasreg.planning.ablations import ablation_name
from biasreg.planning.splits import Fold
from biasreg.training.model_selection import (
    BEST_FILE,
    BestConfiguration,
    find_best_configuration,
    format_models,
    predict_command,
)
from biasreg.training.validation import PairScore, ValidationResult

DATASET = "Dataset901_Blobs"
LOW = "3d_lowres"


@pytest.fixture
def roots(tmp_path):
    return Roots(tmp_path / "raw", tmp_path / "preprocessed", tmp_path / "results")


@pytest.fixture
def write_fold(roots, configuration):
    """Return a function that writes what training leaves of a fold, with Dice values per pair of its three cases."""

    def write(
        fold,
        dice,
        *,
        name="main",
        plans="tiny",
        changed=configuration,
        done=2,
        folding=0.0,
        held_out="both",
        finite=True,
        kept=(LATEST, BEST),
    ):
        folder = roots.results / DATASET / f"{plans}__{name}" / f"fold_{fold}"
        folder.mkdir(parents=True)
        write_json(folder.parent / "plans.json", {})
        identity = Identity(DATASET, plans, name, changed, None, RunSettings(fold, 2, 1, 0, "hash"))
        progress = {"history": [{}] * done, "best": {}}
        for file in kept:
            save_checkpoint(folder / file, capture(identity, progress, nn.Linear(1, 1), None))
        if dice is not None:
            pairs = permutations([f"case{fold}{letter}" for letter in "abc"], 2)
            scores = tuple(
                PairScore(*pair, None if value is None else 0.5, value, folding, 0.3 if finite else None)
                for pair, value in zip(pairs, dice, strict=False)
            )
            write_record(folder / "validation.json", ValidationResult(2, held_out, scores))
        return folder

    return write


def summaries(choice):
    return {f"{model.plans_name}__{model.configuration_name}": model for model in choice.models}


def test_the_configuration_with_the_higher_dice_is_recommended_and_written(write_fold, roots):
    for fold in (0, 1):
        write_fold(fold, [0.7, 0.8])
        write_fold(fold, [0.75, 0.86], name="wide")
    choice, path = find_best_configuration(roots, "901")
    assert (choice.plans_name, choice.configuration_name, choice.folds) == ("tiny", "wide", ("0", "1"))
    assert path == roots.results / DATASET / BEST_FILE
    assert read_record(path, BestConfiguration) == choice
    assert choice.fair
    assert choice.compared_pairs == 4
    best, other = choice.models
    assert best.dice_after == pytest.approx(0.805)
    assert best.dice_before == 0.5
    assert best.dice_deviation == pytest.approx(0.0635, abs=1e-4)
    assert (other.configuration_name, other.score) == ("main", pytest.approx(0.75))
    assert other.left_out == ("not trained: fold 2, 3, 4",)


def test_folding_counts_as_in_the_choice_of_the_best_epoch(write_fold, roots):
    write_fold(0, [0.8, 0.81])
    write_fold(0, [0.82, 0.83], name="folds", folding=0.5)
    choice, _ = find_best_configuration(roots, "901")
    assert choice.configuration_name == "main"
    assert summaries(choice)["tiny__folds"].folding_percent == 50


def test_a_network_whose_output_was_not_finite_is_never_the_best(write_fold, roots):
    write_fold(0, [0.6, 0.61])
    write_fold(0, [0.9, 0.9], name="broken", finite=False)
    choice, _ = find_best_configuration(roots, "901")
    assert choice.configuration_name == "main"
    assert summaries(choice)["tiny__broken"].score is None


def test_models_are_compared_on_the_folds_that_all_have(write_fold, roots):
    write_fold(0, [0.7, 0.7])
    write_fold(1, [0.9, 0.9])
    write_fold(0, [0.75, 0.76], name="wide")
    choice, _ = find_best_configuration(roots, "901")
    assert choice.configuration_name == "wide"
    assert choice.fair
    assert choice.compared_pairs == 2
    main = summaries(choice)["tiny__main"]
    assert (main.score, main.compared_score) == (pytest.approx(0.8), pytest.approx(0.7))
    assert "compared on the 2 pairs that all have in common (tiny__wide has 2, tiny__main has 4)" in choice.notices


def test_models_without_a_common_pair_are_no_fair_comparison(write_fold, roots):
    write_fold(0, [0.7, 0.7])
    write_fold(1, [0.9, 0.9], name="wide")
    choice, _ = find_best_configuration(roots, "901")
    assert (choice.configuration_name, choice.fair, choice.compared_pairs) == ("wide", False, 0)
    assert any("no validation pair in common: train the same folds" in notice for notice in choice.notices)


def test_other_grids_labels_and_similarities_are_no_fair_comparison(write_fold, roots, configuration):
    preprocessing = configuration.preprocessing
    coarse = replace(configuration, preprocessing=replace(preprocessing, spacing=(4.0, 4.0, 4.0)))
    relabelled = replace(configuration, preprocessing=replace(preprocessing, label_values=(1, 3)))
    write_fold(0, [0.7, 0.71])
    write_fold(0, [0.8, 0.81], name=LOW, changed=coarse)
    choice, _ = find_best_configuration(roots, "901")
    assert not choice.fair
    assert any("biasreg_evaluate --method" in notice for notice in choice.notices)
    write_fold(0, [0.8, 0.81], name="relabelled", changed=relabelled)
    choice, _ = find_best_configuration(roots, "901")
    assert any("different labels" in notice for notice in choice.notices)


def test_models_without_labels_are_ranked_by_similarity_if_it_is_the_same(write_fold, roots, configuration):
    unlabelled = replace(configuration, network=replace(configuration.network, num_labels=1))
    mind = replace(unlabelled, training=replace(unlabelled.training, similarity="mind"))
    write_fold(0, [None, None], changed=unlabelled)
    choice, _ = find_best_configuration(roots, "901")
    assert choice.models[0].score == pytest.approx(-0.3)
    assert choice.models[0].dice_after is None
    write_fold(0, [None, None], name="mind", changed=mind)
    choice, _ = find_best_configuration(roots, "901")
    assert any("measure different ones" in notice for notice in choice.notices)
    write_fold(0, [0.2, 0.2], name="labelled")
    assert find_best_configuration(roots, "901")[0].configuration_name == "labelled"


def test_a_difference_within_chance_is_called_that(write_fold, roots):
    write_fold(0, [0.70, 0.80, 0.75, 0.72])
    write_fold(0, [0.72, 0.79, 0.76, 0.71], name="wide")
    choice, _ = find_best_configuration(roots, "901")
    assert any("tiny__wide and tiny__main do not clearly differ: +0.0025 ±" in notice for notice in choice.notices)


def test_ablations_are_listed_but_not_recommended_unless_asked_for(write_fold, roots):
    name = ablation_name("main", ["mac"])
    write_fold(0, [0.7, 0.72])
    write_fold(0, [0.9, 0.91], name=name)
    choice, _ = find_best_configuration(roots, "901")
    assert choice.configuration_name == "main"
    ablation = summaries(choice)[f"tiny__{name}"]
    assert (ablation.ablation, ablation.compared_score) == (True, None)
    assert ablation.score == pytest.approx(0.905)
    assert f"tiny__{name}: an ablation, not recommended" in format_models(choice)
    assert find_best_configuration(roots, "901", ablations=True)[0].configuration_name == name


def test_folds_that_are_unfinished_unvalidated_or_of_all_cases_are_named_and_do_not_count(write_fold, roots):
    write_json(roots.preprocessed / DATASET / "splits_final.json", [to_json(Fold(("a",), ("b",)))] * 3)
    write_fold(0, [0.7, 0.72])
    write_fold(1, [0.9, 0.92], done=1)
    write_fold(2, None)
    write_fold("all", [0.99, 0.99], held_out="none")
    choice, _ = find_best_configuration(roots, "901")
    (model,) = choice.models
    assert choice.folds == model.folds == ("0",)
    assert model.planned_folds == 3
    first, second, third = model.left_out
    assert first.startswith("fold 1 has come to 1 of 2 epochs")
    assert second == "fold 2 was never validated"
    assert third.startswith("fold all has seen every case")


def test_scores_of_pairs_that_training_has_seen_are_said_to_be_that(write_fold, roots):
    write_fold(0, [0.7, 0.72], held_out="none")
    write_fold(1, [0.7, 0.72], held_out="fixed only")
    choice, _ = find_best_configuration(roots, "901")
    assert "tiny__main, fold 0: the scores are of pairs that it was trained on" in choice.notices
    assert "tiny__main, fold 1: the scores are of pairs whose moving case it has seen" in choice.notices


def test_a_checkpoint_of_another_version_is_named_and_the_others_are_compared(write_fold, roots):
    write_fold(0, [0.7, 0.72])
    (write_fold(0, [0.9, 0.92], name="old") / LATEST).write_bytes(b"of another program")
    choice, _ = find_best_configuration(roots, "901")
    assert [model.configuration_name for model in choice.models] == ["main"]
    assert any("not compared" in notice and "old" in notice for notice in choice.notices)


def test_a_model_that_came_with_its_best_checkpoint_alone_counts_as_far_as_that_knows(write_fold, roots):
    write_fold(0, [0.7, 0.72], kept=(BEST,))
    assert find_best_configuration(roots, "901")[0].folds == ("0",)


def test_damaged_scores_of_a_fold_are_named_and_leave_the_others_alone(write_fold, roots):
    (write_fold(0, [0.7, 0.72]) / "validation.json").write_text("{")
    with pytest.raises(ModelNotFoundError, match=r"(?s)not compared: .*validation\.json"):
        find_best_configuration(roots, "901")
    write_fold(1, [0.7, 0.72])
    found, _ = find_best_configuration(roots, "901")
    assert any("validation.json" in notice for notice in found.notices)


def test_without_a_finished_fold_it_says_what_is_there_and_what_to_train(write_fold, roots):
    with pytest.raises(ModelNotFoundError, match=r"biasreg_train 901 0"):
        find_best_configuration(roots, "901")
    write_fold(0, [0.7, 0.72], done=1)
    write_fold(0, [0.7, 0.72], name=ablation_name("main", ["mac"]))
    with pytest.raises(ModelNotFoundError) as error:
        find_best_configuration(roots, "901")
    assert "tiny__main: fold 0 has come to 1 of 2 epochs" in str(error.value)
    assert "an ablation (--ablations takes these too)" in str(error.value)
    assert not (roots.results / DATASET / BEST_FILE).exists()


def test_the_table_has_a_line_per_model_and_the_command_names_everything(write_fold, roots, tmp_path):
    write_fold(0, [0.7, 0.72], plans="my plans")
    choice, _ = find_best_configuration(roots, "901")
    header, row, *_ = format_models(choice).splitlines()
    assert header.split()[:4] == ["model", "folds", "epochs", "pairs"]
    assert "my plans__main" in row
    assert "1 of 5" in row
    assert "0.7100 ± 0.0141" in row
    command = predict_command(choice)
    assert command == ("biasreg_predict -i pairs/ -o out/ -d Dataset901_Blobs -p 'my plans' --configuration main -f 0")
    assert predict_command(choice, tmp_path).endswith(f"--results {tmp_path}")


def test_two_pairs_are_too_few_for_a_clear_difference(write_fold, roots):
    write_fold(0, [0.70, 0.80])
    write_fold(0, [0.75, 0.87], name="wide")  # 6 standard errors, which two pairs give by chance once in ten times
    choice, _ = find_best_configuration(roots, "901")
    assert any("tiny__wide and tiny__main do not clearly differ: +0.0600 ± 0.0100" in each for each in choice.notices)


def test_five_pairs_may_show_a_clear_difference(write_fold, roots):
    write_fold(0, [0.70, 0.80, 0.75, 0.77, 0.72])
    write_fold(0, [0.75, 0.87, 0.81, 0.83, 0.78], name="wide")
    choice, _ = find_best_configuration(roots, "901")
    assert not any("do not clearly differ" in each for each in choice.notices)
