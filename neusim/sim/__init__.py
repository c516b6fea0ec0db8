"""The simulator's engine: the core's policies and step accounting under a virtual clock."""

from neusim.sim.device import ARTIFACT_HANDOVER, Device, default_device
from neusim.sim.driver import SimulatedDriver, SimulatedRequest
from neusim.sim.run import Result, named_policy, simulate
from neusim.sim.workload import LlmWorkload, PipelineWorkload, Workload

__all__ = [
    "ARTIFACT_HANDOVER",
    "Device",
    "LlmWorkload",
    "PipelineWorkload",
    "Result",
    "SimulatedDriver",
    "SimulatedRequest",
    "Workload",
    "default_device",
    "named_policy",
    "simulate",
]
