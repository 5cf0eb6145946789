"""The model card: what a model is for, what it was trained on, how well it does, and what it may be used for."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from biasreg.core.dataset_json import DatasetJson
from biasreg.evaluation.records import MethodSummary, Statistic
from biasreg.planning.files import RANGES_FILE
from biasreg.planning.plans import Configuration, EncoderPlans
from biasreg.planning.voco import PUBLISHED_AT, VOCO_ENCODERS
from biasreg.sharing.manifest import Manifest
from biasreg.sharing.weights import FoldRecord, Scores

UNNAMED = "not named by the maker of this archive"

LIMITS = """\
- It is research software, not a medical device, and not validated for any clinical decision.
- It was trained on the data described below alone. On another anatomy, modality, field of view, resolution or
  scanner it may fail without a sign; a smooth field can be wrong.
- Look at each result. Folding and the error of the inverse are in the record of each pair.
- Scores of validation are measured on the model's own grid, after pre-alignment; they are not those of native grids.
- Who shows a model many images may learn something of those that it was trained on. Its weights are no anonymous data
  in every law: ask who is in charge of the data before you publish them."""

CITATION = """\
> H. Xie, X. Gao, G. Zheng. BIASNet: A Bidirectional Feature Alignment and Semantics-guided Network for
> Weakly-Supervised Medical Image Registration. Medical Image Analysis, 2025, 103913."""


@dataclass(frozen=True)
class CardFacts:
    """What the card is written from; nothing of it names a case.

    Attributes:
        manifest: The archive's manifest; its files do not matter.
        dataset: The dataset as a whole.
        configuration: The configuration.
        origin: The encoder as it was trained, before any merging.
        why: Reason of each decision of the plans.
        folds: What is known of each fold's weights.
        methods: Summaries of an evaluation; empty without one.
        ranges: Whether the ranges of the training data are in the archive.
    """

    manifest: Manifest
    dataset: DatasetJson
    configuration: Configuration
    origin: EncoderPlans
    why: Mapping[str, str]
    folds: Mapping[str, FoldRecord]
    methods: Sequence[MethodSummary]
    ranges: bool


def write_card(facts: CardFacts) -> str:
    """Write the card.

    Args:
        facts: What it says.

    Returns:
        Markdown.
    """
    manifest = facts.manifest
    sections = {
        f"Model card: {manifest.model}": f"A deformable registration model, made by biasreg "
        f"{manifest.biasreg_version}, packed on {manifest.date}.",
        "Intended use": _use(facts),
        "Limits": LIMITS,
        "Data": _data(facts),
        "Training": _training(facts),
        "Evaluation": _evaluation(facts),
        "What is in the archive": _content(manifest),
        "Licence": _licence(facts),
        "How to use it": _commands(facts),
        "Citation": CITATION,
    }
    first, *others = (f"# {title}\n\n{text}\n" for title, text in sections.items())
    return "\n".join([first, *(f"#{section}" for section in others)])


def _use(facts: CardFacts) -> str:
    plans, pairing = facts.configuration.preprocessing, facts.dataset.pairing
    pairs = {
        "inter-subject": "images of different people",
        "intra-subject": "images of one person",
        "listed": "images of the kind that its makers paired",
    }[pairing]
    return (
        f"Research on registering {pairs}: {plans.modality}, {len(plans.normalization)} channel(s). It gives a "
        "displacement field from the fixed to the moving image, and its inverse."
    )


def _data(facts: CardFacts) -> str:
    plans, dataset = facts.configuration.preprocessing, facts.dataset
    extent = [round(side * step) for side, step in zip(plans.patch_size, plans.spacing, strict=True)]
    rows = {
        "dataset": dataset.name,
        "modality": plans.modality,
        "channels": ", ".join(dataset.channel_names.values()),
        "labels": ", ".join(plans.label_names) or "none",
        "grid of the network": f"{_by(plans.patch_size)} voxels of {_by(plans.spacing)} mm: {_by(extent)} mm",
        "pre-alignment": plans.prealignment,
        "source": dataset.reference or UNNAMED,
        "licence of the data": dataset.licence or UNNAMED,
        "description": dataset.description or "none",
    }
    reasons = [f"- {rule}: {reason}" for rule, reason in facts.why.items()]
    ranges = [f"`{RANGES_FILE}` gives the ranges of the training data."] if facts.ranges else []
    table = _table(("", ""), [(name, " ".join(value.split())) for name, value in rows.items()])
    planned = ["Planned for them, with these reasons:\n\n" + "\n".join(reasons)] if reasons else []
    return "\n\n".join([table, *ranges, *planned])


def _training(facts: CardFacts) -> str:
    rows = []
    for fold, record in sorted(facts.folds.items()):
        run, course, scores = record.identity.run, record.course, record.course.scores
        planned = f"{course.epochs_done} of {run.epochs}"
        if course.epochs_trained is not None and course.epochs_trained < run.epochs:
            planned += f" (stopped after {course.epochs_trained})"
        steps = f"{course.epochs_done * run.iterations_per_epoch:,} × {facts.configuration.training.batch_size}"
        hours = "unknown" if course.hours is None else f"{course.hours:g}"
        rows.append((fold, planned, steps, hours, *_scores(scores)))
    header = ("fold", "epochs", "steps × pairs", "hours", "held out", "pairs", "Dice before", "Dice", "folding %")
    recipe = f"The plans' recipe: {facts.configuration.training.epochs} epochs of "
    recipe += (
        f"{facts.configuration.training.iterations_per_epoch} steps. Scores are those of validation pairs, on the "
    )
    recipe += "network's grid; `held out` says what training has never seen of these pairs."
    return f"{_table(header, rows)}\n\n{recipe}\n\nEncoder: {_encoder(facts)}."


def _scores(scores: Scores | None) -> tuple[str, ...]:
    if scores is None:
        return ("never validated", "0", "", "", "")
    dice = ("" if value is None else f"{value:.3f}" for value in (scores.dice_before, scores.dice_after))
    folding = "" if scores.folding_percent is None else f"{scores.folding_percent:.3g}"
    return (scores.held_out, str(scores.pairs), *dice, folding)


def _encoder(facts: CardFacts) -> str:
    origin = facts.origin
    if origin.init == "scratch":
        return f"{origin.family}, trained from scratch"
    title = VOCO_ENCODERS[origin.init].title
    how = {"lora": "adapted by LoRA", "frozen": "frozen", "full": "trained on as a whole"}[origin.tuning]
    merged = ", adapters folded into it" if facts.manifest.merged else ""
    return f"{title}, {how}{merged} ({PUBLISHED_AT}, Apache-2.0)"


def _evaluation(facts: CardFacts) -> str:
    if not facts.methods:
        return "None was given. Evaluate it on data of your own with `biasreg_evaluate` before you rely on it."
    rows = [
        (
            method.method,
            str(method.num_pairs),
            _mean(method.dice, 3),
            _mean(method.hd95_mm, 2),
            _mean(method.tre_mm, 2),
            _mean(method.folding_percent, 3),
            _mean(method.log_jacobian_std, 2),
        )
        for method in facts.methods
    ]
    header = ("method", "pairs", "Dice", "HD95 mm", "TRE mm", "folding %", "SD log J")
    note = "By `biasreg_evaluate`, on native grids; mean ± standard deviation over pairs."
    return f"{_table(header, rows)}\n\n{note}"


def _content(manifest: Manifest) -> str:
    reference = {
        "none": "It holds no image.",
        "included": "**It holds a patient's image**: `reference.nii.gz`, resampled, which every image is aligned to.",
        "left out": "The image that every image is aligned to is a patient's and was left out; without it the model "
        "cannot predict.",
    }[manifest.reference]
    return (
        "Weights as safetensors, plans, and a `dataset.json` without case names, subjects and pairs; no code. "
        f"{reference} `manifest.json` gives size and SHA-256 of each file."
    )


def _licence(facts: CardFacts) -> str:
    text = f"Weights: {facts.manifest.licence or UNNAMED}. Data: {facts.dataset.licence or UNNAMED}."
    if facts.origin.init == "scratch":
        return text
    if facts.origin.tuning == "full" or facts.manifest.merged:
        return f"{text} The weights hold those of {_encoder(facts)}, changed; that licence holds for them."
    return f"{text} VoCo's own weights are not in the archive."


def _commands(facts: CardFacts) -> str:
    lines = ["biasreg_install_model model.zip"]
    if facts.configuration.network.encoder.init != "scratch" and facts.configuration.network.encoder.tuning != "full":
        lines.append(f"biasreg_install_pretrained {facts.configuration.network.encoder.init}")
    manifest = facts.manifest
    lines.append(
        f"biasreg_predict -i pairs/ -o out/ -d {manifest.dataset_name} -p {manifest.plans_name} "
        f"--configuration {manifest.configuration_name}"
    )
    return "```\n" + "\n".join(lines) + "\n```"


def _mean(statistic: Statistic | None, digits: int) -> str:
    return "" if statistic is None else f"{statistic.mean:.{digits}f} ± {statistic.std:.{digits}f}"


def _by(values: Sequence[float]) -> str:
    return "×".join(f"{value:g}" for value in values)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
