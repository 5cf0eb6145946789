"""VoCo's pretrained encoders: their shapes, where they are published, and which of them are installed."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from biasreg.core.errors import WeightsError
from biasreg.core.serialization import read_record
from biasreg.planning.plans import EncoderPlans

FOLDER = "pretrained"  # in the root of the results
PUBLISHED_AT = "https://huggingface.co/Luffy503/VoCo"


class VocoEncoder(NamedTuple):
    """One of VoCo's encoders.

    Attributes:
        title: Its name in texts.
        file: Name of its published file.
        feature_size: Channels of its finest features.
        depths: Swin blocks per stage.
        heads: Attention heads per stage.
        window_size: Side of the attention window in tokens.

    Source: Wu, Zhuang, Chen, VoCo, CVPR 2024, arXiv:2402.17300, and Large-Scale 3D Medical Image Pre-training with
    Geometric Context Priors, arXiv:2410.09890; weights under the Apache-2.0 licence.
    """

    title: str
    file: str
    feature_size: int
    depths: tuple[int, ...] = (2, 2, 2, 2)
    heads: tuple[int, ...] = (3, 6, 12, 24)
    window_size: int = 7

    def fits(self, plans: EncoderPlans) -> bool:
        """Tell whether an encoder of these plans has this shape."""
        shape = (plans.feature_size, plans.depths, plans.heads, plans.window_size)
        return plans.family == "swin" and shape == (self.feature_size, self.depths, self.heads, self.window_size)


VOCO_ENCODERS = {
    "voco_b": VocoEncoder("VoCo-B", "VoCo_B_SSL_head.pt", 48),
    "voco_l": VocoEncoder("VoCo-L", "VoCo_L_SSL_head.pt", 96),
    "voco_h": VocoEncoder("VoCo-H", "VoCo_H_SSL_head.pt", 192),
}


@dataclass(frozen=True)
class InstalledEncoder:
    """The record beside installed weights, `<name>.json`.

    Attributes:
        sha256: Hash of the tensors: of their names, shapes and values, whatever file they come in.
        tensors: Number of tensors.
        source: File or address that they came from.
        source_sha256: Hash of that file.
        date: When they were installed, UTC.
    """

    sha256: str
    tensors: int
    source: str
    source_sha256: str
    date: str


def weights_path(results: Path, name: str) -> Path:
    """Say where the weights of an encoder lie once installed; their record lies beside, as JSON.

    Args:
        results: Root of the results.
        name: `voco_b`, `voco_l` or `voco_h`.

    Returns:
        The file, whether it is there or not.
    """
    return results / FOLDER / f"{name}.pth"


def installed_encoders(results: Path) -> dict[str, Path]:
    """Find the encoders that are installed.

    Args:
        results: Root of the results.

    Returns:
        File of the weights by name; weights without their record were never completely installed.
    """
    paths = {name: weights_path(results, name) for name in VOCO_ENCODERS}
    return {name: path for name, path in paths.items() if path.is_file() and path.with_suffix(".json").is_file()}


def read_installed(results: Path, name: str) -> InstalledEncoder:
    """Read the record of an installed encoder.

    Args:
        results: Root of the results.
        name: `voco_b`, `voco_l` or `voco_h`.

    Returns:
        The record.

    Raises:
        WeightsError: It is not installed; the message says how to.
        RecordError: The record is damaged.
    """
    if name not in installed_encoders(results):
        path = weights_path(results, name)
        raise WeightsError(f"the weights of {VOCO_ENCODERS[name].title} are not installed: no {path} · {remedy(name)}")
    return read_record(weights_path(results, name).with_suffix(".json"), InstalledEncoder)


def installed_hash(results: Path, init: str) -> str | None:
    """Hash of the weights that an encoder starts from.

    Args:
        results: Root of the results.
        init: Start of the encoder, as in `EncoderPlans.init`.

    Returns:
        `InstalledEncoder.sha256`; None for an encoder from scratch.

    Raises:
        WeightsError: They are not installed.
    """
    return None if init == "scratch" else read_installed(results, init).sha256


def remedy(name: str) -> str:
    """Say how an encoder is installed, with network and without."""
    file = VOCO_ENCODERS[name].file
    return (
        f"run `biasreg_install_pretrained {name}`, or without network take {file} from {PUBLISHED_AT} and run "
        f"`biasreg_install_pretrained {file}`"
    )


def titles(names: Sequence[str]) -> str:
    """List encoders by their titles."""
    return ", ".join(VOCO_ENCODERS[name].title for name in names)
