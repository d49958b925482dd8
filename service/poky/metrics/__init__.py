"""Metrics: what happened, for Prometheus and statsd, and a line for each request.

``figures`` are what is counted elsewhere and read when it is asked for, ``requests`` counts
answers, ``lines`` writes them, ``statsd`` sends them, ``prometheus`` asks what all instances' came
to. docs/metrics.md lists every metric. Knows the log; knows nothing of what is counted.
"""

from poky.metrics.figures import SECONDS, Figure, Figures, Histogram, Sizes
from poky.metrics.history import History, Sample, Totals
from poky.metrics.prometheus import Alert, Prometheus, Told
from poky.metrics.requests import Metrics
from poky.metrics.statsd import Statsd

__all__ = [
    "SECONDS",
    "Alert",
    "Figure",
    "Figures",
    "Histogram",
    "History",
    "Metrics",
    "Prometheus",
    "Sample",
    "Sizes",
    "Statsd",
    "Told",
    "Totals",
]
