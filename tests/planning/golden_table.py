"""The golden table of planning-rules.md: run this file to write it anew, and read the difference."""

from pathlib import Path

from dataset_kinds import KINDS, Kind, make_dataset, make_fingerprint

from biasreg.planning.network_rules import describe_network
from biasreg.planning.planner import Target, plan_experiment
from biasreg.planning.plans import Plans

PAGE = Path(__file__).parents[2] / "documentation" / "explanation" / "planning-rules.md"
BEGIN, END = "<!-- golden table: begin -->", "<!-- golden table: end -->"
TARGETS = {
    "CPU": Target("cpu", 16.0),
    "8 GiB": Target("cuda", 8.0),
    "24 GiB": Target("cuda", 24.0),
    "80 GiB": Target("cuda", 80.0),
    "80 GiB, VoCo-B": Target("cuda", 80.0, installed=("voco_b",)),
}
SHARED = ("modality", "normalization", "similarity", "supervision", "prealignment", "crop", "displacement")
OWN = ("spacing", "patch_size", "encoder", "levels", "memory")


def render() -> str:
    """Plan for every kind and device, and write the decisions with their reasons as Markdown."""
    return "\n".join(_section(name, kind) for name, kind in KINDS.items())


def page_with_table(page: str) -> str:
    """Put the rendered table between its marks."""
    head, _, rest = page.partition(BEGIN)
    _, _, tail = rest.partition(END)
    return f"{head}{BEGIN}\n\n{render()}\n{END}{tail}"


def _section(name: str, kind: Kind) -> str:
    fingerprint, dataset = make_fingerprint(kind), make_dataset(kind)
    planned = {name: plan_experiment(fingerprint, dataset, target) for name, target in TARGETS.items()}
    last = planned["80 GiB"]
    shared = last.why[last.default_configuration]
    lines = [f"### {name[0].upper()}{name[1:]}", "", _facts(kind), ""]
    lines += ["| | " + " | ".join(planned) + " |", "|---" * (len(planned) + 1) + "|"]
    rows = zip(*(_decisions(plans) for plans in planned.values()), strict=True)
    lines += [f"| {topic} | " + " | ".join(values) + " |" for topic, values in zip(_TOPICS, rows, strict=True)]
    lines += ["", "<details><summary>why</summary>", ""]
    lines += [f"- {topic.replace('_', ' ')}: {shared[topic]}" for topic in (*SHARED, "field_of_view")]
    for device, plans in planned.items():
        why = plans.why[plans.default_configuration]
        lines.append(f"- **{device}**: " + ". ".join(f"{topic.replace('_', ' ')}: {why[topic]}" for topic in OWN))
    return "\n".join([*lines, "", "</details>", ""])


_TOPICS = ("configuration", "voxel in mm", "grid", "network", "halvings", "pairs per step")


def _decisions(plans: Plans) -> tuple[str, ...]:
    chosen = plans.configurations[plans.default_configuration]
    steps = " ".join("".join(map(str, step)) for step in chosen.network.encoder.strides)
    return (
        f"`{plans.default_configuration}`",
        "×".join(f"{side:.4g}" for side in chosen.preprocessing.spacing),
        "×".join(str(side) for side in chosen.preprocessing.patch_size),
        describe_network(chosen.network, chosen.training.similarity),
        steps,
        str(chosen.training.batch_size),
    )


def _facts(kind: Kind) -> str:
    extent, spacing = ("×".join(f"{side:g}" for side in sides) for sides in (kind.anatomy, kind.spacing))
    labels = f"{kind.labels} labels" if kind.labels else "no labels"
    odd = ", one of them of " + "×".join(f"{side:g}" for side in kind.odd) + " mm" if kind.odd else ""
    modalities = " and ".join(kind.modalities)
    size = f"anatomy of {extent} mm{odd}, voxels of {spacing} mm"
    return f"{kind.cases} cases of {modalities}, {size}, {labels}, {kind.pairing}."


if __name__ == "__main__":
    PAGE.write_text(page_with_table(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
