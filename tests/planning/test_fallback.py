from itertools import pairwise

import numpy as np
import pytest
from dataset_kinds import KINDS, make_dataset, make_fingerprint

from biasreg.planning.consistency import check_configuration
from biasreg.planning.fallback import fallbacks
from biasreg.planning.memory import step_memory_gib
from biasreg.planning.planner import Target, plan_experiment


def planned(name, target):
    plans = plan_experiment(make_fingerprint(KINDS[name]), make_dataset(KINDS[name]), target)
    return plans.configurations[plans.default_configuration]


@pytest.mark.parametrize("name", KINDS)
def test_each_fallback_needs_less_than_the_one_before_and_is_a_whole_configuration(name):
    configuration = planned(name, Target("cuda", 80.0))
    steps = [configuration, *(smaller.configuration for smaller in fallbacks(configuration))]
    for before, after in pairwise(steps):
        check_configuration("fallback", after)
        assert step_memory_gib(after, "cuda") <= step_memory_gib(before, "cuda")
    assert step_memory_gib(steps[-1], "cuda") < 0.5 * step_memory_gib(configuration, "cuda")
    grids = [step.preprocessing.patch_size for step in steps]
    assert len(set(grids)) > 2


def test_things_are_given_up_in_the_documented_order():
    steps = [smaller.step for smaller in fallbacks(planned("hippocampus MR", Target("cuda", 80.0)))]
    assert steps[:4] == [
        "one pair per step",
        "activations are recomputed (checkpointing)",
        "half as many channels (encoder 24)",
        "half as many channels (encoder 12)",
    ]
    assert steps[4] == "voxels of 1.25×1.25×1.25 mm"
    assert len(steps) == 10


def test_a_pretrained_encoder_keeps_its_width():
    configuration = planned("brain MR, OASIS", Target("cuda", 80.0, installed=("voco_b",)))
    assert configuration.network.encoder.init == "voco_b"
    steps = list(fallbacks(configuration))
    assert {smaller.configuration.network.encoder for smaller in steps} == {configuration.network.encoder}
    assert steps[-1].step.startswith("voxels of")
    for smaller in steps:
        check_configuration("fallback", smaller.configuration)


def test_coarser_voxels_cover_the_same_field_of_view():
    configuration = planned("cardiac MR, short axis", Target("cuda", 24.0))
    *_, last = fallbacks(configuration)
    before, after = configuration.preprocessing, last.configuration.preprocessing
    assert np.prod(after.patch_size) < np.prod(before.patch_size)
    extents = [np.array(made.patch_size) * made.spacing for made in (before, after)]
    assert (extents[1] >= extents[0] - 1e-6).all()
