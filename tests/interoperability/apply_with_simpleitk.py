"""Apply transforms to images and points with SimpleITK: see jobs.py."""

import jobs
import numpy as np
import SimpleITK as sitk


def read_transform(path: str) -> sitk.Transform:
    if path.endswith(".nii.gz"):
        return sitk.DisplacementFieldTransform(sitk.ReadImage(path, sitk.sitkVectorFloat64))
    return sitk.ReadTransform(path)


def compose(paths: list[str]) -> sitk.Transform:
    """SimpleITK applies the last transform of a composite first."""
    return sitk.CompositeTransform([read_transform(path) for path in reversed(paths)])


def warp_image(job: dict) -> None:
    fixed, moving = sitk.ReadImage(job["fixed"]), sitk.ReadImage(job["moving"])
    warped = sitk.Resample(moving, fixed, compose(job["transforms"]), sitk.sitkLinear, job["default"])
    sitk.WriteImage(warped, job["output"])


def map_points(job: dict) -> None:
    transform = compose(job["transforms"])
    points = [transform.TransformPoint(point) for point in jobs.read_points(job["points"]).tolist()]
    jobs.write_points(job["output"], np.array(points))


if __name__ == "__main__":
    jobs.run(image=warp_image, points=map_points)
