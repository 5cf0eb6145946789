"""Training of one fold: the one place that reads plans and wires a training run."""

import functools
import logging
import platform
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch

import biasreg
from biasreg.core.errors import CheckpointError, InputError
from biasreg.core.paths import Roots, check_writable
from biasreg.core.serialization import content_hash, to_json
from biasreg.network.build import build_network
from biasreg.network.checkpoint import (
    BEST,
    LATEST,
    Checkpoint,
    Identity,
    RunSettings,
    check_reference,
    describe_size,
    load_checkpoint,
)
from biasreg.network.device import select_device
from biasreg.network.pretrained import load_base
from biasreg.planning.fallback import fallbacks
from biasreg.planning.plans import DEFAULT_PLANS_NAME, Configuration
from biasreg.planning.voco import installed_hash
from biasreg.preprocessing.reference_files import reference_hash
from biasreg.training.check_lines import CheckLine, log_lines, refuse_failures
from biasreg.training.data import CaseSource, LoaderSettings
from biasreg.training.distributed import ALONE, Seat, Team, join_team
from biasreg.training.experiment_trackers import trackers
from biasreg.training.fit import Fitted, fit_to_device
from biasreg.training.observers import (
    LOG_FILE,
    METRICS_FILE,
    PROGRESS_FILE,
    EpochLog,
    MetricsFile,
    Observer,
    ProgressFigure,
    run_log,
)
from biasreg.training.optimization import build_optimizer
from biasreg.training.overfit import check_learning
from biasreg.training.pictures import PairPictures, clear_pictures
from biasreg.training.self_check import check_data
from biasreg.training.step_memory import objective_settings
from biasreg.training.trainer import VALIDATION_FILE, Home, Recipe, Trainer, TrainingData
from biasreg.training.validation import Validation
from biasreg.training.workers import default_workers, open_batches
from biasreg.training.workspace import (
    FoldData,
    FoldName,
    Workspace,
    agreed_configuration,
    open_workspace,
    publish,
    read_fold_data,
)

logger = logging.getLogger(__name__)

DEFAULT_SEED = 12345
RUN_FILES = (LATEST, BEST, METRICS_FILE, PROGRESS_FILE, VALIDATION_FILE, LOG_FILE)


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


def train_fold(
    roots: Roots, dataset: str, fold: FoldName, options: TrainingOptions | None = None, seat: Seat = ALONE
) -> Path:
    """Train one fold of a dataset, as its plans say.

    Args:
        roots: Root folders.
        dataset: Dataset id or name.
        fold: Fold number, or `all` to train on every case.
        options: What differs from the plans.
        seat: Place of this process among those that train the fold together.

    Returns:
        Folder of the fold, with the checkpoints, the log, the metrics and the validation scores.

    Raises:
        InputError: If data, plans, checkpoint and options do not fit together; nothing is overwritten then.
        TrainingError: If training cannot go on, or was stopped by a signal (then `--c` resumes it).
    """
    options = options or TrainingOptions()
    with join_team(seat, select_device(options.device)) as team:
        workspace = open_workspace(roots, dataset, options.plans_name, options.configuration, options.ablate)
        return _train(workspace, fold, options, team)


def _train(workspace: Workspace, fold: FoldName, options: TrainingOptions, team: Team) -> Path:
    folder = workspace.fold_folder(fold)
    check_writable(folder, "give another root of the results with --results")
    reference = reference_hash(workspace.cases_folder, workspace.configuration.preprocessing)
    checkpoint = _starting_point(folder, workspace.configuration, reference, options)
    data = read_fold_data(workspace, fold)
    fitted = None
    if checkpoint is None:
        agreed = agreed_configuration(workspace, fold)
        fitted = team.of_first(fit_to_device(agreed, team.device) if team.writes else None)
    workspace = replace(workspace, used=_used(fitted, checkpoint))
    new_run = RunSettings(fold, *_length(workspace, options), content_hash(data.fold))
    init = workspace.configuration.network.encoder.init
    identity = Identity(
        dataset_name=workspace.plans.dataset_name,
        plans_name=options.plans_name,
        configuration_name=workspace.configuration_name,
        configuration=workspace.configuration,
        reference_hash=reference,
        run=_run_settings(new_run, options, checkpoint),
        pretrained_hash=checkpoint.identity.pretrained_hash if checkpoint else installed_hash(workspace.results, init),
    )
    lines = []
    if checkpoint is None and team.writes:
        lines = list(check_data(_source(workspace, data), data, workspace.configuration))
        refuse_failures(lines)
    trainer = _build_trainer(workspace, data, Home(folder, identity), options, team)
    if not team.writes:
        return _run(trainer, checkpoint)
    publish(workspace, fold)
    _clear(folder, everything=options.overwrite)
    with run_log(folder):
        _log_beginning(trainer, data)
        log_lines(lines)
        if fitted:
            _log_fit(fitted)
        return _run(trainer, checkpoint)


