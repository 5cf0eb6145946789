"""Writing a model's archive: the same files on the same day give the same bytes."""

import shutil
import zipfile
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from biasreg.core.serialization import atomic_write, file_hash, write_record
from biasreg.sharing.manifest import MANIFEST_FILE, ArchivedFile, Manifest

OLDEST_TIME = (1980, 1, 1, 0, 0, 0)  # the first that zip can hold; it depends on nothing
FILE_MODE = 0o100644 << 16  # a plain file


def write_archive(output: Path, folder: Path, manifest: Manifest) -> Manifest:
    """Put the files of a folder into an archive, the manifest first.

    Files are stored as they are: weights cannot be compressed, the bytes do not depend on a version of zlib, and an
    archive is as large as what comes out of it.

    Args:
        output: The archive; it appears whole or not at all.
        folder: Holds the files, in the archive's layout, and no others; the manifest is added to it.
        manifest: What the archive says of itself, but for its files.

    Returns:
        The manifest with its files.
    """
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    files = {name: ArchivedFile(file_hash(folder / name), (folder / name).stat().st_size) for name in names}
    complete = replace(manifest, files=files)
    write_record(folder / MANIFEST_FILE, complete)
    with atomic_write(output) as temporary:
        _write_zip(temporary, folder, [MANIFEST_FILE, *names])
    return complete


def _write_zip(path: Path, folder: Path, names: Iterable[str]) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name in names:
            entry = zipfile.ZipInfo(name, OLDEST_TIME)
            entry.create_system = 3  # Unix, wherever it is written
            entry.external_attr = FILE_MODE
            entry.file_size = (folder / name).stat().st_size
            with (folder / name).open("rb") as source, archive.open(entry, "w") as target:
                shutil.copyfileobj(source, target, 1 << 20)
