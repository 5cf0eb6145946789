"""What every result of a benchmark holds besides its numbers: machine, command, versions and date."""

import datetime
import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import biasreg
from biasreg.core.parallel import total_memory_gib
from biasreg.core.serialization import write_json

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
BUSY_LOAD_PER_CORE = 0.25  # above this, other programs take a noticeable part of the machine


def write_result(path: Path, settings: dict[str, Any], results: Any, *, device: str) -> None:
    """Write a result file and say where it is.

    Args:
        path: The file, with ending `.json`.
        settings: What was measured.
        results: What was found.
        device: Device that was measured.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "command": shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *map(_from_root, sys.argv[1:])]),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "machine": {"device": device, **describe_machine()},
        "versions": describe_versions(),
        "settings": settings,
        "results": results,
    }
    write_json(path, content)
    print(f"written: {path}")


def _from_root(argument: str) -> str:
    """Write a path inside the repository as seen from its root."""
    return argument.removeprefix(f"{ROOT}/")


def describe_machine() -> dict[str, Any]:
    """Describe the processor, its cores that may be used, and the memory."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "cpu": cpu_model(),
        "cores": usable,
        "omp_num_threads": os.environ.get("OMP_NUM_THREADS"),
        "memory_gib": round(total_memory_gib(), 1),
        "system": f"{platform.system()} {platform.machine()}",
        "load_average": round(os.getloadavg()[0], 2),
    }


def describe_versions() -> dict[str, str]:
    """State the versions of biasreg, its commit if there is one, Python and, once it is loaded, torch."""
    versions = {"biasreg": biasreg.__version__, "python": platform.python_version()}
    found = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if found.returncode == 0:
        versions["commit"] = found.stdout.strip()
    if "torch" in sys.modules:
        versions["torch"] = str(sys.modules["torch"].__version__)
    return versions


def cpu_model() -> str:
    """Name the processor, as Linux does; as Python does elsewhere."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def warn_if_busy() -> None:
    """Say so when other programs run: times taken now would not be the machine's."""
    machine = describe_machine()
    if machine["load_average"] > BUSY_LOAD_PER_CORE * machine["cores"]:
        print(
            f"warning: the load average is {machine['load_average']} on {machine['cores']} cores; "
            "do not publish times measured now",
            file=sys.stderr,
        )
