"""Training on a pretrained encoder: what trains, what is saved, and what is refused."""

from dataclasses import replace

import pytest
import torch

from biasreg.core.errors import PlansError, WeightsError
from biasreg.network.checkpoint import BEST, LATEST, load_checkpoint
from biasreg.network.encoder import SwinEncoder
from biasreg.network.install_pretrained import install_pretrained
from biasreg.network.pretrained import read_weights
from biasreg.planning.plans import EncoderPlans, LoraPlans
from biasreg.planning.voco import VOCO_ENCODERS, VocoEncoder, weights_path
from biasreg.training.fold import train_fold
from biasreg.training.options import TrainingOptions

OPTIONS = TrainingOptions(plans_name="tiny", device="cpu", num_workers=0, picture_every=0)


def install(results, seed):
    """Install a tiny VoCo-B with weights of a seed, in place of any other."""
    weights_path(results, "voco_b").unlink(missing_ok=True)
    weights_path(results, "voco_b").with_suffix(".json").unlink(missing_ok=True)
    torch.manual_seed(seed)
    results.mkdir(exist_ok=True)
    torch.save(SwinEncoder(1, 4, (2,), (2,), 2).state_dict(), results.parent / "voco.pt")
    install_pretrained(str(results.parent / "voco.pt"), results)


@pytest.fixture
def adapted(configuration, monkeypatch):
    """A configuration with a tiny VoCo-B and adapters."""
    monkeypatch.setitem(VOCO_ENCODERS, "voco_b", VocoEncoder("VoCo-B", "VoCo_B_SSL_head.pt", 4, (2,), (2,), 2))
    encoder = EncoderPlans("swin", "voco_b", "lora", LoraPlans(2, 4.0, mlp=True), 4, (2,), (2,), 2, ((2, 2, 2),) * 2)
    return replace(configuration, network=replace(configuration.network, encoder=encoder))


def test_adapters_train_and_are_saved_without_the_base_they_stand_on(adapted, write_dataset):
    roots = write_dataset(adapted)
    install(roots.results, 1)
    folder = train_fold(roots, "901", 0, OPTIONS)
    log = (folder / "training_log.txt").read_text()
    assert "VoCo-B loaded" in log or "of them adapters" in log
    checkpoint = load_checkpoint(folder / LATEST)
    adapters = {name: value for name, value in checkpoint.network.items() if name.endswith("lora_up")}
    assert adapters
    assert all(value.abs().max() > 0 for value in adapters.values())  # they start at zero
    assert not any(name.endswith("qkv.weight") for name in checkpoint.network)
    assert checkpoint.identity.pretrained_hash == read_weights(weights_path(roots.results, "voco_b")).sha256
    assert set(checkpoint.averaged) <= set(checkpoint.network)
    assert (folder / BEST).stat().st_size < (folder / LATEST).stat().st_size


def test_a_run_is_resumed_on_the_weights_that_it_was_started_with_alone(adapted, write_dataset):
    roots = write_dataset(adapted)
    install(roots.results, 1)
    train_fold(roots, "901", 0, OPTIONS)
    install(roots.results, 2)
    with pytest.raises(WeightsError):
        train_fold(roots, "901", 0, replace(OPTIONS, resume=True))
    with pytest.raises(PlansError, match="another pretrained encoder than the one that is installed"):
        train_fold(roots, "901", 1, OPTIONS)  # folds of one model predict together


def test_a_frozen_encoder_stays_as_it_is_and_a_free_one_does_not(adapted, write_dataset):
    weights = {}
    for tuning in ("frozen", "full"):
        encoder = replace(adapted.network.encoder, tuning=tuning, lora=None)
        roots = write_dataset(replace(adapted, network=replace(adapted.network, encoder=encoder)))
        install(roots.results, 1)
        folder = train_fold(roots, "901", 0, replace(OPTIONS, overwrite=True))
        weights[tuning] = load_checkpoint(folder / LATEST).network
    base = read_weights(weights_path(roots.results, "voco_b")).parameters
    name = next(name for name in base if name.endswith("qkv.weight"))
    assert f"encoder.{name}" not in weights["frozen"]
    assert not torch.equal(weights["full"][f"encoder.{name}"], base[name])


def test_without_the_weights_training_says_what_to_install(adapted, write_dataset):
    roots = write_dataset(adapted)
    with pytest.raises(WeightsError, match="biasreg_install_pretrained voco_b"):
        train_fold(roots, "901", 0, OPTIONS)
