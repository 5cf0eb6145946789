"""Apply transforms to images and points with Plastimatch: see jobs.py. A job has one transform, but for the third:

* `{"job": "compose", "transforms", "output"}` composes two displacement fields.

Plastimatch takes points as a fiducial list of 3D Slicer (.fcsv), in RAS mm.
"""

import subprocess
import sys
from pathlib import Path

import jobs
import numpy as np

PLASTIMATCH = Path(sys.executable).with_name("plastimatch")


def plastimatch(*arguments: object) -> None:
    done = subprocess.run([PLASTIMATCH, *map(str, arguments)], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"plastimatch {arguments} exits with {done.returncode}: {done.stdout}{done.stderr}")


def warp_image(job: dict) -> None:
    (transform,) = job["transforms"]
    images = ("--input", job["moving"], "--fixed", job["fixed"], "--output-img", job["output"])
    kind = ("--output-type", "float", "--default-value", job["default"])
    plastimatch("convert", *images, "--xf", transform, *kind)


def map_points(job: dict) -> None:
    (transform,) = job["transforms"]
    before, after = (Path(f"{job['output']}.{name}.fcsv") for name in ("before", "after"))
    points = (jobs.read_points(job["points"]) * jobs.LPS_TO_RAS).tolist()
    lines = [f"{number},{x!r},{y!r},{z!r},1,1" for number, (x, y, z) in enumerate(points)]
    before.write_text("\n".join(["# columns = label,x,y,z,sel,vis", *lines]) + "\n", encoding="utf-8")
    plastimatch("warp", "--input", before, "--xf", transform, "--output-pointset", after)
    jobs.write_points(job["output"], np.loadtxt(after, delimiter=",", usecols=(1, 2, 3)) * jobs.LPS_TO_RAS)


def compose(job: dict) -> None:
    plastimatch("compose", *job["transforms"], job["output"])


if __name__ == "__main__":
    jobs.run(image=warp_image, points=map_points, compose=compose)
