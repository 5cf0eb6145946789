"""`biasreg_apply`: apply transforms to images, label maps, series and points."""

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from biasreg.cli.arguments import make_parser
from biasreg.cli.run import run_command

DESCRIPTION = (
    "Apply one or several transforms of biasreg, ANTs or ITK to images, label maps, 4-D series and points. "
    "Points of the fixed image meet the first -t first (ANTs' order: the transform named last moves the image first). "
    "Images are resampled once, through all of them. "
    "Points (.csv) go the other way than images: from the fixed to the moving image, as with ANTs."
)
INTERPOLATIONS = ("linear", "bspline", "nearest", "label")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: Arguments; those of the process when None.

    Returns:
        Exit code: 0 when every input is transformed, 1 when some of several failed, 2 when what was given is
            unusable.
    """
    return run_command(partial(_apply, _parser().parse_args(argv)))


class _AddTransform(argparse.Action):
    """Collects the files of -t and --invert in one list, in the order in which they stand."""

    def __call__(
        self, parser: Any, namespace: argparse.Namespace, values: Any, option_string: str | None = None
    ) -> None:
        given = list(getattr(namespace, self.dest) or [])
        setattr(namespace, self.dest, given + [(path, self.const) for path in values])


def _parser() -> argparse.ArgumentParser:
    parser = make_parser(DESCRIPTION)
    add = parser.add_argument
    several: dict[str, Any] = {"type": Path, "nargs": "+", "metavar": "FILE"}
    add("-i", "--input", action="extend", default=[], help="images, or points as .csv; may be repeated", **several)
    output = "a file for each input, or one folder, where results keep the names of their inputs"
    add("-o", "--output", action="extend", default=[], help=output, **several)
    add(
        *("-t", "--transform"),
        action=_AddTransform,
        const=False,
        dest="transforms",
        help="transforms from fixed to moving: _warp.nii.gz, .mat, .tfm, .txt, .h5, .mha, .nrrd; may be repeated",
        **several,
    )
    inverse = "transforms to invert: matrices exactly, fields numerically; keeps its place among those of -t"
    add("--invert", action=_AddTransform, const=True, dest="transforms", help=inverse, **several)
    reference = "image whose grid the results lie on (default: the grid of the field that fixed points meet first)"
    add("-r", "--reference", type=Path, metavar="IMAGE", help=reference)
    interpolation = "of all images: label for label maps (each label linearly, the largest wins), bspline is cubic"
    add("--interpolation", choices=INTERPOLATIONS, default="linear", help=interpolation)
    add("--fill", type=float, metavar="VALUE", help="value where there is no image (default: the image's minimum)")
    add("--ras", action="store_true", help="points are in RAS mm, not LPS mm, read and written")
    field = "write all transforms as one: .nii.gz, or .h5 (ITK's composite transform)"
    add("--save_transform", type=Path, metavar="FILE", help=field)
    add("--jacobian", type=Path, metavar="FILE", help="write the determinant of the Jacobian of all transforms")
    return parser


def _apply(arguments: argparse.Namespace) -> None:
    from biasreg.core.transforms import TransformFile
    from biasreg.inference.apply_files import ApplyRequest, apply_files, check_failures

    request = ApplyRequest(
        transforms=tuple(TransformFile(path, inverted) for path, inverted in arguments.transforms or ()),
        inputs=tuple(arguments.input),
        outputs=tuple(arguments.output),
        reference=arguments.reference,
        interpolation=arguments.interpolation,
        fill=arguments.fill,
        ras=arguments.ras,
        save_transform=arguments.save_transform,
        jacobian=arguments.jacobian,
    )
    check_failures(apply_files(request))
