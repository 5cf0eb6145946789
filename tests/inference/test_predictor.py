from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace
from unittest.mock import Mock

import nibabel
import numpy as np
import pytest
import SimpleITK
import torch

from biasreg.core.errors import CheckpointError, ImageError, InputError, PlansError, PredictionError, WeightsError
from biasreg.core.geometry import Geometry, apply_affine
from biasreg.core.image_io import Image, write_image
from biasreg.core.serialization import file_hash
from biasreg.evaluation.metrics import dice_per_label, sample_displacement
from biasreg.inference.estimation import RegistrationOptions
from biasreg.inference.models import ModelRequest, find_model
from biasreg.inference.predictor import Predictor
from biasreg.network.build import build_network
from biasreg.network.checkpoint import Identity, RunSettings, capture, load_checkpoint, save_checkpoint
from biasreg.network.encoder import SwinEncoder
from biasreg.network.install_pretrained import install_pretrained
from biasreg.network.lora import LoraLinear
from biasreg.network.pretrained import load_base
from biasreg.planning.data_ranges import DataRanges
from biasreg.planning.plans import EncoderPlans, LoraPlans
from biasreg.planning.voco import VOCO_ENCODERS, VocoEncoder, installed_hash
from biasreg.preprocessing.frames import FrameSource
from biasreg.preprocessing.prealign import foreground_center, make_reference, translation
from biasreg.preprocessing.preprocess import canonical_grid
from biasreg.preprocessing.resampling import to_canonical
from biasreg.spatial.native import warp_label_map

CPU = torch.device("cpu")
ORIENTATIONS = ("RAS", "LPS", "LAS", "SRP", "oblique")


def predictor_of(configuration, *networks, reference=None):
    return Predictor(networks, FrameSource(configuration.preprocessing, reference), configuration, CPU)


def smoothly_deforming(network):
    """Give the finest level random weights, so that the field varies from voxel to voxel."""
    torch.manual_seed(0)
    torch.nn.init.normal_(network.registration.levels[0].residual.weight, std=0.03)
    return network


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_without_flow_the_pre_alignment_alone_joins_the_centres(
    configuration, make_network, make_grid, draw_anatomy, orientation
):
    moving, moving_labels = draw_anatomy(make_grid(orientation, (2.0, 2.5, 3.0), (30, 2, 4)), (27, 0, 5))
    fixed, fixed_labels = draw_anatomy(make_grid("RAS", (1.5, 2.0, 2.0), (-40, 0, 0)), (-39, 1, 2))
    result = predictor_of(configuration, make_network(configuration)).register([moving], [fixed])
    shift = foreground_center(moving, "MRI") - foreground_center(fixed, "MRI")
    assert np.linalg.norm(shift - [66, -1, 3]) < 2  # the true shift, up to the voxels' size
    np.testing.assert_allclose(result.displacement, np.broadcast_to(shift, (*fixed.geometry.shape, 3)), atol=1e-3)
    np.testing.assert_allclose(result.inverse, np.broadcast_to(-shift, (*moving.geometry.shape, 3)), atol=1e-3)
    warped = warp_label_map(moving_labels, result.displacement, fixed.geometry)
    assert min(dice_per_label(warped, fixed_labels.array, (3, 7)).values()) > 0.8
    assert result.quality.inverse_error.max_mm < 2e-3
    assert result.notices == ()


def test_fields_are_rounded_to_a_thousandth_of_a_voxel(configuration, make_grid, draw_anatomy):
    moving, _ = draw_anatomy(make_grid("LPS", (4.0, 4.0, 4.0)), (3, 0, 0))
    fixed, _ = draw_anatomy(make_grid("RAS", (1.5, 2.0, 3.0)), (0, 0, 0))
    result = predictor_of(configuration, Waves()).register([moving], [fixed])
    for field, step in ((result.displacement, 2.0**-10), (result.inverse, 2.0**-8)):
        assert (field / step == np.rint(field / step)).all()
        assert len(np.unique(field)) > 1000


def test_a_constant_flow_adds_its_voxels_in_mm(configuration, make_network, make_grid, draw_anatomy):
    moving, _ = draw_anatomy(make_grid("LPS"), (3, 2, 1))
    fixed, _ = draw_anatomy(make_grid("oblique"), (0, 0, 0))
    networks = [make_network(configuration, shift) for shift in ((1.0, 0.0, -1.0), (3.0, 0.0, -1.0))]
    result = predictor_of(configuration, *networks).register([moving], [fixed])
    shift = foreground_center(moving, "MRI") - foreground_center(fixed, "MRI") + [4.0, 0.0, -3.0]
    np.testing.assert_allclose(result.displacement, np.broadcast_to(shift, result.displacement.shape), atol=1e-3)


