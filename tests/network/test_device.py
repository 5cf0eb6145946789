import pytest
import torch

from biasreg.core.errors import InputError
from biasreg.network.device import autocast, select_device


def test_the_cpu_computes_in_float32():
    with autocast(torch.device("cpu")):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32


def test_a_device_that_is_not_there_is_refused_by_name():
    assert select_device("cpu") == torch.device("cpu")
    assert select_device().type in ("cuda", "mps", "cpu")
    for name in ("tpu", "cuda:99", "cpu:x", "cpu:1", "meta", "xpu:0"):
        with pytest.raises(InputError, match=f"'{name}' is not available"):
            select_device(name)
