from . import atomic as atomic
from . import checkpoint as checkpoint
from . import distributed as distributed
from . import memory as memory
from . import processes as processes
from . import progress as progress
from . import signature as signature