def test_without_pre_alignment_the_headers_count(configuration, make_network, make_grid, draw_anatomy):
    plain = replace(configuration, preprocessing=replace(configuration.preprocessing, prealignment="none"))
    moving, _ = draw_anatomy(make_grid("LPS", center=(100, 0, 0)), (104, 0, 0))
    fixed, _ = draw_anatomy(make_grid("SRP", center=(100, 0, 0)), (100, 0, 0))
    result = predictor_of(plain, make_network(plain)).register([moving], [fixed])
    np.testing.assert_allclose(result.displacement, 0, atol=1e-5)
    assert result.notices == ()


def test_an_affine_pre_alignment_undoes_scaling_and_turning(
    configuration, make_network, make_grid, draw_anatomy, write_model
):
    affine = replace(configuration, preprocessing=replace(configuration.preprocessing, prealignment="affine"))
    reference, _ = draw_anatomy(make_grid(), (0, 0, 0))
    grid = canonical_grid(affine.preprocessing)
    frame = translation(foreground_center(reference, "MRI"))
    path = write_model(affine) / "reference.nii.gz"
    write_image(path, to_canonical(reference.array, reference.geometry, grid, frame, fill=0.0), grid)
    folder = write_model(affine, reference_hash=file_hash(path))
    predictor = Predictor.from_model(find_model(folder.parents[1], ModelRequest()), CPU)

    fixed, fixed_labels = draw_anatomy(make_grid(center=(5, 0, 0)), (5, 0, 0))
    turn = np.eye(4)
    turn[:3, :3] = np.array([[np.cos(0.2), -np.sin(0.2), 0], [np.sin(0.2), np.cos(0.2), 0], [0, 0, 1]]) * 1.1
    moving, moving_labels = (
        Image(image.array, moved(image.geometry, turn))
        for image in draw_anatomy(make_grid(center=(5, 0, 0)), (5, 0, 0))
    )
    result = predictor.register([moving], [fixed])
    np.testing.assert_array_equal(predictor.register([moving], [fixed]).displacement, result.displacement)
    points = apply_affine(fixed.geometry.affine, np.argwhere(fixed_labels.array > 0))
    found = points + result.displacement[fixed_labels.array > 0]
    error = np.linalg.norm(found - apply_affine(turn, points), axis=1)
    assert error.mean() < 1.0
    before = np.linalg.norm(points - apply_affine(turn, points), axis=1).mean()
    assert before > 1.5
    warped = warp_label_map(moving_labels, result.displacement, fixed.geometry)
    assert min(dice_per_label(warped, fixed_labels.array, (3, 7)).values()) > 0.85


def moved(geometry, matrix):
    return Geometry.from_affine(matrix @ geometry.affine, geometry.shape)


def test_a_model_that_lost_its_reference_image_is_refused(configuration, write_model):
    affine = replace(configuration, preprocessing=replace(configuration.preprocessing, prealignment="affine"))
    folder = write_model(affine)
    with pytest.raises(PlansError, match=r"reference .* is missing · .*reference\.nii\.gz · restore"):
        Predictor.from_model(find_model(folder.parents[1], ModelRequest()), CPU)


def test_another_reference_image_than_that_of_the_training_is_refused_with_the_fold(
    configuration, write_model, make_grid, draw_anatomy
):
    affine = replace(configuration, preprocessing=replace(configuration.preprocessing, prealignment="affine"))
    image, _ = draw_anatomy(make_grid(), (0, 0, 0))
    path = write_model(affine) / "reference.nii.gz"
    write_image(path, image.array, image.geometry)
    trained_with = file_hash(path)
    folder = write_model(affine, folds=("0", "1"), reference_hash=trained_with)
    model = find_model(folder.parents[1], ModelRequest())
    Predictor.from_model(model, CPU)
    write_image(path, image.array + 1, image.geometry)
    words = rf"reference\.nii\.gz.* hash {file_hash(path)[:12]}\) is not the one .*{trained_with[:12]}.*fold_0"
    with pytest.raises(CheckpointError, match=words):
        Predictor.from_model(model, CPU)


@pytest.mark.parametrize("orientation", ["LPS", "SRP"])
def test_how_a_file_stores_its_axes_does_not_matter(configuration, make_network, make_grid, draw_anatomy, orientation):
    """The same voxels with permuted and flipped axes give the same displacement at the same points of the world."""
    predictor = predictor_of(configuration, smoothly_deforming(make_network(configuration)))
    moving, _ = draw_anatomy(make_grid(), (2, 0, 0))
    fixed, _ = draw_anatomy(make_grid(), (0, 0, 0))
    expected = predictor.register([moving], [fixed])
    stored = [restored(image, orientation, make_grid) for image in (moving, fixed)]
    result = predictor.register(*([image] for image in stored))
    assert expected.displacement.std(axis=(0, 1, 2)).min() > 0.1
    points = apply_affine(fixed.geometry.affine, np.moveaxis(np.indices(fixed.geometry.shape), 0, -1)).reshape(-1, 3)
    found = sample_displacement(result.displacement, stored[1].geometry, points)
    np.testing.assert_allclose(found, expected.displacement.reshape(-1, 3), atol=0.02)


