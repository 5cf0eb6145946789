import errno
import gzip
import json
import logging
import re
from dataclasses import replace
from threading import Event

import nibabel
import numpy as np
import pytest
import torch

from biasreg.core.errors import CheckpointError, DatasetError, InputError, PredictionError
from biasreg.core.geometry import Geometry
from biasreg.core.image_io import read_image, read_labels, write_image
from biasreg.core.serialization import file_hash, read_record
from biasreg.core.transform_io import read_displacement
from biasreg.evaluation.metrics import dice_per_label
from biasreg.inference import predict
from biasreg.inference.export import SAVE_CHOICES
from biasreg.inference.models import ModelRequest, find_model
from biasreg.inference.predict import PredictOptions, check_failures, predict_pairs
from biasreg.inference.record import PredictionRecord, Settings
from biasreg.network.checkpoint import load_checkpoint, save_checkpoint

CPU = torch.device("cpu")


@pytest.fixture
def folders(tmp_path):
    pairs = tmp_path / "pairs"
    pairs.mkdir()
    return pairs, tmp_path / "out"


def run(folders, model_folder, **options):
    model = find_model(model_folder.parents[1], ModelRequest())
    return predict_pairs(*folders, model, CPU, PredictOptions(**options))


def names(folder):
    return {path.name for path in folder.iterdir()}


OUTPUTS = ("_warp.nii.gz", "_inverse_warp.nii.gz", "_warped.nii.gz", "_warped_seg.nii.gz", ".json")


def test_a_pair_becomes_fields_image_labels_and_a_record(folders, write_model, write_pair):
    write_pair(folders[0], "a")
    assert run(folders, write_model()) == {}
    assert names(folders[1]) == {f"a{suffix}" for suffix in OUTPUTS}
    fixed = read_image(folders[0] / "a_fixed.nii.gz")
    displacement, geometry = read_displacement(folders[1] / "a_warp.nii.gz")
    assert geometry.is_close(fixed.geometry)
    np.testing.assert_allclose(displacement.mean(axis=(0, 1, 2)), [7, 0, 0], atol=1.5)
    moving_seg, warped_seg = (
        read_labels(path) for path in (folders[0] / "a_moving_seg.nii.gz", folders[1] / "a_warped_seg.nii.gz")
    )
    assert set(np.unique(warped_seg.array)) == set(np.unique(moving_seg.array)) == {0, 3, 7}
    fixed_seg = read_labels(folders[0] / "a_fixed_seg.nii.gz")
    assert min(dice_per_label(warped_seg.array, fixed_seg.array, (3, 7)).values()) > 0.8


def test_the_record_is_strict_json_and_complete(folders, write_model, write_pair):
    write_pair(folders[0], "a")
    model = write_model()
    run(folders, model)
    path = folders[1] / "a.json"
    json.loads(path.read_text(), parse_constant=lambda text: pytest.fail(f"{text} is no JSON"))
    record = read_record(path, PredictionRecord)
    assert record.pair == "a"
    assert record.written.endswith("+00:00")
    assert record.provenance.checkpoints == {
        "fold_0/checkpoint_best.pth": file_hash(model / "fold_0" / "checkpoint_best.pth")
    }
    assert [file.role for file in record.inputs] == ["moving", "fixed", "moving_seg", "fixed_seg"]
    assert record.inputs[0].sha256 == file_hash(folders[0] / "a_moving.nii.gz")
    assert set(record.outputs) == {f"a{suffix}" for suffix in OUTPUTS if suffix != ".json"}
    before = {"read", "prealign", "resample", "network", "agreement"}
    stages = before | {"field", "inverse", "warp", "folding", "extras", "labels", "write"}
    assert set(record.seconds) == stages | {"total"}
    assert record.seconds["total"] == pytest.approx(sum(record.seconds[stage] for stage in stages), rel=0.2)
    assert record.quality.folding_percent == 0
    assert record.quality.log_jacobian_std == pytest.approx(0, abs=1e-5)
    assert record.quality.inverse_error.max_mm < 2e-3
    assert set(record.accuracy.dice_before) == {"3", "7"}
    assert all(record.accuracy.dice_after[label] > record.accuracy.dice_before[label] + 0.1 for label in ("3", "7"))


