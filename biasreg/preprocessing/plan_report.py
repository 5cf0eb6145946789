"""What is said of plans once they are made."""

import logging
from pathlib import Path

from biasreg.planning.encoder_rules import NOT_INSTALLED
from biasreg.planning.network_rules import describe_network
from biasreg.planning.planner import PLANNED
from biasreg.planning.plans import Plans
from biasreg.preprocessing.storage import configuration_folder

logger = logging.getLogger(__name__)


def report_plans(plans: Plans) -> None:
    """Say what was decided, the default configuration last, with its reasons."""
    for topic, reason in plans.why[plans.default_configuration].items():
        logger.log(logging.WARNING if NOT_INSTALLED in reason else logging.INFO, "%s: %s", topic, reason)
    for name, made in plans.configurations.items():
        grid = f"grid {made.preprocessing.patch_size} at {made.preprocessing.spacing} mm"
        default = " (default)" if name == plans.default_configuration else ""
        logger.info("%s%s: %s, %s", name, default, grid, describe_network(made.network, made.training.similarity))


def report_unused(dataset_folder: Path, plans: Plans) -> None:
    """Name the folder that earlier plans of this name left at another resolution."""
    for name in set(PLANNED) - set(plans.configurations):
        folder = configuration_folder(dataset_folder, plans.plans_name, name)
        if folder.is_dir():
            logger.warning("%s belongs to earlier plans and is no longer used; delete it", folder)
