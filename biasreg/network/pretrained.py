"""VoCo's weights: read from a file, checked against an encoder, and loaded only if they are complete."""

import hashlib
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from biasreg.core.errors import WeightsError
from biasreg.network.lora import ADAPTERS
from biasreg.planning.voco import VOCO_ENCODERS, read_installed, remedy, weights_path

logger = logging.getLogger(__name__)

WRAPPERS = ("state_dict", "network_weights", "net", "student")  # keys under which files keep their tensors
PREFIXES = ("module.", "backbone.")  # of names, in this order
PARTS = ("swinViT", "encoder1", "encoder2", "encoder3", "encoder4", "encoder10")  # the encoder, of a whole SwinUNETR
FIRST_LAYER = "swinViT.patch_embed.proj.weight"
# What reads the image: made for one channel, repeated over several.
INPUT_LAYERS = (FIRST_LAYER, "encoder1.layer.conv1.conv.weight", "encoder1.layer.conv3.conv.weight")
NAMES_SHOWN = 4


@dataclass(frozen=True)
class EncoderWeights:
    """Weights of an encoder, as a file holds them.

    Attributes:
        path: The file.
        parameters: Parameters by name, float32.
        indices: Tables of integers by name, which follow from the shape of the encoder; not every file has them.
        ignored: Names of all other tensors: heads and decoders.
        sha256: Hash of the parameters: of their names, shapes and values, whatever file they come in.
    """

    path: Path
    parameters: dict[str, Tensor]
    indices: dict[str, Tensor]
    ignored: tuple[str, ...]
    sha256: str


@dataclass(frozen=True)
class LoadReport:
    """How a file's tensors fit an encoder.

    Attributes:
        copied: Parameters that fit.
        missing: Parameters of the encoder that the file lacks.
        unexpected: Tensors of the file that belong to an encoder, but not to this one.
        wrong_shape: Tensors that have another shape than the encoder's, or, of indices, other values.
        ignored: Tensors that belong to no encoder.
        sha256: Hash of the file's parameters.
    """

    copied: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    wrong_shape: tuple[str, ...]
    ignored: tuple[str, ...]
    sha256: str

    @property
    def is_complete(self) -> bool:
        """Whether the file is an encoder of exactly this kind."""
        return not (self.missing or self.unexpected or self.wrong_shape)

    def __str__(self) -> str:
        """Say how many tensors there are of each kind, with the first names."""
        kinds = {
            "copied": self.copied,
            "missing": self.missing,
            "unexpected": self.unexpected,
            "of another shape": self.wrong_shape,
            "ignored": self.ignored,
        }
        told = ("missing", "unexpected", "of another shape")
        return ", ".join(
            f"{len(names)} {kind}" + (f" ({_shortened(names)})" if names and kind in told else "")
            for kind, names in kinds.items()
        )


def read_weights(path: Path) -> EncoderWeights:
    """Read the tensors of an encoder from a file: VoCo's own, a SwinUNETR's, or an installed one.

    Args:
        path: The file, as `torch.save` writes it: names to tensors, perhaps under `state_dict`, `network_weights`,
            `net` or `student`, perhaps with `module.` and `backbone.` before the names.

    Returns:
        The weights.

    Raises:
        WeightsError: There is no such file, it is damaged, or it holds no tensors of an encoder.
    """
    parameters: dict[str, Tensor] = {}
    indices: dict[str, Tensor] = {}
    ignored = []
    for name, tensor in _tensors(path).items():
        plain = _plain_name(name)
        if plain.partition(".")[0] not in PARTS:
            ignored.append(name)
        elif plain in parameters or plain in indices:
            raise WeightsError(f"{plain} is there twice, under several prefixes · {path} · give a file of one network")
        elif tensor.is_floating_point():
            parameters[plain] = tensor.float().contiguous()
        else:
            indices[plain] = tensor
    if FIRST_LAYER not in parameters:
        raise WeightsError(
            f"this is no VoCo encoder: none of its {len(ignored) + len(parameters) + len(indices)} tensors is "
            f"{FIRST_LAYER} · {path} · {remedy('voco_b')}"
        )
    damaged = [name for name, tensor in parameters.items() if not bool(tensor.isfinite().all())]
    if damaged:
        raise WeightsError(f"tensors hold numbers that are not finite: {_shortened(damaged)} · {path} · get it anew")
    return EncoderWeights(path, parameters, indices, tuple(ignored), tensors_hash(parameters))


def size_of(weights: EncoderWeights) -> str:
    """Tell which of VoCo's encoders weights belong to, by their width.

    Args:
        weights: The weights.

    Returns:
        `voco_b`, `voco_l` or `voco_h`.

    Raises:
        WeightsError: No VoCo encoder is as wide.
    """
    width = len(weights.parameters[FIRST_LAYER])
    widths = {name: voco.feature_size for name, voco in VOCO_ENCODERS.items()}
    found = next((name for name in widths if widths[name] == width), None)
    if found is None:
        known = ", ".join(f"{VOCO_ENCODERS[name].title} {size}" for name, size in widths.items())
        raise WeightsError(f"an encoder of width {width} is none of VoCo's ({known}) · {weights.path}")
    return found


