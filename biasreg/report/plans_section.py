"""The plans: what was decided, and why."""

from collections.abc import Iterator, Mapping
from typing import Any

from biasreg.core.serialization import to_json
from biasreg.planning.ablations import whole_name
from biasreg.planning.plans import Plans
from biasreg.report.page import Section, render


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
    reasons = [(rule.replace("_", " "), reason) for rule, reason in why.items()]
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