def test_without_labels_no_accuracy_is_claimed(folders, write_model, write_pair):
    write_pair(folders[0], "a", labels=False)
    run(folders, write_model())
    assert names(folders[1]) == {f"a{suffix}" for suffix in OUTPUTS if "seg" not in suffix}
    assert read_record(folders[1] / "a.json", PredictionRecord).accuracy is None


def test_labels_of_the_moving_image_alone_are_warped(folders, write_model, write_pair):
    write_pair(folders[0], "a")
    (folders[0] / "a_fixed_seg.nii.gz").unlink()
    run(folders, write_model())
    assert "a_warped_seg.nii.gz" in names(folders[1])
    assert read_record(folders[1] / "a.json", PredictionRecord).accuracy is None


def test_labels_of_the_fixed_image_alone_change_nothing(folders, write_model, write_pair):
    write_pair(folders[0], "a")
    (folders[0] / "a_moving_seg.nii.gz").unlink()
    run(folders, write_model())
    assert "a_warped_seg.nii.gz" not in names(folders[1])


def test_several_channels_are_read_and_written(folders, write_model, write_pair, two_channels):
    write_pair(folders[0], "a", channels=2)
    assert run(folders, write_model(two_channels)) == {}
    assert {"a_warped_0000.nii.gz", "a_warped_0001.nii.gz"} <= names(folders[1])


def test_further_outputs_are_saved_and_recorded(folders, write_model, write_pair):
    write_pair(folders[0], "a")
    run(folders, write_model(), save=("jacobian", "h5"))
    record = read_record(folders[1] / "a.json", PredictionRecord)
    assert {"a_jacobian.nii.gz", "a_warp.h5"} <= set(record.outputs)
    assert record.settings == Settings(save=("jacobian", "h5"))


def corrupt(pairs):
    path = pairs / "b_moving.nii.gz"
    path.write_bytes(path.read_bytes()[:-500])


def two_channel_pair(pairs):
    for role in ("moving", "fixed"):
        path = pairs / f"b_{role}.nii.gz"
        image = read_image(path)
        path.unlink()
        for channel in range(2):
            write_image(pairs / f"b_{role}_{channel:04d}.nii.gz", image.array, image.geometry)


def shift_the_channels(pairs):
    two_channel_pair(pairs)
    image = read_image(pairs / "b_fixed_0001.nii.gz")
    write_image(
        pairs / "b_fixed_0001.nii.gz",
        image.array[1:],
        type(image.geometry).from_affine(image.geometry.affine, image.array[1:].shape),
    )


def crop_the_labels(pairs):
    labels = read_labels(pairs / "b_moving_seg.nii.gz")
    geometry = type(labels.geometry).from_affine(labels.geometry.affine, labels.array[2:].shape)
    write_image(pairs / "b_moving_seg.nii.gz", labels.array[2:], geometry)


def put_nan(pairs):
    image = read_image(pairs / "b_fixed.nii.gz")
    image.array[0, 0, 0] = np.nan
    write_image(pairs / "b_fixed.nii.gz", image.array, image.geometry)


def make_constant(pairs):
    image = read_image(pairs / "b_moving.nii.gz")
    write_image(pairs / "b_moving.nii.gz", np.full_like(image.array, 5), image.geometry)


def lose_the_fixed_image(pairs):
    (pairs / "b_fixed.nii.gz").unlink()


FAULTS = {
    corrupt: r"b_moving\.nii\.gz: .*(cut off|damaged)",
    two_channel_pair: "has 2 channel.* trained with 1",
    shift_the_channels: "channels lie on different grids",
    crop_the_labels: r"b_moving_seg\.nii\.gz: grid 28×.* is not that of the image .*b_moving\.nii\.gz, 30×",
    put_nan: r"b_fixed\.nii\.gz: 1 voxels are NaN",
    make_constant: r"nothing to register in the moving image: all its voxels are alike.*values from 5 to 5",
    lose_the_fixed_image: r"there is no fixed image \(seen: b_fixed_seg\.nii\.gz, b_moving\.nii\.gz, ",
}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_pair_that_fails_does_not_stop_the_others(folders, write_model, write_pair, fault, caplog):
    for name in "abc":
        write_pair(folders[0], name)
    fault(folders[0])
    failures = run(folders, write_model())
    assert list(failures) == ["b"]
    assert re.search(FAULTS[fault], failures["b"])
    assert names(folders[1]) == {f"{name}{suffix}" for name in "ac" for suffix in OUTPUTS}
    assert "Traceback" not in caplog.text
    assert caplog.text.count(failures["b"]) == 1
    with pytest.raises(PredictionError, match=r"^1 pair\(s\) failed: b; reasons are above$"):
        check_failures(failures)


