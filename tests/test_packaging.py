"""What the project's metadata promise: commands, versions, pins, and the files that are installed."""

import ast
import importlib.metadata
import re
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import biasreg

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "biasreg"
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = PYPROJECT["project"]
COMMANDS = PROJECT["scripts"]
PYTHON_VERSIONS = ("3.10", "3.11", "3.12", "3.13")
HEAVY_MODULES = ("torch", "monai", "batchgenerators")


def requirements(*extras: str) -> list[Requirement]:
    """Requirements at run time, and those of the extras, without the extras' references to biasreg itself."""
    texts = list(PROJECT["dependencies"])
    for extra in extras:
        texts += PROJECT["optional-dependencies"][extra]
    return [requirement for requirement in map(Requirement, texts) if requirement.name != PROJECT["name"]]


def pins(name: str, python_version: str) -> dict[str, Requirement]:
    """The constraints of a file that apply to a version of Python, by canonical name."""
    found: dict[str, Requirement] = {}
    for line in (ROOT / name).read_text(encoding="utf-8").splitlines():
        text = line.partition("#")[0].strip()
        requirement = Requirement(text) if text else None
        if requirement is None or not applies(requirement, python_version):
            continue
        key = canonicalize_name(requirement.name)
        assert key not in found, f"{name}: {key} is pinned twice for Python {python_version}"
        found[key] = requirement
    return found


def applies(requirement: Requirement, python_version: str) -> bool:
    """Whether a requirement's marker holds for a version of Python."""
    return requirement.marker is None or requirement.marker.evaluate({"python_version": python_version})


def pinned_version(requirement: Requirement) -> str:
    """The version of an exact pin."""
    (specifier,) = requirement.specifier
    assert specifier.operator == "==", f"{requirement} is no exact pin"
    return specifier.version


def imported_modules(path: Path) -> Iterator[str]:
    """Top-level names of all modules that a file imports, wherever in the file."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module.partition(".")[0]


def test_version_agrees_everywhere() -> None:
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert biasreg.__version__ == PROJECT["version"]
    assert importlib.metadata.version("biasreg") == PROJECT["version"], "outdated installation: run `make install`"
    assert re.search(r"^version: (\S+)$", citation, re.MULTILINE)[1] == PROJECT["version"]


def test_licence_agrees_everywhere() -> None:
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert re.search(r"^license: (\S+)$", citation, re.MULTILINE)[1] == PROJECT["license"]
    assert "Apache License" in (ROOT / "LICENSE").read_text(encoding="utf-8")


def test_changelog_tells_of_this_version_or_of_unreleased_changes() -> None:
    headings = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert headings
    assert headings[0] in ("Unreleased", PROJECT["version"])


def test_every_supported_python_is_declared() -> None:
    prefix = "Programming Language :: Python :: 3."
    declared = {"3." + text.removeprefix(prefix) for text in PROJECT["classifiers"] if text.startswith(prefix)}
    assert declared == set(PYTHON_VERSIONS)
    assert PROJECT["requires-python"] == ">=3.10,<3.14"


def test_installed_commands_are_those_of_the_project_file() -> None:
    installed = importlib.metadata.distribution("biasreg").entry_points.select(group="console_scripts")
    assert {point.name: point.value for point in installed} == COMMANDS, "outdated installation: run `make install`"


@pytest.mark.parametrize("command", COMMANDS)
def test_command_is_named_after_its_module_which_has_a_main(command: str) -> None:
    module, _, function = COMMANDS[command].partition(":")
    path = ROOT / (module.replace(".", "/") + ".py")
    assert path.is_file(), f"{command}: no file {path.relative_to(ROOT)}"
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert function in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    assert command == "biasreg_" + path.stem


def test_every_module_of_the_commands_with_a_main_is_a_command() -> None:
    modules = {
        path.stem
        for path in (PACKAGE / "cli").glob("*.py")
        if any(isinstance(n, ast.FunctionDef) and n.name == "main" for n in ast.parse(path.read_text()).body)
    }
    assert modules <= {command.removeprefix("biasreg_") for command in COMMANDS}


@pytest.mark.parametrize("command", COMMANDS)
def test_installed_command_answers_help(command: str) -> None:
    script = Path(sysconfig.get_path("scripts")) / command
    result = subprocess.run([script, "--help"], capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(f"usage: {command}")


@pytest.mark.parametrize("command", COMMANDS)
def test_command_answers_help_without_importing_torch(command: str) -> None:
    module, _, function = COMMANDS[command].partition(":")
    code = f"""
import importlib, sys
sys.argv = [{command!r}, "--help"]
code = None
try:
    code = importlib.import_module({module!r}).{function}()
except SystemExit as end:
    code = end.code
assert not code, code
heavy = [name for name in {HEAVY_MODULES!r} if name in sys.modules]
assert not heavy, f"imported {{heavy}}"
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("python_version", PYTHON_VERSIONS)
def test_every_requirement_is_pinned_to_a_version_that_it_allows(python_version: str) -> None:
    constraints = pins("constraints.txt", python_version)
    for requirement in requirements("cluster", "test", "dev"):
        pin = constraints.get(canonicalize_name(requirement.name))
        assert pin is not None, f"constraints.txt: no pin of {requirement.name} for Python {python_version}"
        assert requirement.specifier.contains(pinned_version(pin)), f"{pin} is outside {requirement}"


@pytest.mark.parametrize("python_version", PYTHON_VERSIONS)
def test_interoperability_environment_is_pinned(python_version: str) -> None:
    pinned = pins("tests/interoperability/requirements.txt", python_version)
    assert {"nitransforms", "picsl-greedy", "simpleitk", "nibabel", "numpy", "scipy"} <= set(pinned)
    assert all(pinned_version(pin) for pin in pinned.values())


def test_every_package_that_biasreg_imports_is_a_declared_requirement() -> None:
    declared = {
        canonicalize_name(r.name) for r in requirements(*set(PROJECT["optional-dependencies"]) - {"test", "dev"})
    }
    distributions = importlib.metadata.packages_distributions()
    undeclared = {
        f"{path.relative_to(ROOT)}: {module}"
        for path in PACKAGE.rglob("*.py")
        for module in imported_modules(path)
        if module != "biasreg" and module not in sys.stdlib_module_names
        if declared.isdisjoint(map(canonicalize_name, distributions.get(module, [module])))
    }
    assert not undeclared


def test_every_folder_with_python_files_is_a_package() -> None:
    folders = {path.parent for path in PACKAGE.rglob("*.py")}
    assert not [folder for folder in folders if not (folder / "__init__.py").is_file()]


def test_every_data_file_of_the_package_is_installed() -> None:
    patterns = PYPROJECT["tool"]["setuptools"]["package-data"]
    installed = {
        path
        for package, names in patterns.items()
        for name in names
        for path in ROOT.joinpath(*package.split(".")).glob(name)
    }
    present = {path for path in PACKAGE.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")}
    assert present == installed
