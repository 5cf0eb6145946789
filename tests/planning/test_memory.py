import pytest

from biasreg.planning.memory import step_memory_gib, voxel_budget


@pytest.mark.parametrize("memory", [8.0, 24.0, 80.0])
def test_more_memory_gives_more_voxels_and_the_prediction_fits(memory):
    voxels = voxel_budget("cuda", memory, 16)
    assert voxels > voxel_budget("cuda", memory / 2, 16)
    assert step_memory_gib(voxels, 16) <= memory + 1e-6


def test_a_cpu_is_bounded_by_time():
    assert voxel_budget("cpu", 500.0, 8) == voxel_budget("cpu", 1000.0, 8)
