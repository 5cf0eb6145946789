"""What the scripts that apply transforms share; they run as `apply_with_TOOL.py JOBS.json`, in the tools' environment.

JOBS.json is a list of jobs, all of whose paths are absolute, and whose transforms stand in the order in which a point
of the fixed world goes through them:

* `{"job": "image", "fixed", "moving", "transforms", "default", "output"}` resamples an image linearly,
* `{"job": "points", "fixed", "points", "transforms", "output"}` maps the points of a CSV file in LPS mm.
"""

import csv
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

LPS_TO_RAS = np.array([-1.0, -1.0, 1.0])  # and back


def read_points(path: str) -> np.ndarray:
    """(N, 3) LPS mm."""
    with open(path, encoding="utf-8") as source:
        return np.array([[float(row[axis]) for axis in "xyz"] for row in csv.DictReader(source)])


def write_points(path: str, points: np.ndarray) -> None:
    np.savetxt(path, points, fmt="%.9f", delimiter=",", header="x,y,z", comments="")


def run(**functions: Callable[[dict], None]) -> None:
    """Do the jobs of the file that the command line names."""
    for job in json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")):
        functions[job["job"]](job)
