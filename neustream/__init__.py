"""The scheduler core of NeuStream: requests, SLOs, latency models, step policies, the step loop, goodput.

It knows modules, streams, batches and deadlines, and nothing of any framework: it imports numpy and the
standard library only.
"""

from neustream.latency import LatencyModel, Shape
from neustream.loop import Executor, StepLoop, StepResult, commit
from neustream.plan import Limits, Piece, Rejection, StepPlan
from neustream.policies import POLICIES, StepPolicy, make_policy
from neustream.request import Outcome, Request
from neustream.route import Stage
from neustream.slo import AbsoluteSlo, Deadlines, ScaleSlo, Slo, parse_slo
from neustream.streams import Streams
from neustream.tables import LatencyTable, TableError, load_table, save_table

__all__ = [
    "POLICIES",
    "AbsoluteSlo",
    "Deadlines",
    "Executor",
    "LatencyModel",
    "LatencyTable",
    "Limits",
    "Outcome",
    "Piece",
    "Rejection",
    "Request",
    "ScaleSlo",
    "Shape",
    "Slo",
    "Stage",
    "StepLoop",
    "StepPlan",
    "StepPolicy",
    "StepResult",
    "Streams",
    "TableError",
    "commit",
    "load_table",
    "make_policy",
    "parse_slo",
    "save_table",
]