def restored(image, orientation, make_grid):
    """Store an image on a cubic RAS grid with other axes; every voxel keeps its place in the world."""
    geometry = make_grid(orientation, image.geometry.spacing, image.geometry.center)
    points = apply_affine(geometry.affine, np.moveaxis(np.indices(geometry.shape), 0, -1))
    index = np.rint(apply_affine(np.linalg.inv(image.geometry.affine), points)).astype(int)
    return Image(np.ascontiguousarray(image.array[tuple(np.moveaxis(index, -1, 0))]), geometry)


class Waves(torch.nn.Module):
    """Displaces by smooth waves of 1.5 voxels, whatever it is shown."""

    def forward(self, moving, fixed):
        axes = torch.meshgrid(*(torch.arange(float(size)) for size in fixed.shape[2:]), indexing="ij")
        waves = [1.5 * torch.sin(axes[axis - 1] / 3 + axes[axis] / 4) for axis in range(3)]
        return SimpleNamespace(displacement=torch.stack(waves)[None], moving_logits=None, fixed_logits=None)


def test_the_reported_inverse_error_is_small_and_true(configuration, make_grid, draw_anatomy):
    moving, _ = draw_anatomy(make_grid("LPS"), (3, 0, 0))
    fixed, _ = draw_anatomy(make_grid("RAS"), (0, 0, 0))
    result = predictor_of(configuration, Waves()).register([moving], [fixed])
    there = apply_affine(moving.geometry.affine, np.argwhere(moving.array > 0)) + result.inverse[moving.array > 0]
    back = sample_displacement(result.displacement, fixed.geometry, there) + result.inverse[moving.array > 0]
    error = np.linalg.norm(back, axis=1)
    assert np.linalg.norm(result.inverse[moving.array > 0], axis=1).mean() > 2
    assert error.mean() < 0.1
    assert (
        error.max() * 0.999 < result.quality.inverse_error.max_mm < 0.5
    )  # over the whole grid, also beyond the network's
    assert result.quality.inverse_error.mean_mm == pytest.approx(error.mean(), rel=0.5)
    assert result.quality.inverse_error.percentile95_mm < 0.2


def test_images_that_share_no_place_have_no_inverse_error(configuration, make_network, make_grid, draw_anatomy):
    plain = replace(configuration, preprocessing=replace(configuration.preprocessing, prealignment="none"))
    moving, fixed = (draw_anatomy(make_grid(center=(x, 0, 0)), (x, 0, 0))[0] for x in (0, 500))
    result = predictor_of(plain, make_network(plain)).register([moving], [fixed])
    assert result.quality.inverse_error is None
    assert (result.warped[0] == 0).all()
    assert result.notices


def test_an_inverse_that_cannot_exist_is_reported_as_large(configuration, make_grid, draw_anatomy):
    class Fold(Waves):
        def forward(self, moving, fixed):
            displacement = 4 * super().forward(moving, fixed).displacement
            return SimpleNamespace(displacement=displacement, moving_logits=None, fixed_logits=None)

    image, _ = draw_anatomy(make_grid(), (0, 0, 0))
    assert predictor_of(configuration, Fold()).register([image], [image]).quality.inverse_error.max_mm > 2


def test_every_channel_is_warped_alike(two_channels, make_network, make_grid, draw_anatomy):
    moving, _ = draw_anatomy(make_grid("LPS"), (3, 0, 0))
    fixed, _ = draw_anatomy(make_grid(), (0, 0, 0))
    double = Image(2 * moving.array, moving.geometry)
    result = predictor_of(two_channels, make_network(two_channels)).register([moving, double], [fixed, fixed])
    assert len(result.warped) == 2
    assert all(channel.shape == fixed.geometry.shape for channel in result.warped)
    np.testing.assert_allclose(result.warped[1], 2 * result.warped[0], atol=1e-3)


def test_a_wrong_number_of_channels_names_both_numbers(configuration, make_network, make_grid, draw_anatomy):
    image, _ = draw_anatomy(make_grid(), (0, 0, 0))
    predictor = predictor_of(configuration, make_network(configuration))
    with pytest.raises(ImageError, match=r"the fixed image has 2 channel.*trained with 1"):
        predictor.register([image], [image, image])


def test_registering_twice_gives_the_same_numbers(configuration, make_network, make_grid, draw_anatomy):
    predictor = predictor_of(configuration, smoothly_deforming(make_network(configuration)))
    images = [draw_anatomy(make_grid(name), (0, 0, 0))[0] for name in ("RAS", "oblique")]
    first, second = (predictor.register(*([image] for image in images)) for _ in range(2))
    np.testing.assert_array_equal(first.displacement, second.displacement)
    np.testing.assert_array_equal(first.inverse, second.inverse)


