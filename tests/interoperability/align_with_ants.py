"""Register an image rigidly with ANTs, in an environment of its own: align_with_ants.py FIXED MOVING TRANSFORM WARPED

ANTs' own 0GenericAffine.mat becomes TRANSFORM, and the moving image that it warps becomes WARPED.
"""

import shutil
import sys

import ants

if __name__ == "__main__":
    fixed, moving = (ants.image_read(path) for path in sys.argv[1:3])
    found = ants.registration(fixed, moving, "Rigid", random_seed=1)
    (matrix,) = found["fwdtransforms"]
    shutil.copyfile(matrix, sys.argv[3])
    ants.image_write(ants.apply_transforms(fixed, moving, [matrix]), sys.argv[4])
