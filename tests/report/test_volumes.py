import numpy as np
import pytest

from biasreg.core.errors import GeometryError, ImageError
from biasreg.report.pictures import best_view, length_mm
from biasreg.report.predictions import PredictedPair, locate_images, read_predictions
from biasreg.report.volumes import pair_volumes, read_field, read_sources


def volumes_of(study, name="a"):
    pair = next(locate_images(each, {}) for each in read_predictions(study.predictions) if each.name == name)
    sources = read_sources(pair)
    return pair_volumes(sources, read_field(pair.level_fields["level 0, the result"], sources.fixed.geometry))


@pytest.mark.parametrize("axes", ["LPS", "PIR"])
def test_a_pair_looks_the_same_however_the_axes_of_its_files_point(study, axes):
    study.add_pair("a")
    study.add_pair("b", axes=axes)
    expected, turned = volumes_of(study), volumes_of(study, "b")
    assert np.allclose(np.diag(turned.grid.direction), 1)
    for name in ("fixed", "moving", "warped", "fixed_labels", "displacement", "determinant"):
        a, b = getattr(expected, name), getattr(turned, name)
        if axes == "LPS":  # the same voxels; PIR has others, as its spacing goes along other axes
            assert np.allclose(a, b, atol=1e-3), name
    right, left = turned.fixed[-len(turned.fixed) // 2 :], turned.fixed[: len(turned.fixed) // 2]
    assert right.mean() > left.mean()  # the phantom is brighter on the right, where x is large
    front = turned.fixed_labels == 3
    assert np.nonzero(front)[1].mean() > np.nonzero(turned.fixed_labels == 7)[1].mean()


def test_registration_brings_the_moving_image_onto_the_fixed_one(study):
    study.add_pair("a", shift_mm=(5.0, -3.0, 2.0))
    volumes = volumes_of(study)
    before, after = (np.abs(getattr(volumes, name) - volumes.fixed).mean() for name in ("moving", "warped"))
    assert after < before / 3
    assert (volumes.warped_labels == volumes.fixed_labels).mean() > (
        volumes.moving_labels == volumes.fixed_labels
    ).mean()
    assert length_mm(volumes).mean() == pytest.approx(np.linalg.norm([5, -3, 2]), rel=0.1)


def test_pictures_go_through_the_labels(study):
    study.add_pair("a")
    volumes = volumes_of(study)
    view, position = best_view(volumes)
    assert np.take(volumes.fixed_labels, position, axis=view.cut).any()


def test_a_field_of_another_grid_and_a_pair_without_images_are_refused(study, grid_of):
    study.add_pair("a")
    with pytest.raises(GeometryError, match="not that of the fixed image"):
        read_field(study.predictions / "a_warp.nii.gz", grid_of("LPS"))
    with pytest.raises(ImageError, match="no displacement field"):
        read_field(None, grid_of())
    with pytest.raises(ImageError, match="pair a: gone"):
        read_sources(PredictedPair("a", study.predictions, missing="gone"))