def test_anatomy_outside_the_networks_grid_gives_a_notice(configuration, make_network, make_grid, draw_anatomy):
    narrow = replace(configuration, preprocessing=replace(configuration.preprocessing, patch_size=(24, 20, 4)))
    moving, _ = draw_anatomy(make_grid(), (0, 0, 0))
    result = predictor_of(narrow, make_network(narrow)).register([moving], [moving])
    assert len(result.notices) == 2
    assert "of the moving image's anatomy lies outside the grid" in result.notices[0]
    assert np.isfinite(result.displacement).all()


@pytest.mark.parametrize("lit", [0, 3], ids=["constant", "a few voxels"])
@pytest.mark.parametrize("prealignment", ["center", "affine"])
def test_an_image_that_shows_nothing_is_refused(
    configuration, make_network, make_grid, draw_anatomy, lit, prealignment
):
    plans = replace(configuration, preprocessing=replace(configuration.preprocessing, prealignment=prealignment))
    image, _ = draw_anatomy(make_grid(), (0, 0, 0))
    flat = Image(np.full(image.array.shape, 5, dtype=np.float32), image.geometry)
    flat.array[:lit, 0, 0] = 900
    predictor = predictor_of(plans, make_network(plans), reference=image)
    with pytest.raises(ImageError, match=r"nothing to register in the moving image: .* alike.* \(values from 5 to"):
        predictor.register([flat], [image])
    with pytest.raises(ImageError, match="nothing to register in the fixed image"):
        predictor.register([image], [flat])


def test_a_channel_that_shows_nothing_beside_one_that_does_gives_a_notice(
    two_channels, make_network, make_grid, draw_anatomy
):
    image, _ = draw_anatomy(make_grid(), (0, 0, 0))
    flat = Image(np.zeros_like(image.array), image.geometry)
    result = predictor_of(two_channels, make_network(two_channels)).register([image, flat], [image, image])
    (notice,) = result.notices
    assert notice.startswith("channel 1 of the moving image shows nothing")


def test_an_image_that_only_its_centre_aligns_gives_a_notice(configuration, make_network, make_grid, draw_anatomy):
    plans = replace(configuration, preprocessing=replace(configuration.preprocessing, prealignment="affine"))
    image, _ = draw_anatomy(make_grid(), (0, 0, 0))
    noise = Image(np.random.default_rng(0).random(image.array.shape).astype(np.float32), image.geometry)
    predictor = predictor_of(plans, make_network(plans), reference=make_reference(image, None, "MRI").image)
    notice = "the moving image is aligned to the model's reference by its centre alone: no turn of it fits better"
    assert notice in predictor.register([noise], [image]).notices
    assert notice.replace("moving", "fixed") in predictor.register([image], [noise]).notices
    for notices in (predictor.register([noise], [image]).notices, predictor.register([image], [image]).notices):
        assert notice.replace("moving", "fixed") not in notices  # the reference itself cannot be turned to fit better
    assert notice not in predictor.register([image], [image]).notices
    assert notice not in predictor.register([noise], [image], np.eye(4)).notices


def test_a_network_gone_astray_is_refused(configuration, make_network, make_grid, draw_anatomy):
    image, _ = draw_anatomy(make_grid(), (0, 0, 0))
    predictor = predictor_of(configuration, make_network(configuration, (np.nan, 0, 0)))
    with pytest.raises(PredictionError, match="not finite in 100 % of the voxels"):
        predictor.register([image], [image])


@pytest.fixture
def adapted(configuration, tmp_path, monkeypatch):
    """A configuration with a tiny VoCo-B, adapted; its weights are installed."""
    monkeypatch.setitem(VOCO_ENCODERS, "voco_b", VocoEncoder("VoCo-B", "VoCo_B_SSL_head.pt", 4, (2,), (2,), 2))
    torch.manual_seed(3)
    torch.save(SwinEncoder(1, 4, (2,), (2,), 2).state_dict(), tmp_path / "voco.pt")
    install_pretrained(str(tmp_path / "voco.pt"), tmp_path / "results")
    encoder = EncoderPlans("swin", "voco_b", "lora", LoraPlans(2, 4.0, mlp=True), 4, (2,), (2,), 2, ((2, 2, 2),) * 2)
    return replace(configuration, network=replace(configuration.network, encoder=encoder))


def trained_adapted(configuration, results):
    """Build an adapted network on the installed weights, whose adapters and outputs are not zero."""
    network = smoothly_deforming(build_network(configuration.network))
    load_base(network.encoder, "voco_b", results)
    for name, parameter in network.named_parameters():
        if name.endswith("lora_up"):
            torch.nn.init.normal_(parameter, std=0.3)
    return network


