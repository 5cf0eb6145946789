"""The pairs themselves: volumes and numbers for the viewer of the page."""

import base64
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib import colormaps

from biasreg.core.errors import BiasregError
from biasreg.evaluation.records import IDENTITY, LabelScore
from biasreg.report.material import Material
from biasreg.report.packing import LONGEST_SIDE, Blob, PackedPair, pack_pair
from biasreg.report.page import Section, render
from biasreg.report.ranking import PairRow, is_ranked, rank_word
from biasreg.report.volumes import pair_volumes, read_field, read_sources

logger = logging.getLogger(__name__)

VOXEL_BUDGET = 4_000_000
"""Voxels of all pairs together: about 15 MB of page for noisy images, much less for most."""

COLOUR_MAPS = {"displacement": "cividis", "determinant": "PuOr"}


@dataclass(frozen=True)
class LabelRow:
    """One label of a pair, before and after registration.

    Attributes:
        name: Its name.
        before: Its scores without registration.
        after: Its scores after registration.
    """

    name: str
    before: LabelScore | None
    after: LabelScore


@dataclass(frozen=True)
class ViewedPair:
    """A pair in the viewer.

    Attributes:
        row: Its numbers.
        rank: Where it stands among all pairs.
        blobs: Its volumes.
        labels: Its labels.
    """

    row: PairRow
    rank: str
    blobs: tuple[Blob, ...]
    labels: tuple[LabelRow, ...]


def viewer_section(material: Material, rows: Sequence[PairRow], chosen: Sequence[PairRow]) -> Section | str:
    """Make the viewer.

    Args:
        material: What is known.
        rows: All pairs, worst first.
        chosen: The pairs to show, in the order of the chooser.

    Returns:
        The section, or why there is none.
    """
    viewed: list[ViewedPair] = []
    metas = []
    failures = [f"{row.name}: {row.pair.missing}" for row in rows if row.pair.images is None]
    shown = [row for row in chosen if row.pair.images is not None]
    names = label_names(material)
    for row in shown:
        try:
            packed = _pack(row, VOXEL_BUDGET // len(shown))
        except BiasregError as error:
            failures.append(f"{row.name}: {error}")
            continue
        logger.info("pair %s: packed %s voxels", row.name, "×".join(map(str, packed.meta["shape"])))
        labels = [{"value": value, "name": names.get(value, str(value))} for value in packed.meta["labels"]]
        metas.append(packed.meta | {"name": row.name, "labels": labels})
        viewed.append(ViewedPair(row, rank_word(row, rows), packed.blobs, _label_rows(material, row)))
    if not viewed:
        return "no pair can be shown; " + "; ".join(failures[:3])
    settings = {"pairs": metas, "colours": {name: _colour_table(map_) for name, map_ in COLOUR_MAPS.items()}}
    body = render(
        "viewer.html.j2", viewed=viewed, count=len(rows), failures=failures, settings=settings, ranked=is_ranked(rows)
    )
    return Section("pairs", "Look at pairs", body)


def label_names(material: Material) -> Mapping[int, str]:
    """Name of each label value, as far as plans or evaluation tell."""
    names: dict[int, str] = {}
    if material.plans is not None:
        for configuration in material.plans.configurations.values():
            plans = configuration.preprocessing
            names |= dict(zip(plans.label_values, plans.label_names, strict=True))
    if material.evaluation is not None:
        names |= {label.value: label.name for summary in material.evaluation.methods for label in summary.labels}
    return names


def _pack(row: PairRow, voxels: int) -> PackedPair:
    sources = read_sources(row.pair)
    displacement = read_field(row.pair.file("warp"), sources.fixed.geometry)
    return pack_pair(pair_volumes(sources, displacement), voxels, LONGEST_SIDE)


def _label_rows(material: Material, row: PairRow) -> tuple[LabelRow, ...]:
    score = material.scores(material.method).get(row.name)
    before = material.scores(IDENTITY).get(row.name)
    if score is None:
        return _recorded_rows(row, label_names(material))
    earlier = {label.value: label for label in before.labels} if before else {}
    return tuple(LabelRow(label.name, earlier.get(label.value), label) for label in score.labels)


def _recorded_rows(row: PairRow, names: Mapping[int, str]) -> tuple[LabelRow, ...]:
    """The overlap that prediction measured itself."""
    accuracy = row.pair.record.accuracy if row.pair.record else None
    if accuracy is None:
        return ()
    result = []
    for key, after in accuracy.dice_after.items():
        value = int(key)
        name = names.get(value, key)
        before = LabelScore(value, name, accuracy.dice_before.get(key), None)
        result.append(LabelRow(name, before, LabelScore(value, name, after, None)))
    return tuple(result)


def _colour_table(name: str) -> str:
    """256 colours as base64 of RGB bytes."""
    table = np.rint(colormaps[name](np.linspace(0, 1, 256))[:, :3] * 255).astype(np.uint8)
    return base64.b64encode(table.tobytes()).decode("ascii")
