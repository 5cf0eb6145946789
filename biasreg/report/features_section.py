"""Feature maps: what the two decoders see, before and after MAC, with and without BIAF's offsets."""

import logging
import re
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure
from numpy.typing import NDArray

from biasreg.core.errors import ImageError
from biasreg.evaluation.figures import VIEWS, View
from biasreg.planning.plans import PreprocessingPlans
from biasreg.report.page import Section, render
from biasreg.report.pictures import show_colours
from biasreg.report.plotting import FigureShelf, new_figure
from biasreg.report.ranking import PairRow

logger = logging.getLogger(__name__)

PAIR_COUNT = 1
CONTRAST_PERCENTILES = (1.0, 99.0)
KINDS = {
    "semantic_without_biaf": "semantic,\nwithout BIAF",
    "semantic": "semantic",
    "enhanced": "semantic,\nafter MAC",
    "intensity_without_biaf": "intensity,\nwithout BIAF",
    "intensity": "intensity",
}
IMAGES = ("moving", "fixed")
_NAME = re.compile(r"(moving|fixed)_(\w+)_level(\d+)")

Maps = Mapping[tuple[str, str, int], NDArray[np.float32]]
"""(3, X, Y, Z), RAS, by image, kind and level."""


def features_section(rows: Sequence[PairRow], plans: PreprocessingPlans | None, shelf: FigureShelf) -> Section | str:
    """Show the feature maps of the first pair whose maps were kept.

    Args:
        rows: The pairs, those to show first.
        plans: Tell the size of the canonical grid in mm; without, voxels count as cubes.
        shelf: Takes the figures.

    Returns:
        The section, or why there is none.
    """
    kept = [(row.name, row.pair.features) for row in rows if row.pair.features is not None]
    if not kept:
        return "no pair has feature maps; predict with --save features"
    parts: list[tuple[str, Markup]] = []
    for name, path in kept[:PAIR_COUNT]:
        try:
            maps = read_features(path)
        except ImageError as error:
            return str(error)
        caption = (
            f"{name}: middle slices of the features (the paper's Figures 15 and 16). The three principal components of "
            "each kind are red, green and blue, the same for both images: what has one colour in both is seen as one."
        )
        parts.append((name, shelf.show(_draw(maps, plans), f"features_{name}", caption, minimum_width=760)))
    return Section("features", "Feature maps", render("features.html.j2", parts=parts))


def read_features(path: Path) -> Maps:
    """Read the feature maps of a pair.

    Args:
        path: `<pair>_features.npz`.

    Raises:
        ImageError: It is no such file, or holds no map of a known kind.
    """
    try:
        with np.load(path) as archive:
            found = {
                (match[1], match[2], int(match[3])): archive[name].astype(np.float32)
                for name in archive.files
                if (match := _NAME.fullmatch(name)) and match[2] in KINDS
            }
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise ImageError(f"{path}: holds no feature maps ({error}); predict again with --save features") from error
    if not found or any(each.ndim != 4 or each.shape[0] != 3 for each in found.values()):
        raise ImageError(f"{path}: holds no feature maps (3, X, Y, Z); predict again with --save features")
    return found


def _draw(maps: Maps, plans: PreprocessingPlans | None) -> Figure:
    kinds = [kind for kind in KINDS if any(key[1] == kind for key in maps)]
    levels = sorted({key[2] for key in maps}, reverse=True)
    size_mm = _size_mm(maps, plans)
    view = min(VIEWS, key=lambda each: size_mm[each.cut])  # the largest plane
    extent = size_mm[view.horizontal], size_mm[view.vertical]
    rows = [(level, image) for level in levels for image in IMAGES]
    side = 1.35
    figure = new_figure(side * (len(kinds) + 0.5), side * len(rows) * extent[1] / extent[0] + 0.7)
    grid = figure.subplots(len(rows), len(kinds), squeeze=False)
    for axes_row, (level, image) in zip(grid, rows, strict=True):
        axes_row[0].set_ylabel(f"level {level}\n{image}", fontsize=8)
        for axes, kind in zip(axes_row, kinds, strict=True):
            if (image, kind, level) not in maps:
                axes.set_axis_off()
                continue
            both = [maps[each, kind, level] for each in IMAGES if (each, kind, level) in maps]
            show_colours(axes, _plane(maps[image, kind, level], both, view), extent)
    for axes, kind in zip(grid[0], kinds, strict=True):
        axes.set_title(KINDS[kind], fontsize=8, fontweight="normal", loc="center")
    return figure


def _size_mm(maps: Maps, plans: PreprocessingPlans | None) -> tuple[float, ...]:
    """Size of the canonical grid, which the maps of all levels cover."""
    if plans is not None:
        return tuple(size * step for size, step in zip(plans.patch_size, plans.spacing, strict=True))
    finest = min(maps, key=lambda key: key[2])
    return tuple(map(float, maps[finest].shape[1:]))


def _plane(features: NDArray, both: Sequence[NDArray], view: View) -> NDArray:
    """Middle slice as colours, (vertical, horizontal, 3), scaled alike in both images."""
    values = np.concatenate([each.reshape(3, -1) for each in both], axis=1)
    lower, upper = np.percentile(values, CONTRAST_PERCENTILES, axis=1)[:, :, None, None]  # (3, 1, 1) each
    plane = np.take(features, features.shape[1 + view.cut] // 2, axis=1 + view.cut)
    scaled = np.clip((plane - lower) / np.maximum(upper - lower, 1e-6), 0, 1)
    return scaled.transpose(2, 1, 0)
