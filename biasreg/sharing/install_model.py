"""Unpacks a model that somebody gave away, so that `biasreg_predict` finds it like one that was trained here."""

import logging
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from biasreg.core.dataset_json import DATASET_FILE, DatasetJson
from biasreg.core.download import DownloadError, local_file
from biasreg.core.errors import ArchiveError, InputError
from biasreg.core.paths import DATASET_NAME, check_writable
from biasreg.core.serialization import content_hash, read_record, write_record
from biasreg.network.checkpoint import BEST, Identity, check_reference, save_checkpoint
from biasreg.planning.files import PLANS_FILE, RANGES_FILE, read_plans
from biasreg.planning.plans import Configuration
from biasreg.planning.voco import installed_encoders
from biasreg.preprocessing.reference_files import reference_files, reference_hash
from biasreg.sharing.archive_reading import LARGEST_TOTAL_BYTES, unpack_archive
from biasreg.sharing.manifest import CARD_FILE, FOLD_ENTRY, MANIFEST_FILE, Manifest
from biasreg.sharing.weights import read_fold

logger = logging.getLogger(__name__)

STAGING = ".install-"
SAFE_NAME = re.compile(r"\w[\w.+-]*", re.ASCII)  # names that planning gives to plans and configurations


def install_model(source: str, results: Path, *, force: bool = False) -> Path:
    """Install a model from its archive; nothing of it is executed.

    Weights become checkpoints, so that prediction treats the model like any other. The folder appears whole, in one
    step.

    Args:
        source: The archive: a file, or an address (https or file).
        results: Root of the results.
        force: Replace a model of the same name.

    Returns:
        Folder of the model.

    Raises:
        ArchiveError: The archive cannot be had, is not what `biasreg_export_model` writes, or a model of its name is
            installed; nothing is changed then.
        InputError: The root of the results cannot be written to, or a record in the archive is damaged.
    """
    check_writable(results, "get the permission, or give another root with --results")
    results.mkdir(parents=True, exist_ok=True)
    with _fetched(source, results) as path, tempfile.TemporaryDirectory(prefix=STAGING, dir=results) as temporary:
        # A model lies two folders below the root of the results: nobody looks for one deeper than that.
        unpacked, made = Path(temporary) / "archive", Path(temporary) / "model" / "made"
        for folder in (unpacked, made):
            folder.mkdir(parents=True)
        manifest = unpack_archive(path, unpacked)
        target = _target(path, manifest, results)
        if target.exists() and not force:
            raise ArchiveError(
                f"there is such a model already · {target} · replace it with --force, or give another root with "
                "--results"
            )
        with _named_after(path, unpacked):
            configuration = _checked_configuration(path, unpacked, manifest)
            _make_folds(path, unpacked, made, manifest, configuration)
        _copy_files(unpacked, made, manifest)
        _put_in_place(made, target, Path(temporary) / "model" / "replaced")
    _report(target, manifest, configuration, results)
    return target


@contextmanager
def _fetched(source: str, results: Path) -> Iterator[Path]:
    """Give an archive as it is, and what lies at an address as a temporary file."""
    with ExitStack() as stack:
        try:
            path = stack.enter_context(local_file(source, results, LARGEST_TOTAL_BYTES))
        except DownloadError as error:
            raise ArchiveError(
                f"the archive could not be downloaded: {error} · {source} · give an https address, or bring the file "
                "here by other means and name it"
            ) from error
        yield path


@contextmanager
def _named_after(path: Path, unpacked: Path) -> Iterator[None]:
    """Name files in messages by the archive, for the folder that they were unpacked into is gone then."""
    try:
        yield
    except InputError as error:
        raise type(error)(str(error).replace(str(unpacked), str(path))) from error


def _target(path: Path, manifest: Manifest, results: Path) -> Path:
    """Say where a model goes, by names that lead nowhere else."""
    names = (manifest.plans_name, manifest.configuration_name)
    dataset = manifest.dataset_name
    if not DATASET_NAME.fullmatch(dataset) or re.search(r"[/\\\x00-\x1f\x7f]", dataset) or ".." in dataset:
        raise ArchiveError(f"the archive is refused: {dataset!r} is no name of a dataset · {path}")
    if wrong := [name for name in names if not SAFE_NAME.fullmatch(name)]:
        raise ArchiveError(f"the archive is refused: {wrong[0]!r} is no name of plans or of a configuration · {path}")
    return results / dataset / f"{manifest.plans_name}__{manifest.configuration_name}"


