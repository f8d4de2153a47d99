from . import hand_made as hand_made
from . import known_circuits as known_circuits
from . import mib as mib
