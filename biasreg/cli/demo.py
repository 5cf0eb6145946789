"""The command `biasreg_demo`."""

from collections.abc import Sequence
from pathlib import Path

from biasreg.cli.arguments import make_parser
from biasreg.cli.run import run_command

DESCRIPTION = (
    "Run the main job on a synthetic anatomy: make a dataset, plan, train, predict, evaluate and report. Needs neither "
    "data nor GPU."
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: Arguments; those of the process when None.

    Returns:
        Exit code.
    """
    parser = make_parser(DESCRIPTION)
    parser.add_argument("-o", "--output", type=Path, default=Path("demo_output"), help="folder for everything")
    parser.add_argument("--epochs", type=int, help="epochs of training (default: what two CPU cores do in minutes)")
    parser.add_argument("--iterations_per_epoch", type=int, help="steps per epoch")
    parser.add_argument("--seed", type=int, default=0, help="seed of the anatomy")
    arguments = parser.parse_args(argv)

    def run() -> None:
        from biasreg.demo.run import DemoOptions, run_demo

        chosen = {name: getattr(arguments, name) for name in ("epochs", "iterations_per_epoch")}
        given = {name: value for name, value in chosen.items() if value is not None}
        result = run_demo(arguments.output, DemoOptions(seed=arguments.seed, **given))
        print(f"picture: {result.picture}")
        print(f"report: {result.report}")
        print(result.line)

    return run_command(run)
