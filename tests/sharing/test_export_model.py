import json
import zipfile
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load

from biasreg.core.errors import ArchiveError, CheckpointError, RecordError
from biasreg.core.serialization import file_hash, from_json, write_json, write_record
from biasreg.evaluation.records import SCORES_SCHEMA_VERSION, Evaluation, MethodSummary, Sources, Statistic
from biasreg.network.checkpoint import LATEST, load_checkpoint, save_checkpoint
from biasreg.sharing.export_model import ExportOptions, export_model
from biasreg.sharing.manifest import Manifest

DATE = "2025-01-31"


def content_of(path):
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_the_archive_holds_what_prediction_needs_and_nothing_else(archive):
    assert sorted(content_of(archive)) == [
        "MODEL_CARD.md",
        "dataset.json",
        "fold_0/weights.json",
        "fold_0/weights.safetensors",
        "fold_1/weights.json",
        "fold_1/weights.safetensors",
        "manifest.json",
        "plans.json",
    ]


def test_the_manifest_gives_size_and_hash_of_every_other_file(archive, tmp_path):
    content = content_of(archive)
    manifest = from_json(Manifest, json.loads(content.pop("manifest.json")))
    assert (manifest.model, manifest.licence, manifest.date) == ("Dataset901_Blobs/tiny__main", "CC-BY-4.0", DATE)
    assert set(manifest.files) == set(content)
    for name, data in content.items():
        (tmp_path / "file").write_bytes(data)
        assert (manifest.files[name].size, manifest.files[name].sha256) == (len(data), file_hash(tmp_path / "file"))


def test_no_file_of_the_archive_names_a_patient(archive, aligned_model, tmp_path, patients):
    aligned = tmp_path / "aligned.zip"
    export_model(aligned_model, aligned, ExportOptions(include_reference=True, date=DATE))
    for path in (archive, aligned):
        for name, data in content_of(path).items():
            for patient in patients:
                assert patient.encode() not in data, f"{name} names {patient}"
    texts = json.loads(content_of(aligned)["plans.json"])
    assert texts["why"]["main"]["field_of_view"] == "the extent of the reference case"
    assert texts["configurations"]["main"]["preprocessing"]["reference_case"] == "reference"


def test_weights_are_those_that_prediction_takes(model, tmp_path):
    path = model.checkpoints[0]
    checkpoint = load_checkpoint(path)
    name = next(iter(checkpoint.network))
    averaged = {name: checkpoint.network[name] + 1}
    save_checkpoint(path, replace(checkpoint, averaged=averaged))
    export_model(model, tmp_path / "m.zip", ExportOptions())
    weights = load(content_of(tmp_path / "m.zip")["fold_0/weights.safetensors"])
    assert weights.keys() == checkpoint.network.keys()
    for key, tensor in {**checkpoint.network, **averaged}.items():
        assert torch.equal(weights[key], tensor)


def test_equal_inputs_give_equal_bytes(model, archive, tmp_path):
    export_model(model, tmp_path / "again.zip", ExportOptions(licence="CC-BY-4.0", date=DATE))
    assert (tmp_path / "again.zip").read_bytes() == archive.read_bytes()


def test_a_patients_image_is_given_away_only_on_demand(aligned_model, tmp_path):
    path = tmp_path / "m.zip"
    with pytest.raises(ArchiveError, match=r"reference\.nii\.gz, which show A PATIENT .* --include_reference"):
        export_model(aligned_model, path, ExportOptions())
    assert not path.exists()
    assert export_model(aligned_model, path, ExportOptions(include_reference=True)).reference == "included"
    assert content_of(path)["reference.nii.gz"] == (aligned_model.folder / "reference.nii.gz").read_bytes()


def test_without_the_reference_the_archive_and_the_card_say_so(aligned_model, tmp_path, caplog):
    with caplog.at_level("WARNING", logger="biasreg"):
        manifest = export_model(aligned_model, tmp_path / "m.zip", ExportOptions(without_reference=True))
    content = content_of(tmp_path / "m.zip")
    assert (manifest.reference, "reference.nii.gz" in content) == ("left out", False)
    assert "without it the model" in content["MODEL_CARD.md"].decode()
    assert "without it the model cannot predict" in caplog.text
    assert "no licence is named" in caplog.text


def test_a_model_without_pre_alignment_to_a_case_needs_no_consent(archive):
    assert json.loads(content_of(archive)["manifest.json"])["reference"] == "none"


