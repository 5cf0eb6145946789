import pytest
import torch

from biasreg.inference.refinement import smooth
from biasreg.inference.trust import Agreement, judge, measure_agreement
from biasreg.spatial.warp import warp

GOOD = {"folding_percent": 0.0, "inverse_error_voxels": 0.1, "agreement": Agreement(0.5, 0.2, 0.0), "suspicions": ()}


def status(name, **changed):
    trust = judge(**(GOOD | changed))
    checks = {check.name: check.status for check in trust.checks}
    others = {value for other, value in checks.items() if other != name}
    assert others == {"PASS"}, "only what was changed is suspicious"
    assert trust.status == checks[name], "the verdict is the worst check"
    return checks[name]


@pytest.mark.parametrize(("percent", "expected"), [(0.0, "PASS"), (0.1, "PASS"), (0.5, "WARN"), (1.01, "FAIL")])
def test_folding(percent, expected):
    assert status("folding", folding_percent=percent) == expected


@pytest.mark.parametrize(("voxels", "expected"), [(0.9, "PASS"), (1.1, "WARN"), (3.1, "FAIL"), (None, "FAIL")])
def test_inverse(voxels, expected):
    assert status("inverse", inverse_error_voxels=voxels) == expected


@pytest.mark.parametrize(("percent", "expected"), [(5.0, "PASS"), (6.0, "WARN"), (31.0, "FAIL")])
def test_leaving_the_field_of_view(percent, expected):
    assert status("field of view", agreement=Agreement(0.5, 0.2, percent)) == expected


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [(0.5, 0.4, "PASS"), (0.5, 0.5, "WARN"), (0.5, 0.51, "WARN"), (0.5, 0.6, "FAIL"), (0.005, 0.009, "PASS")],
)
def test_little_gain_of_similarity(before, after, expected):
    assert status("similarity", agreement=Agreement(before, after, 0.0)) == expected


@pytest.mark.parametrize(("suspicions", "expected"), [((), "PASS"), (("too bright",), "WARN"), (None, "PASS")])
def test_images_unlike_those_of_training(suspicions, expected):
    assert status("training data", suspicions=suspicions) == expected


def test_what_is_not_known_of_the_training_images_is_said():
    (check,) = [check for check in judge(**(GOOD | {"suspicions": None})).checks if check.name == "training data"]
    assert "not compared" in check.text


def test_the_agreement_tells_a_right_field_from_a_wrong_one(configuration):
    torch.manual_seed(0)
    moving = smooth(torch.rand(1, 1, 20, 20, 20), 1.5)
    inside, moving_inside = torch.ones_like(moving), torch.ones_like(moving)
    moving_inside[:, :, 16:] = 0
    field = torch.zeros(1, 3, 20, 20, 20)
    field[:, 0] = 2
    fixed = warp(moving, field)
    right, wrong = (
        measure_agreement((moving, fixed), (moving_inside, inside), each, configuration.training)
        for each in (field, -field)
    )
    assert right.after < 0.1 < right.before == wrong.before < wrong.after
    assert right.lost_percent == pytest.approx(100 * 6 / 20)  # slices 14 to 19 come from where nothing was imaged


def test_a_field_on_a_finer_grid_is_the_same_field(configuration):
    torch.manual_seed(0)
    images = smooth(torch.rand(1, 1, 12, 12, 12), 1.0), smooth(torch.rand(1, 1, 12, 12, 12), 1.0)
    inside = torch.ones_like(images[0])
    coarse, fine = torch.ones(1, 3, 12, 12, 12), 2 * torch.ones(1, 3, 24, 24, 24)
    first, second = (measure_agreement(images, (inside, inside), u, configuration.training) for u in (coarse, fine))
    assert first.after == pytest.approx(second.after, abs=1e-5)
