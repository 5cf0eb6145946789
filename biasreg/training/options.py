"""What a user may say about a training run."""

from dataclasses import dataclass

from biasreg.core.errors import InputError
from biasreg.planning.plans import DEFAULT_PLANS_NAME


@dataclass(frozen=True)
class TrainingOptions:
    """What a user may say about a run; None leaves it to the plans, or, when resuming, to the checkpoint.

    Attributes:
        configuration: Configuration of the plans.
        plans_name: Name of the plans.
        device: `cuda`, `mps` or `cpu`; None for the best there is.
        epochs: Number of epochs.
        iterations_per_epoch: Steps per epoch.
        seed: Seed of everything random, not negative.
        resume: Go on from the latest checkpoint.
        overwrite: Throw away what an earlier run left in the folder of this fold.
        num_workers: Background processes that load data; None for as many as the cores suggest.
        validate_every: Validate after every so many epochs, and after the last.
        picture_every: Draw a validation pair after every so many epochs; 0 for never.
        track: Further programs that follow the run, of `experiment_trackers.TRACKERS`.
        ablate: Parts of the method to go without, of `planning.ablations.PARTS`.
        deterministic: Prefer kernels that give the same numbers each time, where there are such.
    """

    configuration: str | None = None
    plans_name: str = DEFAULT_PLANS_NAME
    device: str | None = None
    epochs: int | None = None
    iterations_per_epoch: int | None = None
    seed: int | None = None
    resume: bool = False
    overwrite: bool = False
    num_workers: int | None = None
    validate_every: int = 1
    picture_every: int = 10
    track: tuple[str, ...] = ()
    ablate: tuple[str, ...] = ()
    deterministic: bool = False

    def __post_init__(self) -> None:
        least = {
            "epochs": 1,
            "iterations_per_epoch": 1,
            "seed": 0,
            "num_workers": 0,
            "validate_every": 1,
            "picture_every": 0,
        }
        for name, minimum in least.items():
            value = getattr(self, name)
            if value is not None and value < minimum:
                raise InputError(f"{name} is {value}, but must be at least {minimum}")
        if self.resume and self.overwrite:
            raise InputError("--c resumes a run and --overwrite throws it away · give one of them")
