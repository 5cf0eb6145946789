"""Questions to the preprocessed data before hours are spent on them: can anything be learned from these pairs?

What is looked at is what the trainer will see, through the same `CaseSource` and `FoldData`. Nothing is written.
`overfit.py` asks the last question, whether the network learns one pair.
"""

from collections.abc import Iterator, Mapping, Sequence
from statistics import median

import numpy as np
import torch

from biasreg.core.errors import PlansError
from biasreg.planning.pairing import Pair
from biasreg.planning.plans import Configuration
from biasreg.preprocessing.storage import EXCLUDED, INSIDE, StoredCase, load_labels, load_mask, read_stored_case
from biasreg.training.check_lines import CheckLine, listed
from biasreg.training.data import CaseSource
from biasreg.training.validation import labels_present, mean_dice
from biasreg.training.workspace import FoldData

SEED = 0  # of the samples, so that the same data always get the same answer
MAX_CASES = 50  # whose arrays are read: seconds from a local disk
MAX_PAIRS = 12  # at most half of them from validation
VALUE_TOLERANCE = 1e-3  # images are stored as float16, whose steps below 1 are half of this
EXTENT_FACTOR = 4.0  # as inference/plausibility.py has it: people differ by less, headers in cm or µm by more
MOST_OUTSIDE = 0.1  # share of the anatomy beside the grid; planning leaves next to nothing there
LEAST_COVERED = 0.5  # share of the fixed image's values: below, most of the pair has nothing to be compared with
LEAST_USUALLY_COVERED = 0.05  # below it the images lie beside each other
LEAST_DICE, MOST_DICE = 0.05, 0.95  # about what labels share by chance; about what two experts agree to
FEW_CASES = 3  # two cases make a single pair, three the first choice
REMEDY = "run `biasreg_preprocess --clean` on the dataset"


def check_data(source: CaseSource, data: FoldData, configuration: Configuration) -> Iterator[CheckLine]:
    """Check the stored cases of a fold and the pairs that they make; takes seconds.

    Args:
        source: Where cases are read from.
        data: Cases and pairs of the fold.
        configuration: What is trained.

    Yields:
        One line for each question, as soon as it is answered.

    Raises:
        PlansError: If the record of a case is missing.
    """
    train, validation = (
        [read_stored_case(source.folder, case, REMEDY) for case in cases]
        for cases in (data.fold.train, data.fold.validation)
    )
    stored = check_stored_cases(source, data.fold.train + data.fold.validation, configuration)
    yield stored
    yield check_headers([*train, *validation])
    yield check_leakage(train, validation)
    yield check_label_coverage(train, configuration)
    if stored.verdict != "FAIL":
        yield from check_pairs(source, sample_pairs(data), configuration.network.num_labels)


