"""Write a small nnU-Net where TotalSegmentator looks for its fast model; runs in the Python that has TotalSegmentator.

The network is one of nnU-Net's own classes, with random weights but for one path through it: it gives each voxel the
class whose intensity is nearest. So the truth of what it makes of an image is known.
"""

import json
import sys
from pathlib import Path

import torch
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from totalsegmentator.map_tasks_config import TASK_CONFIGS, TASK_ID_WEIGHTS_CONFIGS
from totalsegmentator.map_to_binary import class_map

BACKGROUND = -1000.0
UNIT = 200.0  # of the intensities that the network sees, so that sums over its windows stay in the range of float16
NEVER = -300.0
FEATURES = (4, 4, 4)
NETWORK = "dynamic_network_architectures.architectures.unet.PlainConvUNet"
ARGUMENTS = {
    "n_stages": 3,
    "features_per_stage": FEATURES,
    "conv_op": "torch.nn.modules.conv.Conv3d",
    "kernel_sizes": [[3, 3, 3]] * 3,
    "strides": [[1, 1, 1], [2, 2, 2], [2, 2, 2]],
    "n_conv_per_stage": [1, 1, 1],
    "n_conv_per_stage_decoder": [1, 1],
    "conv_bias": True,
    "norm_op": None,
    "norm_op_kwargs": None,
    "dropout_op": None,
    "dropout_op_kwargs": None,
    "nonlin": None,
    "nonlin_kwargs": None,
}
IMPORTED = ["conv_op", "norm_op", "dropout_op", "nonlin"]


def main(results: Path, task: str, intensities: dict[str, float]) -> None:
    mode = TASK_CONFIGS[task]["sub_modes"]["fast"]
    dataset = TASK_ID_WEIGHTS_CONFIGS[mode["task_id"]]["foldername"]
    folder = results / dataset / f"{mode['trainer']}__nnUNetPlans__3d_fullres"
    (folder / "fold_0").mkdir(parents=True)
    classes = class_map[task]
    labels = {"background": 0} | {name: value for value, name in classes.items()}
    content = {"channel_names": {"0": "CT"}, "labels": labels, "numTraining": 1, "file_ending": ".nii.gz"}
    (folder / "dataset.json").write_text(json.dumps(content))
    (folder / "plans.json").write_text(json.dumps(plans(dataset)))
    network = nearest_intensity_network(len(labels), {labels[name]: value for name, value in intensities.items()})
    checkpoint = {
        "network_weights": network.state_dict(),
        "trainer_name": mode["trainer"],
        "init_args": {"configuration": "3d_fullres"},
        "inference_allowed_mirroring_axes": None,
    }
    torch.save(checkpoint, folder / "fold_0" / "checkpoint_final.pth")


def nearest_intensity_network(num_classes: int, intensities: dict[int, float]) -> torch.nn.Module:
    torch.manual_seed(0)
    network = get_network_from_plans(NETWORK, ARGUMENTS, IMPORTED, 1, num_classes, deep_supervision=False)
    with torch.no_grad():
        first, last = network.encoder.stages[0][0].convs[0].conv, network.decoder.stages[-1].convs[0].conv
        for convolution, source in ((first, 0), (last, FEATURES[0])):  # the skip comes after what came from below
            convolution.weight[0] = 0
            convolution.bias[0] = 0
            convolution.weight[0, source, 1, 1, 1] = 1
        head = network.decoder.seg_layers[-1]
        head.weight.zero_()
        head.bias.fill_(NEVER)
        for value, intensity in ({0: BACKGROUND} | intensities).items():
            # The nearest c maximises c x - c^2 / 2.
            head.weight[value, 0] = intensity / UNIT
            head.bias[value] = -0.5 * (intensity / UNIT) ** 2
    return network


def plans(dataset: str) -> dict:
    resampling = {"is_seg": False, "order": 1, "order_z": 0, "force_separate_z": None}
    name = "resample_data_or_seg_to_shape"
    configuration = {
        "data_identifier": "nnUNetPlans_3d_fullres",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": [32, 32, 32],
        "median_image_size_in_voxels": [32.0, 32.0, 32.0],
        "spacing": [3.0, 3.0, 3.0],
        "normalization_schemes": ["CTNormalization"],
        "use_mask_for_norm": [False],
        "batch_dice": False,
        "architecture": {
            "network_class_name": NETWORK,
            "arch_kwargs": ARGUMENTS,
            "_kw_requires_import": IMPORTED,
        },
    }
    for kind, is_seg in (("data", False), ("seg", True), ("probabilities", False)):
        configuration[f"resampling_fn_{kind}"] = name
        configuration[f"resampling_fn_{kind}_kwargs"] = resampling | {"is_seg": is_seg}
    seen = {"percentile_00_5": -1024.0, "percentile_99_5": 2000.0, "mean": 0.0, "std": UNIT, "median": 0.0}
    return {
        "dataset_name": dataset,
        "plans_name": "nnUNetPlans",
        "original_median_spacing_after_transp": [3.0, 3.0, 3.0],
        "original_median_shape_after_transp": [32, 32, 32],
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {"0": seen | {"min": -1024.0, "max": 2000.0}},
        "configurations": {"3d_fullres": configuration},
    }


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3]))
