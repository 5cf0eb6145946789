"""Apply transforms to images and points with itk-elastix: see jobs.py. A `.h5` stands alone in its list.

The parameter files are written beside the output, as documentation/how-to/open-a-field-in-other-tools.md tells.
"""

import re
from collections.abc import Iterable
from pathlib import Path

import itk
import jobs
import numpy as np

IMAGE = itk.Image[itk.F, 3]
FIELD = """(Transform "DeformationFieldTransform")
(DeformationFieldFileName "{path}")
(DeformationFieldInterpolationOrder 1)
(NumberOfParameters 0)
"""
AFFINE = """(Transform "AffineTransform")
(CenterOfRotationPoint 0 0 0)
(NumberOfParameters 12)
(TransformParameters {numbers})
"""
REST = """(InitialTransformParametersFileName "{initial}")
(HowToCombineTransforms "Compose")
(FixedImageDimension 3)
(MovingImageDimension 3)
(FixedInternalImagePixelType "float")
(MovingInternalImagePixelType "float")
(Size {size})
(Index 0 0 0)
(Spacing {spacing})
(Origin {origin})
(Direction {direction})
(UseDirectionCosines "true")
(Resampler "DefaultResampler")
(ResampleInterpolator "FinalBSplineInterpolator")
(FinalBSplineInterpolationOrder 1)
(DefaultPixelValue {default})
(ResultImageFormat "nii.gz")
(ResultImagePixelType "float")
"""


def words(numbers: Iterable) -> str:
    return " ".join(str(number) for number in numbers)


def transform_entries(path: str) -> str:
    if path.endswith(".h5"):
        return ""
    if path.endswith(".nii.gz"):
        return FIELD.format(path=path)
    (numbers,) = re.findall(r"^Parameters: (.*)$", Path(path).read_text(encoding="utf-8"), flags=re.MULTILINE)
    return AFFINE.format(numbers=numbers)


def write_parameters(job: dict) -> str:
    """Write a parameter file for each transform, each naming the one before it, and give the last."""
    fixed = itk.imread(job["fixed"], itk.F)
    grid = {
        "size": words(itk.size(fixed)),
        "spacing": words(itk.spacing(fixed)),
        "origin": words(itk.origin(fixed)),
        "direction": words(itk.array_from_matrix(fixed.GetDirection()).T.ravel()),  # column by column
    }
    file = "NoInitialTransform"
    for index, path in enumerate(job["transforms"]):
        content = transform_entries(path) + REST.format(initial=file, default=job.get("default", 0), **grid)
        file = f"{job['output']}.{index}.txt"
        Path(file).write_text(content, encoding="utf-8")
    return file


def transformix(job: dict) -> itk.TransformixFilter:
    parameters = itk.ParameterObject.New()
    parameters.AddParameterFile(write_parameters(job))
    found = itk.TransformixFilter[IMAGE].New(itk.imread(job.get("moving", job["fixed"]), itk.F))
    if job["transforms"][0].endswith(".h5"):
        found.SetExternalTransform(itk.transformread(job["transforms"][0])[0])
    found.SetTransformParameterObject(parameters)
    return found


def warp_image(job: dict) -> None:
    tool = transformix(job)
    tool.Update()
    itk.imwrite(tool.GetOutput(), job["output"])


def map_points(job: dict) -> None:
    folder = Path(f"{job['output']}.folder")
    folder.mkdir()
    points = jobs.read_points(job["points"]).tolist()
    listed = folder / "inputpoints.txt"
    listed.write_text("\n".join(["point", str(len(points)), *map(words, points)]) + "\n", encoding="utf-8")
    tool = transformix(job)
    tool.SetFixedPointSetFileName(str(listed))
    tool.SetOutputDirectory(str(folder))
    tool.Update()
    found = re.findall(r"OutputPoint = \[ (.*?) \]", (folder / "outputpoints.txt").read_text(encoding="utf-8"))
    jobs.write_points(job["output"], np.array([point.split() for point in found], dtype=np.float64))


if __name__ == "__main__":
    jobs.run(image=warp_image, points=map_points)
