"""The Dockerfile, as far as it can be checked without building it."""

import re
from pathlib import Path

from biasreg.core.paths import COMMON_ROOT_VARIABLE

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
LINES = [line for line in TEXT.splitlines() if line and not line.startswith("#")]
IGNORED = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()


def copied():
    """What the build takes from the folder."""
    lines = [line.split()[1:] for line in LINES if line.startswith("COPY") and "--from" not in line]
    return {source for *sources, _ in lines for source in sources}


def test_what_is_copied_exists_and_nothing_else_is_sent_to_the_builder():
    assert copied() == {line[1:] for line in IGNORED if line.startswith("!")}
    assert "*" in IGNORED
    assert all((ROOT / source).exists() for source in copied())


def test_torch_without_cuda_is_of_the_pinned_version():
    pattern = re.search(r"grep '(.+?)' constraints\.txt", TEXT)[1]
    found = [
        line for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines() if re.search(pattern, line)
    ]
    assert len(found) == 1
    assert re.fullmatch(r"torch==[\d.]+", found[0])


def test_everything_is_installed_with_the_constraints():
    installs = [line for line in LINES if "pip install" in line and "$(grep" not in line]
    assert installs == ["RUN pip install -c constraints.txt ."]


def test_the_last_stage_has_the_root_of_the_data_and_a_user_without_rights():
    last = TEXT[TEXT.rindex("\nFROM") :]
    assert f"{COMMON_ROOT_VARIABLE}=/data" in last
    assert "pip" not in last
    assert [line.split()[1] for line in last.splitlines() if line.startswith("USER")] == ["biasreg"]


def test_python_is_a_supported_one():
    version = re.search(r"ARG PYTHON_VERSION=(\S+)", TEXT)[1]
    assert f"Python :: {version}" in (ROOT / "pyproject.toml").read_text(encoding="utf-8")
