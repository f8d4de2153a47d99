from . import circuit as circuit
from . import cross_task as cross_task
from . import curves as curves
from . import published as published
from . import style as style
