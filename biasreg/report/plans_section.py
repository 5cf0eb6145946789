"""The plans: what was decided, and why."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict
from typing import Any

from biasreg.core.serialization import to_json
from biasreg.planning.ablations import whole_name
from biasreg.planning.plans import Configuration, Plans
from biasreg.report.page import Section, render

DECIDED: Mapping[str, Callable[[Configuration], str]] = {
    "modality": lambda made: made.preprocessing.modality,
    "normalization": lambda made: "; ".join(
        f"{each.scheme} {each.lower:g} to {each.upper:g}" for each in made.preprocessing.normalization
    ),
    "similarity": lambda made: made.training.similarity,
    "supervision": lambda made: f"{len(made.preprocessing.label_values)} labels",
    "prealignment": lambda made: made.preprocessing.prealignment,
    "crop": lambda made: made.preprocessing.crop,
    "spacing": lambda made: _times(made.preprocessing.spacing) + " mm",
    "patch_size": lambda made: _times(made.preprocessing.patch_size) + " voxels",
    "encoder": lambda made: ", ".join(
        (made.network.encoder.family, made.network.encoder.init, made.network.encoder.tuning)
    ),
    "levels": lambda made: f"{made.network.registration_levels} levels",
    "segmentation_level": lambda made: f"level {made.network.segmentation_level}",
    "integration": lambda made: f"{made.network.integration_steps} steps",
    "correlation": lambda made: "levels " + (", ".join(map(str, made.network.correlation_levels)) or "none"),
    "schedule": lambda made: f"{made.training.epochs} epochs of {made.training.iterations_per_epoch} steps",
    "weights": lambda made: ", ".join(f"{name} {value:g}" for name, value in asdict(made.training.weights).items()),
    "memory": lambda made: f"{made.training.batch_size} pair(s) per step",
}
"""What each rule decided, in words; rules that are not here state a fact alone."""


def plans_section(plans: Plans, configuration_name: str | None) -> Section:
    """Show the decisions of a configuration with their reasons, and all of its settings.

    Args:
        plans: The plans.
        configuration_name: The configuration that was trained; the default one when None.
    """
    name = configuration_name or plans.default_configuration
    configuration = to_json(plans.configurations[name])
    why = plans.why.get(name) or plans.why.get(whole_name(name), {})
    facts = {
        "Plans": plans.plans_name,
        "Configuration": name,
        "Made for": f"{plans.device}, {plans.memory_gib:.3g} GiB",
        "Pairs": plans.pairing,
        "Other configurations": ", ".join(other for other in plans.configurations if other != name) or "none",
    }
    decided = {rule: decide(plans.configurations[name]) for rule, decide in DECIDED.items()}
    reasons = [(rule.replace("_", " "), decided.get(rule, ""), reason) for rule, reason in why.items()]
    parts = {part: list(_flat(settings)) for part, settings in configuration.items()}
    return Section("plans", "Plans", render("plans.html.j2", facts=facts, reasons=reasons, parts=parts))


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Settings by dotted name, lists in one line."""
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, _text(value)


def _text(value: Any) -> str:
    if isinstance(value, list):
        nested = any(isinstance(each, list) for each in value)
        return ("; " if nested else ", ").join(map(_text, value)) or "none"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_text(each)}" for name, each in value.items())
    words = {None: "none", True: "yes", False: "no"}
    return words[value] if value is None or isinstance(value, bool) else str(value)


def _times(values: Iterable[float]) -> str:
    return " × ".join(f"{value:.4g}" for value in values)
