"""Metrics of a run.

`metric` has the table of metrics, and the class `Metric` for metrics of your own. `predictions`
computes the softmax of a run and its divergences from the clean run. `sequence` adapts metrics that
were written for the logits of all positions.
"""

from eap.metrics.metric import METRICS as METRICS
from eap.metrics.metric import Metric as Metric
from eap.metrics.metric import get_metric as get_metric