@pytest.mark.parametrize("averaged", [False, True])
def test_an_adapted_model_predicts_with_the_installed_base_as_the_trained_network_does(
    adapted, write_model, make_grid, draw_anatomy, tmp_path, averaged
):
    results = tmp_path / "results"
    folder, network = write_model(adapted), trained_adapted(adapted, results)
    trained = {name: each.detach().clone() for name, each in network.named_parameters() if each.requires_grad}
    if averaged:  # the weights themselves are others
        for parameter in network.parameters():
            parameter.data.add_(0.05 * parameter.requires_grad)
    run = RunSettings(0, 1, 1, 0, "cases")
    identity = Identity("Dataset901_Blobs", "tiny", "main", adapted, None, run, installed_hash(results, "voco_b"))
    path = folder / "fold_0" / "checkpoint_best.pth"
    save_checkpoint(path, capture(identity, {}, network, None, trained if averaged else None))
    assert not any("qkv.weight" in name for name in load_checkpoint(path).network)

    predictor = Predictor.from_model(find_model(results, ModelRequest()), CPU)
    assert not any(isinstance(module, LoraLinear) for module in predictor.networks[0].modules())
    images = [[draw_anatomy(make_grid(name), (0, 0, 0))[0]] for name in ("RAS", "oblique")]
    found = predictor.register(*images).displacement
    for state, is_right in ((trained, True), ({name: 0 * each for name, each in trained.items()}, False)):
        adapters = {name: each for name, each in state.items() if "lora" in name}
        network.load_state_dict({**network.state_dict(), **trained, **adapters})
        expected = predictor_of(adapted, network).register(*images).displacement
        error = np.abs(found - expected).max()
        assert error < 5e-3 if is_right else error > 0.05  # fields are rounded to 2 or 4 µm


def test_a_model_whose_base_is_not_installed_or_another_names_what_to_install(adapted, write_model, tmp_path):
    results = tmp_path / "results"
    folder, network = write_model(adapted), trained_adapted(adapted, results)
    run = RunSettings(0, 1, 1, 0, "cases")
    identity = Identity("Dataset901_Blobs", "tiny", "main", adapted, None, run, installed_hash(results, "voco_b"))
    path = folder / "fold_0" / "checkpoint_best.pth"
    model = find_model(results, ModelRequest())
    save_checkpoint(path, capture(replace(identity, pretrained_hash="b" * 64), {}, network, None))
    with pytest.raises(
        WeightsError, match=r"other weights of VoCo-B are installed .*trained with \(hash bbbbbbbbbbbb\)"
    ):
        Predictor.from_model(model, CPU)
    save_checkpoint(path, capture(identity, {}, network, None))
    (results / "pretrained" / "voco_b.pth").unlink()
    with pytest.raises(WeightsError, match=r"VoCo-B are not installed: no .*voco_b\.pth · run `biasreg_install_pretr"):
        Predictor.from_model(model, CPU)


def test_each_stage_is_timed(configuration, make_network, make_grid, draw_anatomy):
    image, _ = draw_anatomy(make_grid(), (0, 0, 0))
    seconds = predictor_of(configuration, make_network(configuration)).register([image], [image]).seconds
    assert set(seconds) == {
        *("prealign", "resample", "network", "agreement", "field", "inverse", "warp", "folding", "extras"),
    }
    assert min(seconds.values()) >= 0


def test_a_damaged_checkpoint_is_named(write_model):
    folder = write_model()
    path = folder / "fold_0" / "checkpoint_best.pth"
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(CheckpointError, match=r"checkpoint_best\.pth cannot be read as a checkpoint"):
        Predictor.from_model(find_model(folder.parents[1], ModelRequest()), CPU)


def test_a_checkpoint_of_another_configuration_is_refused(write_model, configuration):
    other = replace(configuration, preprocessing=replace(configuration.preprocessing, spacing=(1.0, 1.0, 1.0)))
    path = write_model(other) / "fold_0" / "checkpoint_best.pth"
    foreign = path.read_bytes()
    folder = write_model()
    path.write_bytes(foreign)
    with pytest.raises(CheckpointError, match="belongs to another configuration"):
        Predictor.from_model(find_model(folder.parents[1], ModelRequest()), CPU)


def test_weights_that_do_not_fit_the_network_are_refused(write_model, configuration, monkeypatch, make_network):
    folder = write_model()
    wider = make_network(replace(configuration, network=replace(configuration.network, decoder_channels=(4, 4, 6))))
    monkeypatch.setattr("biasreg.inference.loading.build_network", lambda plans: wider)
    with pytest.raises(CheckpointError, match=r"do not fit the network of biasreg .*size mismatch"):
        Predictor.from_model(find_model(folder.parents[1], ModelRequest()), CPU)


def test_images_may_be_files_simpleitk_or_nibabel_images_or_arrays(
    configuration, make_network, make_grid, draw_anatomy, tmp_path
):
    moving, fixed = draw_anatomy(make_grid("LPS"), (3, 0, 0))[0], draw_anatomy(make_grid("oblique"), (0, 0, 0))[0]
    predictor = predictor_of(configuration, smoothly_deforming(make_network(configuration)))
    expected = predictor.register(moving, fixed).displacement
    for name, image in (("moving.nii.gz", moving), ("fixed.nii.gz", fixed)):
        write_image(tmp_path / name, image.array, image.geometry)
    paths = [tmp_path / "moving.nii.gz", tmp_path / "fixed.nii.gz"]
    for images in (paths, map(nibabel.load, paths), [(each.array, each.geometry.affine) for each in (moving, fixed)]):
        np.testing.assert_allclose(predictor.register(*images).displacement, expected, atol=2e-3)
    itk = [SimpleITK.ReadImage(str(path)) for path in paths]
    np.testing.assert_allclose(predictor.register(*itk).displacement, expected, atol=2e-3)


