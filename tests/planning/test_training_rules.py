import pytest

from biasreg.planning import training_rules


@pytest.mark.parametrize(
    ("shown", "supervision"),
    [
        ([{"1": 5.0, "2": 5.0}] * 3, "labels"),
        ([{"1": 5.0, "2": 5.0}, None], "partial labels"),
        ([{"1": 5.0, "2": 5.0}, {"2": 1.0}], "partial labels"),
        ([None, {}], "none"),
    ],
)
def test_supervision_is_what_the_cases_show(shown, supervision):
    assert training_rules.choose_supervision(shown, 2).value == supervision
    weights = training_rules.choose_loss_weights(supervision).value
    assert (weights.overlap > 0) == (supervision != "none")
    assert weights.similarity == weights.smoothness == 1


def test_a_cpu_trains_shorter_and_faster():
    cpu, cuda = training_rules.choose_schedule("cpu").value, training_rules.choose_schedule("cuda").value
    assert cpu.epochs * cpu.iterations_per_epoch < cuda.epochs * cuda.iterations_per_epoch == 100_000
    assert cpu.learning_rate > cuda.learning_rate
    assert training_rules.choose_labels_per_step("cpu") < training_rules.choose_labels_per_step("cuda")
