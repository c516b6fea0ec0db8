"""The simulator's engine: the core's policies and step accounting under a virtual clock."""

from neusim.sim.device import ARTIFACT_HANDOVER, Device
from neusim.sim.run import Result, StepTrace, simulate
from neusim.sim.workload import LlmWorkload, PipelineWorkload, Workload

__all__ = [
    "ARTIFACT_HANDOVER",
    "Device",
    "LlmWorkload",
    "PipelineWorkload",
    "Result",
    "StepTrace",
    "Workload",
    "simulate",
]