def test_even_a_fault_of_the_program_stops_only_its_pair_but_shows_where(
    folders, write_model, write_pair, monkeypatch, caplog
):
    for name in "ab":
        write_pair(folders[0], name)
    original = predict.warp_moving_labels
    calls = iter([0, 1])

    def fail_once(*arguments):
        if next(calls) == 0:
            raise IndexError("a fault of the program")
        return original(*arguments)

    monkeypatch.setattr(predict, "warp_moving_labels", fail_once)
    assert list(run(folders, write_model())) == ["a"]
    assert "b.json" in names(folders[1])
    assert "Traceback" in caplog.text


@pytest.mark.parametrize("written", range(5))
def test_a_full_disk_leaves_no_half_pair(folders, write_model, write_pair, monkeypatch, written):
    write_pair(folders[0], "a")
    count = iter(range(10))

    def full(original):
        def write(*arguments, **options):
            if next(count) == written:
                raise OSError(errno.ENOSPC, "No space left on device")
            return original(*arguments, **options)

        return write

    for target in ("export.write_displacement", "export.write_image", "predict.write_record"):
        module, _, name = target.partition(".")
        path = f"biasreg.inference.{module}.{name}"
        monkeypatch.setattr(path, full(getattr(__import__(f"biasreg.inference.{module}", fromlist=[name]), name)))
    failures = run(folders, write_model())
    assert "No space left on device" in failures["a"]
    assert names(folders[1]) == set()


def test_failures_say_that_files_of_an_earlier_run_are_still_there(folders, write_model, write_pair):
    write_pair(folders[0], "b")
    model = write_model()
    run(folders, model)
    written = read_record(folders[1] / "b.json", PredictionRecord).written
    corrupt(folders[0])
    assert f"are those of an earlier run, {written}" in run(folders, model)["b"]
    assert names(folders[1]) == {f"b{suffix}" for suffix in OUTPUTS}


def test_an_interruption_stops_at_once_and_leaves_whole_pairs_only(folders, write_model, write_pair, monkeypatch):
    for name in "abc":
        write_pair(folders[0], name)
    original = predict.Predictor.estimate
    written = Event()

    def interrupt(predictor, prepared):
        if written.is_set():
            raise KeyboardInterrupt
        written.set()
        return original(predictor, prepared)

    monkeypatch.setattr(predict.Predictor, "estimate", interrupt)
    model = write_model()
    with pytest.raises(KeyboardInterrupt):
        run(folders, model)
    assert names(folders[1]) == {f"a{suffix}" for suffix in OUTPUTS}  # what is under way is finished, b is not begun


@pytest.fixture
def registered(monkeypatch):
    """Names of the pairs that are registered, in order."""
    done = []
    original = predict._Batch.register

    def watch(batch, work):
        done.extend([] if work is None else [work.pair.identifier])
        return original(batch, work)

    monkeypatch.setattr(predict._Batch, "register", watch)
    return done


def test_continuing_does_only_what_is_missing(folders, write_model, write_pair, registered, caplog):
    caplog.set_level(logging.INFO)
    for name in "abc":
        write_pair(folders[0], name)
    model = write_model()
    run(folders, model)
    (folders[1] / "b.json").unlink()
    (folders[1] / "c_warp.nii.gz").unlink()
    registered.clear()
    run(folders, model, overwrite=False)
    assert registered == ["b", "c"]
    assert (
        f"registered 2 of 3 pair(s) into {folders[1]}; 0 PASS, 2 WARN, 0 FAIL; folding at most 0 %; 1 were"
        in caplog.text
    )
    run(folders, model)
    assert registered == ["b", "c", "a", "b", "c"]


