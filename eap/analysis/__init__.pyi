from . import certificates as certificates
from . import clusters as clusters
from . import compare as compare
from . import random_circuits as random_circuits
from . import rankings as rankings
from . import screening as screening
from . import stability as stability
from . import verdicts as verdicts