def test_the_ranges_of_the_data_go_along_unless_they_name_a_case(model, tmp_path):
    ranges = model.folder / "data_ranges.json"
    write_json(ranges, {"spacing": {"lowest": [1, 1, 1]}})
    export_model(model, tmp_path / "m.zip", ExportOptions())
    content = content_of(tmp_path / "m.zip")
    assert content["data_ranges.json"] == ranges.read_bytes()
    assert "`data_ranges.json` gives" in content["MODEL_CARD.md"].decode()
    write_json(ranges, {"widest": [{"patient_11": [1, 1, 1]}]})
    with pytest.raises(ArchiveError, match=r"data_ranges\.json names 1 case\(s\), patient_11"):
        export_model(model, tmp_path / "n.zip", ExportOptions())
    assert not (tmp_path / "n.zip").exists()


def test_an_existing_file_is_not_replaced_and_no_other_ending_is_written(model, archive, tmp_path):
    before = archive.read_bytes()
    with pytest.raises(ArchiveError, match="there is something already"):
        export_model(model, archive, ExportOptions())
    assert archive.read_bytes() == before
    with pytest.raises(ArchiveError, match=r"an archive is named \*\.zip"):
        export_model(model, tmp_path / "model.tar", ExportOptions())


def test_a_reference_that_is_not_the_trained_one_is_refused(aligned_model, tmp_path):
    (aligned_model.folder / "reference.nii.gz").write_bytes(b"another")
    with pytest.raises(CheckpointError, match="not the one that this fold was trained with"):
        export_model(aligned_model, tmp_path / "m.zip", ExportOptions(include_reference=True))


def test_merging_needs_adapters(model, tmp_path):
    with pytest.raises(ArchiveError, match="no adapters to merge"):
        export_model(model, tmp_path / "m.zip", ExportOptions(merge_lora=True))


def test_a_failed_export_leaves_nothing_behind(model, tmp_path):
    (model.folder / "dataset.json").write_text("{")
    (tmp_path / "out").mkdir()
    with pytest.raises(RecordError):
        export_model(model, tmp_path / "out" / "m.zip", ExportOptions())
    assert list((tmp_path / "out").iterdir()) == []


def card(path):
    return content_of(path)["MODEL_CARD.md"].decode()


def test_the_card_gives_data_training_scores_and_licences(archive):
    text = card(archive)
    for part in (
        "# Model card: Dataset901_Blobs/tiny__main",
        "| labels | shell, core |",
        "| grid of the network | 24×20×16 voxels of 2×2.5×3 mm: 48×50×48 mm |",
        "| fold_0 | 2 of 1 | 2 × 1 | 1 | both | 2 | 0.500 | 0.800 | 0.1 |",
        "Weights: CC-BY-4.0. Data: CC0.",
        "not a medical device",
        "biasreg_install_model model.zip",
        "- size: as in the reference case",
        "It holds no image.",
    ):
        assert part in text
    assert "data_ranges.json" not in text


def test_the_card_says_that_training_was_stopped_early(model, tmp_path):
    path = model.checkpoints[0]
    checkpoint = load_checkpoint(path)
    run = replace(checkpoint.identity.run, epochs=50)
    checkpoint = replace(checkpoint, identity=replace(checkpoint.identity, run=run))
    save_checkpoint(path, checkpoint)
    save_checkpoint(path.with_name(LATEST), checkpoint)
    export_model(model, tmp_path / "m.zip", ExportOptions())
    assert "| fold_0 | 2 of 50 (stopped after 2) |" in card(tmp_path / "m.zip")


def test_the_card_shows_an_evaluation_without_its_pairs(model, tmp_path):
    dice = Statistic(0.8125, 0.04, 3)
    none = dict.fromkeys(("hd95_mm", "tre_mm", "folding_percent", "log_jacobian_std", "learn2reg_log_jacobian_std"))
    method = MethodSummary(method="biasreg", num_pairs=3, dice=dice, seconds=None, unmeasured_hd95=0, labels=(), **none)
    sources = Sources("/home/Miller/references", {"biasreg": "/home/Miller/out"})
    write_record(
        tmp_path / "summary.json", Evaluation(SCORES_SCHEMA_VERSION, sources, (method,), (), (), "biasreg", (), (), ())
    )
    export_model(model, tmp_path / "m.zip", ExportOptions(evaluation=tmp_path / "summary.json"))
    text = card(tmp_path / "m.zip")
    assert "| biasreg | 3 | 0.812 ± 0.040 |" in text
    assert "Miller" not in text
    with pytest.raises(RecordError, match="there is no such file"):
        export_model(model, tmp_path / "n.zip", ExportOptions(evaluation=tmp_path / "absent.json"))