def sample_pairs(data: FoldData) -> tuple[Pair, ...]:
    """Choose pairs to look at: some that validation takes, and others that training draws.

    Args:
        data: Cases and pairs of the fold.

    Returns:
        At most 12 different (moving, fixed) pairs, always the same.
    """
    rng = np.random.default_rng(SEED)
    drawn = [data.sampler.draw(rng) for _ in range(MAX_PAIRS)]
    return tuple(dict.fromkeys([*data.validation[: MAX_PAIRS // 2], *drawn]))[:MAX_PAIRS]


def check_stored_cases(source: CaseSource, cases: Sequence[str], configuration: Configuration) -> CheckLine:
    """Check shapes and values of the arrays that training reads, of all cases or a seeded sample of 50.

    Args:
        source: Where cases are read from.
        cases: Their identifiers.
        configuration: Says which shape and classes they must have.

    Returns:
        FAIL names cases that cannot be trained on, WARN those that show nothing.
    """
    chosen = list(cases)
    if len(chosen) > MAX_CASES:
        picked = np.random.default_rng(SEED).choice(len(chosen), MAX_CASES, replace=False)
        chosen = [cases[index] for index in sorted(picked)]
    faults: list[str] = []
    empty: list[str] = []
    for case in chosen:
        _look_at_arrays(source, case, configuration, faults, empty)
    looked_at = f"all {len(cases)} cases" if len(chosen) == len(cases) else f"{len(chosen)} of {len(cases)} cases"
    if len(empty) >= len(chosen) and not faults:
        faults = empty
    if faults:
        return CheckLine("stored cases", "FAIL", f"{listed(faults)} ({looked_at} looked at) · {REMEDY}")
    if empty:
        remedy = "look at their images and masks, or leave them out"
        return CheckLine("stored cases", "WARN", f"{listed(empty)} ({looked_at} looked at) · {remedy}")
    shape = "×".join(map(str, configuration.preprocessing.patch_size))
    return CheckLine("stored cases", "PASS", f"{looked_at} have {shape} voxels, values in [0, 1], and known classes")


def check_headers(records: Sequence[StoredCase]) -> CheckLine:
    """Compare what the headers of the raw images say of their size, and see that the anatomy is on the grid.

    Args:
        records: Records of all cases of the fold.

    Returns:
        FAIL names frames that mirror, WARN sizes unlike the others' and anatomy beside the grid.
    """
    mirrored = [record.identifier for record in records if np.linalg.det(np.array(record.frame)[:3, :3]) <= 0]
    if mirrored:
        text = f"the frame swaps left and right: {listed(mirrored)} · correct their headers; {REMEDY}"
        return CheckLine("headers", "FAIL", text)
    diagonals = [float(np.linalg.norm(record.geometry.extent_mm)) for record in records]
    usual = median(diagonals)
    odd = [
        f"{record.identifier} measures {diagonal:.4g} mm across"
        for record, diagonal in zip(records, diagonals, strict=True)
        if not usual / EXTENT_FACTOR <= diagonal <= usual * EXTENT_FACTOR
    ]
    odd += [
        f"{record.identifier} has {record.foreground_outside:.0%} of its anatomy beside the grid"
        for record in records
        if record.foreground_outside > MOST_OUTSIDE
    ]
    if odd:
        text = f"{listed(odd)}; half of the images measure {usual:.4g} mm or more · is their voxel size in mm?"
        return CheckLine("headers", "WARN", text)
    return CheckLine("headers", "PASS", f"images measure {min(diagonals):.4g} to {max(diagonals):.4g} mm across")


def check_leakage(train: Sequence[StoredCase], validation: Sequence[StoredCase]) -> CheckLine:
    """See that validation shows nothing that training has seen.

    Args:
        train: Records of the training cases.
        validation: Records of the held-out cases.

    Returns:
        FAIL names subjects on both sides, WARN files on both sides under different names.
    """
    both = {record.subject for record in train} & {record.subject for record in validation}
    if both:
        text = f"subject(s) on both sides: {listed(sorted(both))} · correct splits_final.json, or delete it"
        return CheckLine("leakage", "FAIL", f"{text} and plan again")
    known = {record.source_hash: record.identifier for record in train}
    twins = [
        f"{known[record.source_hash]} and {record.identifier}" for record in validation if record.source_hash in known
    ]
    if twins:
        text = f"the same files in training and in validation: {listed(twins)} · leave one of each out"
        return CheckLine("leakage", "WARN", f"{text}, or give both one subject")
    return CheckLine("leakage", "PASS", f"{len(train)} training and {len(validation)} held-out cases share no subject")


def check_label_coverage(train: Sequence[StoredCase], configuration: Configuration) -> CheckLine:
    """Count the training cases that show each label.

    Args:
        train: Records of the training cases.
        configuration: Names the labels.

    Returns:
        WARN names labels that no pair or few pairs can show.
    """
    names = configuration.preprocessing.label_names
    if configuration.network.num_labels < 2 or not names:
        return CheckLine("label coverage", "PASS", "the model has no labels")
    annotated = [record for record in train if record.annotated]
    counts = {name: sum(k in record.label_presence for record in annotated) for k, name in enumerate(names, 1)}
    rare = [f"{name} by {_cases(count)}" for name, count in counts.items() if count < FEW_CASES]
    shown = f"{len(annotated)} of {len(train)} training cases have labels"
    if not annotated:
        return CheckLine("label coverage", "WARN", f"{shown}: images alone are learned from · see biasreg_pseudo_label")
    if rare:
        text = f"{shown}; shown {listed(rare)}: a pair needs two · add such cases, or expect nothing for these labels"
        return CheckLine("label coverage", "WARN", text)
    rarest = min(counts, key=lambda name: counts[name])
    return CheckLine(
        "label coverage", "PASS", f"{shown}; the rarest label, {rarest}, is shown by {_cases(counts[rarest])}"
    )


def check_pairs(source: CaseSource, pairs: Sequence[Pair], num_labels: int) -> Iterator[CheckLine]:
    """Measure pairs as they lie before the network: how much of the fixed image the moving one covers, and Dice.

    Args:
        source: Where cases are read from.
        pairs: (moving, fixed) case identifiers.
        num_labels: Number of classes with the background.

    Yields:
        A line on overlap, then one on Dice.
    """
    covered, dice = {}, {}
    for moving, fixed in pairs:
        name = f"{moving} -> {fixed}"
        masks = source.mask(moving) > 0, source.mask(fixed) > 0
        covered[name] = float((masks[0] & masks[1]).sum() / max(masks[1].sum(), 1))
        if num_labels > 1 and source.annotated[moving] and source.annotated[fixed]:
            ours, theirs = (torch.from_numpy(source.labels(case)).long() for case in (moving, fixed))
            dice[name] = mean_dice(ours, theirs, labels_present(ours, num_labels))
    yield judge_overlap(covered)
    yield judge_dice({name: value for name, value in dice.items() if value is not None}, len(dice))


def judge_overlap(covered: Mapping[str, float]) -> CheckLine:
    """Judge which share of the fixed image's values the moving image covers.

    Args:
        covered: Share, 0 to 1, by pair.

    Returns:
        FAIL if most pairs share nothing, WARN if one shares less than half.
    """
    usual, worst = median(covered.values()), min(covered, key=lambda name: covered[name])
    least = f"least {covered[worst]:.0%}, {worst}"
    text = f"the moving image covers {usual:.0%} of the fixed one (median of {len(covered)} pairs; {least})"
    if usual < LEAST_USUALLY_COVERED:
        return CheckLine("overlap", "FAIL", f"{text} · nothing can be compared; see that the headers place the anatomy")
    if covered[worst] < LEAST_COVERED:
        return CheckLine("overlap", "WARN", f"{text} · look at this pair's headers")
    return CheckLine("overlap", "PASS", text)


def judge_dice(dice: Mapping[str, float], labelled: int) -> CheckLine:
    """Judge the Dice of unregistered pairs.

    Args:
        dice: Mean Dice, 0 to 1, by pair; only of pairs that have a label in common.
        labelled: Number of pairs whose two cases have labels.

    Returns:
        WARN if pairs are alike already, or lie nowhere near each other.
    """
    if not dice:
        text = f"not measured: of the sampled pairs {labelled} have two label maps, and 0 of these a label in both"
        return CheckLine("identity Dice", "WARN" if labelled else "PASS", text)
    usual, worst = median(dice.values()), min(dice, key=lambda name: dice[name])
    text = f"{usual:.3f} before registration (median of {len(dice)} pairs; least {dice[worst]:.3f}, {worst})"
    if usual > MOST_DICE:
        return CheckLine(
            "identity Dice", "WARN", f"{text} · there is next to nothing to learn; are these the right pairs?"
        )
    if dice[worst] < LEAST_DICE:
        text += " · the pre-alignment failed there: look at headers and labels, or give `initial` transforms"
        return CheckLine("identity Dice", "WARN", text)
    return CheckLine("identity Dice", "PASS", text)


def _look_at_arrays(
    source: CaseSource, case: str, configuration: Configuration, faults: list[str], empty: list[str]
) -> None:
    """Add what is wrong with a case's arrays to the faults, and what shows nothing to the others."""
    try:
        image, labels, mask = source.image(case), source.labels(case), source.mask(case)
    except PlansError as error:
        faults.append(f"{case}: {error}")
        return
    channels, planned = configuration.network.in_channels, configuration.preprocessing.patch_size
    for name, array, expected in (("image", image, channels), ("labels", labels, 1), ("mask", mask, 1)):
        if array.shape != (expected, *planned):
            faults.append(f"{case}: its {name} has shape {array.shape}, planned is {(expected, *planned)}")
    low, high = float(image.min()), float(image.max())  # not-a-number if any voxel is
    if not (low >= -VALUE_TOLERANCE and high <= 1 + VALUE_TOLERANCE):
        faults.append(f"{case}: intensities from {low:.4g} to {high:.4g}, not in [0, 1]")
    faults.extend(f"{case}: {fault}" for fault in _class_faults(source, case, configuration))
    if low == high:
        empty.append(f"{case}: all voxels are {low:.4g}")
    if not (mask == INSIDE).any():
        empty.append(f"{case}: no voxel counts in its mask")


def _class_faults(source: CaseSource, case: str, configuration: Configuration) -> Iterator[str]:
    """Say what is wrong with the values of a case's labels and mask, as they are stored."""
    classes = max(configuration.network.num_labels - 1, len(configuration.preprocessing.label_values))
    limits = {"labels": (load_labels(source.folder, case), classes), "mask": (load_mask(source.folder, case), EXCLUDED)}
    for name, (array, largest) in limits.items():
        if not np.issubdtype(array.dtype, np.integer):
            yield f"its {name}: stored as {array.dtype}, not as integers"
        elif not 0 <= int(array.min()) <= int(array.max()) <= largest:
            yield f"its {name}: values from {array.min()} to {array.max()}, the plans know 0 to {largest}"


def _cases(count: int) -> str:
    return "no case" if count == 0 else f"{count} case{'s' if count > 1 else ''}"
