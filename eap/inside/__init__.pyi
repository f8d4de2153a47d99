from . import attention as attention
from . import crossing as crossing
from . import part_attribution as part_attribution
from . import unit_attribution as unit_attribution
