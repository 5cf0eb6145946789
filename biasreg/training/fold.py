"""Training of one fold: from what is on disk to a run, and what is logged of it."""

import logging
import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from filelock import FileLock, Timeout

import biasreg
from biasreg.core.errors import InputError
from biasreg.core.paths import Roots, check_writable
from biasreg.core.serialization import content_hash
from biasreg.network.checkpoint import BEST, LATEST, Checkpoint, Identity, RunSettings, describe_size
from biasreg.network.device import select_device
from biasreg.planning.voco import installed_hash
from biasreg.preprocessing.reference_files import reference_hash
from biasreg.training.assembly import build_trainer, case_source, make_network, set_determinism
from biasreg.training.beginning import run_length, run_settings, starting_point, used_configuration
from biasreg.training.check_lines import CheckLine, log_lines, refuse_failures
from biasreg.training.distributed import ALONE, Seat, Team, join_team
from biasreg.training.fit import Fitted, fit_to_device
from biasreg.training.model_folder import LOCK_FILE, PUBLISHED_FILE, agreed_configuration, publish
from biasreg.training.observers import LOG_FILE, METRICS_FILE, PROGRESS_FILE, clear_pictures, run_log
from biasreg.training.options import TrainingOptions
from biasreg.training.overfit import check_learning
from biasreg.training.recipe import Home
from biasreg.training.self_check import check_data
from biasreg.training.trainer import VALIDATION_FILE, Trainer
from biasreg.training.workspace import FoldData, FoldName, Workspace, open_workspace, read_fold_data

logger = logging.getLogger(__name__)

LOCK_SECONDS = 1.0  # another fold may have to look whether this one is being trained
RUN_FILES = (LATEST, BEST, METRICS_FILE, PROGRESS_FILE, VALIDATION_FILE, LOG_FILE)


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
        workspace, data = team.together(lambda: _open(roots, dataset, fold, options))
        with _lock(workspace.fold_folder(fold), team):
            return _train(workspace, data, fold, options, team)


def _open(roots: Roots, dataset: str, fold: FoldName, options: TrainingOptions) -> tuple[Workspace, FoldData]:
    """Read what the run works on, and refuse what cannot be trained before anything is written."""
    workspace = open_workspace(roots, dataset, options.plans_name, options.configuration, options.ablate)
    folder = workspace.fold_folder(fold)
    check_writable(folder, "give another root of the results with --results")
    if not folder.exists():
        starting_point(folder, workspace.configuration, None, options)  # before it is made, only to refuse to resume
    return workspace, read_fold_data(workspace, fold)


@contextmanager
def _lock(folder: Path, team: Team) -> Iterator[None]:
    """Keep other runs out of the folder of a fold; the system takes the lock away when the process ends, however."""
    lock = FileLock(folder / LOCK_FILE)

    def acquire() -> None:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=LOCK_SECONDS)
        except Timeout as error:
            raise InputError(f"another training of this fold is running · {folder} · wait for it, or end it") from error
        (folder / PUBLISHED_FILE).unlink(missing_ok=True)  # of a run that was killed

    team.by_first(acquire)
    try:
        yield
    finally:
        if team.writes:
            with suppress(OSError):  # where it stays, nobody holds the lock beside it
                (folder / PUBLISHED_FILE).unlink(missing_ok=True)
        lock.release()


