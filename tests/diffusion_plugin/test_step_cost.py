"""A step's tensor operations do not grow with its batch, and none of them waits for the device."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from image_helpers import make_engine, submit
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from diffusion_plugin import ImageRequest
from diffusion_plugin.pipelines.base import Pipeline

CALLS = {
    "cpu", "numpy", "tolist", "item", "nonzero", "argwhere", "masked_select", "unique", "unique_consecutive", "where",
    "equal", "allclose", "isin", "bincount", "__array__", "__bool__", "__int__", "__float__", "__index__",
    "__contains__", "is_nonzero",
}  # fmt: skip
"""Functions and methods of tensors whose answer, or its shape, the host has to wait for, as Python calls them. `where`
counts with one argument only."""
OPERATIONS = {
    "_local_scalar_dense", "nonzero", "masked_select", "_unique", "_unique2", "unique_dim", "unique_consecutive",
    "equal", "is_nonzero", "bincount", "repeat_interleave",
}  # fmt: skip
"""The same among the operations that the calls, or a library, come down to."""


class Log(TorchDispatchMode):
    """Records the operations that are dispatched."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.removeprefix("aten::")
        masks = [each for each in args[1] if each is not None] if name in ("index", "index_put_") else []
        is_masked = any(mask.dtype in (torch.bool, torch.uint8) for mask in masks)
        self.operations.append("index by a mask" if is_masked else name)
        return func(*args, **(kwargs or {}))

    @property
    def waits(self) -> list[str]:
        return [name for name in self.operations if name in OPERATIONS or name == "index by a mask"]


class Calls(TorchFunctionMode):
    """Records the calls for which the host waits: on a CPU many of them dispatch nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", str(func))
        if name in CALLS and not (name == "where" and len(args) + len(kwargs) > 1):
            self.waits.append(name)
        if name == "to" and any(isinstance(value, str) and value == "cpu" for value in (*args[1:], *kwargs.values())):
            self.waits.append(name)  # a copy to the pipeline's own device names it by a `torch.device`
        return func(*args, **kwargs)


@contextmanager
def watched() -> Iterator[tuple[Log, Calls]]:
    log, calls = Log(), Calls()
    with calls, log:
        yield log, calls


def a_step(pipeline: Pipeline, batch: int, schedule: str) -> tuple[list[str], list[str]]:
    """What a denoising step dispatches for `batch` requests at different timesteps of different step counts, and what
    the host waits for in it."""
    engine = make_engine(pipeline)
    for i in range(batch):
        fields = pipeline.example(i)
        submit(engine, ImageRequest(steps=20 + 3 * i, seed=i, schedule=schedule, **fields))
        engine.step()
    record = engine.step()
    while record is None or record.kind != "denoise" or record.batch_size < batch:
        record = engine.step()
    with watched() as (log, calls):
        record = engine.step()
    assert record is not None
    assert (record.kind, record.batch_size) == ("denoise", batch)
    return log.operations, log.waits + calls.waits


@pytest.mark.parametrize(
    ("name", "schedule"),
    [("dit", "ddim"), ("dit", "ddpm"), ("sd", "euler"), ("sd", "ddpm"), ("palette", "ddpm"), ("palette", "ddim")],
)
def test_operations_are_as_many_for_seven_requests_as_for_two(
    name: str, schedule: str, request: pytest.FixtureRequest
) -> None:
    pipeline: Pipeline = request.getfixturevalue(name)
    (few, _), (many, waits) = (a_step(pipeline, batch, schedule) for batch in (2, 7))
    assert few == many
    assert waits == []


WAYS: dict[str, Callable[[Tensor], Any]] = {
    "cpu": lambda x: x.cpu(),
    "to cpu": lambda x: x.to("cpu"),
    "to cpu, another type": lambda x: x.to("cpu", torch.float64),
    "to cpu, by name": lambda x: x.to(device="cpu"),
    "numpy": lambda x: x.numpy(),
    "tolist": lambda x: x.tolist(),
    "item": lambda x: x[0].item(),
    "bool": lambda x: bool(x[0]),
    "float": lambda x: float(x[0]),
    "int": lambda x: int(x[0]),
    "index": lambda x: [0, 1, 2][x[0].long()],
    "in": lambda x: 1.0 in x,
    "nonzero": lambda x: x.nonzero(),
    "argwhere": lambda x: torch.argwhere(x),
    "where of one": lambda x: torch.where(x > 0),
    "masked_select": lambda x: x.masked_select(x > 0),
    "by a mask": lambda x: x[x > 0],
    "set by a mask": lambda x: x.clone().__setitem__(x > 0, torch.zeros(3)),
    "unique": lambda x: x.unique(),
    "unique, of torch": lambda x: torch.unique(x),
    "unique_consecutive": lambda x: x.unique_consecutive(),
    "equal": lambda x: torch.equal(x, x),
    "allclose": lambda x: torch.allclose(x, x),
    "repeat_interleave": lambda x: x.repeat_interleave(torch.tensor([1, 2, 3])),
}


@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_wait_for_the_device_would_be_seen(
    dit: Pipeline, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """Each is put into the step itself, where it must be noticed."""
    inner = dit.predict

    def predict(*arguments: Any) -> Any:
        WAYS[way](torch.tensor([1.0, 2.0, 3.0]))
        return inner(*arguments)

    monkeypatch.setattr(dit, "predict", predict)
    _, waits = a_step(dit, 2, "ddim")
    assert waits


def test_what_needs_no_answer_is_no_wait() -> None:
    x, index = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0, 2])
    with watched() as (log, calls):
        x.index_select(0, index)
        _ = x[index]
        torch.where(x > 1, x, 0.0)
        x.to(torch.float64)
        index.to(x.device, non_blocking=True)
        torch.lerp(x, x, x).clamp(0, 1)
    assert log.operations
    assert (log.waits, calls.waits) == ([], [])
