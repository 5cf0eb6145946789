"""Apply transforms to images and points with ANTs, in an environment of its own: apply_with_ants.py JOBS.json

The jobs are those of jobs.py; that of an image may name an `interpolator`, and there are besides

* `{"job": "compose", "fixed", "transforms", "output"}` writes the transforms as one displacement field,
* `{"job": "jacobian", "fixed", "transforms", "output"}` writes the determinant of the one transform.
"""

import json
import sys
from pathlib import Path

import ants
import pandas as pd


def warp_image(job: dict) -> None:
    warped = ants.apply_transforms(
        fixed=ants.image_read(job["fixed"]),
        moving=ants.image_read(job["moving"]),
        transformlist=job["transforms"],
        interpolator=job.get("interpolator", "linear"),
        defaultvalue=job["default"],
    )
    ants.image_write(warped, job["output"])


def map_points(job: dict) -> None:
    points = pd.read_csv(job["points"])
    ants.apply_transforms_to_points(3, points, job["transforms"]).to_csv(job["output"], index=False)


def compose(job: dict) -> None:
    fixed = ants.image_read(job["fixed"])
    prefix = job["output"].removesuffix(".nii.gz") + "_"
    written = ants.apply_transforms(fixed=fixed, moving=fixed, transformlist=job["transforms"], compose=prefix)
    Path(written).replace(job["output"])


def jacobian(job: dict) -> None:
    (transform,) = job["transforms"]
    ants.image_write(ants.create_jacobian_determinant_image(ants.image_read(job["fixed"]), transform), job["output"])


JOBS = {"image": warp_image, "points": map_points, "compose": compose, "jacobian": jacobian}

if __name__ == "__main__":
    for item in json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")):
        JOBS[item["job"]](item)
