"""Engines as replicas over Ray: pools with late binding, workflows above them, whatever dies on the way.

The decisions are the core's (`neustream.workflow`); here they are carried out. docs/replicas.md explains it.
"""

from neuserve.replicas.client import Client, Ticket
from neuserve.replicas.deployment import Deployment, PoolSpec
from neuserve.replicas.factory import Factory
from neuserve.replicas.messages import CallReport, RunEvent, RunReport
from neuserve.replicas.requests import RequestService
from neuserve.replicas.workflows import Inputs, NodeWork, Prepared, Result, WorkflowService

__all__ = [
    "CallReport",
    "Client",
    "Deployment",
    "Factory",
    "Inputs",
    "NodeWork",
    "PoolSpec",
    "Prepared",
    "RequestService",
    "Result",
    "RunEvent",
    "RunReport",
    "Ticket",
    "WorkflowService",
]
