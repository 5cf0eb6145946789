"""What a user wants otherwise: changed values, and configurations of their own, which survive planning again."""

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from biasreg.core.errors import PlansError, RecordError
from biasreg.core.serialization import from_json, to_json
from biasreg.planning.consistency import check_configuration
from biasreg.planning.planner import BY_USER, PLANNED, describe_memory
from biasreg.planning.plans import Configuration, Plans

GRID_FIELDS = ("preprocessing.spacing", "preprocessing.patch_size")


def apply_changes(plans: Plans, changes: Sequence[str]) -> Plans:
    """Change values of plans, in all configurations or in one; what belongs together is checked once all are made.

    Args:
        plans: The plans.
        changes: Each `training.epochs=200`, or `3d_fullres.training.epochs=200` for one configuration; the value as
            JSON, or a plain word.

    Returns:
        The plans, their `why` saying what the user has set, and what memory that takes.

    Raises:
        PlansError: If there is no such field, the value does not fit it, or a configuration then contradicts itself.
    """
    configurations, why = dict(plans.configurations), dict(plans.why)
    changed = set()
    for change in changes:
        path, separator, text = change.partition("=")
        if not separator:
            raise PlansError(f"'{change}' sets nothing · write it as training.epochs=200")
        first, _, rest = path.partition(".")
        names = [first] if first in configurations else list(configurations)
        field = rest if first in configurations else path
        if field in GRID_FIELDS:
            raise PlansError(
                f"'{change}': spacing and grid belong together · set them by -overwrite_target_spacing X Y Z"
            )
        for name in names:
            configurations[name] = _changed(configurations[name], field, _value(text), change)
            why[name] = {**why.get(name, {}), field: BY_USER}
        changed.update(names)
    for name in changed:
        check_configuration(name, configurations[name])
        why[name] = {**why[name], "memory": describe_memory(configurations[name], plans.device, plans.memory_gib)}
    return replace(plans, configurations=configurations, why=why)


def lost_changes(plans: Plans, earlier: Plans) -> tuple[str, ...]:
    """Name what a user had set in earlier plans and has not set again.

    Args:
        plans: New plans.
        earlier: Plans of the same name that were there.

    Returns:
        Configuration and field of each, sorted.
    """
    set_by_user = [
        {f"{name}.{field}" for name, why in each.why.items() for field, reason in why.items() if reason == BY_USER}
        for each in (plans, earlier)
    ]
    return tuple(sorted(set_by_user[1] - set_by_user[0]))


def keep_user_configurations(plans: Plans, earlier: Plans) -> Plans:
    """Take over the configurations that a user has added to earlier plans, and the default if it is one of them.

    Args:
        plans: New plans.
        earlier: Plans of the same name that were there.

    Returns:
        The new plans, with the user's configurations as they were.

    Raises:
        PlansError: If such a configuration contradicts itself, or has other labels or channels than the new plans.
    """
    own = {name: made for name, made in earlier.configurations.items() if name not in PLANNED}
    if not own:
        return plans
    current = plans.configurations[plans.default_configuration]
    for name, made in own.items():
        check_configuration(name, made)
        if _labels(made) != _labels(current):
            raise PlansError(
                f"configuration {name} was made for other labels or channels than the dataset has now · correct it in "
                f"{plans.plans_name}.json, or remove it there"
            )
    default = earlier.default_configuration if earlier.default_configuration in own else plans.default_configuration
    reasons = {name: earlier.why.get(name, {"configuration": BY_USER}) for name in own}
    return replace(
        plans,
        default_configuration=default,
        configurations={**plans.configurations, **own},
        why={**plans.why, **reasons},
    )


def _changed(configuration: Configuration, field: str, value: Any, change: str) -> Configuration:
    data = to_json(configuration)
    *parents, last = field.split(".")
    place = data
    for parent in parents:
        place = place.get(parent) if isinstance(place, dict) else None
    if not isinstance(place, dict) or last not in place:
        known = ", ".join(place if isinstance(place, dict) else data)
        raise PlansError(f"'{change}': there is no field {field} · known here: {known}")
    place[last] = value
    try:
        return from_json(Configuration, data, where=f"'{change}'")
    except RecordError as error:
        raise PlansError(str(error)) from error


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def _labels(configuration: Configuration) -> tuple[object, ...]:
    plans, network = configuration.preprocessing, configuration.network
    return plans.label_values, plans.label_names, network.num_labels, network.in_channels
