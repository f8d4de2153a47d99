from . import batches as batches
from . import collections as collections
from . import tasks as tasks
from .counterparts import Counterparts as Counterparts
from .counterparts import corrupt as corrupt
