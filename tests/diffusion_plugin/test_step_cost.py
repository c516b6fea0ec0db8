"""A step's tensor operations do not grow with its batch, and none of them waits for the device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from image_helpers import make_engine, submit
from torch.utils._python_dispatch import TorchDispatchMode

from diffusion_plugin import ImageRequest
from diffusion_plugin.pipelines.base import Pipeline

WAITS = {
    "aten._local_scalar_dense.default", "aten.nonzero.default", "aten.index.Tensor", "aten.equal.default",
    "aten.is_nonzero.default",
}  # fmt: skip
"""What `.item()`, boolean indexing and `bool(tensor)` come down to: the host needs the device's answer."""


class Log(TorchDispatchMode):
    """Records the operations that are dispatched."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.operations.append(str(func))
        return func(*args, **(kwargs or {}))


def operations_of_a_step(pipeline: Pipeline, batch: int, schedule: str) -> list[str]:
    """What a denoising step dispatches for `batch` requests at different timesteps of different step counts."""
    engine = make_engine(pipeline)
    for i in range(batch):
        fields = pipeline.example(i)
        submit(engine, ImageRequest(steps=20 + 3 * i, seed=i, schedule=schedule, **fields))
        engine.step()
    record = engine.step()
    while record is None or record.kind != "denoise" or record.batch_size < batch:
        record = engine.step()
    log = Log()
    with log:
        record = engine.step()
    assert record is not None
    assert (record.kind, record.batch_size) == ("denoise", batch)
    return log.operations


@pytest.mark.parametrize(
    ("name", "schedule"),
    [("dit", "ddim"), ("dit", "ddpm"), ("sd", "euler"), ("sd", "ddpm"), ("palette", "ddpm"), ("palette", "ddim")],
)
def test_operations_are_as_many_for_seven_requests_as_for_two(
    name: str, schedule: str, request: pytest.FixtureRequest
) -> None:
    pipeline: Pipeline = request.getfixturevalue(name)
    few, many = (operations_of_a_step(pipeline, batch, schedule) for batch in (2, 7))
    assert few == many
    assert not WAITS & set(many)


def test_the_log_would_show_a_wait() -> None:
    waits: list[Callable[[torch.Tensor], Any]] = [lambda x: x.item(), lambda x: x[x > 0], bool]
    for wait in waits:
        log = Log()
        with log:
            wait(torch.ones(1))
        assert WAITS & set(log.operations)