def _checked_configuration(path: Path, folder: Path, manifest: Manifest) -> Configuration:
    """Read plans and `dataset.json`, and refuse what does not belong together."""
    read_record(folder / DATASET_FILE, DatasetJson)
    plans = read_plans(folder / PLANS_FILE, "install it with the version of biasreg that made it")
    named = (plans.dataset_name, plans.plans_name, *plans.configurations)
    listed = (manifest.dataset_name, manifest.plans_name, manifest.configuration_name)
    if named != listed:
        raise ArchiveError(f"the manifest is of {', '.join(listed)}, the plans of {', '.join(named)} · {path}")
    configuration = plans.configurations[manifest.configuration_name]
    needed = set(reference_files(configuration.preprocessing))
    given = {name for name in manifest.files if name.startswith("reference")}
    if given not in (set(), needed):
        raise ArchiveError(
            f"the plans align images to {', '.join(sorted(needed)) or 'nothing'}, the archive holds "
            f"{', '.join(sorted(given))} · {path}"
        )
    return configuration


def _make_folds(path: Path, unpacked: Path, made: Path, manifest: Manifest, configuration: Configuration) -> None:
    """Write the checkpoint of each fold."""
    given = all((unpacked / name).is_file() for name in reference_files(configuration.preprocessing))
    for fold in sorted({match[1] for name in manifest.files if (match := FOLD_ENTRY.fullmatch(name))}):
        checkpoint = read_fold(unpacked / fold)
        _check_identity(path, fold, checkpoint.identity, manifest, configuration)
        if given:
            check_reference(path, checkpoint.identity, reference_hash(unpacked, configuration.preprocessing))
        save_checkpoint(made / fold / BEST, checkpoint)


def _check_identity(
    path: Path, fold: str, identity: Identity, manifest: Manifest, configuration: Configuration
) -> None:
    names = (identity.dataset_name, identity.plans_name, identity.configuration_name, f"fold_{identity.run.fold}")
    expected = (manifest.dataset_name, manifest.plans_name, manifest.configuration_name, fold)
    if names != expected or content_hash(identity.configuration) != content_hash(configuration):
        raise ArchiveError(
            f"the weights of {fold} are of {', '.join(names)}, or of other plans, and not of {', '.join(expected)} · "
            f"{path}"
        )


def _copy_files(unpacked: Path, made: Path, manifest: Manifest) -> None:
    """Copy what is not weights, and write the manifest, by which the model's origin is known."""
    for name in manifest.files:
        if not FOLD_ENTRY.fullmatch(name):
            shutil.copyfile(unpacked / name, made / name)
    write_record(made / MANIFEST_FILE, manifest)


def _put_in_place(made: Path, target: Path, replaced: Path) -> None:
    """Rename the finished folder; a model that it replaces comes back if that fails."""
    target.parent.mkdir(exist_ok=True)
    existing = target.exists()
    if existing:
        target.rename(replaced)
    try:
        made.rename(target)
    except BaseException:  # an interruption too
        if existing:
            replaced.rename(target)
        raise


def _report(target: Path, manifest: Manifest, configuration: Configuration, results: Path) -> None:
    logger.info("%s is installed: %s", manifest.model, target)
    logger.info("licence of its weights: %s; read %s", manifest.licence or "none named", target / CARD_FILE)
    if RANGES_FILE in manifest.files:
        logger.info("ranges of its training data: %s", target / RANGES_FILE)
    names = reference_files(configuration.preprocessing)
    if names and not set(names) <= set(manifest.files):
        logger.warning(
            "the archive is without %s, which prediction needs: get it from the model's maker and put it into %s",
            " and ".join(names),
            target,
        )
    encoder = configuration.network.encoder
    if encoder.tuning != "full" and encoder.init not in installed_encoders(results):
        logger.warning("prediction needs VoCo's weights too: run `biasreg_install_pretrained %s`", encoder.init)
