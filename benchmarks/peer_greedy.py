"""Register the test pairs of a dataset by Greedy, as fields that `biasreg_evaluate --method NAME=FOLDER` takes.

Needs picsl_greedy, whose environment `make interop` makes, and biasreg's folder on PYTHONPATH:
PYTHONPATH=. .venv-interop/bin/python benchmarks/peer_greedy.py …

Source: Yushkevich et al., Greedy, https://greedy.readthedocs.io
"""

import argparse
import tempfile
import time
from pathlib import Path

from picsl_greedy import Greedy3D

from biasreg.core.pairs import PairFiles, read_pairs

# Affine from the centres of the images, then deformable; both by local correlation, at three resolutions to the finest.
AFFINE = "-a -dof 12 -ia-image-centers -m NCC 4x4x4 -n 100x100x50"
DEFORMABLE = "-m NCC 2x2x2 -n 100x100x50 -s 1.732vox 0.707vox"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", type=Path, help="a raw dataset with test pairs, or what biasreg_predict takes")
    parser.add_argument("output", type=Path, help="folder of the fields")
    parser.add_argument("--affine", default=AFFINE, help="options of the affine stage")
    parser.add_argument("--deformable", default=DEFORMABLE, help="options of the deformable stage")
    parser.add_argument("--threads", type=int, default=1, help="threads")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    for pair in read_pairs(arguments.pairs).pairs:
        print(f"{pair.identifier}: {register(pair, arguments):.2f} s", flush=True)


def register(pair: PairFiles, arguments: argparse.Namespace) -> float:
    """Register one pair and write `<pair>_warp.nii.gz`; the time is that from the images' files to the field's."""
    greedy, both = Greedy3D(), f"-i {pair.fixed[0]} {pair.moving[0]} -threads {arguments.threads} -V 0"
    with tempfile.TemporaryDirectory() as folder:
        affine, warp = f"{folder}/affine.mat", f"{folder}/warp.nii.gz"
        start = time.perf_counter()
        greedy.execute(f"{both} {arguments.affine} -o {affine}")
        greedy.execute(f"{both} {arguments.deformable} -it {affine} -o {warp}")
        composed = arguments.output / f"{pair.identifier}_warp.nii.gz"
        greedy.execute(f"-rf {pair.fixed[0]} -rc {composed} -r {warp} {affine} -V 0")
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
