from . import hypotheses as hypotheses
from . import measures as measures
