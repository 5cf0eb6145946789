"""The page: its parts, put together into one HTML file that needs nothing else."""

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

SCRIPTS = ("volumes.js", "drawing.js", "viewer.js", "tables.js")
PAGE_TEMPLATE = "page.html.j2"
_MISSING = "–"


@dataclass(frozen=True)
class Section:
    """A part of the page.

    Attributes:
        identifier: What links lead to.
        title: Its heading.
        body: Its HTML.
    """

    identifier: str
    title: str
    body: Markup


@dataclass(frozen=True)
class Heading:
    """What stands on top of the page.

    Attributes:
        title: The page's title.
        subtitle: What it is about, in one line.
        written: When it was made.
    """

    title: str
    subtitle: str
    written: str


def render(template: str, **values: object) -> Markup:
    """Fill a template; text is escaped, `Markup` is not.

    Args:
        template: Its file among the assets.
        **values: What it shows.
    """
    return Markup(_environment().get_template(template).render(**values))


def render_page(heading: Heading, sections: Sequence[Section], missing: Sequence[tuple[str, str]]) -> str:
    """Put a page together.

    Args:
        heading: Its head.
        sections: Its parts, in order.
        missing: What is not there, and why.

    Returns:
        The HTML. Its policy lets the browser load nothing and run its one script alone.
    """
    script = "(() => {\n" + "\n".join(["'use strict';", *map(_asset, SCRIPTS)]) + "\n})();"
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    return render(
        PAGE_TEMPLATE,
        heading=heading,
        sections=sections,
        missing=missing,
        style=Markup(_asset("report.css")),
        script=Markup(script),
        script_hash=f"sha256-{digest}",
    )


def number(value: float | None, digits: int = 3) -> str:
    """Write a number, or a dash where there is none."""
    return _MISSING if value is None else f"{value:.{digits}f}"


def percent(value: float | None) -> str:
    """Write a percentage so that a small one does not look like none."""
    if value is None:
        return _MISSING
    if value == 0:
        return "0"
    return f"{value:.3f}" if value >= 0.001 else "< 0.001"


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("biasreg.report", "assets"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "percent": percent}
    return environment


def _asset(name: str) -> str:
    return resources.files("biasreg.report").joinpath("assets", name).read_text(encoding="utf-8")
