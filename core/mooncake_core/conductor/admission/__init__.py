"""Who is turned away, and when (technical report, section 7). An admission is one class in one file; see contract.py."""

from mooncake_core.conductor.admission.baseline import Baseline
from mooncake_core.conductor.admission.early import Early
from mooncake_core.conductor.admission.headroom import Headroom
from mooncake_core.conductor.admission.learned_lengths import LearnedLengths
from mooncake_core.conductor.admission.none import AdmitAll
from mooncake_core.conductor.admission.predictive import Predictive

__all__ = ["AdmitAll", "Baseline", "Early", "Headroom", "Predictive", "LearnedLengths"]
