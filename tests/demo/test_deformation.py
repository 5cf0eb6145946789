import dataclasses

import numpy as np
import pytest

from biasreg.core.errors import InputError
from biasreg.demo.deformation import AtlasMap, VariationSettings, Waves, from_atlas, random_atlas_map, to_atlas

SETTINGS = VariationSettings()


@pytest.fixture
def atlas_map():
    return random_atlas_map(SETTINGS, np.random.default_rng(3))


@pytest.fixture
def points():
    return np.random.default_rng(4).uniform(-70, 70, (500, 3))


def jacobian_determinants(atlas_map, points, step=1e-4):
    columns = [
        (to_atlas(atlas_map, points + step * unit) - to_atlas(atlas_map, points - step * unit)) / (2 * step)
        for unit in np.eye(3)
    ]
    return np.linalg.det(np.stack(columns, axis=-1))


def test_the_inverse_undoes_the_map(atlas_map, points):
    np.testing.assert_allclose(from_atlas(atlas_map, to_atlas(atlas_map, points)), points, atol=1e-4)
    np.testing.assert_allclose(to_atlas(atlas_map, from_atlas(atlas_map, points)), points, atol=1e-4)


def test_without_waves_the_map_is_affine(points):
    matrix = np.diag([1.1, 0.9, 1.0])
    plain = AtlasMap(matrix=matrix, offset=np.array([1.0, 2.0, 3.0]), stages=())
    np.testing.assert_allclose(to_atlas(plain, points), points @ matrix + [1, 2, 3])


def test_a_single_wave_displaces_by_its_formula():
    wave = Waves(np.array([[0.0, 0.0, 5.0]]), np.array([[2 * np.pi / 100, 0.0, 0.0]]), np.zeros(1))
    single = AtlasMap(matrix=np.eye(3), offset=np.zeros(3), stages=(wave,))
    np.testing.assert_allclose(to_atlas(single, np.array([25.0, 7.0, 1.0])), [25, 7, 6])


@pytest.mark.parametrize("seed", range(5))
def test_random_maps_never_fold(seed, points):
    assert jacobian_determinants(random_atlas_map(SETTINGS, np.random.default_rng(seed)), points).min() > 0.2


@pytest.mark.parametrize("seed", range(5))
def test_random_maps_stay_within_their_settings(seed, points):
    drawn = random_atlas_map(SETTINGS, np.random.default_rng(seed))
    scales = np.linalg.norm(drawn.matrix, axis=0)
    angle = np.rad2deg(np.arccos(np.clip((np.trace(drawn.matrix / scales) - 1) / 2, -1, 1)))
    shift = -np.linalg.solve(drawn.matrix, drawn.offset)
    linear = points @ drawn.matrix.T + drawn.offset
    assert np.abs(scales - 1).max() <= SETTINGS.scale
    assert angle <= SETTINGS.rotation_degrees
    assert np.abs(shift).max() <= SETTINGS.shift_mm
    lengths = np.linalg.norm(to_atlas(drawn, points) - linear, axis=1)
    assert lengths.max() <= SETTINGS.num_stages * SETTINGS.deformation_mm
    assert lengths.max() > 3


def test_settings_that_could_fold_are_refused():
    with pytest.raises(InputError, match=r"deformation_mm = 30 over wavelengths from 80 mm.*may fold"):
        dataclasses.replace(SETTINGS, deformation_mm=30.0)


def test_inverting_a_folding_map_is_refused():
    wave = Waves(np.array([[50.0, 0.0, 0.0]]), np.array([[1.0, 0.0, 0.0]]), np.zeros(1))
    folding = AtlasMap(matrix=np.eye(3), offset=np.zeros(3), stages=(wave,))
    with pytest.raises(InputError, match="its inverse is still"):
        from_atlas(folding, np.array([[1.0, 2.0, 3.0]]))
