"""Archives that somebody made to do harm, or that were damaged: each is refused by name, and nothing is left behind."""

import hashlib
import json
import struct
import sys
import zipfile
import zlib

import pytest
import torch
from safetensors.torch import load, save

from biasreg.core.errors import ArchiveError, InputError
from biasreg.sharing import archive_reading
from biasreg.sharing.install_model import install_model

LINK, DEVICE, PIPE = 0o120777, 0o020666, 0o010666


@pytest.fixture
def content(archive):
    """Files of a good archive, the manifest as data."""
    with zipfile.ZipFile(archive) as good:
        files = {name: good.read(name) for name in good.namelist()}
    return files


def listed(files):
    """Make the manifest agree with the files."""
    manifest = json.loads(files["manifest.json"])
    manifest["files"] = {
        name: {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
        for name, data in files.items()
        if name != "manifest.json"
    }
    return {**files, "manifest.json": json.dumps(manifest).encode()}


def with_manifest(files, **changes):
    return {**files, "manifest.json": json.dumps(json.loads(files["manifest.json"]) | changes).encode()}


@pytest.fixture
def pack(tmp_path):
    """Give a function that writes an archive of files, and of further entries with headers of their own."""

    def pack(files, *entries, method=zipfile.ZIP_STORED):
        path = tmp_path / "hostile.zip"
        with zipfile.ZipFile(path, "w", method) as archive:
            for name, data in files.items():
                archive.writestr(name, data)
            for entry, data in entries:
                archive.writestr(entry, data)
        return path

    return pack


@pytest.fixture
def refuse(tmp_path):
    """Give a function that checks that an archive is refused with some words and leaves nothing, here or elsewhere."""

    def refuse(path, match, error=ArchiveError):
        results = tmp_path / "inner" / "results"
        before = {each for each in tmp_path.rglob("*") if results not in each.parents and each != results}
        with pytest.raises(error, match=match):
            install_model(str(path), results)
        after = {each for each in tmp_path.rglob("*") if results not in each.parents and each != results}
        assert after - before <= {results.parent}
        assert list(results.iterdir()) == []

    return refuse


def entry(name, mode=0o100644):
    info = zipfile.ZipInfo(name)
    info.create_system = 3
    info.external_attr = mode << 16
    return info


def test_the_untouched_files_are_accepted(content, pack, tmp_path):
    assert install_model(str(pack(listed(content))), tmp_path / "inner" / "results").is_dir()


def test_an_archive_that_was_compressed_again_is_accepted(content, pack, tmp_path):
    assert install_model(str(pack(content, method=zipfile.ZIP_DEFLATED)), tmp_path / "inner" / "results").is_dir()


@pytest.mark.parametrize("name", ["../evil.txt", "fold_0/../../evil.txt", "fold_0/./weights.json", "..", "fold_0//x"])
def test_names_that_lead_out_of_the_folder(content, pack, refuse, name):
    refuse(pack(listed({**content, name: b"x"})), "leads out of the model's folder")


@pytest.mark.parametrize("name", ["/etc/evil", "/manifest.json"])
def test_absolute_names(content, pack, refuse, name):
    refuse(pack(listed({**content, name: b"x"})), "an absolute name")


@pytest.mark.parametrize("name", ["C:\\evil.txt", "..\\evil.txt", "C:evil.txt", "plans.json:stream", "plans\n.json"])
def test_names_of_other_systems_and_with_control_characters(content, pack, refuse, name):
    refuse(pack(content, (entry(name), b"x")), "characters that no name")


def test_a_name_that_ends_early_for_one_reader_alone(content, pack, refuse):
    path = pack({**content, "evil_txt": b"x"})
    path.write_bytes(path.read_bytes().replace(b"evil_txt", b"evil\x00txt"))
    refuse(path, "characters that no name|cannot be read")


def test_links(content, pack, refuse):
    refuse(pack(content, (entry("data_ranges.json", LINK), b"/etc/passwd")), "data_ranges.json' is a link")


@pytest.mark.parametrize("mode", [DEVICE, PIPE])
def test_devices_and_pipes(content, pack, refuse, mode):
    refuse(pack(content, (entry("data_ranges.json", mode), b"")), "no plain file, but a device")


def test_folders(content, pack, refuse):
    refuse(pack(content, (entry("fold_7/", 0o040755), b"")), "is a folder")


def test_encrypted_files(content, pack, refuse):
    path = pack(content)
    data = bytearray(path.read_bytes())
    for mark, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):  # flags of each local and central header
        start = data.find(mark)
        while start >= 0:
            data[start + offset] |= 1
            start = data.find(mark, start + 1)
    path.write_bytes(data)
    refuse(path, "is encrypted")


def test_a_way_of_packing_that_is_not_expected(content, pack, refuse):
    refuse(pack(content, method=zipfile.ZIP_BZIP2), "compressed by method 12")


def test_names_that_stand_twice(content, pack, refuse):
    with pytest.warns(UserWarning, match="Duplicate name"):
        path = pack(content, (entry("plans.json"), b"{}"))
    refuse(path, r"'plans\.json' stands in it 2 times")


