from . import circuits as circuits
from . import learning as learning
