"""Predictions under names of BIDS derivatives, as links to the files that are there."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import biasreg
from biasreg.core.errors import BiasregError, PredictionError
from biasreg.core.serialization import write_json
from biasreg.sharing.placing import place_file
from biasreg.sharing.predictions import INVERSE, WARP, RegisteredPair, check_empty, find_registered

BIDS_VERSION = "1.10.0"
DESCRIPTION_FILE = "dataset_description.json"
DATATYPE = "anat"

_ENTITY = re.compile(r"([a-zA-Z]+)-([a-zA-Z0-9]+)", re.ASCII)
_CHANNEL = re.compile(r"_\d{4}$", re.ASCII)


@dataclass(frozen=True)
class BidsName:
    """What the name of an image says.

    Attributes:
        entities: Value by key, `sub` first, in their order.
        suffix: What kind of image it is, as `T1w`.
    """

    entities: dict[str, str]
    suffix: str

    def space(self, other: "BidsName") -> str:
        """Name its space for the eyes of another image, by letters and digits alone: what they share is left out."""
        own = [(key, value) for key, value in self.entities.items() if other.entities.get(key) != value]
        return "".join(f"{key}{value}" for key, value in own) + self.suffix


def write_bids(source: Path, output: Path, *, suffix: str | None = None, copy: bool = False) -> dict[str, str]:
    """Give the files of an output folder names of BIDS derivatives, in another folder.

    A pair belongs to the subject of its moving image. `from-A_to-B_mode-image_xfm` brings images of A onto B, as
    fMRIPrep names them; transforms are not part of the BIDS standard itself yet.

    Args:
        source: Output folder of `biasreg_predict`.
        output: Folder of the derivatives; it is empty or not there.
        suffix: Kind of the images, as `T1w` or `CT`; None takes it from their names, if these are BIDS.
        copy: Copy the files, where hard links would do.

    Returns:
        Reason per pair that could not be named; empty when all went well.

    Raises:
        InputError: There is no field, or the folder cannot be written to or is not empty.
    """
    check_empty(output)
    pairs, failures = find_registered(source)
    placed = 0
    for pair in pairs:
        try:
            _place_pair(pair, output, suffix, copy=copy)
            placed += 1
        except BiasregError as error:
            failures[pair.name] = str(error)
        except FileExistsError as error:
            failures[pair.name] = f"another pair has the same name in BIDS: {error.filename2 or error.filename}"
    if placed:
        write_json(output / DESCRIPTION_FILE, _description())
    return failures


def _description() -> dict[str, object]:
    return {
        "Name": "Registrations by biasreg",
        "BIDSVersion": BIDS_VERSION,
        "DatasetType": "derivative",
        "GeneratedBy": [{"Name": "biasreg", "Version": biasreg.__version__}],
    }


def read_name(name: str, suffix: str | None) -> BidsName:
    """Read entities and suffix off the name of an image.

    Args:
        name: The name without its ending, as `sub-01_ses-2_T1w`, or any other with a `suffix`.
        suffix: Kind of the image, where its name does not say it.

    Returns:
        What it says; the subject of a name that is not BIDS is the name itself, without what BIDS does not allow.

    Raises:
        PredictionError: The kind is neither in the name nor given.
    """
    parts = _CHANNEL.sub("", name).split("_")
    entities = {match[1]: match[2] for part in parts if (match := _ENTITY.fullmatch(part))}
    last = parts[-1]
    if "sub" not in entities:
        entities, last = {"sub": re.sub(r"[^a-zA-Z0-9]", "", "".join(parts))}, ""
    own = last if re.fullmatch(r"[a-zA-Z0-9]+", last, re.ASCII) else None
    found = suffix or own
    if not found or not entities["sub"]:
        raise PredictionError(
            f"the name {name} does not say what kind of image it is, as sub-01_T1w does · say it with --suffix, as "
            "--suffix T1w"
        )
    return BidsName(entities, found)


def _place_pair(pair: RegisteredPair, output: Path, suffix: str | None, *, copy: bool) -> None:
    moving, fixed = (read_name(pair.source(role), suffix) for role in ("moving", "fixed"))
    here, there = moving.space(fixed), fixed.space(moving)
    if here == there:  # the same image twice, or two of one name
        raise PredictionError(f"moving and fixed image have the same name in BIDS ({pair.source('moving')})")
    here = moving.suffix if moving.entities["sub"] != fixed.entities["sub"] else here
    entities = "_".join(f"{key}-{moving.entities[key]}" for key in ("sub", "ses") if key in moving.entities)
    folder = output.joinpath(*entities.split("_"), DATATYPE)
    forward = folder / f"{entities}_from-{here}_to-{there}_mode-image_xfm"
    backward = folder / f"{entities}_from-{there}_to-{here}_mode-image_xfm"
    for path, target in _files(pair, forward, backward, folder / f"{entities}_space-{there}", moving.suffix):
        place_file(path, target, copy=copy)
    for stem, end in ((forward, "moving image onto the fixed one"), (backward, "fixed image onto the moving one")):
        write_json(stem.parent / f"{stem.name}.json", _sidecar(pair, end))


def _files(
    pair: RegisteredPair, forward: Path, backward: Path, warped: Path, suffix: str
) -> Iterator[tuple[Path, Path]]:
    """Pair the files that are there with their new names."""
    channels = sorted(pair.folder.glob(f"{_escaped(pair.name)}_warped_[0-9][0-9][0-9][0-9].nii.gz"))
    names = {
        pair.path(WARP): f"{forward}.nii.gz",
        pair.path("_warp.h5"): f"{forward}.h5",
        pair.path(INVERSE): f"{backward}.nii.gz",
        pair.path("_warped.nii.gz"): f"{warped}_desc-warped_{suffix}.nii.gz",
        pair.path("_warped_seg.nii.gz"): f"{warped}_desc-warped_dseg.nii.gz",
        pair.path("_jacobian.nii.gz"): f"{warped}_desc-jacobian_{suffix}.nii.gz",
    }
    names |= {path: f"{warped}_desc-warped{path.name[-11:-7]}_{suffix}.nii.gz" for path in channels}
    return ((path, Path(target)) for path, target in names.items() if path.is_file())


def _escaped(name: str) -> str:
    return re.sub(r"([*?\[])", r"[\1]", name)


def _sidecar(pair: RegisteredPair, end: str) -> dict[str, object]:
    """Say what a field is; the record of the pair, with the places of its images, stays where it is."""
    return {
        "Description": f"Displacement field that brings the {end}; total transform, pre-alignment included",
        "Units": "mm",
        "VectorCoordinateSystem": "LPS",
        "GeneratedBy": {"Name": "biasreg", "Version": pair.record.provenance.versions["biasreg"]},
        "FoldingPercent": pair.record.quality.folding_percent,
    }
