"""The files of the reference that all cases are aligned to, in a folder of preprocessed cases or of a trained model."""

import shutil
from pathlib import Path

from biasreg.core.errors import PlansError
from biasreg.core.serialization import atomic_write, content_hash, file_hash
from biasreg.planning.plans import PreprocessingPlans

REFERENCE_FILE = "reference.nii.gz"
FOCUS_FILE = "reference_focus.nii.gz"
"""Share of each voxel that the labels of the reference case cover."""


def reference_files(plans: PreprocessingPlans) -> tuple[str, ...]:
    """Name the files of the reference that a pre-alignment needs.

    Args:
        plans: The preprocessing plans.

    Returns:
        File names; none unless cases are aligned to a reference.
    """
    aligned = (REFERENCE_FILE,)
    named = {"rigid": aligned, "affine": aligned, "affine_focus": (*aligned, FOCUS_FILE)}
    return named.get(plans.prealignment, ())


def reference_hash(folder: Path, plans: PreprocessingPlans) -> str | None:
    """Hash the reference that all cases are aligned to.

    Args:
        folder: Folder of preprocessed cases, or of a trained model.
        plans: The plans that it was made with.

    Returns:
        SHA-256 of the file, or of the hashes of several; None without a reference.

    Raises:
        PlansError: If a file is missing.
    """
    hashes = []
    for name in reference_files(plans):
        path = folder / name
        if not path.is_file():
            raise PlansError(
                f"a file of the reference that cases are aligned to is missing · {path} · restore it from a copy, or "
                "preprocess again"
            )
        hashes.append(file_hash(path))
    return content_hash(hashes) if len(hashes) > 1 else next(iter(hashes), None)


def copy_reference(source: Path, target: Path, plans: PreprocessingPlans) -> None:
    """Copy the files of the reference to another folder, each whole or not at all.

    Args:
        source: Where they are.
        target: Where they go.
        plans: The plans that they were made with.
    """
    for name in reference_files(plans):
        with atomic_write(target / name) as temporary:
            shutil.copyfile(source / name, temporary)
