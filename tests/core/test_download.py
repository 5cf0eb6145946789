import io
import urllib.request
from http.client import HTTPMessage

import pytest

from biasreg.core.download import DownloadError, OpenLineError, _SafeRedirects, local_file


class Response(io.BytesIO):
    """What an address answers with."""

    def __init__(self, content, url="https://cdn.example/file", length=None):
        super().__init__(content)
        self.url, self.headers = url, {} if length is None else {"Content-Length": str(length)}


@pytest.fixture
def answer(monkeypatch):
    def answer(response):
        monkeypatch.setattr("biasreg.core.download._OPENER.open", lambda request, timeout: response)

    return answer


def fetch(source, folder, largest=None):
    with local_file(source, folder, largest) as path:
        return path.read_bytes()


def test_a_file_is_given_as_it_is(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"here")
    with local_file(str(path), tmp_path / "folder") as found:
        assert found == path
    assert not (tmp_path / "folder").exists()


def test_what_lies_at_an_address_is_there_for_a_while(answer, tmp_path):
    answer(Response(b"all of it", length=9))
    with local_file("https://example.org/file", tmp_path / "folder") as path:
        assert path.read_bytes() == b"all of it"
        assert path.is_relative_to(tmp_path / "folder")
    assert list((tmp_path / "folder").iterdir()) == []


@pytest.mark.parametrize("scheme", ["http", "ftp", "javascript"])
def test_open_lines_are_refused(tmp_path, scheme):
    with pytest.raises(OpenLineError, match=f"not taken over {scheme}://"):
        fetch(f"{scheme}://example.org/file", tmp_path)


@pytest.mark.parametrize(
    ("response", "reason"),
    [
        (Response(b"half", length=8), "broke off after 4 of 8 bytes"),
        (Response(b"too long"), "larger than 5 bytes"),
    ],
)
def test_what_is_not_whole_or_too_large_is_refused_and_removed(answer, tmp_path, response, reason):
    answer(response)
    with pytest.raises(DownloadError, match=reason):
        fetch("https://example.org/file", tmp_path, 5)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("target", ["http://elsewhere/file", "ftp://elsewhere/file", "file:///etc/passwd"])
def test_no_step_on_the_way_leaves_https(target):
    request = urllib.request.Request("https://example.org/file")
    with pytest.raises(OpenLineError, match=f"leads to {target}, which is not https"):
        _SafeRedirects().redirect_request(request, io.BytesIO(), 302, "Found", HTTPMessage(), target)
    followed = _SafeRedirects().redirect_request(
        request, io.BytesIO(), 302, "Found", HTTPMessage(), "https://b.org/file"
    )
    assert followed.full_url == "https://b.org/file"
