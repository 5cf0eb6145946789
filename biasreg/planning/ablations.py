"""Configurations without a part of the method, to measure what the part is worth (the tables of the paper)."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from biasreg.core.errors import InputError
from biasreg.planning.plans import Configuration, Plans

MARK = "-ablate-"  # between the name of a configuration and what it goes without


def _network(**changes: Any) -> Callable[[Configuration], Configuration]:
    return lambda configuration: replace(configuration, network=replace(configuration.network, **changes))


def _pretrained(**changes: Any) -> Callable[[Configuration], Configuration]:
    """Change a pretrained encoder; one from scratch has nothing of it."""

    def change(configuration: Configuration) -> Configuration:
        if configuration.network.encoder.init == "scratch":
            return configuration
        return _network(encoder=replace(configuration.network.encoder, **changes))(configuration)

    return change


def _weight(**changes: float) -> Callable[[Configuration], Configuration]:
    def change(configuration: Configuration) -> Configuration:
        training = configuration.training
        return replace(configuration, training=replace(training, weights=replace(training.weights, **changes)))

    return change


def _without_semantics(configuration: Configuration) -> Configuration:
    return _weight(segmentation=0.0)(_network(streams="intensity")(configuration))


def _single_level(configuration: Configuration) -> Configuration:
    finest = tuple(level for level in configuration.network.correlation_levels if level == 0)
    return _network(registration_levels=1, correlation_levels=finest)(configuration)


_PARTS: Mapping[str, tuple[str, Callable[[Configuration], Configuration]]] = {
    "biaf": ("features are fused at fixed positions", _network(biaf=False)),
    "mac": ("both features are concatenated", _network(mac=False)),
    "ardc": ("no consistency of masked pairs", _weight(consistency=0.0)),
    "semantics": ("intensity-wise decoder only", _without_semantics),
    "intensity": ("semantics-wise decoder only", _network(streams="semantic")),
    "levels": ("one level, the finest", _single_level),
    "lora": ("the encoder is frozen", _pretrained(tuning="frozen", lora=None)),
    "freezing": ("all of the encoder trains", _pretrained(tuning="full", lora=None)),
    "pretraining": ("the encoder starts from random weights", _pretrained(init="scratch", tuning="full", lora=None)),
}
PARTS = tuple(_PARTS)
# Of each of these one at most: together they leave nothing, or say the opposite of each other.
_ALTERNATIVES = (("semantics", "intensity"), ("lora", "freezing", "pretraining"))


def ablation_name(configuration: str, parts: Sequence[str]) -> str:
    """Name a configuration that goes without some parts.

    Args:
        configuration: Name of the whole one.
        parts: What it goes without, of `PARTS`.

    Returns:
        The name, the same whatever the order of the parts.
    """
    return configuration + MARK + "-".join(part for part in PARTS if part in parts)


def whole_name(configuration: str) -> str:
    """Name the configuration that an ablated one was made of; any other name is given back."""
    return configuration.partition(MARK)[0]


def add_ablation(plans: Plans, configuration: str, parts: Sequence[str]) -> Plans:
    """Add a configuration without some parts to plans.

    Args:
        plans: The plans.
        configuration: Name of the configuration to take them from.
        parts: What to go without, of `PARTS`.

    Returns:
        The plans, with a further configuration called `ablation_name(configuration, parts)`.

    Raises:
        InputError: If a part is not known, or the configuration does not have it.
    """
    parts = tuple(dict.fromkeys(parts))
    unknown = [part for part in parts if part not in PARTS]
    if unknown:
        raise InputError(f"--ablate knows no part {', '.join(unknown)} · choose among {', '.join(PARTS)}")
    for group in _ALTERNATIVES:
        if len(set(group) & set(parts)) > 1:
            raise InputError(f"--ablate {','.join(parts)}: of {', '.join(group)} only one can be taken away")
    changed = plans.configurations[configuration]
    for part in parts:
        before, changed = changed, _PARTS[part][1](changed)
        if changed == before:
            raise InputError(f"--ablate {part}: configuration {configuration} has nothing of it to take away")
    name = ablation_name(configuration, parts)
    reason = "; ".join(f"without {part}: {_PARTS[part][0]}" for part in PARTS if part in parts)
    return replace(
        plans,
        configurations={**plans.configurations, name: changed},
        why={**plans.why, name: {**plans.why.get(configuration, {}), "ablation": reason}},
    )
