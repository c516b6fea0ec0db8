"""Counts the kernels of a PyTorch network without running it: one forward pass on the `meta` device.

Used for estimated tables of image models, whose networks diffusers defines. Torch is imported here only, and
only when such a table is asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from neusim.estimating.roofline import Kernel

VIEWS = {
    *("_reshape_alias", "_unsafe_view", "alias", "as_strided", "chunk", "detach", "expand", "lift_fresh", "permute"),
    *("select", "slice", "split", "split_with_sizes", "squeeze", "t", "transpose", "unbind", "unflatten"),
    *("unsqueeze", "view", "view_as"),
}
"""Operations that change the description of a tensor and launch nothing."""


def trace(network: Callable[..., Any], *args: Any, **kwargs: Any) -> list[Kernel]:
    """The kernels of `network(*args, **kwargs)`, in order. Weights and tensors must be on the meta device."""
    with torch.no_grad(), _CountKernels() as counter, _FuseAttention(counter.kernels):
        network(*args, **kwargs)
    kernels: list[Kernel] = counter.kernels
    return kernels


def _bytes(values: Any) -> float:
    return float(sum(t.numel() * t.element_size() for t in tree_leaves(values) if isinstance(t, torch.Tensor)))


class _CountKernels(TorchDispatchMode):  # type: ignore[misc]
    """Turns every operation that launches a kernel into a `Kernel`."""

    def __init__(self) -> None:
        super().__init__()
        self.kernels: list[Kernel] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name not in VIEWS:
            self.kernels.append(_kernel(name, args, result))
        return result


def _kernel(name: str, args: Any, result: Any) -> Kernel:
    if name == "convolution":
        return _convolution(args[0], args[1], result)
    moved = _bytes(args) + _bytes(result)
    if name in ("mm", "addmm", "bmm", "baddbmm"):
        left = args[-2] if name in ("mm", "bmm") else args[1]
        inner = left.shape[-1]
        count = result.numel() // (result.shape[-1] * result.shape[-2])
        flops = 2.0 * result.numel() * inner
        return Kernel(flops, moved, result.shape[-2], result.shape[-1], count)
    return Kernel(moved=moved)


def _convolution(image: torch.Tensor, weight: torch.Tensor, result: torch.Tensor) -> Kernel:
    """An implicit matrix product of (batch × output pixels) rows and output channels columns.

    float16 tensor cores want channels last, PyTorch keeps them first: cuDNN copies the image before and the
    result after.
    """
    inner = weight[0].numel()
    channels = result.shape[1]
    moved = _bytes((image, weight, result))
    layout = 2 * _bytes((image, result)) if image.element_size() == 2 else 0.0
    return Kernel(2.0 * result.numel() * inner, moved, result.numel() // channels, channels, 1.0, layout)


class _FuseAttention(TorchFunctionMode):  # type: ignore[misc]
    """Counts `scaled_dot_product_attention` as the one fused kernel that it is on a GPU.

    On the meta device PyTorch takes it apart into products and a softmax.
    """

    def __init__(self, kernels: list[Kernel]) -> None:
        super().__init__()
        self.kernels = kernels

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is not torch.nn.functional.scaled_dot_product_attention:
            return func(*args, **kwargs)
        query, key, value = args[:3] if len(args) >= 3 else (kwargs["query"], kwargs["key"], kwargs["value"])
        pairs = query.numel() // query.shape[-1] * key.shape[-2]
        flops = 2.0 * pairs * (query.shape[-1] + value.shape[-1])
        before = len(self.kernels)
        result = func(*args, **kwargs)
        del self.kernels[before:]
        self.kernels.append(Kernel(flops, _bytes((query, key, value, result))))
        return result
