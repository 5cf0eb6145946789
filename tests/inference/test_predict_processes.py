"""Several processes that share a batch, as torchrun starts them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_a_pair_that_fails_in_one_process_does_not_stop_the_others(tmp_path, write_model, write_pair):
    pairs = tmp_path / "pairs"
    pairs.mkdir()
    for name in "abcdef":
        write_pair(pairs, name, labels=False)
    (pairs / "a_moving.nii.gz").write_bytes(b"no image")  # the first pair of the first process
    command = Path(sys.executable).with_name("biasreg_predict")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--no-python", str(command)]
    given = [
        "-i",
        str(pairs),
        "-o",
        str(tmp_path / "out"),
        "--results",
        str(write_model().parents[1]),
        "-device",
        "cpu",
    ]
    done = subprocess.run(
        [*launcher, *given],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 1, done.stderr
    assert {path.stem for path in (tmp_path / "out").glob("*.json")} == set("bcdef")
    assert "1 pair(s) failed: a" in done.stderr
