"""Preprocessing that is killed (SIGKILL: no chance to tidy up), and then run again."""

import os
import signal
import subprocess
import sys

import numpy as np
import pytest

from biasreg.preprocessing.prepare import PrepareOptions, extract_fingerprint, plan_experiment, preprocess
from biasreg.preprocessing.storage import configuration_folder

OPTIONS = PrepareOptions("cpu", 8.0, num_workers=1)
# The command, which dies in the middle of writing the array of this number.
KILLED = """
import os, signal, sys
import numpy as np
from biasreg.cli.preprocess import main

def save(file, array, calls=[], write=np.save):
    calls.append(None)
    if len(calls) == int(sys.argv[1]):
        file.write(array.tobytes()[:1000])
        file.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    write(file, array)

np.save = save
main(sys.argv[2:])
"""


@pytest.fixture
def folder(roots, raw_dataset):
    """Plan the dataset, and name the folder of its cases."""
    raw_dataset(unlabelled=(3,))
    extract_fingerprint(roots, "700", OPTIONS)
    plans = plan_experiment(roots, "700", OPTIONS)
    return configuration_folder(roots.preprocessed / "Dataset700_Blobs", plans.plans_name, plans.default_configuration)


def arrays(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix == ".npy"}


@pytest.mark.slow
@pytest.mark.parametrize("number", [5, 8])  # the mask of the second case, the first array of the third
def test_a_killed_run_goes_on_where_it_was_and_makes_the_same_arrays(number, folder, roots):
    flags = [f"--{root}={getattr(roots, root)}" for root in ("raw", "preprocessed", "results")]
    command = [sys.executable, "-c", KILLED, str(number), "-d", "700", "-np", "1", *flags]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    killed = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    done = {path.name: path.stat().st_mtime_ns for path in folder.glob("c?.json")}
    assert sorted(done) == ["c0.json", "c1.json"][: (number - 2) // 3]
    left = [path for path in folder.iterdir() if path.name.startswith(".")]
    assert len(left) == 1  # the half array

    preprocess(roots, "700", OPTIONS)
    assert len(list(folder.glob("c?.json"))) == 4
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]
    assert {name: (folder / name).stat().st_mtime_ns for name in done} == done
    resumed = arrays(folder)
    preprocess(roots, "700", PrepareOptions("cpu", 8.0, num_workers=1, clean=True))
    assert arrays(folder) == resumed
    assert np.load(folder / "c3.npy").dtype == np.float16
