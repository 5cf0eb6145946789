"""Register two images with ANTs, and apply what it writes with antsApplyTransforms: apply_chains_with_ants.py FOLDER

FOLDER holds `fixed.nii.gz`, `moving.nii.gz`, `moving_seg.nii.gz` and `points.csv`. Its results lie in it afterwards.
"""

import sys
from pathlib import Path

import ants
import pandas as pd


def main(folder: Path) -> None:
    def path(name: str) -> str:
        return str(folder / name)

    fixed, moving, labels = (ants.image_read(path(f"{name}.nii.gz")) for name in ("fixed", "moving", "moving_seg"))
    for name, composite in (("ants_", False), ("composite_", True)):
        ants.registration(
            *(fixed, moving, "SyN"),
            outprefix=path(name),
            reg_iterations=(10, 5),
            write_composite_transform=composite,
            random_seed=1,
        )
    warp, matrix, back = path("ants_1Warp.nii.gz"), path("ants_0GenericAffine.mat"), path("ants_1InverseWarp.nii.gz")
    chains = {
        "forward": (fixed, moving, [warp, matrix], [False, False]),
        "swapped": (fixed, moving, [matrix, warp], [False, False]),
        "inverse": (moving, fixed, [matrix, back], [True, False]),
        "composite": (fixed, moving, [path("composite_Composite.h5")], [False]),
    }
    points = pd.read_csv(path("points.csv"))
    for name, (reference, image, transforms, inverted) in chains.items():
        warped = ants.apply_transforms(
            reference, image, transforms, whichtoinvert=inverted, defaultvalue=float(image.min())
        )
        ants.image_write(warped, path(f"{name}.nii.gz"))
        ants.apply_transforms_to_points(3, points, transforms, whichtoinvert=inverted).to_csv(
            path(f"{name}.csv"), index=False
        )
    votes = ants.apply_transforms(fixed, labels, [warp, matrix], interpolator="genericLabel")
    ants.image_write(votes, path("labels.nii.gz"))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