def test_a_model_is_loaded_by_the_root_of_its_results_alone(write_model, make_grid, draw_anatomy):
    results = write_model(shift=(1.0, 0.0, 0.0)).parents[1]
    image, _ = draw_anatomy(make_grid(), (0, 0, 0))
    displacement = Predictor.from_results(results, device="cpu").register(image, image).displacement
    np.testing.assert_allclose(displacement.mean(axis=(0, 1, 2)), [2, 0, 0], atol=1e-3)


def test_threads_that_share_a_predictor_get_what_one_gets(configuration, make_network, make_grid, draw_anatomy):
    predictor = predictor_of(configuration, smoothly_deforming(make_network(configuration)))
    images = [draw_anatomy(make_grid(), (shift, 0, 0))[0] for shift in range(4)]
    alone = [predictor.register(image, images[0]).displacement for image in images]
    with ThreadPoolExecutor(4) as executor:
        together = list(executor.map(lambda image: predictor.register(image, images[0]).displacement, images))
    np.testing.assert_array_equal(together, alone)


@pytest.mark.parametrize("failures", [1, 2])
def test_with_too_little_memory_it_goes_on_in_smaller_steps(
    configuration, make_network, make_grid, draw_anatomy, monkeypatch, caplog, failures
):
    image, _ = draw_anatomy(make_grid(), (0, 0, 0))
    networks = [make_network(configuration, (shift, 0.0, 0.0)) for shift in (1.0, 2.0)]
    predictor = predictor_of(configuration, *networks)
    expected = predictor.register(image, image).displacement
    calls, forward = [], networks[0].forward

    def run_out(moving, fixed):
        calls.append(1)
        if len(calls) <= failures:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return forward(moving, fixed)

    monkeypatch.setattr(networks[0], "forward", run_out)
    np.testing.assert_array_equal(predictor.register(image, image).displacement, expected)
    assert ("one after the other" in caplog.text, "registered on the CPU" in caplog.text) == (True, failures == 2)
    caplog.clear()
    np.testing.assert_array_equal(predictor.register(image, image).displacement, expected)
    assert len(calls) == failures + 2, "the way that worked is taken at once"
    assert caplog.text == ""


def test_one_network_without_memory_goes_to_the_cpu_at_once(
    configuration, make_network, make_grid, draw_anatomy, monkeypatch, caplog
):
    image, _ = draw_anatomy(make_grid(), (0, 0, 0))
    network = make_network(configuration)
    answers = iter([torch.cuda.OutOfMemoryError("CUDA out of memory")])
    forward = network.forward

    def run_out(moving, fixed):
        for error in answers:
            raise error
        return forward(moving, fixed)

    monkeypatch.setattr(network, "forward", run_out)
    predictor_of(configuration, network).register(image, image)
    assert "all folds at once" not in caplog.text
    assert "registered on the CPU" in caplog.text


def test_memory_that_never_suffices_is_an_error(configuration, make_network, make_grid, draw_anatomy, monkeypatch):
    network = make_network(configuration)
    monkeypatch.setattr(network, "forward", Mock(side_effect=torch.cuda.OutOfMemoryError("CUDA out of memory")))
    image, _ = draw_anatomy(make_grid(), (0, 0, 0))
    with pytest.raises(torch.cuda.OutOfMemoryError):
        predictor_of(configuration, network).register(image, image)


def with_options(predictor, **options):
    return Predictor(predictor.networks, predictor.frames, predictor.plans, CPU, RegistrationOptions(**options))


def test_uncertainty_is_the_distance_of_the_folds_in_mm(configuration, make_network, make_grid, draw_anatomy):
    networks = [make_network(configuration, shift) for shift in ((0.0, 0.0, 0.0), (2.0, 0.0, 2.0))]
    image, _ = draw_anatomy(make_grid("LPS", (2.0, 2.5, 3.0)), (0, 0, 0))
    predictor = with_options(predictor_of(configuration, *networks), extras=("uncertainty",))
    uncertainty = predictor.register(image, image).uncertainty
    assert uncertainty.shape == image.geometry.shape
    dx, _, dz = configuration.preprocessing.spacing
    np.testing.assert_allclose(uncertainty, np.hypot(dx, dz), rtol=1e-4)  # one voxel from the mean, to either side


def test_uncertainty_of_one_view_of_one_network_is_refused(configuration, make_network):
    with pytest.raises(InputError, match="one network that sees it once"):
        with_options(predictor_of(configuration, make_network(configuration)), extras=("uncertainty",))


