"""Register the test pairs of a dataset by ANTs, as fields that `biasreg_evaluate --method NAME=FOLDER` takes.

Needs antspyx, whose environment `make interop` makes: .venv-interop/bin/python benchmarks/peer_ants.py …
"""

import argparse
import shutil
import tempfile
import time
from pathlib import Path

import ants

from biasreg.core.pairs import PairFiles, read_pairs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", type=Path, help="a raw dataset with test pairs, or what biasreg_predict takes")
    parser.add_argument("output", type=Path, help="folder of the fields")
    parser.add_argument("--transform", default="Affine", help="type of transform of ants.registration, as SyN")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    for pair in read_pairs(arguments.pairs).pairs:
        seconds = register(pair, arguments.output, arguments.transform)
        print(f"{pair.identifier}: {seconds:.2f} s", flush=True)


def register(pair: PairFiles, output: Path, transform: str) -> float:
    """Register one pair and write `<pair>_warp.nii.gz`; the time is that from the images' files to the field's."""
    start = time.perf_counter()
    fixed, moving = (ants.image_read(str(paths[0])) for paths in (pair.fixed, pair.moving))
    result = ants.registration(fixed, moving, type_of_transform=transform, random_seed=1)
    with tempfile.TemporaryDirectory() as folder:
        field = ants.apply_transforms(fixed, moving, result["fwdtransforms"], compose=f"{folder}/")
        shutil.move(field, output / f"{pair.identifier}_warp.nii.gz")
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
