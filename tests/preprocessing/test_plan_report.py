import logging

from dataset_kinds import KINDS, make_dataset, make_fingerprint

from biasreg.planning.planner import Target, plan_experiment
from biasreg.preprocessing.plan_report import report_plans


def report(caplog, target):
    kind = KINDS["brain MR, OASIS"]
    caplog.clear()
    with caplog.at_level(logging.INFO, logger="biasreg"):
        report_plans(plan_experiment(make_fingerprint(kind), make_dataset(kind), target))
    return {record.message: record.levelname for record in caplog.records}


def test_it_is_a_warning_that_the_weights_of_the_paper_are_not_installed(caplog):
    lines = report(caplog, Target("cuda", 80.0))
    (warning,) = (line for line, level in lines.items() if level == "WARNING")
    assert warning.startswith("encoder: NO WEIGHTS OF VoCo-B ARE INSTALLED")
    for quiet in (Target("cuda", 80.0, installed=("voco_b",)), Target("cpu", 16.0)):
        assert set(report(caplog, quiet).values()) == {"INFO"}


def test_every_configuration_has_a_line_with_grid_and_network(caplog):
    lines = report(caplog, Target("cuda", 80.0, installed=("voco_b",)))
    (line,) = (line for line in lines if line.startswith("3d_fullres (default): "))
    assert "grid (160, 224, 192) at (1.0, 1.0, 1.0) mm, VoCo-B (LoRA) swin 48" in line