def test_mirroring_changes_nothing_where_the_network_ignores_what_it_sees_but_its_sign(
    configuration, make_network, make_grid, draw_anatomy
):
    image, _ = draw_anatomy(make_grid(), (0, 0, 0))
    predictor = predictor_of(configuration, make_network(configuration, (1.0, 2.0, 3.0)))
    mirrored = with_options(predictor, mirror_axes=(0,)).register(image, image).displacement
    expected = [0, 2 * configuration.preprocessing.spacing[1], 3 * configuration.preprocessing.spacing[2]]
    np.testing.assert_allclose(mirrored, np.broadcast_to(expected, mirrored.shape), atol=3e-3)


def test_levels_are_total_fields_on_the_fixed_grid(configuration, make_network, make_grid, draw_anatomy):
    moving, fixed = draw_anatomy(make_grid("LPS"), (3, 0, 0))[0], draw_anatomy(make_grid(), (0, 0, 0))[0]
    network = make_network(configuration, (1.0, 0.0, 0.0))
    result = with_options(predictor_of(configuration, network), extras=("levels",)).register(moving, fixed)
    assert set(result.levels) == {1}
    np.testing.assert_allclose(
        result.displacement - result.levels[1], np.broadcast_to([2, 0, 0], result.displacement.shape), atol=3e-3
    )


def test_of_a_refined_field_the_networks_own_is_a_level_too(configuration, make_network, make_grid, draw_anatomy):
    moving, fixed = draw_anatomy(make_grid("LPS"), (3, 0, 0))[0], draw_anatomy(make_grid(), (0, 0, 0))[0]
    predictor = predictor_of(configuration, make_network(configuration, (1.0, 0.0, 0.0)))
    plain = with_options(predictor, refine_steps=0).register(moving, fixed)
    refined = with_options(predictor, refine_steps=2, extras=("levels",)).register(moving, fixed)
    assert set(refined.levels) == {0, 1}
    np.testing.assert_array_equal(refined.levels[0], plain.displacement)
    assert np.abs(refined.displacement - plain.displacement).max() > 0.1
    assert (plain.refined_mm, refined.refined_mm) == (None, configuration.preprocessing.spacing)


@pytest.mark.parametrize("orientation", ["RAS", "oblique"])
def test_anatomy_that_is_thrown_out_of_the_moving_image_is_noticed(
    configuration, make_network, make_grid, draw_anatomy, orientation
):
    image, _ = draw_anatomy(make_grid(orientation), (0, 0, 0))  # 60 mm wide; the canonical grid is 48 mm wide
    found = [
        predictor_of(configuration, make_network(configuration, (voxels, 0.0, 0.0))).register(image, image).trust
        for voxels in (4.0, 40.0)
    ]
    verdicts = [{check.name: check for check in each.checks}["field of view"] for each in found]
    assert [verdict.status for verdict in verdicts] == ["PASS", "FAIL"]
    assert verdicts[1].text.startswith("100 %")


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_refinement_brings_the_images_closer_on_any_grid(
    configuration, make_network, make_grid, draw_anatomy, orientation
):
    moving, moving_labels = draw_anatomy(make_grid(orientation, (2.0, 2.5, 3.0)), (0, 0, 0))
    fixed, fixed_labels = draw_anatomy(make_grid("RAS", (2.0, 2.0, 2.0)), (0, 0, 0))
    predictor = predictor_of(configuration, make_network(configuration, (2.0, 0.0, 0.0)))  # 4 mm wrong
    plain, refined = (with_options(predictor, refine_steps=steps).register(moving, fixed) for steps in (0, 30))
    dice = [
        np.mean(
            list(
                dice_per_label(
                    warp_label_map(moving_labels, each.displacement, fixed.geometry), fixed_labels.array, (3, 7)
                ).values()
            )
        )
        for each in (plain, refined)
    ]
    assert dice[1] > dice[0] + 0.05
    assert refined.quality.folding_percent == 0
    assert refined.quality.inverse_error.percentile95_mm < 0.5


def test_refinement_uses_a_finer_grid_where_the_images_are_finer(configuration, make_network, make_grid, draw_anatomy):
    fine, coarse = (draw_anatomy(make_grid(spacing=(step,) * 3), (0, 0, 0))[0] for step in (1.0, 2.0))
    predictor = with_options(predictor_of(configuration, make_network(configuration)), refine_steps=1)
    pairs = (fine, fine), (coarse, coarse), (coarse, fine), (fine, coarse)
    assert [len(predictor.prepare(*pair).canonical) for pair in pairs] == [2, 1, 1, 1], "both images must be finer"
    estimated = predictor.estimate(predictor.prepare(fine, fine))
    assert tuple(estimated.displacement.shape[2:]) == tuple(2 * size for size in configuration.preprocessing.patch_size)
    assert estimated.grid.spacing == tuple(step / 2 for step in configuration.preprocessing.spacing)