def test_names_that_differ_in_case_alone(content, pack, refuse):
    refuse(pack(listed({**content, "Plans.json": b"{}"})), "differ in upper and lower case alone")


def test_files_that_the_manifest_does_not_list(content, pack, refuse):
    refuse(pack({**content, "data_ranges.json": b"{}"}), r"manifest does not list: data_ranges\.json")


def test_files_that_are_missing(content, pack, refuse):
    del content["fold_1/weights.json"]
    refuse(pack(content), r"lacks files that its manifest lists: fold_1/weights\.json")


@pytest.mark.parametrize(
    "name", ["fold_0/checkpoint_best.pth", "setup.py", "fold_0/x/weights.json", "fold_٣/weights.json"]
)
def test_files_that_no_model_has(content, pack, refuse, name):
    refuse(pack(listed({**content, name: b"import os"})), "files that no model's archive has")


def test_other_bytes_than_the_manifest_promises(content, pack, refuse):
    data = content["plans.json"]
    refuse(pack({**content, "plans.json": data.replace(b"tiny", b"TINY")}), r"plans\.json has SHA-256")


def test_other_sizes_than_the_manifest_promises(content, pack, refuse):
    refuse(
        pack({**content, "plans.json": content["plans.json"] + b" "}), r"plans\.json has \d+ bytes, its manifest says"
    )


def test_bytes_that_were_damaged_on_the_way(content, pack, refuse):
    path = pack(content)
    data = bytearray(path.read_bytes())
    data[data.find(content["fold_0/weights.safetensors"][:64]) + 5000] ^= 1
    path.write_bytes(data)
    refuse(path, "cannot be read .*Bad CRC-32|has SHA-256")


def test_an_archive_that_was_cut_off(content, pack, refuse):
    path = pack(content)
    path.write_bytes(path.read_bytes()[:-40])
    refuse(path, "cannot be read")


def test_something_else_and_nothing(refuse, tmp_path):
    (tmp_path / "text.zip").write_text("hello")
    refuse(tmp_path / "text.zip", "cannot be read .*not a zip file")
    refuse(tmp_path / "absent.zip", "there is no archive")


def test_more_bytes_than_are_unpacked(content, pack, refuse, monkeypatch):
    monkeypatch.setattr(archive_reading, "LARGEST_TOTAL_BYTES", 10_000)
    refuse(pack(content), r"its files would take \d+ bytes; 10000 at most")


def test_a_file_that_grows_out_of_proportion(content, pack, refuse):
    bomb = listed({**content, "reference.nii.gz": bytes(10_000_000)})
    refuse(pack(bomb, method=zipfile.ZIP_DEFLATED), r"would grow from \d+ to 10000000 bytes")


def test_a_size_in_the_directory_that_is_a_lie(content, pack, refuse):
    """More bytes come out than the directory and the manifest say: no more than these are ever written."""
    data, secret = content["plans.json"], b"x" * 2000
    files = with_manifest(content)
    path = pack({**files, "plans.json": data + secret})
    lie = bytearray(path.read_bytes())
    place = lie.rfind(b"plans.json")  # of the central directory
    sizes, crc = (len(data), len(data)), zlib.crc32(data)
    struct.pack_into("<III", lie, place - 46 + 16, crc, *sizes)
    path.write_bytes(lie)
    results = path.parent / "inner" / "results"
    install_model(str(path), results)  # what is read is what was promised, hash and all
    assert (results / "Dataset901_Blobs" / "tiny__main" / "plans.json").read_bytes() == data


def test_texts_that_are_too_long(content, pack, refuse, monkeypatch):
    monkeypatch.setattr(archive_reading, "LARGEST_TEXT_BYTES", 1000)
    refuse(pack(content), r"is a text of \d+ bytes; 1000 at most")


def test_more_files_than_a_model_has(content, pack, refuse, monkeypatch):
    monkeypatch.setattr(archive_reading, "MOST_ENTRIES", 3)
    refuse(pack(content), "it holds 8 files")


def test_a_newer_version(content, pack, refuse):
    refuse(pack(with_manifest(content, schema_version=2, novelty=True)), "schema version 2, .* install a newer biasreg")


@pytest.mark.parametrize(
    ("manifest", "match"),
    [
        (b"[]", "has schema version None"),
        (b"{", "is no JSON"),
        (b"[" * 100_000, "is no JSON"),
        (b'{"schema_version": 1}', "missing"),
        (b"\xff\xfe", "is no JSON"),
    ],
)
def test_manifests_that_cannot_be_read(content, pack, refuse, manifest, match):
    refuse(pack({**content, "manifest.json": manifest}), match)


def test_no_manifest(content, pack, refuse):
    del content["manifest.json"]
    refuse(pack(content), r"it has no manifest\.json")


@pytest.mark.parametrize(
    "name", ["../../evil", "Dataset901_../../../evil", "Dataset901_a/b", "evil", "Dataset901_a\\b", "Dataset901_a\n"]
)
def test_names_of_datasets_that_lead_elsewhere(content, pack, refuse, name):
    refuse(pack(with_manifest(content, dataset_name=name)), "is no name of a dataset")


