"""Apply transforms to images and points with Greedy, which takes points as a VTK file in RAS mm: see jobs.py."""

from pathlib import Path

import jobs
import numpy as np
from picsl_greedy import Greedy3D


def warp_image(job: dict) -> None:
    images = f"-rf {job['fixed']} -rb {job['default']} -rm {job['moving']} {job['output']}"
    Greedy3D().execute(f"-V 0 -threads 1 {images} -r {' '.join(job['transforms'])}")


def map_points(job: dict) -> None:
    before, after = (f"{job['output']}.{name}.vtk" for name in ("before", "after"))
    write_vtk(before, jobs.read_points(job["points"]) * jobs.LPS_TO_RAS)
    points = f"-rf {job['fixed']} -rs {before} {after}"
    Greedy3D().execute(f"-V 0 -threads 1 {points} -r {' '.join(job['transforms'])}")
    jobs.write_points(job["output"], read_vtk(after) * jobs.LPS_TO_RAS)


def write_vtk(path: str, points: np.ndarray) -> None:
    lines = ["# vtk DataFile Version 3.0", "points", "ASCII", "DATASET POLYDATA", f"POINTS {len(points)} double"]
    lines += [" ".join(map(repr, point)) for point in points.tolist()]
    Path(path).write_text("\n".join(lines) + "\n", encoding="utf-8")


def read_vtk(path: str) -> np.ndarray:
    count, _, *numbers = Path(path).read_text(encoding="utf-8").split("POINTS", 1)[1].split()
    return np.array(numbers[: 3 * int(count)], dtype=np.float64).reshape(-1, 3)


if __name__ == "__main__":
    jobs.run(image=warp_image, points=map_points)
