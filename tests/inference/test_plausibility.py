import numpy as np
import pytest

from biasreg.core.errors import ImageError
from biasreg.core.geometry import Geometry
from biasreg.core.image_io import Image
from biasreg.inference.plausibility import check_content, content_notices
from biasreg.preprocessing.preprocess import CanonicalImage

GRID = Geometry.centered((10, 20, 40), (4.0, 4.0, 2.0))  # 40 × 80 × 80 mm


def canonical(extent_mm=(40.0, 80.0, 80.0), outside=0.0, blank=(False,)):
    shape = (len(blank), *GRID.shape)
    return CanonicalImage(np.zeros(shape, dtype=np.float32), np.ones(GRID.shape, dtype=bool), outside, extent_mm, blank)


def test_an_image_as_planned_gives_no_notice():
    assert content_notices("moving", canonical(), GRID, "anatomy") == ()


@pytest.mark.parametrize(
    ("extent_mm", "noticed"),
    [
        ((10.0, 80.0, 80.0), False),
        ((9.9, 80.0, 80.0), True),
        ((40.0, 320.0, 80.0), False),
        ((40.0, 80.0, 321.0), True),
        ((0.04, 0.08, 0.08), True),
    ],
)
def test_anatomy_below_a_quarter_or_above_four_times_of_the_plan_along_an_axis_gives_a_notice(extent_mm, noticed):
    notices = content_notices("fixed", canonical(extent_mm), GRID, "anatomy")
    assert len(notices) == noticed
    if noticed:
        measured = "×".join(f"{side:.3g}" for side in extent_mm)
        expected = f"the fixed image's anatomy measures {measured} mm, but the model was planned for 40×80×80 mm"
        assert notices[0].startswith(expected)


def test_anatomy_outside_the_grid_and_blank_channels_are_named_with_their_numbers():
    notices = content_notices("moving", canonical(outside=0.123, blank=(False, True)), GRID, "anatomy")
    assert notices[0].startswith("channel 1 of the moving image shows nothing")
    assert notices[1].startswith("12.3 % of the moving image's anatomy lies outside the grid")


def test_only_an_image_without_any_content_is_refused():
    images = [Image(np.full(GRID.shape, value, dtype=np.float32), GRID) for value in (2, 7)]
    check_content("moving", images, canonical(blank=(True, False)))
    with pytest.raises(ImageError, match=r"nothing to register in the moving image.*\(values from 2 to 7\)"):
        check_content("moving", images, canonical(blank=(True, True)))


@pytest.mark.parametrize(("covered", "noticed"), [(40, False), (10, False), (9, True)])
def test_of_a_part_of_the_anatomy_the_field_of_view_tells_whether_lengths_are_in_mm(covered, noticed):
    image = canonical((0.04, 0.08, 0.08))
    image.mask[:, :, covered:] = False
    notices = content_notices("moving", image, GRID, "labels")
    assert len(notices) == noticed
    assert all("the moving image covers 22 % of the 40×80×80 mm" in notice for notice in notices)
