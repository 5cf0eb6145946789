"""What the two decoders see: their feature maps as three principal components, for pictures."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from biasreg.network.biaf import BIAF
from biasreg.network.biasnet import BIASNet
from biasreg.network.device import autocast
from biasreg.network.dual_decoder import DualFeatures

COMPONENTS = 3  # red, green and blue
ROLES = ("moving", "fixed")


@torch.no_grad()
def feature_maps(network: BIASNet, moving: Tensor, fixed: Tensor) -> dict[str, NDArray[np.float16]]:
    """Give the features of a pair on the grids of the registration levels.

    Args:
        network: The network, in evaluation mode, on the images' device.
        moving: (1, C, X, Y, Z) in [0, 1].
        fixed: (1, C, X, Y, Z) in [0, 1].

    Returns:
        By the name `<image>_<kind>_level<k>`: (3, X', Y', Z'), the three strongest principal components, whose axes
        moving and fixed image share. Kinds are `semantic` and `intensity`, what the decoders give; `enhanced`, the
        semantic features after MAC; and `semantic_without_biaf`, `intensity_without_biaf`, what the same decoders give
        when BIAF's offsets are left out. Kinds that the network does not have are missing.
    """
    with autocast(fixed.device):
        maps = network.encoder(torch.cat([moving, fixed]))
        decoded: DualFeatures = network.decoder(maps)
        kinds = {"semantic": decoded.semantic, "intensity": decoded.intensity}
        if decoded.semantic is not None and decoded.intensity is not None:
            kinds["enhanced"] = network.enhancement(decoded.semantic, decoded.intensity)
        with _without_offsets(network):
            plain: DualFeatures = network.decoder(maps)
    kinds |= {"semantic_without_biaf": plain.semantic, "intensity_without_biaf": plain.intensity}
    levels = len(network.registration.levels)
    return {
        f"{role}_{kind}_level{level}": image
        for kind, features in kinds.items()
        if features is not None
        for level, both in enumerate(features[:levels])
        for role, image in zip(ROLES, principal_components(both.float()), strict=True)
    }


def principal_components(features: Tensor) -> NDArray[np.float16]:
    """Project features on their strongest principal components.

    Args:
        features: (B, C, X, Y, Z); the B images share the axes.

    Returns:
        (B, 3, X, Y, Z); components that C is too small for are 0. Each component points where its largest loading is
        positive, so that pictures do not change their colours by chance.
    """
    batch, channels, *shape = features.shape
    vectors = features.transpose(0, 1).reshape(channels, -1)  # (C, B·X·Y·Z)
    vectors = vectors - vectors.mean(dim=1, keepdim=True)
    axes = torch.linalg.eigh(vectors @ vectors.T / vectors.shape[1]).eigenvectors.flip(1)[:, :COMPONENTS]  # (C, ≤ 3)
    axes = axes * axes.gather(0, axes.abs().argmax(dim=0, keepdim=True)).sign()
    projected = (axes.T @ vectors).reshape(-1, batch, *shape).transpose(0, 1).cpu().numpy()  # (B, ≤ 3, X, Y, Z)
    missing = np.zeros((batch, COMPONENTS - projected.shape[1], *shape), dtype=np.float32)
    return np.concatenate([projected, missing], axis=1).astype(np.float16)


@contextmanager
def _without_offsets(network: BIASNet) -> Iterator[None]:
    """Let BIAF fuse at fixed positions inside the block."""
    modules: Sequence[BIAF] = [module for module in network.modules() if isinstance(module, BIAF)]
    branches = [module.offsets for module in modules]
    try:
        for module in modules:
            module.offsets = None
        yield
    finally:
        for module, branch in zip(modules, branches, strict=True):
            module.offsets = branch
