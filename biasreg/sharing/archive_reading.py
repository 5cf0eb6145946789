"""Reading a model's archive that anybody may have made: nothing is believed, and nothing is written elsewhere.

What is refused: names that lead out of the folder, links and devices, encryption, names that stand twice or differ in
case alone, files that no model has, files that the manifest does not list or that are missing, other bytes than the
manifest promises, more bytes than allowed, and archives of a newer version.
"""

import errno
import hashlib
import json
import re
import stat
import zipfile
import zlib
from collections import Counter
from pathlib import Path

from biasreg.core.dataset_json import DATASET_FILE
from biasreg.core.errors import ArchiveError, RecordError
from biasreg.core.serialization import from_json
from biasreg.planning.files import PLANS_FILE, RANGES_FILE
from biasreg.preprocessing.reference_files import FOCUS_FILE, REFERENCE_FILE
from biasreg.sharing.manifest import (
    ARCHIVE_SCHEMA_VERSION,
    CARD_FILE,
    FOLD_ENTRY,
    MANIFEST_FILE,
    ArchivedFile,
    Manifest,
)

LARGEST_TOTAL_BYTES = 32 << 30  # five folds on VoCo-H, merged, take 17 GB
LARGEST_TEXT_BYTES = 16 << 20  # plans of a dataset with hundreds of labels take 100 kB
LARGEST_RATIO = 100  # text is compressed by ten or twenty, weights and images not at all
MOST_ENTRIES = 1000

REQUIRED_FILES = (CARD_FILE, PLANS_FILE, DATASET_FILE)
OPTIONAL_FILES = (RANGES_FILE, REFERENCE_FILE, FOCUS_FILE)

READ_ERRORS = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError, OSError)
"""What zipfile raises for what is damaged, encrypted, or packed in a way that it does not know."""

_CHUNK_BYTES = 1 << 20
_ADVICE = "get it anew from its maker; nothing was installed"


def unpack_archive(path: Path, folder: Path) -> Manifest:
    """Check an archive, and write its files into a folder.

    Args:
        path: The archive.
        folder: Where the files go; it exists and is empty.

    Returns:
        The manifest; its files are in the folder, with the bytes that it promises.

    Raises:
        ArchiveError: The archive cannot be read, or is not what `biasreg_export_model` writes.
    """
    if not path.is_file():
        raise ArchiveError(f"there is no archive {path} · name one that biasreg_export_model wrote")
    try:
        with zipfile.ZipFile(path) as archive:
            entries = _checked_entries(path, archive)
            manifest = _read_manifest(path, archive, entries)
            _check_files(path, manifest, entries)
            for name, listed in manifest.files.items():
                _extract(path, archive, entries[name], folder / name, listed)
    except READ_ERRORS as error:
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise
        raise ArchiveError(f"the archive cannot be read ({error}) · {path} · {_ADVICE}") from error
    return manifest


