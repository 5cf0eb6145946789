"""`--dask` with a real cluster on this machine."""

import pytest
from distributed import LocalCluster

from biasreg.cli import plan_and_preprocess, preprocess


@pytest.mark.slow
def test_a_dask_cluster_makes_the_same_files_as_this_machine_byte_by_byte(run, tiny_dataset, tmp_path, monkeypatch):
    assert run(plan_and_preprocess.main) == 0
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0", memory_limit=0) as cluster:
        monkeypatch.chdir(tmp_path)  # where the workers are not: relative roots must reach them
        flags = ["-d", "700", "-gpu_memory_target", "0", "--dask", cluster.scheduler_address]
        roots = ["--raw", "raw", "--preprocessed", "of_dask", "--results", "results"]
        assert plan_and_preprocess.main([*flags, *roots]) == 0
        made = [path.stat().st_mtime_ns for path in sorted((tmp_path / "of_dask").rglob("*.npy"))]
        assert preprocess.main([*flags, *roots]) == 0
    local, remote = (
        {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        for folder in (tmp_path / "preprocessed", tmp_path / "of_dask")
    )
    assert len([path for path in local if path.suffix == ".npy"]) == 12
    assert local == remote
    assert made == [path.stat().st_mtime_ns for path in sorted((tmp_path / "of_dask").rglob("*.npy"))]
