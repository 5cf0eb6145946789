"""The report: from what was trained, registered and evaluated to one page."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from biasreg.core.paths import check_writable
from biasreg.core.serialization import atomic_write
from biasreg.inference.record import now
from biasreg.planning.plans import PreprocessingPlans
from biasreg.report.dataset_section import dataset_section
from biasreg.report.failures_section import failures_section
from biasreg.report.features_section import features_section
from biasreg.report.levels_section import levels_section
from biasreg.report.material import Material, ReportRequest, gather
from biasreg.report.page import Heading, Section, render_page
from biasreg.report.plans_section import plans_section
from biasreg.report.plotting import FigureShelf, house_style
from biasreg.report.ranking import PairRow, choose_pairs, rank_pairs
from biasreg.report.results_section import results_section
from biasreg.report.summary_section import summary_section
from biasreg.report.training_section import training_section
from biasreg.report.viewer_section import label_names, viewer_section

logger = logging.getLogger(__name__)

DEFAULT_PAIRS = 6
MEBIBYTE = 1 << 20


@dataclass(frozen=True)
class ReportOptions:
    """How a report is made.

    Attributes:
        num_pairs: At most so many pairs can be looked at.
        figures: Folder for the figures as SVG and PNG; None writes none.
    """

    num_pairs: int = DEFAULT_PAIRS
    figures: Path | None = None


def make_report(request: ReportRequest, output: Path, options: ReportOptions = ReportOptions()) -> Path:
    """Make a report.

    Args:
        request: What it is about.
        output: The HTML file; an earlier one is replaced.
        options: How to make it.

    Returns:
        The file.

    Raises:
        InputError: Nothing was asked for, nothing of it is there, or the file cannot be written.
    """
    check_writable(output.parent, "choose another file with -o")
    material = gather(request)
    rows = rank_pairs(material)
    with house_style():
        parts = list(_parts(material, rows, options))
    sections = [part for _, part in parts if isinstance(part, Section)]
    missing = [*material.missing, *((title, part) for title, part in parts if isinstance(part, str))]
    page = render_page(_heading(material), sections, missing)
    output.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(output) as temporary:
        temporary.write_bytes(page.encode("utf-8", errors="replace"))
    logger.info(
        "wrote %s (%.1f MiB): %s",
        output,
        output.stat().st_size / MEBIBYTE,
        ", ".join(section.title.lower() for section in sections),
    )
    return output


def _parts(
    material: Material, rows: tuple[PairRow, ...], options: ReportOptions
) -> Iterator[tuple[str, Section | str]]:
    """Each part of the report with its title, or the reason why it is left out; of some, `gather` has said it."""
    shelf = FigureShelf(options.figures)
    visible = [row for row in rows if row.pair.images is not None]
    chosen = choose_pairs(visible, options.num_pairs)
    viewer = viewer_section(material, rows, chosen) if rows else None
    looks = {row.name: place for place, row in enumerate(chosen)} if isinstance(viewer, Section) else {}
    yield "Summary", summary_section(material, rows)
    if rows or material.evaluation is not None:
        yield "Results", results_section(material, rows, looks, shelf)
    if viewer is not None:
        yield "Look at pairs", viewer
    if rows or material.evaluation is not None:
        yield "Worst pairs", failures_section(material, rows, looks, shelf)
    if rows:
        yield "Level by level", levels_section(chosen or rows, shelf)
        yield "Feature maps", features_section(chosen or rows, _preprocessing(material), shelf)
    if material.model is not None:
        yield "Training", training_section(material.model, shelf)
    if material.plans is not None:
        name = material.model.configuration_name if material.model else None
        yield "Plans", plans_section(material.plans, name)
    if material.fingerprint is not None:
        yield "Dataset", dataset_section(material.fingerprint, dict(label_names(material)), shelf)


def _preprocessing(material: Material) -> PreprocessingPlans | None:
    return None if material.model is None else material.model.configuration.preprocessing


def _heading(material: Material) -> Heading:
    title = material.dataset or (material.predictions.resolve().name if material.predictions else "Evaluation")
    about = []
    if material.model is not None:
        about.append(material.model.folder.name)
    if material.pairs:
        about.append(f"{len(material.pairs)} registered pairs")
    if len(material.methods) > 1:
        about.append(f"{len(material.methods) - 1} methods evaluated")
    return Heading(title, " · ".join(about), now())