def _checked_entries(path: Path, archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """Refuse hostile entries by what the directory of the archive says of them; nothing is unpacked for that."""
    entries = archive.infolist()
    if len(entries) > MOST_ENTRIES:
        raise _refused(path, f"it holds {len(entries)} files; a model's archive has {MOST_ENTRIES} at most")
    for entry in entries:
        if fault := _name_fault(entry) or _kind_fault(entry) or _size_fault(entry):
            raise _refused(path, f"its entry {entry.orig_filename!r} {fault}")
    names = Counter(entry.filename for entry in entries)
    if doubled := [name for name, count in names.items() if count > 1]:
        raise _refused(path, f"the name {doubled[0]!r} stands in it {names[doubled[0]]} times")
    folded = Counter(name.casefold() for name in names)
    if alike := [name for name in names if folded[name.casefold()] > 1]:
        raise _refused(path, f"the names {' and '.join(map(repr, alike))} differ in upper and lower case alone")
    total = sum(entry.file_size for entry in entries)
    if total > LARGEST_TOTAL_BYTES:
        raise _refused(path, f"its files would take {total} bytes; {LARGEST_TOTAL_BYTES} at most are unpacked")
    return {entry.filename: entry for entry in entries}


def _name_fault(entry: zipfile.ZipInfo) -> str | None:
    name = entry.orig_filename
    if name != entry.filename or re.search(r"[\x00-\x1f\x7f\\:]", name):
        return "has a name with characters that no name of such a file has"
    if name.startswith("/"):
        return "has an absolute name, which leads out of the model's folder"
    if any(part in ("", ".", "..") for part in name.split("/")):
        return "has a name that leads out of the model's folder, or is a folder"
    return None


def _kind_fault(entry: zipfile.ZipInfo) -> str | None:
    kind = stat.S_IFMT(entry.external_attr >> 16)
    if stat.S_ISLNK(kind):
        return "is a link"
    if kind not in (0, stat.S_IFREG):
        return "is no plain file, but a device or the like"
    if entry.flag_bits & 0x1:
        return "is encrypted"
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return f"is compressed by method {entry.compress_type}; stored and deflated ones are read"
    return None


def _size_fault(entry: zipfile.ZipInfo) -> str | None:
    if entry.file_size > LARGEST_RATIO * max(entry.compress_size, 1):
        return f"would grow from {entry.compress_size} to {entry.file_size} bytes, as no file of a model does"
    if entry.filename.endswith((".json", ".md")) and entry.file_size > LARGEST_TEXT_BYTES:
        return f"is a text of {entry.file_size} bytes; {LARGEST_TEXT_BYTES} at most are read"
    return None


def _read_manifest(path: Path, archive: zipfile.ZipFile, entries: dict[str, zipfile.ZipInfo]) -> Manifest:
    if MANIFEST_FILE not in entries:
        raise _refused(path, f"it has no {MANIFEST_FILE}")
    try:
        data = json.loads(archive.read(entries[MANIFEST_FILE]).decode("utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise _refused(path, f"its {MANIFEST_FILE} is no JSON ({error})") from error
    version = data.get("schema_version") if isinstance(data, dict) else None
    if isinstance(version, int) and version > ARCHIVE_SCHEMA_VERSION:
        raise ArchiveError(
            f"the archive has schema version {version}, this biasreg reads up to {ARCHIVE_SCHEMA_VERSION} · {path} · "
            "install a newer biasreg"
        )
    if version != ARCHIVE_SCHEMA_VERSION:
        raise _refused(path, f"its {MANIFEST_FILE} has schema version {version!r}, expected {ARCHIVE_SCHEMA_VERSION}")
    try:
        return from_json(Manifest, data, where=f"{path}: {MANIFEST_FILE}")
    except RecordError as error:
        raise ArchiveError(f"{error} · {_ADVICE}") from error


def _check_files(path: Path, manifest: Manifest, entries: dict[str, zipfile.ZipInfo]) -> None:
    """Compare the entries with the manifest's list, and that list with what a model has."""
    present, listed = set(entries) - {MANIFEST_FILE}, set(manifest.files)
    if unlisted := sorted(present - listed):
        raise _refused(path, f"it holds files that its manifest does not list: {', '.join(unlisted)}")
    if missing := sorted(listed - present):
        raise _refused(path, f"it lacks files that its manifest lists: {', '.join(missing)}")
    allowed = {*REQUIRED_FILES, *OPTIONAL_FILES}
    if foreign := sorted(name for name in listed - allowed if not FOLD_ENTRY.fullmatch(name)):
        raise _refused(path, f"it holds files that no model's archive has: {', '.join(foreign)}")
    if incomplete := sorted(set(REQUIRED_FILES) - listed):
        raise _refused(path, f"it lacks {', '.join(incomplete)}, which every model's archive has")
    folds = Counter(match[1] for name in listed if (match := FOLD_ENTRY.fullmatch(name)))
    if not folds or min(folds.values()) < 2:
        raise _refused(path, f"its folds are incomplete ({', '.join(sorted(folds)) or 'there is none'})")


def _extract(path: Path, archive: zipfile.ZipFile, entry: zipfile.ZipInfo, target: Path, listed: ArchivedFile) -> None:
    """Write one file, never more bytes of it than the manifest promises, and compare its hash."""
    if entry.file_size != listed.size:
        raise _refused(path, f"{entry.filename} has {entry.file_size} bytes, its manifest says {listed.size}")
    target.parent.mkdir(parents=True, exist_ok=True)
    digest, left = hashlib.sha256(), listed.size
    with archive.open(entry) as source, target.open("xb") as file:
        while chunk := source.read(min(_CHUNK_BYTES, left + 1)):
            left -= len(chunk)
            if left < 0:
                raise _refused(path, f"{entry.filename} is longer than the {listed.size} bytes of its manifest")
            digest.update(chunk)
            file.write(chunk)
    if digest.hexdigest() != listed.sha256:
        raise _refused(
            path, f"{entry.filename} has SHA-256 {digest.hexdigest()[:12]}…, its manifest says {listed.sha256[:12]}…"
        )


def _refused(path: Path, fault: str) -> ArchiveError:
    return ArchiveError(f"the archive is refused: {fault} · {path} · {_ADVICE}")