def test_continuing_with_further_outputs_makes_them(folders, write_model, write_pair, registered):
    write_pair(folders[0], "a")
    model = write_model()
    run(folders, model, save=("h5",))
    run(folders, model, save=("jacobian",), overwrite=False)
    assert registered == ["a", "a"]
    assert {"a_jacobian.nii.gz"} == {name for name in names(folders[1]) if "jacobian" in name or "h5" in name}
    run(folders, model, overwrite=False)
    assert len(registered) == 2


def test_continuing_notices_another_model_and_other_files(folders, write_model, write_pair, registered, caplog):
    caplog.set_level(logging.INFO)
    write_pair(folders[0], "a")
    run(folders, write_model())
    model = write_model(shift=(1.0, 0.0, 0.0))
    run(folders, model, overwrite=False)
    assert registered == ["a", "a"]
    assert "pair a: registered by another model or from other files before; it is done again" in caplog.text
    image = read_image(folders[0] / "a_moving.nii.gz")
    write_image(folders[0] / "a_moving.nii.gz", image.array + 1, image.geometry)
    run(folders, model, overwrite=False)
    assert len(registered) == 3


def test_a_record_of_something_else_is_not_taken_for_a_result(folders, write_model, write_pair, registered):
    write_pair(folders[0], "a")
    folders[1].mkdir()
    (folders[1] / "a.json").write_text("{}")
    run(folders, write_model(), overwrite=False)
    assert registered == ["a"]


def test_notices_are_logged_and_recorded(folders, write_model, write_pair, configuration, caplog):
    plans = configuration.preprocessing
    narrow = type(configuration)(
        type(plans)(**{**vars(plans), "patch_size": (24, 20, 4)}), configuration.network, configuration.training
    )
    write_pair(folders[0], "a")
    run(folders, write_model(narrow))
    assert "pair a: " in caplog.text
    assert len(read_record(folders[1] / "a.json", PredictionRecord).notices) == 2


def test_an_empty_folder_is_refused_with_what_was_seen(folders, write_model):
    with pytest.raises(DatasetError, match="holds no pair"):
        run(folders, write_model())
    assert not folders[1].exists()


def test_two_pairs_of_one_name_are_refused(folders, write_model, write_pair):
    write_pair(folders[0], "a", labels=False)
    entry = {"id": "same", "moving": "a_moving.nii.gz", "fixed": "a_fixed.nii.gz"}
    (folders[0] / "pairs.json").write_text(json.dumps([entry, entry]))
    with pytest.raises(DatasetError, match="pairs named twice: same"):
        run(folders, write_model())
    assert not folders[1].exists()


def test_a_pair_that_would_write_the_inverse_of_another_fails_alone(folders, write_model, write_pair):
    for name in ("a", "a_inverse"):
        write_pair(folders[0], name, labels=False)
    failures = run(folders, write_model())
    assert failures == {"a_inverse": "pair a also writes a_inverse_warp.nii.gz; rename one of them"}
    assert (folders[1] / "a.json").is_file()


def test_an_output_folder_that_cannot_be_is_an_input_error(folders, write_model, write_pair):
    write_pair(folders[0], "a", labels=False)
    folders[1].write_text("a file")
    with pytest.raises(InputError, match=r"nothing can be written to .*out: .*out is a file · choose another"):
        run(folders, write_model())


def test_an_output_folder_without_permission_is_refused_before_any_work(folders, write_model, write_pair, monkeypatch):
    write_pair(folders[0], "a", labels=False)
    model = write_model()
    monkeypatch.setattr("os.access", lambda path, mode: False)  # root may write everywhere
    monkeypatch.setattr(predict.Predictor, "from_model", lambda *arguments: pytest.fail("the model is loaded"))
    with pytest.raises(InputError, match=r"nothing can be written to .*out: permission denied"):
        run(folders, model)


def test_learn2regs_field_of_different_grids_is_refused_before_registering(
    folders, write_model, write_pair, monkeypatch
):
    write_pair(folders[0], "a", labels=False)
    monkeypatch.setattr(predict.Predictor, "register", lambda *arguments: pytest.fail("the pair is registered"))
    assert "one grid that both images share" in run(folders, write_model(), save=("learn2reg",))["a"]