def test_thick_slices_are_not_taken_for_fine_images(configuration, make_network, make_grid, draw_anatomy):
    image, _ = draw_anatomy(make_grid(spacing=(0.8, 0.8, 8.0)), (0, 0, 0))  # the volume of a cube with sides of 1.7 mm
    predictor = with_options(predictor_of(configuration, make_network(configuration)), refine_steps=1)
    assert len(predictor.prepare(image, image).canonical) == 1


def test_nothing_is_refined_beyond_what_the_networks_were_trained_with(
    configuration, make_network, make_grid, draw_anatomy
):
    image, _ = draw_anatomy(make_grid(spacing=(1.0,) * 3), (0, 0, 0))
    predictor = predictor_of(configuration, make_network(configuration))
    grids = []
    for finest in (1.0, 2.0):
        predictor.ranges = DataRanges(((finest, 3.0),) * 3, ((1.0, 999.0),) * 3, (((0.0, 1.0),) * 3,))
        grids.append(len(predictor.prepare(image, image).canonical))
    assert grids == [2, 1]


@pytest.mark.parametrize(
    "options", [{"refine_steps": -1}, {"refine_steps": 1.5}, {"mirror_axes": (5,)}, {"extras": ("nonsense",)}]
)
def test_options_that_mean_nothing_are_refused(configuration, make_network, options):
    with pytest.raises(InputError, match=r"give a whole number|axes are 0, 1 and 2"):
        with_options(predictor_of(configuration, make_network(configuration)), **options)


def test_without_memory_for_the_finest_grid_a_coarser_one_is_refined(
    configuration, make_network, make_grid, draw_anatomy, monkeypatch, caplog
):
    image, _ = draw_anatomy(make_grid(spacing=(1.0,) * 3), (0, 0, 0))
    predictor = predictor_of(configuration, make_network(configuration))
    prepared = predictor.prepare(image, image)
    assert len(prepared.canonical) == 2

    def run_out(displacement, levels, plans, steps):
        if len(list(levels)) > 1:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return displacement

    monkeypatch.setattr("biasreg.inference.estimation.refine", run_out)
    assert predictor.estimate(prepared).grid.spacing == configuration.preprocessing.spacing
    assert "refined on a coarser one" in caplog.text


def test_without_memory_for_any_refinement_the_networks_field_is_kept_and_nothing_else_changes(
    configuration, make_network, make_grid, draw_anatomy, monkeypatch, caplog
):
    image, _ = draw_anatomy(make_grid(spacing=(1.0,) * 3), (0, 0, 0))
    networks = [make_network(configuration, (shift, 0.0, 0.0)) for shift in (1.0, 2.0)]
    predictor = with_options(predictor_of(configuration, *networks), extras=("levels",))
    plain = with_options(predictor, refine_steps=0, extras=("levels",)).register(image, image)
    run_out = Mock(side_effect=torch.cuda.OutOfMemoryError("CUDA out of memory"))
    monkeypatch.setattr("biasreg.inference.estimation.refine", run_out)
    found = predictor.register(image, image)
    assert run_out.call_count == 2, "on the canonical grid and a finer one, then on the canonical one"
    np.testing.assert_array_equal(found.displacement, plain.displacement)
    assert (found.refined_mm, set(found.levels)) == (None, set(plain.levels))
    assert "the networks' field is kept" in caplog.text
    assert "all folds at once" not in caplog.text
    caplog.clear()
    monkeypatch.undo()
    refined = predictor.register(image, image)
    assert refined.refined_mm == tuple(step / 2 for step in configuration.preprocessing.spacing)
    assert set(refined.levels) == {0, *plain.levels}
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("step", "similarity", "refined"), [(1.0, "lncc", True), (2.0, "lncc", False), (1.0, "mind", False)]
)
def test_unless_said_fields_are_refined_where_images_of_one_modality_are_finer(
    configuration, make_network, make_grid, draw_anatomy, step, similarity, refined
):
    image, _ = draw_anatomy(make_grid(spacing=(step,) * 3), (0, 0, 0))
    plans = replace(configuration, training=replace(configuration.training, similarity=similarity))
    predictor = predictor_of(plans, make_network(configuration))
    assert ("refine" in predictor.register(image, image).seconds) == refined


def test_uncertainty_counts_mm_of_the_moving_world(configuration, make_network, make_grid, draw_anatomy):
    networks = [make_network(configuration, shift) for shift in ((0.0, 0.0, 0.0), (2.0, 0.0, 0.0))]
    image, _ = draw_anatomy(make_grid(), (0, 0, 0))
    predictor = with_options(predictor_of(configuration, *networks), extras=("uncertainty",))
    twice = np.diag([2.0, 1.0, 1.0, 1.0])  # the moving world is twice as wide
    uncertainty = predictor.register(image, image, twice).uncertainty
    np.testing.assert_allclose(uncertainty, 2 * configuration.preprocessing.spacing[0], rtol=1e-4)