def _train(workspace: Workspace, data: FoldData, fold: FoldName, options: TrainingOptions, team: Team) -> Path:
    folder = workspace.fold_folder(fold)
    planned = workspace.configuration
    reference = team.together(lambda: reference_hash(workspace.cases_folder, planned.preprocessing))
    checkpoint = team.together(lambda: starting_point(folder, planned, reference, options))
    fitted: Fitted | None = None
    lines: list[CheckLine] = []
    if checkpoint is None:
        set_determinism(options.deterministic)  # the kernels that are tried now are those that will train
        fitted, lines = team.by_first(lambda: _prepare(workspace, data, fold, team.device))
    workspace = replace(workspace, used=used_configuration(fitted, checkpoint))
    new_run = RunSettings(fold, *run_length(workspace, options), content_hash(data.fold), team.seat.size)
    identity = Identity(
        dataset_name=workspace.plans.dataset_name,
        plans_name=options.plans_name,
        configuration_name=workspace.configuration_name,
        configuration=workspace.configuration,
        reference_hash=reference,
        run=team.together(lambda: run_settings(new_run, options, checkpoint)),
        pretrained_hash=team.together(lambda: _pretrained_hash(workspace, checkpoint)),
    )
    trainer = build_trainer(workspace, data, Home(folder, identity), options, team)
    team.by_first(lambda: _make_room(workspace, fold, everything=options.overwrite))
    if checkpoint is not None:
        team.together(partial(trainer.restore, checkpoint))
        checkpoint = None  # all of it is in the trainer now
    if not team.writes:
        return _run(trainer)
    with run_log(folder):
        _log_beginning(trainer, data)
        log_lines(lines)
        if fitted:
            _log_fit(fitted)
        return _run(trainer)


def _pretrained_hash(workspace: Workspace, checkpoint: Checkpoint | None) -> str | None:
    """Hash of the weights that the run started from, or is to start from; None for an encoder from scratch."""
    if checkpoint is not None:
        return checkpoint.identity.pretrained_hash
    return installed_hash(workspace.results, workspace.configuration.network.encoder.init)


def _prepare(
    workspace: Workspace, data: FoldData, fold: FoldName, device: torch.device
) -> tuple[Fitted, list[CheckLine]]:
    """Check the data of a new run, and find the configuration that fits the device."""
    lines = list(check_data(case_source(workspace, data), data, workspace.planned))
    refuse_failures(lines)
    return fit_to_device(agreed_configuration(workspace, fold), device), lines


def _run(trainer: Trainer) -> Path:
    """Train to the end."""
    folder, done = trainer.home.folder, trainer.progress.iteration
    if done:
        logger.info("resumed after %d of %d iterations", done, trainer.recipe.iterations)
    if trainer.is_finished:
        trainer.write_validation()  # where the disk was full before
        logger.info("this run is finished, there is nothing to resume; --overwrite trains anew")
    else:
        trainer.run()
        logger.info("training is finished: %s", folder)
    return folder


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
        InputError: If data, plans and options do not fit together, or pretrained weights are not installed.
        TrainingError: If the device's memory holds no training step.
    """
    options = options or TrainingOptions()
    workspace = open_workspace(roots, dataset, options.plans_name, options.configuration, options.ablate)
    data = read_fold_data(workspace, fold)
    yield from check_data(case_source(workspace, data), data, workspace.planned)
    device = select_device(options.device)
    workspace = replace(workspace, used=fit_to_device(agreed_configuration(workspace, fold), device).configuration)
    yield check_learning(case_source(workspace, data), data, make_network(workspace, device), workspace.configuration)


def _make_room(workspace: Workspace, fold: FoldName, *, everything: bool) -> None:
    """Publish the plans, and remove half-written files of a run that was killed, or all of one to be overwritten."""
    publish(workspace, fold)
    folder = workspace.fold_folder(fold)
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
    if run.processes != trainer.team.seat.size:
        logger.warning(
            "this run was started by %d process(es) and goes on with %d: its steps have another number of pairs now, "
            "and it does not end as it would have without the interruption",
            run.processes,
            trainer.team.seat.size,
        )
    labelled = sum(data.annotated[case] for case in data.fold.train)
    logger.info("%d training cases, %d of them with labels, %s", len(data.fold.train), labelled, data.sampler.pairing)
    logger.info("validation on %d pairs; %d cases are held out", len(data.validation), len(data.fold.validation))
    if data.held_out == "fixed only":
        logger.warning("too few held-out cases to pair with each other: validation takes training cases as moving ones")
    elif data.held_out == "none":
        logger.warning("validation pairs are NOT held out: training sees them, their scores say nothing of new cases")
