"""No schedule beats the bound: the best of all, found by trying them, and random ones of larger instances."""

from __future__ import annotations

import random
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from neusim.bound import request_bound
from neusim.sim import Device
from neustream import LatencyTable, Request
from neustream.route import llm_route
from neustream.slo import NO_DEADLINES
from tests.neusim.bound_instances import (
    image_routes,
    image_tables,
    images,
    is_allowed,
    layouts,
    mixed_corners,
    text_tables,
    texts,
)
from tests.neusim.brute_force import serve_images, serve_in_processes, serve_text
from tests.neusim.random_schedules import KINDS, witnessed

often = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
seldom = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@often
@given(images())
def test_no_schedule_of_images_beats_the_bound(instance: tuple[list[Request], LatencyTable]) -> None:
    requests, table = instance
    best = serve_images(requests, table)
    tight = request_bound(requests, table, devices="interleaved")
    assert best <= tight <= request_bound(requests, table) <= len(requests)


@often
@given(images(is_sane=True))
def test_the_bound_is_at_most_what_is_feasible_alone(instance: tuple[list[Request], LatencyTable]) -> None:
    requests, table = instance
    alone = sum(serve_images([request], table) for request in requests)
    assert request_bound(requests, table) <= alone


@seldom
@given(images())
def test_no_schedule_of_small_batches_beats_its_bound(instance: tuple[list[Request], LatencyTable]) -> None:
    requests, table = instance
    bound = request_bound(requests, table, devices="interleaved", max_batch=2)
    assert serve_images(requests, table, max_batch=2) <= bound


def options_of(device: Device, table: LatencyTable) -> dict[str, Any]:
    """What the bound must be told of a device."""
    return {
        "devices": device.layout,
        "groups": device.processes(table),
        "handover": device.handover,
        "overhead": device.overhead,
        "contention": device.contention,
    }


@seldom
@given(images(most=2, steps=2), st.data())
def test_no_schedule_in_several_processes_beats_the_bound(
    instance: tuple[list[Request], LatencyTable], data: st.DataObject
) -> None:
    requests, table = instance
    options = options_of(data.draw(layouts(table)), table) | {"overhead": 0.0}
    groups, handover, contention = options["groups"], options["handover"], options["contention"]
    best = serve_in_processes(requests, table, groups, handover=handover, contention=contention)
    assert best <= request_bound(requests, table, **options)


@often
@given(image_tables(), st.integers(1, 8), st.randoms(use_true_random=False), st.data())
def test_every_image_that_some_schedule_serves_counts(
    table: LatencyTable, count: int, chance: random.Random, data: st.DataObject
) -> None:
    """The deadlines are those that a random schedule of the simulator just meets: the bound must be all of them."""
    device = data.draw(st.one_of(st.just(Device(overhead=0.05)), layouts(table)))
    requests = [
        Request(str(i), chance.randint(0, 30) / 10, NO_DEADLINES, data.draw(image_routes(table, 4)))
        for i in range(count)
    ]
    due = witnessed(table, requests, device, chance, ["first"] * count)
    assert request_bound(due, table, **options_of(device, table)) == count


@often
@given(texts())
def test_no_schedule_of_text_beats_the_bound(instance: tuple[list[Request], LatencyTable, dict[str, int]]) -> None:
    requests, table, limits = instance
    bound = request_bound(requests, table, **limits)
    assert serve_text(requests, table, **limits) <= bound <= len(requests)


@often
@given(mixed_corners())
def test_no_schedule_of_mixed_steps_beats_the_bound(
    instance: tuple[list[Request], LatencyTable, dict[str, int]],
) -> None:
    requests, table, _ = instance
    assert serve_text(requests, table) <= request_bound(requests, table)


@often
@given(text_tables().filter(is_allowed), st.integers(1, 8), st.randoms(use_true_random=False), st.data())
def test_every_text_that_some_schedule_serves_counts(
    table: LatencyTable, count: int, chance: random.Random, data: st.DataObject
) -> None:
    """As with images, with SLOs of every kind, with memory that texts lose, and with prompts in pieces."""
    blocks = data.draw(st.sampled_from([None, 6, 12, 20]))
    device = Device(kv_blocks=blocks, block_size=2, watermark=0.0, overhead=data.draw(st.sampled_from([0.0, 0.05])))
    requests = [
        Request(str(i), chance.randint(0, 30) / 10, NO_DEADLINES, llm_route(chance.randint(1, 5)), chance.randint(1, 6))
        for i in range(count)
    ]
    kinds = data.draw(st.lists(st.sampled_from(KINDS), min_size=count, max_size=count))
    due = witnessed(table, requests, device, chance, kinds)
    bound = request_bound(due, table, kv_blocks=blocks, block_size=2, max_batch=256, overhead=device.overhead)
    assert bound == count
