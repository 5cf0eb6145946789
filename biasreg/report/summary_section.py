"""The summary: a verdict in one line, the key numbers, and what made them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import biasreg
from biasreg.evaluation.records import IDENTITY, MethodSummary
from biasreg.evaluation.summary import mean_of_known
from biasreg.report.material import Material
from biasreg.report.page import Section, number, percent, render
from biasreg.report.ranking import PairRow


@dataclass(frozen=True)
class KeyNumber:
    """A number that the summary shows large.

    Attributes:
        name: What it is.
        text: The number.
        unit: Its unit, or what it is compared with.
    """

    name: str
    text: str
    unit: str = ""


def summary_section(material: Material, rows: Sequence[PairRow]) -> Section:
    """Sum the report up.

    Args:
        material: What is known.
        rows: The pairs, worst first.
    """
    body = render(
        "summary.html.j2",
        verdict=verdict(material, rows),
        warnings=list(_warnings(material, rows)),
        numbers=list(_key_numbers(material, rows)),
        facts=dict(_facts(material)),
    )
    return Section("summary", "Summary", body)


def verdict(material: Material, rows: Sequence[PairRow]) -> str:
    """Say in a sentence or two how good the registration is, as far as anything tells.

    Args:
        material: What is known.
        rows: The pairs, worst first.
    """
    own, identity = _summary(material, material.method), _summary(material, IDENTITY)
    if own is not None and own.dice is not None:
        before = identity.dice.mean if identity is not None and identity.dice is not None else None
        return f"{_change(own.dice.mean, before, own.dice.count)}; {_folding(own)}.{_rank(material, own)}"
    if own is not None and own.tre_mm is not None:
        return f"The mean landmark error of {own.tre_mm.count} pairs is {own.tre_mm.mean:.2f} mm; {_folding(own)}."
    after = [row.dice for row in rows if row.dice is not None]
    if after:
        before = mean_of_known(row.dice_before for row in rows if row.dice is not None)
        return f"{_change(sum(after) / len(after), before, len(after))}, as prediction measured it."
    if rows:
        return f"{len(rows)} pairs are registered; without reference labels or landmarks their accuracy is not known."
    if own is None and material.model is not None:
        return "A model is trained; no pairs were given that it registered."
    return "Plans and facts of a dataset; no model and no registered pairs were given."


def _summary(material: Material, method: str | None) -> MethodSummary | None:
    summaries = () if material.evaluation is None else material.evaluation.methods
    return next((each for each in summaries if each.method == method and each.num_pairs), None)


def _change(after: float, before: float | None, count: int) -> str:
    pairs = f"{count} pairs" if count != 1 else "one pair"
    if before is None:
        return f"The mean Dice of {pairs} is {after:.3f}"
    word = "raises" if after > before else "does not raise"
    return f"Registration {word} the mean Dice of {pairs}: {before:.3f} before, {after:.3f} after"


def _folding(own: MethodSummary) -> str:
    folding = own.folding_percent
    if folding is None or folding.mean == 0:
        return "no voxel folds" if folding is not None else "folding was not measured"
    return f"{percent(folding.mean)} % of voxels fold"


def _rank(material: Material, own: MethodSummary) -> str:
    summaries = [_summary(material, name) for name in material.other_methods]
    if own.dice is None:
        return ""
    of_as_many = [each for each in summaries if each is not None and each.dice and each.dice.count == own.dice.count]
    known = [(each.dice.mean, each.method) for each in of_as_many if each.dice]
    if not known:
        return ""
    best, name = max(known)
    if own.dice.mean > best:
        others = (
            f"the {len(known)} other methods reach; the next is {name} with" if len(known) > 1 else f"{name} reaches,"
        )
        return f" That is more than {others} {best:.3f}."
    return f" {name} reaches {best:.3f}."


def _warnings(material: Material, rows: Sequence[PairRow]) -> Iterator[str]:
    """What a reader must not overlook."""
    for status, word in (("FAIL", "Failed the trust checks"), ("WARN", "Doubtful by the trust checks")):
        yield from _named(word, [row.name for row in rows if row.status == status], len(rows))
    worse = [row.name for row in rows if row.is_worse]
    yield from _named("Labels overlap less than without registration", worse, len(rows))
    if material.evaluation is not None:
        failed = list(dict.fromkeys(failure.pair for failure in material.evaluation.failures))
        yield from _named("Not evaluated", failed, len(rows))
    yield from _named("With notices", [row.name for row in rows if row.notices], len(rows))
    yield from dict.fromkeys(notice for row in rows if row.pair.record for notice in row.pair.record.provenance.notices)


def _named(what: str, names: Sequence[str], count: int) -> Iterator[str]:
    """One line on some of the pairs, or none."""
    if names:
        more = ", …" if len(names) > 3 else ""
        yield f"{what}: {len(names)} of {max(count, len(names))} pairs ({', '.join(names[:3])}{more})"


def _key_numbers(material: Material, rows: Sequence[PairRow]) -> Iterator[KeyNumber]:
    own = _summary(material, material.method)
    if rows or own is not None:
        yield KeyNumber("Pairs", str(own.num_pairs if own is not None else len(rows)))
    yield from _dice_numbers(material, rows)
    passed = sum(row.status == "PASS" for row in rows)
    if any(row.status is not None for row in rows):
        yield KeyNumber("Passed the trust checks", str(passed), f"of {len(rows)}")
    if own is not None and own.hd95_mm is not None:
        yield KeyNumber("HD95", number(own.hd95_mm.mean, 2), "mm")
    if own is not None and own.tre_mm is not None:
        yield KeyNumber("Landmark error", number(own.tre_mm.mean, 2), "mm")
    folding = mean_of_known(row.folding_percent for row in rows)
    if folding is not None:
        yield KeyNumber("Folding", percent(folding), "% of voxels")
    seconds = mean_of_known(row.seconds for row in rows)
    if seconds is not None:
        yield KeyNumber("Time for a pair", number(seconds, 1), "s")


def _dice_numbers(material: Material, rows: Sequence[PairRow]) -> Iterator[KeyNumber]:
    """Those of the evaluation; without one, those of prediction."""
    own, identity = _summary(material, material.method), _summary(material, IDENTITY)
    if own is not None and own.dice is not None:
        mean: float | None = own.dice.mean
        before = identity.dice.mean if identity is not None and identity.dice is not None else None
    else:
        mean, before = mean_of_known(row.dice for row in rows), mean_of_known(row.dice_before for row in rows)
    if mean is not None:
        yield KeyNumber("Mean Dice" if before is None else f"Mean Dice, {number(before)} before", number(mean))
    if rows and rows[0].dice is not None:
        yield KeyNumber("Worst Dice", number(rows[0].dice))


def _facts(material: Material) -> Iterator[tuple[str, str]]:
    records = [pair.record for pair in material.pairs if pair.record is not None]
    if material.dataset is not None:
        yield "Dataset", material.dataset
    models = {record.provenance.model for record in records} or ({material.model.name} if material.model else set())
    if models:
        yield "Model", "; ".join(sorted(models))
    hashes = {digest[:12] for record in records for digest in record.provenance.checkpoints.values()}
    if hashes:
        yield "Checkpoints, SHA-256", ", ".join(sorted(hashes))
    devices = {record.provenance.device for record in records}
    if devices:
        yield "Registered on", ", ".join(sorted(devices))
    written = sorted(record.written for record in records)
    if written:
        yield (
            "Registered",
            f"{written[0][:10]}" + (f" to {written[-1][:10]}" if written[-1][:10] != written[0][:10] else ""),
        )
    versions = {f"{name} {version}" for record in records for name, version in record.provenance.versions.items()}
    yield "Versions of the registration" if versions else "Version", ", ".join(sorted(versions)) or biasreg.__version__
    if versions:
        yield "Version of this report", f"biasreg {biasreg.__version__}"
