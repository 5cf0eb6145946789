from dataclasses import replace

import numpy as np
import pytest
import torch

from biasreg.core.geometry import Geometry
from biasreg.inference.ensemble import Ensemble
from biasreg.inference.refinement import Level, smooth
from biasreg.inference.trust import Agreement, judge, lands_inside, measure_agreement
from biasreg.preprocessing.resampling import field_of_view
from biasreg.spatial.displacement import resize
from biasreg.spatial.warp import warp

AGREEMENT = Agreement(before=0.5, after=0.2, unrelated=1.0, lost_percent=0.0, overlap=0.9)
GOOD = {"folding_percent": 0.0, "inverse_error_voxels": 0.1, "agreement": AGREEMENT, "suspicions": ()}


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
    assert status("field of view", agreement=replace(AGREEMENT, lost_percent=percent)) == expected


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [(0.5, 0.4, "PASS"), (0.5, 0.5, "WARN"), (0.5, 0.51, "WARN"), (0.5, 0.6, "FAIL"), (0.005, 0.09, "PASS")],
)
def test_little_gain_of_similarity(before, after, expected):
    agreement = replace(AGREEMENT, before=before, after=after, unrelated=2.0)
    assert status("similarity gain", agreement=agreement) == expected


@pytest.mark.parametrize(("suspicions", "expected"), [((), "PASS"), (("too bright",), "WARN")])
def test_images_unlike_those_of_training(suspicions, expected):
    assert status("training data", suspicions=suspicions) == expected


@pytest.mark.parametrize("scale", [1.0, 0.15])  # of LNCC, and about that of MIND
@pytest.mark.parametrize(("after", "expected"), [(0.3, "PASS"), (0.49, "PASS"), (0.6, "WARN"), (0.76, "FAIL")])
def test_hardly_more_alike_than_unrelated_images(after, expected, scale):
    agreement = replace(AGREEMENT, before=0.95 * scale, after=after * scale, unrelated=scale)
    assert status("likeness", agreement=agreement) == expected


@pytest.mark.parametrize(("overlap", "expected"), [(0.76, "PASS"), (0.74, "WARN"), (0.49, "FAIL")])
def test_what_the_networks_take_for_the_same_anatomy_lies_apart(overlap, expected):
    assert status("anatomy", agreement=replace(AGREEMENT, overlap=overlap)) == expected


def test_without_overlap_nothing_is_claimed():
    trust = judge(**(GOOD | {"agreement": replace(AGREEMENT, after=None, lost_percent=100.0)}))
    (likeness,) = [check for check in trust.checks if check.name == "likeness"]
    assert (trust.status, likeness.status) == ("FAIL", "FAIL")
    assert "similarity gain" not in {check.name for check in trust.checks}


def test_a_check_that_cannot_be_made_is_not_listed():
    changed = {"suspicions": None, "agreement": replace(AGREEMENT, overlap=None)}
    names = {check.name for check in judge(**(GOOD | changed)).checks}
    assert names.isdisjoint({"training data", "anatomy"})


def agreement_of(images, masks, displacement, plans, inside=None, semantics=None):
    inside = torch.ones_like(masks[0], dtype=torch.bool) if inside is None else inside
    return measure_agreement(
        Level(*images, *masks, channels=1), Ensemble(displacement, semantics=semantics), inside, plans
    )


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
    grid, moving = Geometry.centered((20, 20, 20), (1.0,) * 3), Geometry.centered((16, 20, 20), (1.0,) * 3)
    frame = np.eye(4)
    frame[0, 3] = 2.0  # the moving image's slices are the first 16
    right, wrong = (
        agreement_of(
            (textures, fixed), (moving_inside, inside), each, plans, inside=lands_inside(each, grid, frame, moving)
        )
        for each in (field, -field)
    )
    assert right.after < 0.1 * right.unrelated
    assert right.after < right.before == wrong.before < wrong.after
    assert right.lost_percent == pytest.approx(100 * 6 / 20)  # slices 14 to 19 come from where nothing was imaged
    assert wrong.lost_percent == pytest.approx(100 * 4 / 20)  # slices 0 and 1, and what is left of 16 to 19
    verdicts = [judge(0.0, 0.1, each, ()).status for each in (right, wrong)]
    assert verdicts[1] == "FAIL"


