import pytest

from biasreg.core.dataset_json import PairNames
from biasreg.planning import network_rules
from biasreg.planning.grid_rules import Layout
from biasreg.planning.voco import VOCO_ENCODERS

ISOTROPIC = Layout((64, 64, 64), ((2, 2, 2),) * 4)
FLAT = Layout((128, 128, 16), ((2, 2, 1), (2, 2, 1), (2, 2, 2)))


def test_recomputing_gives_way_first_then_width():
    efforts = network_rules.efforts("cuda")
    assert [(effort.width.feature_size, effort.checkpointing) for effort in efforts] == [
        (48, False),
        (48, True),
        (24, False),
        (24, True),
    ]
    assert {effort.width for effort in network_rules.efforts("cpu")} == {network_rules.CPU_WIDTH}


def test_a_pretrained_encoder_keeps_its_width_whatever_the_device_holds():
    efforts = network_rules.efforts("cuda", VOCO_ENCODERS["voco_l"])
    assert [(effort.width.feature_size, effort.checkpointing) for effort in efforts] == [(96, False), (96, True)]
    assert efforts[0].width.decoder_channels == network_rules.PAPER_WIDTH.decoder_channels


@pytest.mark.parametrize(
    ("displacement", "layout", "levels", "words"),
    [
        (5.0, ISOTROPIC, 4, "finds 24 mm, which reaches the 5 mm"),  # the paper's four, of 3 voxels of 8 mm
        (24.0, ISOTROPIC, 4, "which reaches"),
        (30.0, ISOTROPIC, 5, "finds 48 mm, which reaches"),
        (100.0, ISOTROPIC, 5, "finds 48 mm, which does not reach the 100 mm"),
        (5.0, Layout((8, 8, 8), ((2, 2, 2),) * 2), 3, "which reaches"),  # a small grid has no fourth
        (40.0, FLAT, 4, "finds 6 mm, which does not reach"),  # along the axis that is halved least
    ],
)
def test_the_coarsest_level_reaches_the_expected_displacement_as_far_as_the_grid_allows(
    displacement, layout, levels, words
):
    decision = network_rules.choose_levels(displacement, (1.0, 1.0, 1.0), layout)
    assert decision.value == levels
    assert words in decision.why


def test_within_a_subject_residuals_are_not_integrated():
    assert network_rules.choose_integration("intra-subject", {}, ()).value == 0
    assert network_rules.choose_integration("inter-subject", {}, ()).value == 7
    listed = (PairNames("a", "b"),)
    assert network_rules.choose_integration("listed", {"a": "s", "b": "s"}, listed).value == 0
    between = network_rules.choose_integration("listed", {}, listed)
    assert between.value == 7
    assert "as far as dataset.json says" in between.why


def test_many_labels_are_segmented_at_half_resolution():
    assert network_rules.choose_segmentation_level(3).value == 0
    assert network_rules.choose_segmentation_level(36).value == 1


def test_all_levels_compare_neighbours():
    assert network_rules.choose_correlation_levels(3).value == (0, 1, 2)


def test_a_cpu_gets_fewer_stages():
    assert network_rules.max_stages("cpu") < network_rules.max_stages("cuda") == network_rules.MOST_STAGES
