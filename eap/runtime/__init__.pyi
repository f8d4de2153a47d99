from . import atomic as atomic
from . import checkpoint as checkpoint
from . import code as code
from . import distributed as distributed
from . import memory as memory
from . import processes as processes
from . import progress as progress
