"""Training needs neither the readers of medical images nor what makes labels: a node may do without them."""

import subprocess
import sys

# Of these, MONAI takes nibabel when it is there and goes without it otherwise; batchgenerators needs scipy.
REFUSED = (
    "SimpleITK",
    "nibabel",
    "acvl_utils",
    "totalsegmentator",
    "cc3d",
    "nnunetv2",
    "wandb",
    "mlflow",
    "tensorboard",
    "matplotlib",
)

PROGRAM = """
import sys
from importlib.abc import MetaPathFinder
from pathlib import Path

REFUSED = {refused!r}


class Refusal(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in REFUSED:
            raise ModuleNotFoundError(f"No module named {{name!r}} on this node", name=name)
        return None


sys.meta_path.insert(0, Refusal())
import torch
from biasreg.core.paths import Roots
from biasreg.training import experiment_trackers, overfit, self_check
from biasreg.training.fold import train_fold
from biasreg.training.options import TrainingOptions

torch.set_num_threads(1)
root = Path({root!r})
options = TrainingOptions(plans_name="tiny", device="cpu", num_workers=0, epochs=1)
folder = train_fold(Roots(root / "raw", root / "preprocessed", root / "results"), "901", 0, options)
print(sorted(path.name for path in folder.iterdir()))
assert not set(REFUSED) & {{name.partition(".")[0] for name in sys.modules}}
"""


def test_a_fold_is_trained_where_images_cannot_even_be_read(write_dataset):
    root = write_dataset().results.parent
    code = PROGRAM.format(refused=REFUSED, root=str(root))
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stderr
    assert "checkpoint_best.pth" in result.stdout
    assert "progress.png" not in result.stdout
    assert result.stderr.count("the run is not drawn: matplotlib is not installed here") == 1
