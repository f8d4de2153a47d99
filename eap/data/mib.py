"""Short name for MIB's data sets: `from eap.data.mib import load_mib`."""

from eap.data.collections.mib import MIB_TASKS as MIB_TASKS
from eap.data.collections.mib import get_mib_task as get_mib_task
from eap.data.collections.mib import load_mib as load_mib
