"""Where data that stay in the world of their headers have their canonical origin."""

from collections.abc import Sequence

import numpy as np

from biasreg.core.dataset_json import Pairing
from biasreg.planning.fingerprint_records import CaseFingerprint, Fingerprint, Triple


def shared_centers(fingerprint: Fingerprint, pairing: Pairing) -> dict[str, Triple]:
    """Find the canonical origin of each case for data that stay in the world of their headers.

    Args:
        fingerprint: The dataset's fingerprint.
        pairing: Pairing of the dataset.

    Returns:
        Per case a world point (RAS mm): the mean foreground centre of its subject within subjects, else of all cases.
    """
    groups: dict[str, list[tuple[float, float, float]]] = {}
    group_of = {case.identifier: case.subject if pairing == "intra-subject" else "" for case in fingerprint.cases}
    for case in fingerprint.cases:
        groups.setdefault(group_of[case.identifier], []).append(case.foreground_center)
    means = {name: _mean(centers) for name, centers in groups.items()}
    return {identifier: means[name] for identifier, name in group_of.items()}


def extent_about(case: CaseFingerprint, center: Triple) -> Triple:
    """Find the box about a point that holds a case's foreground.

    Args:
        case: Facts about the case.
        center: The middle of the box, RAS mm.

    Returns:
        Side lengths along x, y, z in mm: of a foreground that lies off the point more than its own.
    """
    offset = np.abs(np.array(case.foreground_center) - center)
    x, y, z = (float(side) for side in 2 * offset + case.foreground_extent_mm)
    return x, y, z


def _mean(points: Sequence[Triple]) -> Triple:
    x, y, z = (float(value) for value in np.mean(points, axis=0))
    return x, y, z
