from dataclasses import replace

import pytest
import torch

from biasreg.inference.refinement import smooth
from biasreg.inference.trust import Agreement, judge, measure_agreement
from biasreg.spatial.warp import warp

GOOD = {
    "folding_percent": 0.0,
    "inverse_error_voxels": 0.1,
    "agreement": Agreement(0.5, 0.2, 1.0, 0.0),
    "suspicions": (),
}


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
    assert status("field of view", agreement=Agreement(0.5, 0.2, 1.0, percent)) == expected


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [(0.5, 0.4, "PASS"), (0.5, 0.5, "WARN"), (0.5, 0.51, "WARN"), (0.5, 0.6, "FAIL"), (0.005, 0.09, "PASS")],
)
def test_little_gain_of_similarity(before, after, expected):
    assert status("similarity gain", agreement=Agreement(before, after, 2.0, 0.0)) == expected


@pytest.mark.parametrize(("suspicions", "expected"), [((), "PASS"), (("too bright",), "WARN")])
def test_images_unlike_those_of_training(suspicions, expected):
    assert status("training data", suspicions=suspicions) == expected


@pytest.mark.parametrize("scale", [1.0, 0.15])  # of LNCC, and about that of MIND
@pytest.mark.parametrize(("after", "expected"), [(0.3, "PASS"), (0.49, "PASS"), (0.6, "WARN"), (0.76, "FAIL")])
def test_hardly_more_alike_than_unrelated_images(after, expected, scale):
    agreement = Agreement(0.95 * scale, after * scale, scale, 0.0)
    assert status("likeness", agreement=agreement) == expected


def test_without_overlap_nothing_is_claimed():
    trust = judge(**(GOOD | {"agreement": Agreement(0.5, None, 0.9, 100.0)}))
    (likeness,) = [check for check in trust.checks if check.name == "likeness"]
    assert (trust.status, likeness.status) == ("FAIL", "FAIL")
    assert "similarity gain" not in {check.name for check in trust.checks}


def test_a_check_that_cannot_be_made_is_not_listed():
    assert "training data" not in {check.name for check in judge(**(GOOD | {"suspicions": None})).checks}


@pytest.fixture
def textures():
    torch.manual_seed(0)
    return smooth(torch.rand(1, 1, 20, 20, 20), 1.5)


@pytest.mark.parametrize("similarity", ["lncc", "mind"])
def test_the_agreement_tells_a_right_field_from_a_wrong_one(configuration, textures, similarity):
    plans = replace(configuration.training, similarity=similarity)
    inside, moving_inside = torch.ones_like(textures), torch.ones_like(textures)
    moving_inside[:, :, 16:] = 0
    field = torch.zeros(1, 3, 20, 20, 20)
    field[:, 0] = 2
    fixed = warp(textures, field)
    right, wrong = (
        measure_agreement((textures, fixed), (moving_inside, inside), each, plans) for each in (field, -field)
    )
    assert right.after < 0.1 * right.unrelated
    assert right.after < right.before == wrong.before < wrong.after
    assert right.lost_percent == pytest.approx(100 * 6 / 20)  # slices 14 to 19 come from where nothing was imaged
    verdicts = [judge(0.0, 0.1, each, ()).status for each in (right, wrong)]
    assert verdicts[1] == "FAIL"


def test_unrelated_images_are_as_unlike_as_chance_has_it(configuration, textures):
    other = smooth(torch.rand(1, 1, 20, 20, 20), 1.5)
    inside, still = torch.ones_like(textures), torch.zeros(1, 3, 20, 20, 20)
    for similarity in ("lncc", "mind"):
        plans = replace(configuration.training, similarity=similarity)
        found = measure_agreement((textures, other), (inside, inside), still, plans)
        assert found.after == pytest.approx(found.unrelated, rel=0.15)


def test_background_has_no_say(configuration, textures):
    ball = torch.zeros_like(textures)
    ball[:, :, 6:14, 6:14, 6:14] = textures[:, :, 6:14, 6:14, 6:14]
    inside, still = torch.ones_like(textures), torch.zeros(1, 3, 20, 20, 20)
    found = measure_agreement((ball, ball), (inside, inside), still, configuration.training)
    assert judge(0.0, 0.1, found, ()).status == "PASS"


def test_where_nothing_overlaps_there_is_no_figure(configuration, textures):
    inside, outside = torch.ones_like(textures), torch.zeros_like(textures)
    still = torch.zeros(1, 3, 20, 20, 20)
    found = measure_agreement((textures, textures), (outside, inside), still, configuration.training)
    assert (found.before, found.after, found.lost_percent) == (None, None, 100.0)


def test_a_field_on_a_finer_grid_is_the_same_field(configuration):
    torch.manual_seed(0)
    images = smooth(torch.rand(1, 1, 12, 12, 12), 1.0), smooth(torch.rand(1, 1, 12, 12, 12), 1.0)
    inside = torch.ones_like(images[0])
    coarse, fine = torch.ones(1, 3, 12, 12, 12), 2 * torch.ones(1, 3, 24, 24, 24)
    first, second = (measure_agreement(images, (inside, inside), u, configuration.training) for u in (coarse, fine))
    assert first.after == pytest.approx(second.after, abs=1e-5)
