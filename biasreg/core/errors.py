"""The tree of errors that a user can cause, and the exit codes of the commands.

A message says what is wrong, with both values, where (the file), and what to do.
"""

from collections.abc import Iterable
from pathlib import Path


class BiasregError(Exception):
    """Base of every error that biasreg raises on purpose."""

    exit_code = 1


class InputError(BiasregError):
    """What the user gave cannot be used; commands end with exit code 2."""

    exit_code = 2


class DatasetError(InputError):
    """A raw dataset, a case of it, or a list of pairs breaks the dataset format."""


class ImageError(InputError):
    """An image, label map, displacement field or point file cannot be read or is not what it should be."""


class TransformError(ImageError):
    """A transform can be read, but cannot be used: its form is misread by other tools, or its numbers make no sense."""


class GeometryError(ImageError):
    """A grid's header is unusable: sheared, singular, non-finite, or at odds with another grid."""


class RecordError(InputError):
    """A JSON file does not fit its record: unknown, missing or wrongly typed fields."""


class PlansError(InputError):
    """Plans are missing, outdated, contradictory, or not those that a folder was made with."""


class CheckpointError(InputError):
    """A checkpoint is missing, damaged, or does not belong to the plans at hand."""


class WeightsError(InputError):
    """Weights of a network that others trained are missing or damaged, or may not be used."""


class ModelNotFoundError(InputError):
    """No trained model, or more than one, fits what was asked for."""


class TrainingError(BiasregError):
    """Training cannot go on (for example the loss is no longer finite)."""


class PredictionError(BiasregError):
    """One or more pairs could not be registered."""


def format_faults(where: Path | str, faults: Iterable[str]) -> str:
    """Return one message for all faults, one line each."""
    lines = list(faults)
    if len(lines) == 1:
        return f"{where}: {lines[0]}"
    return "\n".join([f"{where}: {len(lines)} faults:", *(f"  - {line}" for line in lines)])
