"""What is measured of a run.

`metric` has the table of metrics, and `Metric` for one's own; `predictions` a run's softmax and its
divergences from the clean run's; `sequence` takes metrics written for the logits of all positions.
"""

from eap.metrics.metric import METRICS as METRICS
from eap.metrics.metric import Metric as Metric
from eap.metrics.metric import get_metric as get_metric