def _run(trainer: Trainer, checkpoint: Checkpoint | None) -> Path:
    """Train to the end, from the checkpoint if there is one."""
    folder, recipe = trainer.home.folder, trainer.recipe
    if checkpoint is not None:
        trainer.restore(checkpoint)
        logger.info("resumed after %d of %d iterations", trainer.progress.iteration, recipe.iterations)
    if trainer.is_finished:
        logger.info("this run is finished, there is nothing to resume; --overwrite trains anew")
    else:
        trainer.run()
        logger.info("training is finished: %s", folder)
    return folder


def _starting_point(
    folder: Path, configuration: Configuration, reference: str | None, options: TrainingOptions
) -> Checkpoint | None:
    """Load the checkpoint to resume from; refuse to start over silently."""
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


def _used(fitted: Fitted | None, checkpoint: Checkpoint | None) -> Configuration | None:
    """The configuration that is trained: that of the checkpoint to resume, or what fits the device."""
    if checkpoint is not None:
        return checkpoint.identity.configuration
    return fitted.configuration if fitted is not None else None


def _length(workspace: Workspace, options: TrainingOptions) -> tuple[int, int, int]:
    """Epochs, iterations per epoch and seed of a new run."""
    plans = workspace.configuration.training
    return (
        options.epochs or plans.epochs,
        options.iterations_per_epoch or plans.iterations_per_epoch,
        DEFAULT_SEED if options.seed is None else options.seed,
    )


def _run_settings(new: RunSettings, options: TrainingOptions, checkpoint: Checkpoint | None) -> RunSettings:
    """Take the run's settings from the checkpoint to resume, or else those of a new run."""
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


def _build_trainer(workspace: Workspace, data: FoldData, home: Home, options: TrainingOptions, team: Team) -> Trainer:
    configuration, run = workspace.configuration, home.identity.run
    torch.manual_seed(run.seed)
    _set_determinism(options.deterministic)
    network = build_network(configuration.network)
    encoder, init = network.encoder, configuration.network.encoder.init
    load_base(encoder, init, workspace.results, home.identity.pretrained_hash)
    network.to(team.device)
    recipe = _recipe(configuration, run, options)
    return Trainer(
        network,
        build_optimizer(network, configuration.training.learning_rate),
        recipe,
        _training_data(workspace, data, recipe, options.num_workers, team.seat),
        home,
        observers=(
            EpochLog(run.epochs),
            MetricsFile(home.folder / METRICS_FILE),
            ProgressFigure(home.folder / PROGRESS_FILE),
            *_trackers(home, options, team),
        ),
        team=team,
        picture=_picture(workspace, data, home, recipe),
    )


def _trackers(home: Home, options: TrainingOptions, team: Team) -> tuple[Observer, ...]:
    identity = home.identity
    if not team.writes:
        return ()
    name = f"{identity.dataset_name} {identity.plans_name}__{identity.configuration_name} fold_{identity.run.fold}"
    return trackers(options.track, home.folder, name, to_json(identity))


def _picture(workspace: Workspace, data: FoldData, home: Home, recipe: Recipe) -> PairPictures | None:
    if not data.validation:
        return None
    return PairPictures(_source(workspace, data), data.validation[0], home.folder, recipe.objective)


def _source(workspace: Workspace, data: FoldData) -> CaseSource:
    return CaseSource(workspace.cases_folder, data.annotated, workspace.coarser_grid)


def check_fold(
    roots: Roots, dataset: str, fold: FoldName, options: TrainingOptions | None = None
) -> Iterator[CheckLine]:
    """Check what a fold is trained on, and whether one pair can be learnt; nothing is written.

    Args:
        roots: Root folders.
        dataset: Dataset id or name.
        fold: Fold number, or `all`.
        options: What differs from the plans.

    Yields:
        The findings, each as soon as it is known.

    Raises:
        InputError: If data, plans and options do not fit together.
    """
    options = options or TrainingOptions()
    workspace = open_workspace(roots, dataset, options.plans_name, options.configuration, options.ablate)
    data = read_fold_data(workspace, fold)
    yield from check_data(_source(workspace, data), data, workspace.configuration)
    yield check_learning(_source(workspace, data), data, workspace.configuration, select_device(options.device))


