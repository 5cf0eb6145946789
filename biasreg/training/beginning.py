"""Where a run begins: anew, as its plans and options say, or at the checkpoint that it left."""

from pathlib import Path

from biasreg.core.errors import CheckpointError, InputError
from biasreg.core.serialization import content_hash
from biasreg.network.checkpoint import BEST, LATEST, Checkpoint, RunSettings, check_reference, load_checkpoint
from biasreg.planning.fallback import fallbacks
from biasreg.planning.plans import Configuration
from biasreg.training.fit import Fitted
from biasreg.training.options import TrainingOptions
from biasreg.training.workspace import Workspace

DEFAULT_SEED = 12345


def starting_point(
    folder: Path, configuration: Configuration, reference: str | None, options: TrainingOptions
) -> Checkpoint | None:
    """Load the checkpoint to resume from; refuse to start over silently.

    Args:
        folder: Folder of the fold.
        configuration: The configuration as planned.
        reference: Hash of the reference that cases are aligned to; None without one.
        options: Whether to resume or to overwrite.

    Returns:
        The checkpoint; None for a new run.

    Raises:
        CheckpointError: If there is nothing to resume, something that would be lost, or the checkpoint does not belong
            to the plans.
    """
    path = folder / LATEST
    if options.resume:
        if not path.is_file():
            start = "--overwrite instead of --c starts" if (folder / BEST).exists() else "leave --c out to start"
            raise CheckpointError(f"there is nothing to resume: no {path} · {start} training")
        known = [configuration, *(smaller.configuration for smaller in fallbacks(configuration))]
        trained = load_checkpoint(path, lazy=True).identity.configuration
        checkpoint = load_checkpoint(path, content_hash(trained if trained in known else configuration))
        check_reference(path, checkpoint.identity, reference)
        return checkpoint
    existing = next((folder / name for name in (LATEST, BEST) if (folder / name).exists()), None)
    if existing is not None and not options.overwrite:
        resume = "give --c to resume it, or " if existing == path else ""
        raise CheckpointError(
            f"this fold was trained before: {existing} · {resume}--overwrite throws it away and starts anew"
        )
    return None


def used_configuration(fitted: Fitted | None, checkpoint: Checkpoint | None) -> Configuration | None:
    """Tell which configuration is trained: that of the checkpoint to resume, or what fits the device."""
    if checkpoint is not None:
        return checkpoint.identity.configuration
    return fitted.configuration if fitted is not None else None


def run_length(workspace: Workspace, options: TrainingOptions) -> tuple[int, int, int]:
    """Give epochs, iterations per epoch and seed of a new run."""
    plans = workspace.configuration.training
    return (
        options.epochs or plans.epochs,
        options.iterations_per_epoch or plans.iterations_per_epoch,
        DEFAULT_SEED if options.seed is None else options.seed,
    )


def run_settings(new: RunSettings, options: TrainingOptions, checkpoint: Checkpoint | None) -> RunSettings:
    """Take the run's settings from the checkpoint to resume, or else those of a new run.

    Args:
        new: Settings that a new run would have.
        options: What the user asks for.
        checkpoint: The checkpoint to resume; None for a new run.

    Returns:
        The settings.

    Raises:
        CheckpointError: If the cases of the fold have changed.
        InputError: If an option contradicts the run.
    """
    if checkpoint is None:
        return new
    run = checkpoint.identity.run
    if run.cases_hash != new.cases_hash:
        raise CheckpointError(
            f"the cases of fold {run.fold} have changed since this run was started: held-out ones could enter "
            "training · restore splits_final.json, or start anew with --overwrite"
        )
    for name in ("epochs", "iterations_per_epoch", "seed"):
        asked, known = getattr(options, name), getattr(run, name)
        if asked is not None and asked != known:
            raise InputError(
                f"--{name} {asked} contradicts the run to resume, which was started with {known} · leave it out, or "
                "start anew with --overwrite"
            )
    return run