def test_unrelated_images_are_as_unlike_as_chance_has_it(configuration, textures):
    other = smooth(torch.rand(1, 1, 20, 20, 20), 1.5)
    inside, still = torch.ones_like(textures), torch.zeros(1, 3, 20, 20, 20)
    for similarity in ("lncc", "mind"):
        plans = replace(configuration.training, similarity=similarity)
        found = agreement_of((textures, other), (inside, inside), still, plans)
        assert found.after == pytest.approx(found.unrelated, rel=0.15)


def test_background_has_no_say(configuration, textures):
    ball = torch.zeros_like(textures)
    ball[:, :, 6:14, 6:14, 6:14] = textures[:, :, 6:14, 6:14, 6:14]
    inside, still = torch.ones_like(textures), torch.zeros(1, 3, 20, 20, 20)
    found = agreement_of((ball, ball), (inside, inside), still, configuration.training)
    assert judge(0.0, 0.1, found, ()).status == "PASS"


def test_where_nothing_overlaps_there_is_no_figure(configuration, textures):
    inside, outside = torch.ones_like(textures), torch.zeros_like(textures)
    still = torch.zeros(1, 3, 20, 20, 20)
    nowhere = torch.zeros_like(textures, dtype=torch.bool)
    found = agreement_of((textures, textures), (outside, inside), still, configuration.training, inside=nowhere)
    assert (found.before, found.after, found.lost_percent) == (None, None, 100.0)


def test_a_field_on_a_finer_grid_is_the_same_field(configuration):
    torch.manual_seed(0)
    images = smooth(torch.rand(1, 1, 12, 12, 12), 1.0), smooth(torch.rand(1, 1, 12, 12, 12), 1.0)
    inside = torch.ones_like(images[0])
    coarse, fine = torch.ones(1, 3, 12, 12, 12), 2 * torch.ones(1, 3, 24, 24, 24)
    first, second = (agreement_of(images, (inside, inside), u, configuration.training) for u in (coarse, fine))
    assert first.after == pytest.approx(second.after, abs=1e-5)


def oblique(shape, spacing, center):
    turn = np.array([[0.8, 0.6, 0.0], [-0.6, 0.8, 0.0], [0.0, 0.0, -1.0]]) * np.array(spacing)
    affine = np.eye(4)
    affine[:3, :3] = turn
    affine[:3, 3] = np.array(center) - turn @ (np.array(shape) - 1) / 2
    return Geometry.from_affine(affine, shape)


SHEARED = np.array([[1.1, 0.1, 0.0, 3.0], [0.0, 0.9, 0.2, -2.0], [0.05, 0.0, 1.0, 1.0], [0.0, 0.0, 0.0, 1.0]])


def test_without_displacement_the_view_is_that_of_the_mask():
    grid, moving = Geometry.centered((20, 16, 12), (2.0, 2.5, 3.0)), oblique((30, 22, 9), (1.0, 1.5, 4.0), (4, -3, 2))
    inside = lands_inside(torch.zeros(1, 3, *grid.shape), grid, SHEARED, moving)[0, 0].numpy()
    np.testing.assert_array_equal(inside, field_of_view(moving, grid, SHEARED))
    assert 0.1 < inside.mean() < 0.9


@pytest.mark.parametrize(("size", "lost"), [(24, 0.5), (200, 0.0)], ids=["ends with the grid", "goes on beyond it"])
def test_beyond_the_canonical_grid_the_moving_images_own_grid_counts(size, lost):
    grid, moving = Geometry.centered((24, 20, 16), (2.0, 2.5, 3.0)), Geometry.centered((size, 20, 16), (2.0, 2.5, 3.0))
    field = torch.zeros(1, 3, *grid.shape)
    field[:, 0, 12:] = 40.0  # half of the anatomy, far out of the canonical grid
    inside = lands_inside(field, grid, np.eye(4), moving)
    assert inside.shape == (1, 1, *grid.shape)
    assert 1 - inside.float().mean().item() == pytest.approx(lost)


