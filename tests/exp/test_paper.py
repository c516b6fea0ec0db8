"""The paper's settings: one place, the same answer for experiments, simulator and figures."""

from __future__ import annotations

from dataclasses import replace

import pytest

from exp.diffusion.__main__ import KIND
from exp.figures.simulated import make_plan
from exp.harness.program import make_parser
from neusim.sim.sweep import default_rate
from neustream.catalog.images import MODELS, model_spec
from neustream.catalog.paper import PAIRS, SD_512_H100, STEPS, paper_rates, paper_steps, usual_rate
from neustream.cli.paths import TABLES
from neustream.latency import BatchLatency
from neustream.tables import LatencyTable


@pytest.mark.parametrize("device", ["h100", "h100-pcie", "h200"])
def test_experiments_and_simulator_give_an_h200_the_sweep_of_the_h100(device: str) -> None:
    alone = BatchLatency((1, 2), (0.1, 0.15))
    table = LatencyTable("sd15-512", device, dict.fromkeys(model_spec("sd15-512").modules, alone))
    options = KIND.options(make_parser(KIND).parse_args(["sd15-512", "--device", "cpu"]))
    gpu = replace(options, common=replace(options.common, device="cuda", slug=device))
    swept = KIND.scope(gpu, table)
    assert tuple(dict.fromkeys(setting["rate"] for setting in swept.settings)) == SD_512_H100
    assert swept.num_requests == 500
    assert default_rate(table, {}, 1) == 0.8


def test_other_devices_get_the_sweep_of_the_rtx_4090() -> None:
    assert paper_rates("l40s", "sd15-512") == (0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.55)
    assert usual_rate("l40s", "sd15-512") == 0.3
    assert paper_rates("rtx4090", "opt-13b") is None
    assert usual_rate("rtx4090", "sd-nano") is None


def test_the_figures_take_the_published_rates_of_a_pair() -> None:
    plan = make_plan(TABLES, ("h100", "sd15-512"), (), 10, 0, quick=False, published=True)
    assert tuple(point.rate for point in plan.axes["rate"]) == SD_512_H100
    assert plan.usual.rate == 0.8


def test_every_image_pair_has_rates_steps_and_a_specification() -> None:
    images = [(device, model) for device, model in PAIRS if model in MODELS]
    assert len(images) == 6
    for device, model in images:
        rates = paper_rates(device, model)
        assert rates is not None
        assert len(rates) == 8
        assert usual_rate(device, model) in rates
        assert paper_steps(model) == model_spec(model).steps == STEPS[model_spec(model).family]
    assert paper_steps("opt-13b") is None
