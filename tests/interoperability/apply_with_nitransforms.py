"""Apply transforms to images and points with nitransforms, which takes points in RAS mm: see jobs.py."""

import jobs
import nibabel
from nitransforms import linear, manip, nonlinear
from nitransforms.base import TransformBase
from nitransforms.resampling import apply


def read_transform(path: str) -> TransformBase:
    module = nonlinear if path.endswith(".nii.gz") else manip if path.endswith(".h5") else linear
    return module.load(path, fmt="itk")


def compose(paths: list[str]) -> TransformBase:
    """A point goes through the first transform of a chain first."""
    transforms = [read_transform(path) for path in paths]
    return transforms[0] if len(transforms) == 1 else manip.TransformChain(transforms)


def warp_image(job: dict) -> None:
    fixed, moving = nibabel.load(job["fixed"]), nibabel.load(job["moving"])
    warped = apply(compose(job["transforms"]), moving, reference=fixed, order=1, cval=job["default"])
    warped.to_filename(job["output"])


def map_points(job: dict) -> None:
    mapped = compose(job["transforms"]).map(jobs.read_points(job["points"]) * jobs.LPS_TO_RAS)
    jobs.write_points(job["output"], mapped * jobs.LPS_TO_RAS)


if __name__ == "__main__":
    jobs.run(image=warp_image, points=map_points)
