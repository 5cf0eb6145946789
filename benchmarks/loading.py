"""Seconds and bytes of loading a preprocessed case for training, from the files that are kept and from compressed ones.

`npy` is what preprocessing writes: uncompressed arrays that are mapped into memory. `npz` and `nii.gz` hold the same
arrays compressed (NIfTI has no float16: float32). All are read as training reads them: image as float32, classes, mask.
`cold` is after the system was asked to forget the files, `warm` right after another reading.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from result_file import RESULTS, warn_if_busy, write_result

from biasreg.preprocessing.storage import IMAGE, LABELS, MASK, load_image, load_labels, load_mask
from biasreg.training.data import CaseSource

FORMATS = ("npy", "npz", "nii.gz")
Arrays = tuple[np.ndarray, np.ndarray, np.ndarray]


def main() -> None:
    arguments = parse_arguments()
    warn_if_busy()
    cases = sorted(path.name.removesuffix(MASK) for path in arguments.folder.glob(f"*{MASK}"))[: arguments.cases]
    results = measure(arguments.folder, cases, arguments.repeats)
    print_results(results)
    settings = {
        "folder": f"{arguments.folder.parent.name}/{arguments.folder.name}",
        "cases": len(cases),
        "repeats": arguments.repeats,
        "shape": list(load_image(arguments.folder, cases[0]).shape),
    }
    output = arguments.output or RESULTS / f"loading_{arguments.folder.parent.name}.json"
    write_result(output, settings, results, device="cpu")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder of preprocessed cases; nothing is written there")
    parser.add_argument("--cases", type=int, default=20, help="at most so many cases")
    parser.add_argument("--repeats", type=int, default=3, help="readings of each case, cold and warm")
    parser.add_argument("--output", type=Path, help="result file (default: loading_DATASET.json in results/)")
    return parser.parse_args()


def measure(folder: Path, cases: list[str], repeats: int) -> dict[str, Any]:
    """Time the readings of all cases in all formats, in turn, so that other programs slow down all alike."""
    with tempfile.TemporaryDirectory() as name:
        copies = Path(name)
        source = CaseSource(folder, dict.fromkeys(cases, True))
        readers = {case: prepare(source, copies, case) for case in cases}
        times: dict[str, dict[str, list[float]]] = {kind: {"cold": [], "warm": []} for kind in FORMATS}
        for _ in range(repeats):
            for case in cases:
                for kind in FORMATS:
                    files, read = readers[case][kind]
                    forget(files)
                    times[kind]["cold"].append(timed(read))
                    times[kind]["warm"].append(timed(read))
        sizes = {
            kind: statistics.mean(sum(path.stat().st_size for path in readers[case][kind][0]) for case in cases)
            for kind in FORMATS
        }
    return {
        kind: {
            "bytes_per_case": round(sizes[kind]),
            "milliseconds_per_case": {
                state: {"median": round(1e3 * statistics.median(values), 3), "max": round(1e3 * max(values), 3)}
                for state, values in times[kind].items()
            },
        }
        for kind in FORMATS
    }


def prepare(source: CaseSource, copies: Path, case: str) -> dict[str, tuple[list[Path], Callable[[], Arrays]]]:
    """Write the compressed copies of a case; give the files and the reader of each format, which all read the same."""
    arrays = source.image(case), source.labels(case), source.mask(case)
    npz = copies / f"{case}.npz"
    stored = load_image(source.folder, case), load_labels(source.folder, case), load_mask(source.folder, case)
    np.savez_compressed(npz, image=stored[0], labels=stored[1], mask=stored[2])
    volumes = [copies / f"{case}_{name}.nii.gz" for name in ("image", "labels", "mask")]
    for path, array in zip(volumes, arrays, strict=True):
        nibabel.save(nibabel.Nifti1Image(np.moveaxis(array, 0, -1), np.eye(4)), path)
    kept = [source.folder / f"{case}{ending}" for ending in (IMAGE, MASK, LABELS)]
    readers: dict[str, tuple[list[Path], Callable[[], Arrays]]] = {
        "npy": ([path for path in kept if path.is_file()], lambda: read_npy(source, case)),
        "npz": ([npz], lambda: read_npz(npz)),
        "nii.gz": (volumes, lambda: read_nifti(volumes)),
    }
    for _, read in readers.values():
        for expected, found in zip(arrays, read(), strict=True):
            np.testing.assert_array_equal(found, expected)
    return readers


def read_npy(source: CaseSource, case: str) -> Arrays:
    return source.image(case), source.labels(case), source.mask(case)


def read_npz(path: Path) -> Arrays:
    with np.load(path) as file:
        return file["image"].astype(np.float32), file["labels"][None], file["mask"][None]


def read_nifti(paths: list[Path]) -> Arrays:
    image, labels, mask = (np.moveaxis(np.asarray(nibabel.load(path).dataobj), -1, 0) for path in paths)
    return np.ascontiguousarray(image), np.ascontiguousarray(labels), np.ascontiguousarray(mask)


def forget(paths: list[Path]) -> None:
    """Ask the system to drop files from memory, so that they are read from the disk; Linux does if they are on it."""
    for path in paths:
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def timed(read: Callable[[], Arrays]) -> float:
    start = time.perf_counter()
    read()
    return time.perf_counter() - start


def print_results(results: dict[str, Any]) -> None:
    for kind, found in results.items():
        cold, warm = (found["milliseconds_per_case"][state]["median"] for state in ("cold", "warm"))
        print(f"{kind:8} {found['bytes_per_case'] / 2**20:8.2f} MiB per case, {cold:8.2f} ms cold, {warm:8.2f} ms warm")


if __name__ == "__main__":
    main()
