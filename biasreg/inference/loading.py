"""The networks of a trained model, and what its folder says of the data that it knows."""

import biasreg
from biasreg.core.errors import CheckpointError
from biasreg.core.serialization import content_hash, read_record
from biasreg.inference.models import TrainedModel
from biasreg.network.biasnet import BIASNet
from biasreg.network.build import build_network
from biasreg.network.checkpoint import Checkpoint, check_reference, load_checkpoint, load_network_state
from biasreg.network.lora import merge_lora
from biasreg.network.pretrained import installed_weights, load_weights
from biasreg.planning.data_ranges import DataRanges
from biasreg.planning.files import RANGES_FILE
from biasreg.preprocessing.reference_files import reference_hash


def load_networks(model: TrainedModel) -> list[BIASNet]:
    """Load the network of each fold; weights that the folds share are read once.

    Args:
        model: The trained model.

    Returns:
        One network per fold, on the CPU, adapters merged into their layers.

    Raises:
        CheckpointError: If a checkpoint cannot be read, or was trained with another configuration or reference image
            than the model's.
        WeightsError: If the pretrained weights that the model adapts are not installed, or are others.
        PlansError: If a file of the reference image is missing.
    """
    reference = reference_hash(model.folder, model.configuration.preprocessing)
    encoder, base = model.configuration.network.encoder, None
    networks = []
    for path in model.checkpoints:
        checkpoint = load_checkpoint(path, content_hash(model.configuration))
        check_reference(path, checkpoint.identity, reference)
        network = build_network(model.configuration.network)
        expected = checkpoint.identity.pretrained_hash
        if encoder.tuning != "full" and expected is not None:
            if base is None or base.sha256 != expected:
                base = installed_weights(model.results, encoder.init, expected)
            load_weights(network.encoder, base)
        _load_state(network, str(path), checkpoint)
        merge_lora(network)
        networks.append(network)
    return networks


def read_ranges(model: TrainedModel) -> DataRanges | None:
    """Read what the training images of a model were like.

    Args:
        model: The trained model.

    Returns:
        The ranges; None where the model's folder does not hold them.

    Raises:
        RecordError: If the file is damaged.
    """
    path = model.folder / RANGES_FILE
    return read_record(path, DataRanges) if path.is_file() else None


def _load_state(network: BIASNet, path: str, checkpoint: Checkpoint) -> None:
    try:
        load_network_state(network, checkpoint.weights)
    except RuntimeError as error:  # torch lists the tensors that do not fit, one a line
        written_by = ", ".join(f"{name} {version}" for name, version in checkpoint.versions.items())
        raise CheckpointError(
            f"the weights do not fit the network of biasreg {biasreg.__version__}: {' '.join(str(error).split())} · "
            f"{path} (written by {written_by}) · predict with the version that trained it, or train anew"
        ) from error
