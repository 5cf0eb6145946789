"""How far a training step is from what the device could do: its arithmetic and its traffic, against measured peaks.

Arithmetic: the floating-point operations of convolutions and matrix products of a step (torch's own counter, forward
and backward), over what a large matrix product reaches. Traffic: the bytes that all operations of a step read and
write, were none of them fused, over what a copy of a large array reaches. A step cannot be faster than the larger of
the two, unless operations are fused.
"""

import argparse
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from result_file import RESULTS, warn_if_busy, write_result
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from biasreg.core.serialization import read_record
from biasreg.losses.objective import objective
from biasreg.network.build import build_network
from biasreg.network.device import autocast, select_device
from biasreg.planning.plans import Configuration, Plans
from biasreg.training.optimization import build_optimizer, take_step
from biasreg.training.step_memory import objective_settings, random_pairs

PARTS = ("encoder", "decoder", "enhancement", "registration")
VIEWS = (
    "view",
    "reshape",
    "expand",
    "permute",
    "transpose",
    "slice",
    "select",
    "split",
    "detach",
    "alias",
    "t.default",
)


class CountBytes(TorchDispatchMode):
    """Adds up the bytes that operations read and write.

    Attributes:
        total: Bytes so far.
        by_operation: The same by operation.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = 0
        self.by_operation: dict[str, int] = defaultdict(int)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        name = str(function)
        if not any(view in name for view in VIEWS):
            tensors = [*_tensors(args), *_tensors((kwargs or {}).values()), *_tensors((result,))]
            size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
            self.total += size
            self.by_operation[name] += size
        return result


def main() -> None:
    arguments = parse_arguments()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    warn_if_busy()
    device = select_device(arguments.device)
    plans = read_record(arguments.plans, Plans)
    configuration = plans.configurations[arguments.configuration or plans.default_configuration]
    result = measure(configuration, device, arguments.steps)
    print_result(result)
    settings = {name: value for name, value in vars(arguments).items() if name != "output"}
    settings["plans"] = arguments.plans.name
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
    write_result(arguments.output, settings, [result], device=name)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plans", type=Path, required=True, help="plans to measure")
    parser.add_argument("--configuration", help="configuration of the plans (default: the plans' own)")
    parser.add_argument("--device", help="cuda, mps or cpu (default: the best there is)")
    parser.add_argument("--threads", type=int, help="threads of torch (default: its own choice)")
    parser.add_argument("--steps", type=int, default=8, help="steps that are measured")
    parser.add_argument("--output", type=Path, default=RESULTS / "step_limits.json", help="result file")
    return parser.parse_args()


def measure(configuration: Configuration, device: torch.device, steps: int) -> dict[str, Any]:
    """Count the work of a step, with and without the ARDC pass, and time it beside the device's peaks."""
    torch.manual_seed(0)
    network = build_network(configuration.network).to(device)
    optimizer = build_optimizer(network, 1e-4)
    plans = configuration.training
    pairs = random_pairs(configuration.network, configuration.preprocessing.patch_size, plans.batch_size, device)
    settings = objective_settings(configuration)

    def step(scale: float) -> None:
        generators = [torch.Generator().manual_seed(0) for _ in range(plans.batch_size)]
        with autocast(device):
            terms = objective(network, pairs, settings, consistency_scale=scale, generators=generators)
        take_step(terms, optimizer, plans.gradient_clip)

    peak = {"flops_per_second": matmul_peak(device), "bytes_per_second": copy_peak(device)}
    result: dict[str, Any] = {"size": list(configuration.preprocessing.patch_size), "peak": peak}
    for name, scale in (("with_ardc", 1.0), ("without_ardc", 0.0)):
        step(scale)
        with FlopCounterMode(display=False) as operations:
            step(scale)
        with CountBytes() as traffic:
            step(scale)
        seconds = median([timed(lambda scale=scale: step(scale), device) for _ in range(steps)])
        arithmetic = operations.get_total_flops() / peak["flops_per_second"]
        bandwidth = traffic.total / peak["bytes_per_second"]
        largest = sorted(traffic.by_operation.items(), key=lambda item: -item[1])[:8]
        result[name] = {
            "seconds": seconds,
            "flops": operations.get_total_flops(),
            "bytes": traffic.total,
            "arithmetic_limit_seconds": arithmetic,
            "traffic_limit_seconds": bandwidth,
            "times_the_larger_limit": seconds / max(arithmetic, bandwidth),
            "largest_traffic": {operation: size / traffic.total for operation, size in largest},
        }
    result["forward_share"] = forward_shares(network, pairs.moving, pairs.fixed, device)
    return result


def forward_shares(network: torch.nn.Module, moving: Tensor, fixed: Tensor, device: torch.device) -> dict[str, float]:
    """Share of each part of the network in the time of a forward pass."""
    seconds: dict[str, float] = defaultdict(float)
    begun: dict[str, float] = {}

    def begin(name: str) -> Callable[..., None]:
        return lambda *_: begun.__setitem__(name, now(device))

    def end(name: str) -> Callable[..., None]:
        return lambda *_: seconds.__setitem__(name, seconds[name] + now(device) - begun[name])

    handles = []
    for name in PARTS:
        part = network.get_submodule(name)
        handles += [part.register_forward_pre_hook(begin(name)), part.register_forward_hook(end(name))]
    with autocast(device):
        for _ in range(4):
            network(moving, fixed)
    for handle in handles:
        handle.remove()
    total = sum(seconds.values())
    return {name: value / total for name, value in seconds.items()}


def matmul_peak(device: torch.device) -> float:
    """Floating-point operations per second of a large matrix product, in the precision of training."""
    side = 8192 if device.type == "cuda" else 1536
    first, second = torch.rand(2, side, side, device=device)
    with autocast(device):
        return 2 * side**3 / min(timed(lambda: first @ second, device) for _ in range(5))


def copy_peak(device: torch.device) -> float:
    """Bytes read and written per second by a copy of 256 MiB."""
    source = torch.rand(2**26, device=device)
    target = torch.empty_like(source)
    return 2 * source.numel() * 4 / min(timed(lambda: target.copy_(source), device) for _ in range(5))


def timed(function: Callable[[], Any], device: torch.device) -> float:
    start = now(device)
    function()
    return now(device) - start


def now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


def print_result(result: dict[str, Any]) -> None:
    peak = result["peak"]
    print(f"peak: {peak['flops_per_second'] / 1e9:.0f} GFLOP/s, {peak['bytes_per_second'] / 1e9:.1f} GB/s")
    for name in ("with_ardc", "without_ardc"):
        each = result[name]
        print(
            f"{name}: {each['seconds']:.3f} s; arithmetic alone {each['arithmetic_limit_seconds']:.3f} s, traffic "
            f"alone {each['traffic_limit_seconds']:.3f} s; {each['times_the_larger_limit']:.1f} times the larger limit"
        )
    print("forward: " + ", ".join(f"{name} {share:.0%}" for name, share in result["forward_share"].items()))


def _tensors(values: Any) -> list[Tensor]:
    found: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, list | tuple):
            found += _tensors(value)
    return found


if __name__ == "__main__":
    main()