def _set_determinism(wanted: bool) -> None:
    """Choose between the fastest kernels and those that give the same numbers each time.

    On CUDA, sampling at displaced positions has no deterministic backward pass: torch then warns, and goes on.
    """
    torch.use_deterministic_algorithms(wanted, warn_only=True)
    torch.backends.cudnn.deterministic = wanted
    torch.backends.cudnn.benchmark = not wanted  # all inputs have one shape


def _recipe(configuration: Configuration, run: RunSettings, options: TrainingOptions) -> Recipe:
    plans = configuration.training
    return Recipe(
        epochs=run.epochs,
        iterations_per_epoch=run.iterations_per_epoch,
        seed=run.seed,
        learning_rate=plans.learning_rate,
        learning_rate_power=plans.learning_rate_power,
        learning_rate_warmup=plans.learning_rate_warmup,
        gradient_clip=plans.gradient_clip,
        averaging_decay=plans.averaging_decay,
        consistency_warmup=plans.consistency_warmup,
        consistency_interval=plans.consistency_interval,
        validate_every=options.validate_every,
        picture_every=options.picture_every,
        augmentation=plans.augmentation,
        objective=objective_settings(configuration),
    )


def _training_data(
    workspace: Workspace, data: FoldData, recipe: Recipe, num_workers: int | None, seat: Seat
) -> TrainingData:
    source = _source(workspace, data)
    settings = LoaderSettings(
        batch_size=workspace.configuration.training.batch_size,
        seed=recipe.seed,
        probability=recipe.augmentation.probability,
        workers=default_workers() if num_workers is None else num_workers,
        rank=seat.rank,
        ranks=seat.size,
    )
    return TrainingData(
        open_batches=functools.partial(open_batches, source, data.sampler, settings),
        validation=Validation(source, data.validation, data.held_out, recipe.objective),
    )


def _clear(folder: Path, *, everything: bool) -> None:
    """Remove half-written files of a run that was killed, and all files of a run that is to be overwritten."""
    names = [path.name for path in folder.glob(".*-checkpoint_*.pth")]
    for name in (*names, *(RUN_FILES if everything else ())):
        (folder / name).unlink(missing_ok=True)
    if everything:
        clear_pictures(folder)


def _log_fit(fitted: Fitted) -> None:
    measured = f"{fitted.measured_gib:.2f} GiB measured" if fitted.measured_gib else "not measured on this device"
    logger.info("memory of a training step: %.2f GiB predicted, %s", fitted.predicted_gib, measured)
    if fitted.steps:
        logger.warning("the plans did not fit; this run goes without: %s", "; ".join(fitted.steps))


def _log_beginning(trainer: Trainer, data: FoldData) -> None:
    identity, device = trainer.home.identity, trainer.device
    run = identity.run
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} threads"
    python = platform.python_version()
    logger.info("biasreg %s, torch %s, Python %s", biasreg.__version__, torch.__version__, python)
    logger.info("%s, fold %s, results in %s", identity.dataset_name, run.fold, trainer.home.folder)
    logger.info("plans %s, configuration %s", identity.plans_name, identity.configuration_name)
    logger.info("device: %s (%s)", device, name)
    sizes = [parameter.numel() for parameter in trainer.network.parameters() if parameter.requires_grad]
    logger.info("network: %.2f million parameters to train", sum(sizes) / 1e6)
    logger.info(describe_size(trainer.network, with_base=identity.pretrained_hash is None))
    logger.info("%d epochs of %d iterations, seed %d", run.epochs, run.iterations_per_epoch, run.seed)
    labelled = sum(data.annotated[case] for case in data.fold.train)
    logger.info("%d training cases, %d of them with labels, %s", len(data.fold.train), labelled, data.sampler.pairing)
    logger.info("validation on %d pairs; %d cases are held out", len(data.validation), len(data.fold.validation))
    if data.held_out == "fixed only":
        logger.warning("too few held-out cases to pair with each other: validation takes training cases as moving ones")
    elif data.held_out == "none":
        logger.warning("validation pairs are NOT held out: training sees them, their scores say nothing of new cases")
