"""Figures for the page and for papers: one look, drawn once, shown inline and saved on request."""

import io
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import matplotlib as mpl
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from biasreg.core.serialization import atomic_write
from biasreg.report.page import render

INK = "#1c2127"
"""Colour of text and axes; on the page that of its text, so that figures follow the reader's light or dark."""
FAINT = "#d5d9de"
"""Colour of grids; on the page that of its lines."""

# Okabe and Ito's colours, told apart with every common colour vision; without yellow, which white swallows.
COLOURS = ("#D55E00", "#56B4E9", "#009E73", "#CC79A7", "#E69F00", "#0072B2")
IDENTITY_COLOUR = "#8B929A"

PAPER_DPI = 300
PIXELS_PER_INCH = 122
"""So that the widest figures, 9 inches, are as wide as the page."""
_STYLE = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": INK,
    "axes.linewidth": 0.6,
    "axes.labelcolor": INK,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "lines.linewidth": 1.4,
    "text.color": INK,
    "text.parse_math": False,  # a method may be called $x$
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
}
_NO_METADATA = {"Creator": None, "Date": None, "Format": None, "Type": None}
_COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
_GROUP_ID = re.compile(r'<g id="[^"]*"')
_ID = re.compile(r' id="([^"]*)"')
_SIZE = re.compile(r'<svg ([^>]*?)(?:width="[^"]*" height="[^"]*"|height="[^"]*" width="[^"]*")')


@contextmanager
def house_style() -> Iterator[None]:
    """Draw figures alike while the block lasts; letters that a font lacks are the browser's business, not a warning."""
    with mpl.rc_context(_STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from font", category=UserWarning)
        yield


def new_figure(width: float, height: float) -> Figure:
    """Make a figure without pyplot's global state.

    Args:
        width: Inches.
        height: Inches.
    """
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def method_colours(methods: Sequence[str], own: str | None, identity: str) -> dict[str, str]:
    """Give each method a colour: the first to the report's own one, grey to no registration."""
    others = [name for name in methods if name not in (own, identity)]
    colours = {name: COLOURS[1 + index % (len(COLOURS) - 1)] for index, name in enumerate(others)}
    return colours | {identity: IDENTITY_COLOUR} | ({} if own is None else {own: COLOURS[0]})


def label_axes(axes: Axes, title: str, xlabel: str = "", ylabel: str = "") -> None:
    """Write a panel's title and the names of its axes."""
    axes.set_title(title)
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)


class FigureShelf:
    """Turns figures into HTML, and saves them beside as SVG and PNG where a folder is given.

    Args:
        folder: Where to; None saves nothing.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        self._count = 0

    def show(self, figure: Figure, name: str, caption: str, minimum_width: int = 0) -> Markup:
        """Turn a figure into HTML.

        Args:
            figure: The figure.
            name: Name of its files, without ending.
            caption: What it shows, also for those who cannot see it.
            minimum_width: Pixels below which it scrolls rather than shrinks.
        """
        if self._folder is not None:
            self._save(figure, name)
        self._count += 1
        svg = _inline_svg(figure, f"{name}-{self._count}")
        return render("figure.html.j2", svg=svg, caption=caption, minimum_width=minimum_width)

    def _save(self, figure: Figure, name: str) -> None:
        assert self._folder is not None
        self._folder.mkdir(parents=True, exist_ok=True)
        for ending, metadata in (("svg", {"Date": None}), ("png", None)):
            with atomic_write(self._folder / f"{name}.{ending}") as temporary:
                figure.savefig(temporary, format=ending, dpi=PAPER_DPI, facecolor="white", metadata=metadata)


def _inline_svg(figure: Figure, salt: str) -> Markup:
    """Draw a figure as an SVG element whose text is text, whose ink is the page's, and whose ids are its own."""
    stream = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": salt}):
        figure.savefig(stream, format="svg", metadata=_NO_METADATA)
    text = stream.getvalue()
    text = _COMMENT.sub("", text[text.index("<svg") :])
    text = _once(_GROUP_ID.sub("<g", text))
    text = _SIZE.sub(r"<svg \1", text, count=1)
    text = text.replace(INK, "currentColor").replace(FAINT, "var(--line)")
    text = text.replace("<svg ", '<svg role="img" aria-hidden="true" ', 1)  # the caption says what it shows
    text = text.replace("<svg ", f'<svg style="max-width: {figure.get_figwidth() * PIXELS_PER_INCH:.0f}px" ', 1)
    return Markup(text)


def _once(text: str) -> str:
    """Take the id from all but the first of the things that have the same one: matplotlib writes like markers twice."""
    seen: set[str] = set()

    def keep_first(match: re.Match[str]) -> str:
        known = match[1] in seen
        seen.add(match[1])
        return "" if known else match[0]

    return _ID.sub(keep_first, text)
