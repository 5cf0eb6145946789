import pytest
from dataset_kinds import KINDS, make_dataset, make_fingerprint

from biasreg.core.errors import InputError
from biasreg.planning.ablations import PARTS, ablation_name, add_ablation, whole_name
from biasreg.planning.consistency import check_configuration
from biasreg.planning.planner import Target, plan_experiment

KIND = KINDS["brain MR, OASIS"]
NAME = "3d_fullres"


@pytest.fixture(scope="module")
def plans():
    """Plans with every part: VoCo's encoder with adapters too."""
    return plan_experiment(make_fingerprint(KIND), make_dataset(KIND), Target("cuda", 80.0, installed=("voco_b",)))


@pytest.mark.parametrize(
    ("part", "changed"),
    [
        ("biaf", lambda made: not made.network.biaf),
        ("mac", lambda made: not made.network.mac),
        ("ardc", lambda made: made.training.weights.consistency == 0),
        ("semantics", lambda made: made.network.streams == "intensity" and made.training.weights.segmentation == 0),
        ("intensity", lambda made: made.network.streams == "semantic"),
        ("levels", lambda made: made.network.registration_levels == 1 and made.network.correlation_levels == (0,)),
        ("lora", lambda made: made.network.encoder.tuning == "frozen" and made.network.encoder.lora is None),
        ("freezing", lambda made: made.network.encoder.tuning == "full" and made.network.encoder.init == "voco_b"),
        ("pretraining", lambda made: made.network.encoder.init == "scratch"),
    ],
)
def test_each_part_can_be_taken_away_alone_and_leaves_the_rest_as_it_is(plans, part, changed):
    result = add_ablation(plans, NAME, [part])
    made = result.configurations[ablation_name(NAME, [part])]
    assert changed(made)
    check_configuration(ablation_name(NAME, [part]), made)
    assert made.preprocessing == plans.configurations[NAME].preprocessing
    assert result.configurations[NAME] == plans.configurations[NAME]
    assert part in result.why[ablation_name(NAME, [part])]["ablation"]


def test_every_part_has_a_test():
    (mark,) = test_each_part_can_be_taken_away_alone_and_leaves_the_rest_as_it_is.pytestmark
    assert tuple(part for part, _ in mark.args[1]) == PARTS


def test_the_order_of_the_parts_does_not_matter(plans):
    first, second = (add_ablation(plans, NAME, parts) for parts in (["mac", "biaf"], ["biaf", "mac"]))
    assert first.configurations == second.configurations
    assert ablation_name(NAME, ["mac", "biaf"]) == "3d_fullres-ablate-biaf-mac"
    check_configuration("3d_fullres-ablate-biaf-mac", first.configurations["3d_fullres-ablate-biaf-mac"])


def test_the_whole_configuration_is_known_by_the_name_of_an_ablated_one():
    assert whole_name("3d_fullres-ablate-biaf-mac") == "3d_fullres"
    assert whole_name("my-own") == "my-own"


def test_what_cannot_be_taken_away_is_refused(plans):
    with pytest.raises(InputError, match="no part bia · choose among biaf, mac"):
        add_ablation(plans, NAME, ["bia"])
    with pytest.raises(InputError, match="of semantics, intensity only one"):
        add_ablation(plans, NAME, ["semantics", "intensity"])
    with pytest.raises(InputError, match="of lora, freezing, pretraining only one"):
        add_ablation(plans, NAME, ["freezing", "lora"])
    without = add_ablation(plans, NAME, ["pretraining"])
    with pytest.raises(InputError, match=r"--ablate freezing: .* nothing of it to take away"):
        add_ablation(without, ablation_name(NAME, ["pretraining"]), ["freezing"])
    scratch = plan_experiment(make_fingerprint(KIND), make_dataset(KIND), Target("cpu", 16.0))
    with pytest.raises(InputError, match=r"--ablate lora: .* nothing of it to take away"):
        add_ablation(scratch, "3d_lowres", ["lora"])
