"""How the files of a pair are named: `<pair>_<role>[_<channel>]`, or without the pair's name in a folder of its own."""

import re

from biasreg.core.image_io import IMAGE_ENDINGS
from biasreg.core.transform_io import LINEAR_ENDINGS

POINTS_ENDING = ".csv"

_ROLE = r"(?P<role>moving_seg|fixed_seg|moving_points|fixed_points|fixed_mask|moving|fixed|initial)"
# Roles in capitals are matched too, so that they can be reported.
_FLAT_NAME = re.compile(rf"(?P<pair>.+)_{_ROLE}(_(?P<channel>\d{{4}}))?", re.IGNORECASE)
_FOLDER_NAME = re.compile(rf"{_ROLE}(_(?P<channel>\d{{4}}))?", re.IGNORECASE)
_FREE_FOLDER_NAME = re.compile(r"(?P<role>moving|fixed)(?!_mask).*?(_(?P<channel>\d{4}))?", re.IGNORECASE)


def match_name(name: str, *, inside: bool) -> re.Match[str] | None:
    """Read pair, role and channel from a file's name.

    Args:
        name: The file's name.
        inside: Whether the file lies in the pair's own folder, where names have no pair.

    Returns:
        The groups `role`, `channel` and, unless `inside`, `pair`; None if the name is no such name.
    """
    ending = _ending(name, (*IMAGE_ENDINGS, POINTS_ENDING, *LINEAR_ENDINGS))
    stem = name[: -len(ending)]
    match = (_FOLDER_NAME if inside else _FLAT_NAME).fullmatch(stem)
    if match is None and inside and ending in IMAGE_ENDINGS:
        match = _FREE_FOLDER_NAME.fullmatch(stem)
    return match if match and ending and ending in _endings_of(match["role"].lower()) else None


def is_image_or_points(name: str) -> bool:
    """Tell by its ending whether a file may be an image, label map, or points."""
    return _ending(name, (*IMAGE_ENDINGS, POINTS_ENDING)) != ""


def _endings_of(role: str) -> tuple[str, ...]:
    if role == "initial":
        return LINEAR_ENDINGS
    return (POINTS_ENDING,) if role.endswith("_points") else IMAGE_ENDINGS


def _ending(name: str, known: tuple[str, ...]) -> str:
    return next((ending for ending in known if name.lower().endswith(ending)), "")