@pytest.mark.parametrize("key", ["plans_name", "configuration_name"])
@pytest.mark.parametrize("name", ["../evil", "", ".hidden", "a/b", "a\\b"])
def test_names_of_plans_and_configurations_that_lead_elsewhere(content, pack, refuse, key, name):
    refuse(pack(with_manifest(content, **{key: name})), "is no name of plans or of a configuration")


def test_a_manifest_of_another_model_than_the_plans(content, pack, refuse):
    refuse(pack(with_manifest(content, plans_name="others")), "the manifest is of .*others.*, the plans of .*tiny")


def test_weights_of_another_model(content, pack, refuse):
    fold = json.loads(content["fold_0/weights.json"])
    fold["identity"]["plans_name"] = "others"
    refuse(pack(listed({**content, "fold_0/weights.json": json.dumps(fold).encode()})), "the weights of fold_0 are of")


def test_plans_that_are_not_the_weights_own(content, pack, refuse):
    plans = json.loads(content["plans.json"])
    plans["configurations"]["main"]["network"]["biaf"] = False
    refuse(pack(listed({**content, "plans.json": json.dumps(plans).encode()})), "or of other plans")


def test_a_reference_that_the_plans_do_not_use(content, pack, refuse):
    refuse(pack(listed({**content, "reference.nii.gz": b"an image"})), "align images to nothing, the archive holds ref")


def test_no_fold_and_half_a_fold(content, pack, refuse):
    del content["fold_1/weights.json"]
    refuse(pack(listed(content)), r"its folds are incomplete \(fold_0, fold_1\)")
    none = {name: data for name, data in content.items() if not name.startswith("fold")}
    refuse(pack(listed(none)), "there is none")


def test_no_plans(content, pack, refuse):
    del content["plans.json"]
    refuse(pack(listed(content)), r"lacks plans\.json, which every model's archive has")


def test_weights_that_are_no_safetensors(content, pack, refuse):
    """A pickle above all, which would be code."""
    refuse(
        pack(listed({**content, "fold_0/weights.safetensors": b"\x80\x04cos\nsystem\n" * 9})),
        "cannot be read as safetensors",
    )


@pytest.mark.parametrize("change", ["missing", "shape", "unknown"])
def test_weights_that_do_not_fit_the_network(content, pack, refuse, change):
    weights = load(content["fold_0/weights.safetensors"])
    first = next(iter(weights))
    if change == "missing":
        del weights[first]
    elif change == "shape":
        weights[first] = torch.zeros(3)
    else:
        weights["unknown"] = torch.zeros(3)
    refuse(
        pack(listed({**content, "fold_0/weights.safetensors": save(weights)})), "not those of the network .* 1 tensors"
    )


@pytest.mark.parametrize(
    ("key", "value", "match"),
    [("depths", [10**12], "more blocks than there are weights"), ("feature_size", -4, "no network can be built")],
)
def test_plans_that_would_build_for_ever_or_not_at_all(content, pack, refuse, key, value, match):
    files = dict(content)
    plans = json.loads(files["plans.json"])
    plans["configurations"]["main"]["network"]["encoder"][key] = value
    files["plans.json"] = json.dumps(plans).encode()
    for fold in ("fold_0", "fold_1"):
        record = json.loads(files[f"{fold}/weights.json"])
        record["identity"]["configuration"]["network"]["encoder"][key] = value
        files[f"{fold}/weights.json"] = json.dumps(record).encode()
    refuse(pack(listed(files)), match)


def test_records_that_are_damaged(content, pack, refuse):
    refuse(pack(listed({**content, "dataset.json": b'{"name": 3}'})), "missing", InputError)


@pytest.mark.parametrize("text", [b"[" * 100_000, b'{"name": ' + b"1" * 5000 + b"}"])
@pytest.mark.parametrize("name", ["dataset.json", "plans.json", "fold_0/weights.json"])
def test_records_that_no_reader_can_read(content, pack, refuse, name, text):
    refuse(pack(listed({**content, name: text})), "no JSON that can be read", InputError)


def test_a_history_of_more_epochs_than_any_memory_holds(content, pack, refuse):
    fold = json.loads(content["fold_0/weights.json"])
    fold["course"]["epochs_done"] = 10**12
    refuse(pack(listed({**content, "fold_0/weights.json": json.dumps(fold).encode()})), "of 1000000000000 epochs")


def test_messages_name_the_archive_and_not_a_folder_that_is_gone(content, pack, tmp_path):
    path = pack(listed({**content, "fold_0/weights.safetensors": b"nothing" * 9}))
    with pytest.raises(ArchiveError) as error:
        install_model(str(path), tmp_path / "inner" / "results")
    assert f"{path}/fold_0/weights.safetensors" in str(error.value)
    assert ".install-" not in str(error.value)


def test_nothing_of_an_archive_is_imported(content, pack, refuse, tmp_path):
    before = set(sys.modules)
    refuse(pack(listed({**content, "biasreg.py": b"raise SystemExit"})), "no model's archive has: biasreg.py")
    assert not [name for name in set(sys.modules) - before if "hostile" in name]