def test_a_registered_batch_ends_with_a_line_that_says_so(folders, write_model, write_pair, caplog):
    caplog.set_level(logging.INFO)
    for name in "abc":
        write_pair(folders[0], name, labels=False)
    make_constant(folders[0])
    run(folders, write_model())
    assert (
        caplog.messages[-1]
        == f"registered 2 of 3 pair(s) into {folders[1]}; 0 PASS, 2 WARN, 0 FAIL; folding at most 0 %; 1 failed"
    )


@pytest.mark.parametrize("factor", [1e-3, 1e3])
def test_an_image_in_wrong_units_gives_a_notice_with_both_sizes(folders, write_model, write_pair, factor, caplog):
    write_pair(folders[0], "a", labels=False)
    image = read_image(folders[0] / "a_moving.nii.gz")
    geometry = Geometry.from_affine(np.diag([factor] * 3 + [1]) @ image.geometry.affine, image.array.shape)
    write_image(folders[0] / "a_moving.nii.gz", image.array, geometry)
    assert run(folders, write_model()) == {}
    (notice, *_) = read_record(folders[1] / "a.json", PredictionRecord).notices
    assert re.match(r"the moving image's anatomy measures .* mm, but the model was planned for 48×50×48 mm", notice)
    assert f"pair a: {notice}" in caplog.text


def test_a_fold_that_was_never_validated_is_named_in_log_and_record(folders, write_model, write_pair, caplog):
    write_pair(folders[0], "a", labels=False)
    model = write_model()
    path = model / "fold_0" / "checkpoint_best.pth"
    save_checkpoint(path, replace(load_checkpoint(path), progress={"history": [], "best": None}))
    run(folders, model)
    (notice,) = read_record(folders[1] / "a.json", PredictionRecord).provenance.notices
    assert "fold_0: its weights, after 0 epoch(s), were never validated" in notice
    assert caplog.text.count(notice) == 1


def test_a_damaged_model_is_found_before_the_output_folder_is_made(folders, write_model, write_pair):
    write_pair(folders[0], "a", labels=False)
    model = write_model()
    (model / "fold_0" / "checkpoint_best.pth").write_bytes(b"nothing")
    with pytest.raises(CheckpointError):
        run(folders, model)
    assert not folders[1].exists()


def test_a_file_that_is_cut_within_the_gzip_header_is_one_failure(folders, write_model, write_pair):
    write_pair(folders[0], "a", labels=False)
    (folders[0] / "a_moving.nii.gz").write_bytes(gzip.compress(b"x" * 100))
    assert "a_moving.nii.gz" in run(folders, write_model())["a"]


def test_nothing_failed_is_no_error():
    check_failures({})


def test_parts_divide_the_batch_and_name_what_is_wrong_once(folders, write_model, write_pair):
    for name in "abcde":
        write_pair(folders[0], name, labels=False)
    (folders[0] / "e_fixed.nii.gz").unlink()
    model = write_model()
    failures = [run(folders, model, part=(number, 3)) for number in range(3)]
    assert [list(each) for each in failures] == [["e"], [], []]
    assert {path.stem for path in folders[1].glob("*.json")} == set("abcd")


def test_a_part_may_be_empty(folders, write_model, write_pair):
    write_pair(folders[0], "a", labels=False)
    assert run(folders, write_model(), part=(1, 2)) == {}
    assert names(folders[1]) == set()


def test_all_further_outputs_can_be_had_at_once(folders, write_model, write_pair):
    write_pair(folders[0], "a")
    save = tuple(choice for choice in SAVE_CHOICES if choice != "learn2reg")  # whose grids must be equal
    assert run(folders, write_model(folds=("0", "1")), save=save) == {}
    further = {f"a{suffix}" for suffix in ("_jacobian.nii.gz", "_folding.nii.gz", "_inverse_error.nii.gz", "_warp.h5")}
    further |= {"a_uncertainty.nii.gz", "a_level1_warp.nii.gz", "a_features.npz"}
    assert names(folders[1]) == further | {f"a{suffix}" for suffix in OUTPUTS}
    assert read_image(folders[1] / "a_folding.nii.gz").array.max() == 0
    assert read_image(folders[1] / "a_uncertainty.nii.gz").array.max() == 0  # the folds are alike
    assert read_image(folders[1] / "a_inverse_error.nii.gz").array.max() < 0.01
    with np.load(folders[1] / "a_features.npz") as features:
        assert "moving_enhanced_level0" in features


