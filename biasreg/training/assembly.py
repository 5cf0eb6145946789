"""From plans, options and data to a trainer: where the parts of a run are put together."""

import functools
import logging
from collections.abc import Callable

import torch
from torch import nn

from biasreg.core.serialization import to_json
from biasreg.network.biasnet import BIASNet
from biasreg.network.build import build_network
from biasreg.network.checkpoint import RunSettings
from biasreg.network.pretrained import load_base
from biasreg.planning.plans import Configuration
from biasreg.training.data import CaseSource, LoaderSettings
from biasreg.training.distributed import Seat, Team
from biasreg.training.experiment_trackers import TrackedRun, trackers
from biasreg.training.observers import METRICS_FILE, PROGRESS_FILE, EpochLog, MetricsFile, Observer
from biasreg.training.optimization import build_optimizer
from biasreg.training.options import TrainingOptions
from biasreg.training.recipe import Home, Recipe, TrainingData
from biasreg.training.step_memory import objective_settings
from biasreg.training.trainer import Trainer
from biasreg.training.validation import Validation
from biasreg.training.workers import default_workers, open_batches
from biasreg.training.workspace import FoldData, Workspace

logger = logging.getLogger(__name__)


def build_trainer(
    workspace: Workspace,
    data: FoldData,
    home: Home,
    options: TrainingOptions,
    team: Team,
    network: BIASNet | None = None,
) -> Trainer:
    """Put a trainer together, with new weights from the run's seed, or VoCo's where the plans say so.

    Args:
        workspace: What the run works on.
        data: The fold's cases and pairs.
        home: Where the run lives, and what it was started with.
        options: What differs from the plans.
        team: The processes that train together.
        network: What trains, on the team's device; None for what the plans describe.

    Returns:
        The trainer, before its first step.

    Raises:
        WeightsError: If pretrained weights are not installed, or others than the run was started with.
        InputError: If a program that is to follow the run is not installed.
    """
    configuration, run = workspace.configuration, home.identity.run
    torch.manual_seed(run.seed)
    set_determinism(options.deterministic)
    if network is None:
        network = team.together(lambda: make_network(workspace, team.device, home.identity.pretrained_hash))
    recipe = _recipe(configuration, run, options)
    figures, picture = _drawings(workspace, data, home, recipe) if team.writes else ((), None)
    return Trainer(
        network,
        build_optimizer(network, configuration.training.learning_rate),
        recipe,
        _training_data(workspace, data, recipe, options.num_workers, team.seat),
        home,
        observers=(
            EpochLog(run.epochs),
            MetricsFile(home.folder / METRICS_FILE),
            *figures,
            *_trackers(home, options, team),
        ),
        team=team,
        picture=picture,
    )


def make_network(workspace: Workspace, device: torch.device, pretrained_hash: str | None = None) -> BIASNet:
    """Make the network of a run, with new weights from torch's global generator, or VoCo's where the plans say so.

    Args:
        workspace: What the run works on.
        device: Where the network goes.
        pretrained_hash: Hash that the pretrained weights must have; None for any.

    Returns:
        The network.

    Raises:
        WeightsError: If pretrained weights are not installed, or others than these.
    """
    plans = workspace.configuration.network
    network = build_network(plans)
    load_base(network.encoder, plans.encoder.init, workspace.results, pretrained_hash)
    return network.to(device)


def _trackers(home: Home, options: TrainingOptions, team: Team) -> tuple[Observer, ...]:
    """Let the process that writes begin the runs; all of them end where a program refuses."""
    identity, made = home.identity, list[Observer]()
    name = f"{identity.dataset_name} {identity.plans_name}__{identity.configuration_name} fold_{identity.run.fold}"

    def begin() -> None:  # it returns nothing, for observers stay in their process
        made.extend(trackers(options.track, TrackedRun(home.folder, name, to_json(identity), options.resume)))

    team.by_first(begin)
    return tuple(made)


def _drawings(
    workspace: Workspace, data: FoldData, home: Home, recipe: Recipe
) -> tuple[tuple[Observer, ...], Callable[[nn.Module, int], None] | None]:
    """Give what draws the course of the run, and what draws a validation pair; a bare compute node can do neither."""
    try:
        from biasreg.training.pictures import PairPictures  # noqa: PLC0415
        from biasreg.training.progress_figure import ProgressFigure  # noqa: PLC0415
    except ModuleNotFoundError as error:
        logger.warning("the run is not drawn: %s is not installed here", error.name)
        return (), None
    figure = ProgressFigure(home.folder / PROGRESS_FILE)
    if not data.validation:
        return (figure,), None
    return (figure,), PairPictures(case_source(workspace, data), data.validation[0], home.folder, recipe.objective)


def case_source(workspace: Workspace, data: FoldData) -> CaseSource:
    """Say where the cases of a fold are read from.

    Args:
        workspace: What the run works on.
        data: The fold's cases.

    Returns:
        The source, on the grid that is trained on.
    """
    return CaseSource(workspace.cases_folder, data.annotated, workspace.coarser_grid)


def set_determinism(wanted: bool) -> None:
    """Choose between the fastest kernels and those that give the same numbers each time.

    Args:
        wanted: The latter. On CUDA, sampling, trilinear resizing and padding by repetition have no deterministic
            backward pass: torch then warns, and goes on.
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
    source = case_source(workspace, data)
    settings = LoaderSettings(
        batch_size=workspace.configuration.training.batch_size,
        seed=recipe.seed,
        probability=recipe.augmentation.probability,
        workers=default_workers(seat.local_size) if num_workers is None else num_workers,
        rank=seat.rank,
        ranks=seat.size,
    )
    return TrainingData(
        open_batches=functools.partial(open_batches, source, data.sampler, settings),
        validation=Validation(source, data.validation, data.held_out, recipe.objective),
    )