def test_a_field_on_a_finer_grid_lands_at_the_same_place():
    grid, moving = Geometry.centered((20, 16, 12), (2.0, 2.5, 3.0)), oblique((30, 22, 9), (1.0, 1.5, 4.0), (4, -3, 2))
    field = torch.tensor([3.0, -2.0, 1.0]).view(1, 3, 1, 1, 1).expand(1, 3, *grid.shape)
    inside = lands_inside(field, grid, SHEARED, moving)
    assert torch.equal(lands_inside(resize(field, [2 * size for size in grid.shape]), grid, SHEARED, moving), inside)
    assert not torch.equal(inside, lands_inside(0 * field, grid, SHEARED, moving))


def test_what_is_not_a_number_is_lost():
    grid = Geometry.centered((4, 4, 4), (1.0, 1.0, 1.0))
    assert not lands_inside(torch.full((1, 3, 4, 4, 4), torch.nan), grid, np.eye(4), grid).any()


def test_the_overlap_is_that_of_the_labels_which_both_images_show(configuration, textures):
    inside, still = torch.ones_like(textures), torch.zeros(1, 3, 20, 20, 20)
    moving, fixed = torch.zeros(1, 3, 10, 10, 10), torch.zeros(1, 3, 10, 10, 10)  # half as fine as the images
    moving[:, 0, 2:6] = 1
    fixed[:, 0, 4:8] = 1
    moving[:, 1, 8:] = 1  # in the moving image alone
    pair, masks = (textures, textures), (inside, inside)
    seen = agreement_of(pair, masks, still, configuration.training, semantics=(moving, fixed))
    assert seen.overlap == pytest.approx(0.5)
    shifted = still.clone()
    shifted[:, 0] = -4  # voxels of the images, two of the segmentations
    assert agreement_of(pair, masks, shifted, configuration.training, semantics=(moving, fixed)).overlap == 1
    apart = agreement_of(pair, masks, still, configuration.training, semantics=(moving.roll(1, dims=1), fixed))
    assert apart.overlap == 0
    nothing = torch.zeros_like(fixed)
    assert agreement_of(pair, masks, still, configuration.training, semantics=(nothing, nothing)).overlap is None
    assert agreement_of(pair, masks, still, configuration.training).overlap is None


@pytest.mark.parametrize("ends", [0, 1], ids=["moving", "fixed"])
def test_an_image_that_ends_earlier_is_as_like_as_a_whole_one(configuration, textures, ends):
    still, whole = torch.zeros(1, 3, 20, 20, 20), torch.ones_like(textures)
    seen = whole.clone()
    seen[:, :, 12:] = 0
    masks = [seen if side == ends else whole for side in (0, 1)]
    anatomy = (textures > textures.median()).float()
    semantics = tuple(anatomy * mask for mask in masks)
    for similarity in ("lncc", "mind"):
        plans = replace(configuration.training, similarity=similarity)
        found = agreement_of([textures * mask for mask in masks], masks, still, plans, semantics=semantics)
        assert found.after == pytest.approx(0, abs=0.01)
        assert found.overlap == pytest.approx(1)


def test_too_thin_an_overlap_says_nothing_across_modalities(configuration, textures):
    still, first, last = torch.zeros(1, 3, 20, 20, 20), torch.zeros_like(textures), torch.zeros_like(textures)
    first[:, :, :11], last[:, :, 9:] = 1, 1  # two slices are shared, and a pair of neighbours is two voxels apart
    plans = replace(configuration.training, similarity="mind")
    found = agreement_of((textures, textures.flip(3)), (first, last), still, plans)
    assert (found.before, found.after) == (None, None)
    assert judge(0.0, 0.1, found, ()).status == "FAIL"
