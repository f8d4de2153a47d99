from . import batches as batches
from . import hand_made as hand_made
from . import known_circuits as known_circuits
from . import mib as mib
from . import tasks as tasks
from .counterparts import Counterparts as Counterparts
from .counterparts import corrupt as corrupt
