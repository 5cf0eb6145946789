"""Installs VoCo's weights: fetches a file, checks it, and stores what belongs to the encoder."""

import logging
import urllib.parse
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime, timezone
from pathlib import Path

import torch

from biasreg.core.download import DownloadError, OpenLineError, local_file
from biasreg.core.errors import WeightsError
from biasreg.core.paths import check_writable
from biasreg.core.serialization import atomic_write, file_hash, write_record
from biasreg.network.encoder import SwinEncoder
from biasreg.network.pretrained import EncoderWeights, LoadReport, check_there, load_weights, read_weights, size_of
from biasreg.planning.voco import (
    FOLDER,
    PUBLISHED_AT,
    VOCO_ENCODERS,
    InstalledEncoder,
    installed_encoders,
    read_installed,
    weights_path,
)

logger = logging.getLogger(__name__)


def install_pretrained(source: str, results: Path, expected_sha256: str | None = None) -> Path:
    """Install the weights of one of VoCo's encoders, so that plans can use them.

    Of the file only the encoder's parameters are stored, as a plain dict of tensors: heads and decoders would take room
    for nothing, and nothing else than tensors can hide in it. What they are is told by a hash of the tensors, which
    does not depend on the file that they came in.

    Args:
        source: A file, an address (https or file), or `voco_b`, `voco_l` or `voco_h` for the published file.
        results: Root of the results.
        expected_sha256: SHA-256 that the file must have; None for any.

    Returns:
        The installed file.

    Raises:
        WeightsError: The file cannot be had, is another than expected, damaged or incomplete, or other weights of this
            encoder are installed; nothing is stored then.
        InputError: The root of the results cannot be written to.
    """
    folder = results / FOLDER
    check_writable(folder, "get the permission, or give another root with --results")
    published = f"{PUBLISHED_AT}/resolve/main/{VOCO_ENCODERS[source].file}" if source in VOCO_ENCODERS else source
    with _fetched(published, folder) as path:
        found = file_hash(path)
        if expected_sha256 is not None and found != expected_sha256.strip().lower():
            raise WeightsError(
                f"the file has SHA-256 {found}, expected {expected_sha256} · {published} · get it anew, or the hash"
            )
        weights = read_weights(path)
        name, report = check_complete(weights)
    title = VOCO_ENCODERS[name].title
    if source in VOCO_ENCODERS and name != source:
        raise WeightsError(f"the file published as {VOCO_ENCODERS[source].title} holds {title} · {published}")
    logger.info("%s: %s", title, report)
    target = weights_path(results, name)
    if name in installed_encoders(results):
        _check_same(weights, results, name)
        if _is_intact(target, weights):
            logger.info("already installed: %s", target)
            return target
        logger.warning("the installed file was damaged, and is replaced: %s", target)
    date = datetime.now(timezone.utc).isoformat(timespec="seconds")
    _store(weights, target, InstalledEncoder(weights.sha256, len(weights.parameters), published, found, date))
    logger.info("%s is installed: %s", title, target)
    return target


def check_complete(weights: EncoderWeights) -> tuple[str, LoadReport]:
    """Load weights into an encoder of their size, built for that.

    Args:
        weights: The weights.

    Returns:
        `voco_b`, `voco_l` or `voco_h`, and what was loaded.

    Raises:
        WeightsError: They are no complete VoCo encoder.
    """
    name = size_of(weights)
    voco = VOCO_ENCODERS[name]
    encoder = SwinEncoder(1, voco.feature_size, voco.depths, voco.heads, voco.window_size)
    return name, load_weights(encoder, weights)


def _check_same(weights: EncoderWeights, results: Path, name: str) -> None:
    record, path = read_installed(results, name), weights_path(results, name)
    if record.sha256 != weights.sha256:
        raise WeightsError(
            f"other weights of {VOCO_ENCODERS[name].title} are installed (hash {record.sha256[:12]}, from "
            f"{record.source}; the new ones have {weights.sha256[:12]}), and models that were trained with them need "
            f"them · {path} · give another root with --results, or move the file and its record away"
        )


def _is_intact(path: Path, weights: EncoderWeights) -> bool:
    """Tell whether the stored file still holds the weights."""
    try:
        return read_weights(path).sha256 == weights.sha256
    except WeightsError:
        return False


def _store(weights: EncoderWeights, path: Path, record: InstalledEncoder) -> None:
    try:
        with atomic_write(path) as temporary:
            torch.save(weights.parameters, temporary)
        write_record(path.with_suffix(".json"), record)  # last: what has no record is not installed
    except (OSError, RuntimeError) as error:  # torch's own writer reports a full disk as RuntimeError
        reason = getattr(error, "strerror", None) or error
        raise WeightsError(f"the weights could not be written: {reason} · {path} · make room on that disk") from error


@contextmanager
def _fetched(source: str, folder: Path) -> Iterator[Path]:
    """Give a file as it is, and what lies at an address as a temporary file in `folder`."""
    if "://" not in source:
        check_there(Path(source))
    with ExitStack() as stack:
        try:
            path = stack.enter_context(local_file(source, folder))
        except OpenLineError as error:
            raise WeightsError(f"{error} · {source} · use https") from error
        except DownloadError as error:
            raise _not_downloaded(source, error, folder) from error
        yield path


def _not_downloaded(url: str, error: Exception, folder: Path) -> WeightsError:
    file = Path(urllib.parse.urlsplit(url).path).name
    return WeightsError(
        f"the weights could not be downloaded ({error}) · {url} · take {file} from {PUBLISHED_AT} on a machine with "
        f"network, bring it here, and run `biasreg_install_pretrained {file}`, which puts it into {folder}"
    )
