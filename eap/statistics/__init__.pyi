from . import hypotheses as hypotheses
from . import intervals as intervals
from . import measures as measures