def test_images_are_written_uncompressed_on_request_and_fields_never(folders, write_model, write_pair):
    write_pair(folders[0], "a")
    run(folders, write_model(), compressed=False)
    expected = {"a.json", "a_warp.nii.gz", "a_inverse_warp.nii.gz", "a_warped.nii", "a_warped_seg.nii"}
    assert names(folders[1]) == expected


@pytest.mark.parametrize("changed", [{"mirror_axes": (0,)}, {"refine_steps": 1}, {"compressed": False}])
def test_continuing_with_other_settings_does_it_again(folders, write_model, write_pair, registered, caplog, changed):
    caplog.set_level(logging.INFO)
    write_pair(folders[0], "a")
    model = write_model()
    run(folders, model)
    run(folders, model, overwrite=False, **changed)
    assert registered == ["a", "a"]
    assert "pair a: registered with other settings before; it is done again" in caplog.text


def test_the_record_says_how_far_the_pair_can_be_trusted(folders, write_model, write_pair, caplog):
    write_pair(folders[0], "a")
    run(folders, write_model(shift=(9.0, 0.0, 0.0)))
    trust = read_record(folders[1] / "a.json", PredictionRecord).trust
    assert trust.status == "FAIL"
    assert "pair a: FAIL similarity gain: dissimilarity" in caplog.text


@pytest.mark.parametrize("kept", [False, True])
def test_strictly_a_pair_with_the_verdict_fail_is_a_failure_with_files(folders, write_model, write_pair, caplog, kept):
    write_pair(folders[0], "a")
    model = write_model(shift=(9.0, 0.0, 0.0))
    assert run(folders, model) == {}
    failures = run(folders, model, strict=True, overwrite=not kept)
    assert failures == {"a": "its verdict is FAIL: similarity gain, likeness"}
    assert "pair a: its verdict is FAIL: similarity gain" in caplog.text
    assert names(folders[1]) == {f"a{suffix}" for suffix in OUTPUTS}


def test_strictly_a_pair_that_passes_or_warns_is_none(folders, write_model, write_pair):
    write_pair(folders[0], "a")
    assert run(folders, write_model(), strict=True) == {}


def test_several_threads_give_the_same_files(folders, write_model, write_pair):
    for name in "abcd":
        write_pair(folders[0], name)
    model = write_model(shift=(1.0, 0.0, 0.0))
    run(folders, model)
    run((folders[0], folders[1].with_name("threads")), model, workers=(2, 3))
    for path in folders[1].glob("*.nii.gz"):
        assert (folders[1].with_name("threads") / path.name).read_bytes() == path.read_bytes()


def test_continuing_notices_a_file_that_was_damaged(folders, write_model, write_pair, registered, caplog):
    caplog.set_level(logging.INFO)
    write_pair(folders[0], "a", labels=False)
    model = write_model()
    run(folders, model)
    (folders[1] / "a_warp.nii.gz").write_bytes(b"garbage")
    run(folders, model, overwrite=False)
    assert registered == ["a", "a"]
    assert "pair a: a file of it is missing or was changed" in caplog.text
    run(folders, model, overwrite=False)
    assert registered == ["a", "a"]


def test_a_file_without_orientation_is_named_in_the_record(folders, write_model, write_pair):
    write_pair(folders[0], "a", labels=False)
    path = folders[0] / "a_moving.nii.gz"
    image = nibabel.load(path)
    voxels, header = image.get_fdata(dtype=np.float32), image.header.copy()
    header.set_sform(None, code=0)
    header.set_qform(None, code=0)
    nibabel.save(nibabel.Nifti1Image(voxels, None, header), path)
    run(folders, write_model())
    (notice, *_) = read_record(folders[1] / "a.json", PredictionRecord).notices
    assert notice.startswith("a_moving.nii.gz: neither sform nor qform is set")
