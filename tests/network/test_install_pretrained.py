import hashlib
import io
import urllib.error

import pytest
import torch

from biasreg.core.errors import InputError, WeightsError
from biasreg.core.serialization import file_hash
from biasreg.network import install_pretrained as module
from biasreg.network.install_pretrained import install_pretrained
from biasreg.network.pretrained import installed_weights, load_base, tensors_hash
from biasreg.planning.voco import installed_encoders, read_installed


@pytest.fixture
def results(tmp_path):
    return tmp_path / "results"


@pytest.fixture
def published(make_encoder, tmp_path):
    """A file as VoCo's authors publish it: a whole encoder, and a head."""
    content = {f"module.backbone.{name}": tensor for name, tensor in make_encoder().state_dict().items()}
    path = tmp_path / "VoCo_B_SSL_head.pt"
    torch.save({"state_dict": {**content, "module.proj_head.weight": torch.zeros(1000, 1000)}}, path)
    return path


class Response(io.BytesIO):
    """What an address answers with."""

    def __init__(self, content, url="https://cdn.example/file", length=None):
        super().__init__(content)
        self.url, self.headers = url, {} if length is None else {"Content-Length": str(length)}


@pytest.fixture
def answer(monkeypatch):
    """Give a function that sets what any address answers with, and a list of the addresses that were asked for."""

    def answer(response):
        asked = []

        def urlopen(request, timeout):
            asked.append(request.full_url)
            if isinstance(response, Exception):
                raise response
            return response

        monkeypatch.setattr("biasreg.core.download._OPENER.open", urlopen)
        return asked

    return answer


def files(results):
    return sorted(path.name for path in (results / "pretrained").glob("*")) if results.exists() else []


def test_a_file_is_stored_with_its_record_and_without_what_is_not_the_encoders(published, results, make_encoder):
    path = install_pretrained(str(published), results, file_hash(published).upper())
    assert path == results / "pretrained" / "voco_b.pth"
    assert installed_encoders(results) == {"voco_b": path}
    assert path.stat().st_size < published.stat().st_size / 2
    stored = torch.load(path, weights_only=True)
    assert set(stored) == {name for name, _ in make_encoder().named_parameters()}
    record = read_installed(results, "voco_b")
    assert (record.sha256, record.tensors) == (tensors_hash(stored), len(stored))
    assert (record.source, record.source_sha256) == (str(published), file_hash(published))
    assert installed_weights(results, "voco_b").sha256 == record.sha256
    encoder = make_encoder()
    assert load_base(encoder, "voco_b", results).is_complete
    original = torch.load(published, weights_only=True)["state_dict"]
    for name, tensor in encoder.state_dict().items():
        assert torch.equal(tensor, original[f"module.backbone.{name}"])


def test_another_hash_than_expected_is_refused_with_both(published, results):
    with pytest.raises(WeightsError, match=rf"has SHA-256 {file_hash(published)}, expected {'0' * 64}"):
        install_pretrained(str(published), results, "0" * 64)
    assert files(results) == []


def test_an_incomplete_file_is_refused_and_nothing_is_stored(published, results):
    content = torch.load(published, weights_only=True)
    del content["state_dict"]["module.backbone.encoder10.layer.conv2.conv.weight"]
    torch.save(content, published)
    with pytest.raises(WeightsError, match=r"1 missing \(encoder10.layer.conv2.conv.weight\)"):
        install_pretrained(str(published), results)
    published.write_bytes(published.read_bytes()[:3000])
    with pytest.raises(WeightsError, match="it is damaged"):
        install_pretrained(str(published), results)
    assert files(results) == []


def test_a_file_that_is_not_there_says_where_it_is_published(results, tiny_voco):
    with pytest.raises(
        WeightsError, match=r"no file of weights VoCo_B\.pt .*take VoCo_B_SSL_head\.pt from https://hug"
    ):
        install_pretrained("VoCo_B.pt", results)


def test_installing_twice_changes_nothing_and_other_weights_are_refused(published, results, make_encoder, caplog):
    path = install_pretrained(str(published), results)
    before = file_hash(path)
    with caplog.at_level("INFO", logger="biasreg"):
        assert install_pretrained(str(published), results) == path
    assert "already installed" in caplog.text
    torch.save(make_encoder().state_dict(), published)
    with pytest.raises(WeightsError, match=r"other weights of VoCo-B are installed .* models .* need them"):
        install_pretrained(str(published), results)
    assert file_hash(path) == before
    assert files(results) == ["voco_b.json", "voco_b.pth"]


def test_addresses_are_downloaded_and_names_mean_the_published_file(published, results, answer):
    content = published.read_bytes()
    asked = answer(Response(content, length=len(content)))
    install_pretrained("voco_b", results, hashlib.sha256(content).hexdigest())
    assert asked == ["https://huggingface.co/Luffy503/VoCo/resolve/main/VoCo_B_SSL_head.pt"]
    assert read_installed(results, "voco_b").source == asked[0]
    assert files(results) == ["voco_b.json", "voco_b.pth"]
    answer(Response(content))
    with pytest.raises(WeightsError, match="published as VoCo-L holds VoCo-B"):
        install_pretrained("voco_l", results)


def test_a_local_address_is_read_too(published, results):
    install_pretrained(published.as_uri(), results)
    assert set(installed_encoders(results)) == {"voco_b"}


@pytest.mark.parametrize(
    ("response", "reason"),
    [
        (urllib.error.URLError("Name or service not known"), "Name or service not known"),
        (TimeoutError("timed out"), "timed out"),
        (Response(b"half", length=8), "broke off after 4 of 8 bytes"),
    ],
)
def test_without_network_one_error_says_which_file_from_where_and_what_to_run(results, answer, response, reason):
    answer(response)
    with pytest.raises(WeightsError) as error:
        install_pretrained("voco_h", results)
    for part in (
        reason,
        "take VoCo_H_SSL_head.pt from https://huggingface.co/Luffy503/VoCo",
        "`biasreg_install_pretrained VoCo_H_SSL_head.pt`",
        f"puts it into {results / 'pretrained'}",
    ):
        assert part in str(error.value)
    assert files(results) == []


def test_weights_are_not_taken_over_an_open_line(results):
    with pytest.raises(WeightsError, match=r"files are not taken over http://.* · http://here/file\.pt · use https"):
        install_pretrained("http://here/file.pt", results)


def test_a_root_that_cannot_be_written_to_is_named(published, results):
    results.write_text("a file")
    with pytest.raises(InputError, match=r"nothing can be written to .*pretrained: .* --results"):
        install_pretrained(str(published), results)


def test_a_full_disk_leaves_nothing_behind(published, results, monkeypatch):
    def fail(content, path):
        path.write_bytes(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.torch, "save", fail)
    with pytest.raises(WeightsError, match=r"No space left on device · .*voco_b\.pth · make room"):
        install_pretrained(str(published), results)
    assert files(results) == []
