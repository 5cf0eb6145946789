"""Files from an address: over https alone, whole, and no larger than allowed."""

import http.client
import logging
import tempfile
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from tqdm import tqdm

import biasreg

logger = logging.getLogger(__name__)

SCHEMES = ("https", "file")
TIMEOUT_SECONDS = 60
CHUNK_BYTES = 1 << 20


class DownloadError(Exception):
    """A file could not be had from its address; whoever asked for it says what to do."""


class OpenLineError(DownloadError):
    """An address is of a kind over which anybody could change what comes."""


@contextmanager
def local_file(source: str, folder: Path, largest: int | None = None) -> Iterator[Path]:
    """Give a file as it is, and what lies at an address as a temporary file.

    Args:
        source: A file, or an address (https or file).
        folder: Where the temporary file lies, in a hidden folder; made if it is missing.
        largest: Most bytes that are taken from an address; None for any number.

    Yields:
        The file; one from an address is removed at the end.

    Raises:
        DownloadError: What lies at the address cannot be had.
    """
    if "://" not in source:
        yield Path(source)
        return
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".download-", dir=folder) as temporary:
        path = Path(temporary) / "download"
        _download(source, path, largest)
        yield path


class _SafeRedirects(urllib.request.HTTPRedirectHandler):
    """Refuses to be led away from https, at every step and not only at the last one."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        if urllib.parse.urlsplit(newurl).scheme != "https":
            raise OpenLineError(f"it leads to {newurl}, which is not https")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


_OPENER = urllib.request.build_opener(_SafeRedirects())


def _download(url: str, path: Path, largest: int | None) -> None:
    scheme = urllib.parse.urlsplit(url).scheme
    if scheme not in SCHEMES:
        raise OpenLineError(f"files are not taken over {scheme}://, where anybody could change them")
    request = urllib.request.Request(url, headers={"User-Agent": f"biasreg/{biasreg.__version__}"})
    logger.info("downloading %s", url)
    try:
        with _OPENER.open(request, timeout=TIMEOUT_SECONDS) as response, path.open("wb") as file:
            size = int(response.headers.get("Content-Length") or 0)
            with tqdm(total=size or None, unit="B", unit_scale=True, disable=None) as progress:
                while chunk := response.read(CHUNK_BYTES):
                    progress.update(file.write(chunk))
                    if largest is not None and file.tell() > largest:
                        raise DownloadError(f"it is larger than {largest} bytes")
            if size and file.tell() != size:
                raise DownloadError(f"it broke off after {file.tell()} of {size} bytes")
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise DownloadError(str(error)) from error