def load_weights(encoder: nn.Module, weights: EncoderWeights) -> LoadReport:
    """Put weights into an encoder, if they are complete; adapters stay as they are.

    Where the encoder takes several channels, what reads the image is repeated over them and divided by their number.

    Args:
        encoder: A `SwinEncoder`, with or without adapters, changed in place.
        weights: The weights.

    Returns:
        What was loaded.

    Raises:
        WeightsError: The encoder needs a tensor that is not there or has another shape, or there is one too many; the
            encoder is then as it was.
    """
    expected = {name: each for name, each in encoder.named_parameters() if name.rpartition(".")[2] not in ADAPTERS}
    buffers = dict(encoder.named_buffers())
    given = {name: _inflated(name, tensor, expected.get(name)) for name, tensor in weights.parameters.items()}
    wrong = [name for name in expected.keys() & given.keys() if expected[name].shape != given[name].shape]
    wrong += [
        name
        for name, index in weights.indices.items()
        if name in buffers and not torch.equal(index, buffers[name].to(index.device))
    ]
    report = LoadReport(
        copied=tuple(sorted(expected.keys() & given.keys() - set(wrong))),
        missing=tuple(sorted(expected.keys() - given.keys())),
        unexpected=tuple(sorted((given.keys() - expected.keys()) | (weights.indices.keys() - buffers.keys()))),
        wrong_shape=tuple(sorted(wrong)),
        ignored=weights.ignored,
        sha256=weights.sha256,
    )
    if not report.is_complete:
        raise WeightsError(f"the weights do not fit the encoder: {report} · {weights.path} · give a complete VoCo file")
    with torch.no_grad():
        for name, parameter in expected.items():
            parameter.copy_(given[name])
    return report


def installed_weights(results: Path, name: str, expected_hash: str | None = None) -> EncoderWeights:
    """Read installed weights, and make sure that they are those that were installed.

    Args:
        results: Root of the results.
        name: `voco_b`, `voco_l` or `voco_h`.
        expected_hash: Hash of the weights that a model was trained with; None for any.

    Returns:
        The weights.

    Raises:
        WeightsError: They are not installed, are damaged, or are others than expected.
    """
    record, path = read_installed(results, name), weights_path(results, name)
    title = VOCO_ENCODERS[name].title
    if expected_hash not in (None, record.sha256):
        raise WeightsError(
            f"other weights of {title} are installed (hash {record.sha256[:12]}, from {record.source}) than this model "
            f"was trained with (hash {str(expected_hash)[:12]}) · {path} · move them away with their record "
            f"{path.with_suffix('.json').name}, and install those of the training"
        )
    weights = read_weights(path)
    if weights.sha256 != record.sha256:
        raise WeightsError(
            f"the installed weights of {title} have changed: hash {weights.sha256[:12]}, installed with "
            f"{record.sha256[:12]} · {path} · delete it, then {remedy(name)}"
        )
    return weights


def load_base(encoder: nn.Module, init: str, results: Path, expected_hash: str | None = None) -> LoadReport | None:
    """Load what an encoder starts from, as its plans say.

    Args:
        encoder: The encoder, changed in place.
        init: Start of the encoder, as in `EncoderPlans.init`.
        results: Root of the results.
        expected_hash: Hash of the weights that a model was trained with; None for any.

    Returns:
        What was loaded; None for an encoder from scratch, which stays as it is.

    Raises:
        WeightsError: The weights are not installed, or not those that are needed.
    """
    if init == "scratch":
        return None
    report = load_weights(encoder, installed_weights(results, init, expected_hash))
    logger.info("%s loaded: %s, hash %s", VOCO_ENCODERS[init].title, report, report.sha256[:12])
    return report


def tensors_hash(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 (hex) of names, shapes and values of tensors on the CPU, in the order of their names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        values = tensors[name].detach().contiguous()
        digest.update(f"{name} {values.dtype} {tuple(values.shape)}\n".encode())
        digest.update(values.reshape(-1).numpy().data)
    return digest.hexdigest()


def check_there(path: Path) -> None:
    """Refuse a file that is not there, and say where there is one."""
    if not path.is_file():
        raise WeightsError(f"there is no file of weights {path} · give the path of one, or {remedy('voco_b')}")


def _tensors(path: Path) -> dict[str, Tensor]:
    check_there(path)
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises whatever the damage leads to
        raise WeightsError(
            f"the file cannot be read as weights ({type(error).__name__}) · {path} · it is {_describe_content(path)}; "
            "get it anew"
        ) from error
    for wrapper in WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
            break
    tensors = content.items() if isinstance(content, dict) else ()
    return {name: tensor for name, tensor in tensors if isinstance(name, str) and isinstance(tensor, Tensor)}


def _describe_content(path: Path) -> str:
    """Guess what a file is that holds no weights; torch's own words would advise to run the code in it."""
    with path.open("rb") as file:
        beginning = file.read(256).lstrip().lower()
    if not beginning:
        return "empty"
    if beginning.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "a web page, not the file that the page offers"
    return "damaged, or holds code or other things than tensors, which are never run"


def _plain_name(name: str) -> str:
    for prefix in PREFIXES:
        name = name.removeprefix(prefix)
    return name.replace("swin_vit", "swinViT")


def _inflated(name: str, tensor: Tensor, parameter: Tensor | None) -> Tensor:
    """Repeat what reads one channel, of shape (out, 1, …), over the channels of an encoder that takes several."""
    if parameter is None or name not in INPUT_LAYERS or tensor.ndim != 5 or tensor.shape[1] != 1:
        return tensor
    channels = parameter.shape[1]
    return tensor.repeat(1, channels, 1, 1, 1) / channels


def _shortened(names: Iterable[str]) -> str:
    listed = list(names)
    return ", ".join(listed[:NAMES_SHOWN]) + (", …" if len(listed) > NAMES_SHOWN else "")
