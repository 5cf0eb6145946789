"""Checkpoints: tensors and primitives only, written so that the last good one is never lost."""

import dataclasses
import platform
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

import biasreg
from biasreg.core.errors import CheckpointError
from biasreg.core.serialization import atomic_write, content_hash, from_json, to_json
from biasreg.network.lora import ADAPTERS
from biasreg.planning.plans import Configuration

FORMAT_VERSION = 3
LATEST = "checkpoint_latest.pth"
BEST = "checkpoint_best.pth"


@dataclass(frozen=True)
class RunSettings:
    """What a run was started with; a resumed run takes it from its checkpoint.

    Attributes:
        fold: Fold number, or `all`.
        epochs: Number of epochs.
        iterations_per_epoch: Steps per epoch.
        seed: Seed of weights, batches and augmentation.
        cases_hash: Content hash of the fold's cases: which were trained on and which held out.
        processes: How many processes train together, each with a batch of its own.
    """

    fold: int | Literal["all"]
    epochs: int
    iterations_per_epoch: int
    seed: int
    cases_hash: str
    processes: int = 1


@dataclass(frozen=True)
class Identity:
    """Which model a checkpoint belongs to.

    Attributes:
        dataset_name: Full dataset name.
        plans_name: Name of the plans.
        configuration_name: Name of the configuration.
        configuration: The configuration itself.
        reference_hash: Hash of the reference that all cases are aligned to; None without one.
        run: What the run was started with.
        pretrained_hash: Hash of the pretrained weights that its encoder started from; None for one from scratch.
    """

    dataset_name: str
    plans_name: str
    configuration_name: str
    configuration: Configuration
    reference_hash: str | None
    run: RunSettings
    pretrained_hash: str | None = None


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint in memory.

    Attributes:
        identity: Which model it belongs to.
        progress: How far the run has come, as plain JSON data; `trainer.Progress` reads it.
        network: State of the network, as `network_state` gives it.
        averaged: Moving average of the parameters that train, by name; None without averaging.
        optimizer: State of the optimiser; None in `checkpoint_best.pth`, which is for prediction only.
        random_states: State of torch's global generators: `cpu`, and `cuda:0` and so on.
        versions: Versions of biasreg, torch and Python that wrote it.
    """

    identity: Identity
    progress: dict[str, Any]
    network: dict[str, Tensor]
    averaged: dict[str, Tensor] | None
    optimizer: dict[str, Any] | None
    random_states: dict[str, Tensor]
    versions: dict[str, str]

    @property
    def weights(self) -> dict[str, Tensor]:
        """State of the network for prediction: with averaged parameters where there are any."""
        return {**self.network, **(self.averaged or {})}

    @property
    def epochs_done(self) -> int:
        """Number of finished epochs."""
        return len(self.progress.get("history", ()))

    @property
    def is_validated(self) -> bool:
        """Whether any epoch so far was validated with a usable score."""
        return self.progress.get("best") is not None


def capture(
    identity: Identity,
    progress: dict[str, Any],
    network: nn.Module,
    optimizer: torch.optim.Optimizer | None,
    averaged: dict[str, Tensor] | None = None,
) -> Checkpoint:
    """Gather everything that a resumed run needs; the tensors are still those of the run, not copies.

    Args:
        identity: Which model it belongs to.
        progress: How far the run has come, as plain JSON data.
        network: The network.
        optimizer: Its optimiser; None for a checkpoint that is for prediction only.
        averaged: Moving average of the parameters that train, by name.

    Returns:
        The checkpoint.
    """
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        states |= {f"cuda:{index}": state for index, state in enumerate(torch.cuda.get_rng_state_all())}
    return Checkpoint(
        identity=identity,
        progress=progress,
        network=network_state(network, with_base=identity.pretrained_hash is None),
        averaged=averaged,
        optimizer=None if optimizer is None else optimizer.state_dict(),
        random_states=states,
        versions={"biasreg": biasreg.__version__, "torch": str(torch.__version__), "python": platform.python_version()},
    )


def network_state(network: nn.Module, *, with_base: bool = False) -> dict[str, Tensor]:
    """State of a network without its base, which an adapted network shares with others and which never changes.

    The base is what is frozen: parameters without gradient, and the buffers beside them.

    Args:
        network: The network.
        with_base: Take the base too, for a network whose base is in no file of its own.

    Returns:
        The tensors by name; those of the network itself, not copies.
    """
    base = set() if with_base else _base_names(network)
    return {name: tensor for name, tensor in network.state_dict().items() if name not in base}


def load_network_state(network: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Put a state into a network, strictly: all of it has to fit, and nothing may be missing but the whole base.

    Args:
        network: The network, changed in place; its base has been loaded before if the state does not hold it.
        state: As `network_state` gives it.

    Raises:
        RuntimeError: A tensor is missing, unknown or of another shape; the message lists all of them.
    """
    base = _base_names(network)
    if base.isdisjoint(state):
        own = network.state_dict()
        state = {**state, **{name: own[name] for name in base}}
    network.load_state_dict(state)


