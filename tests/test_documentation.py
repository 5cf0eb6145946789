"""The documentation is true of the code, as far as a program can tell."""

import argparse
import dataclasses
import importlib
import json
import re
import shlex
import sys
from pathlib import Path

import pytest

from biasreg.core.dataset_json import DatasetJson
from biasreg.core.pseudo_labels import LabelRecord, PseudoLabelRecord, SegmenterRecord
from biasreg.core.serialization import from_json
from biasreg.inference.record import FieldQuality, PredictionRecord, Provenance
from biasreg.planning.voco import InstalledEncoder
from biasreg.preprocessing.storage import StoredCase
from biasreg.sharing.manifest import ArchivedFile, Manifest
from biasreg.sharing.weights import Course, FoldRecord, Scores
from biasreg.training.observers import EpochRecord

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTATION = ROOT / "documentation"
PAGES = sorted([*ROOT.glob("*.md"), *DOCUMENTATION.rglob("*.md"), *(ROOT / "benchmarks").glob("*.md")])
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
COMMANDS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]

FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ +(.+?) *$", re.MULTILINE)
MODULE = re.compile(r"`((?:[a-z_0-9]+/)+[a-z_0-9]+\.py)`")
DOTTED = re.compile(r"`(biasreg(?:\.\w+)+)`")
OPTION = re.compile(r"`(--?[a-zA-Z_][\w-]*)[^`]*`")


class ParserFound(Exception):  # noqa: N818  no error: it carries the parser out of a command
    def __init__(self, parser):
        super().__init__("parser")
        self.parser = parser


@pytest.fixture
def parser_of(monkeypatch):
    parse = argparse.ArgumentParser.parse_args

    def find(command):
        def raise_parser(self, *args, **kwargs):
            raise ParserFound(self)

        module, _, function = COMMANDS[command].partition(":")
        with monkeypatch.context() as patch:
            patch.setattr(argparse.ArgumentParser, "parse_args", raise_parser)
            with pytest.raises(ParserFound) as found:
                getattr(importlib.import_module(module), function)([])
        return found.value.parser

    assert argparse.ArgumentParser.parse_args is parse
    return find


def text_of(page):
    return page.read_text(encoding="utf-8")


def without_code(text):
    return re.sub(r"`[^`\n]*`", "", FENCE.sub("", text))


def anchors_of(page):
    """The anchors that GitHub gives to headings."""
    headings = HEADING.findall(FENCE.sub("", text_of(page)))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def section_of(command):
    """The part of commands.md that describes a command: from its heading, or the one for the steps before training."""
    sections = re.split(r"^## ", text_of(DOCUMENTATION / "reference" / "commands.md"), flags=re.MULTILINE)
    title = command if any(section.startswith(command) for section in sections) else "Before training"
    (section,) = (section for section in sections if section.startswith(title))
    return section


@pytest.mark.parametrize("name", NAMES)
def test_relative_links_lead_somewhere(name):
    page = ROOT / name
    for target in LINK.findall(without_code(text_of(page))):
        if "://" in target or target.startswith("mailto:"):
            continue
        path, _, anchor = target.partition("#")
        destination = (page.parent / path).resolve() if path else page
        assert destination.exists(), f"{name} links to {target}"
        if anchor:
            assert anchor in anchors_of(destination), f"{name} links to {target}"


def test_every_page_is_in_an_index():
    listed = set()
    for index in (DOCUMENTATION / "README.md", DOCUMENTATION / "decisions" / "README.md"):
        listed |= {(index.parent / target).resolve() for target in LINK.findall(text_of(index))} | {index}
    assert set(DOCUMENTATION.rglob("*.md")) <= listed


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_are_described_with_exactly_their_options(command, parser_of):
    section = section_of(command)
    assert f"`{command}`" in section or section.startswith(command)
    cells = [line.split("|") for line in section.splitlines() if line.startswith("| `-")]
    alone = [re.match(r" (`biasreg_[^:|]*) alone: ", cell[3]) for cell in cells]
    rows = [cell[1] for cell, some in zip(cells, alone, strict=True) if not some or f"`{command}`" in some[1]]
    described = {option for row in rows for option in OPTION.findall(row)}
    assert described == set(parser_of(command)._option_string_actions)


@pytest.mark.parametrize("name", NAMES)
def test_printed_commands_have_valid_arguments(name, parser_of):
    for _, block in FENCE.findall(text_of(ROOT / name)):
        for line in block.replace("\\\n", " ").splitlines():
            command, *arguments = shlex.split(line) if line.startswith("biasreg_") else [""]
            if command in COMMANDS and "--help" not in arguments:
                assert parser_of(command).parse_args(arguments)


@pytest.mark.parametrize("name", [name for name in NAMES if "decisions" not in name])
def test_named_modules_exist(name):
    for path in MODULE.findall(text_of(ROOT / name)):
        places = (ROOT / path, ROOT / "biasreg" / path)
        assert any(place.is_file() for place in places), f"{name} names {path}"


@pytest.mark.parametrize("name", NAMES)
def test_named_functions_exist(name):
    for dotted in set(DOTTED.findall(text_of(ROOT / name))):
        parts = dotted.split(".")
        for count in range(len(parts), 0, -1):
            if (ROOT / Path(*parts[:count])).with_suffix(".py").is_file() or (ROOT / Path(*parts[:count])).is_dir():
                break
        found = importlib.import_module(".".join(parts[:count]))
        for attribute in parts[count:]:
            assert hasattr(found, attribute), f"{name} names {dotted}"
            found = getattr(found, attribute)


@pytest.mark.parametrize(
    ("page", "records"),
    [
        ("files.md", (StoredCase, EpochRecord, PredictionRecord, Provenance, FieldQuality)),
        ("files.md", (PseudoLabelRecord, SegmenterRecord, LabelRecord)),
        ("files.md", (InstalledEncoder,)),
        ("files.md", (Manifest, ArchivedFile, FoldRecord, Course, Scores)),
        ("dataset-format.md", (DatasetJson,)),
    ],
)
def test_every_field_of_a_written_record_is_described(page, records):
    text = text_of(DOCUMENTATION / "reference" / page)
    missing = [
        field.name for record in records for field in dataclasses.fields(record) if f"`{field.name}`" not in text
    ]
    assert not missing


@pytest.mark.parametrize("name", NAMES)
def test_examples_of_dataset_json_can_be_read(name):
    for language, block in FENCE.findall(text_of(ROOT / name)):
        if language == "json" and '"pairing"' in block:
            from_json(DatasetJson, json.loads(block))


def test_the_worked_example_of_the_conventions_holds():
    ((_, code),) = (
        fence
        for fence in FENCE.findall(text_of(DOCUMENTATION / "reference" / "conventions.md"))
        if fence[0] == "python"
    )
    exec(compile(code, "conventions.md", "exec"), {})