def describe_size(network: nn.Module, *, with_base: bool = False) -> str:
    """Say what a checkpoint of a network weighs, and what it goes without.

    Args:
        network: The network.
        with_base: As in `network_state`.

    Returns:
        A sentence, in MB of 10⁶ bytes.
    """
    state = network_state(network, with_base=with_base)
    adapters = [name for name in state if name.rpartition(".")[2] in ADAPTERS]
    base = network.state_dict().keys() - state.keys()
    parts = [f"{_megabytes(state.values()):.2f} MB of weights in each checkpoint"]
    if adapters:
        parts.append(f"{_megabytes(state[name] for name in adapters):.2f} MB of them adapters")
    if base:
        own = network.state_dict()
        parts.append(f"{_megabytes(own[name] for name in base):.2f} MB of frozen weights stay in their own file")
    return ", ".join(parts)


def _base_names(network: nn.Module) -> set[str]:
    """Names of the frozen parameters, and of the buffers in the same modules."""
    names: set[str] = set()
    for prefix, module in network.named_modules():
        frozen = [name for name, each in module.named_parameters(recurse=False) if not each.requires_grad]
        if frozen:
            beside = [name for name, _ in module.named_buffers(recurse=False)]
            names.update(f"{prefix}.{name}" if prefix else name for name in (*frozen, *beside))
    return names


def _megabytes(tensors: Iterable[Tensor]) -> float:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors) / 1e6


def restore_random_states(checkpoint: Checkpoint) -> None:
    """Set torch's global generators to where the checkpoint left them."""
    for device, state in checkpoint.random_states.items():
        if device == "cpu":
            torch.set_rng_state(state)
        elif int(device.split(":")[1]) < torch.cuda.device_count():
            torch.cuda.set_rng_state(state, device)


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint to a temporary file beside `path`, then rename it.

    Args:
        path: Where it belongs; what was there is replaced only by a complete file.
        checkpoint: What to write.

    Raises:
        CheckpointError: If it cannot be written, for example because the disk is full.
    """
    content = {field.name: getattr(checkpoint, field.name) for field in dataclasses.fields(Checkpoint)}
    content |= {
        "format_version": FORMAT_VERSION,
        "identity": to_json(checkpoint.identity),
        "configuration_hash": content_hash(checkpoint.identity.configuration),
    }
    try:
        with atomic_write(path) as temporary:
            torch.save(content, temporary)
    except (OSError, RuntimeError) as error:  # torch's own writer reports a full disk as RuntimeError
        reason = getattr(error, "strerror", None) or error
        kept, remedy = "there is no earlier one", "begin anew with --overwrite"
        if path.exists():
            kept, remedy = "the checkpoint of before is still there and whole", "resume with --c"
        raise CheckpointError(
            f"the checkpoint could not be written: {reason} · {path} · {kept} · make room on that disk, then {remedy}"
        ) from error


def load_checkpoint(path: Path, expected_hash: str | None = None, *, lazy: bool = False) -> Checkpoint:
    """Read a checkpoint onto the CPU.

    Args:
        path: A file that `save_checkpoint` wrote.
        expected_hash: Content hash of the configuration at hand, when it must be the checkpoint's own.
        lazy: Leave the tensors on disk until they are used, for who wants to know the rest.

    Raises:
        CheckpointError: If the file is missing, damaged, of another format, or of another configuration.
    """
    if not path.is_file():
        raise CheckpointError(f"there is no checkpoint {path} · train this fold first")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=lazy)
    except PermissionError as error:
        raise CheckpointError(
            f"{path} cannot be read: permission denied · ask its owner for the right to read it"
        ) from error
    except Exception as error:  # torch.load raises whatever the damage leads to
        raise CheckpointError(
            f"{path} cannot be read as a checkpoint ({type(error).__name__}: {error}) · it is damaged or of another "
            "program · restore it from a copy, or train this fold again"
        ) from error
    version = content.pop("format_version", None) if isinstance(content, dict) else None
    if version != FORMAT_VERSION:
        raise CheckpointError(
            f"{path} has checkpoint format {version}, this biasreg reads format {FORMAT_VERSION} · train this fold "
            "again, or use the version of biasreg that wrote it"
        )
    found_hash = content.pop("configuration_hash")
    if expected_hash is not None and found_hash != expected_hash:
        raise CheckpointError(
            f"{path} belongs to another configuration (hash {found_hash[:12]}) than the plans at hand (hash "
            f"{expected_hash[:12]}) · restore those plans, or train this fold again"
        )
    content["identity"] = from_json(Identity, content["identity"], where=f"{path}: identity")
    return Checkpoint(**content)


def check_reference(path: Path, identity: Identity, found_hash: str | None) -> None:
    """Refuse a reference that a checkpoint was not trained with.

    Args:
        path: The checkpoint, for the message.
        identity: Its identity.
        found_hash: Hash of the reference at hand; None without one.

    Raises:
        CheckpointError: It is another one.
    """
    if identity.reference_hash != found_hash:
        trained, found = (value[:12] if value else "none" for value in (identity.reference_hash, found_hash))
        raise CheckpointError(
            f"the reference image that cases are aligned to (reference.nii.gz, and reference_focus.nii.gz if there is "
            f"one, hash {found}) is not the one that this fold was trained with (hash {trained}) · {path} · restore "
            "the files from a copy, or train this fold again"
        )
