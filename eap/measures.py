"""What a circuit's values amount to: faithfulness as a share. Arrays only, so that figures use it.

The formula of normalised faithfulness stands here and nowhere else.
"""

from typing import Any

import numpy as np

from eap.errors import UserError


def normalised(values: Any, clean: Any, corrupted: Any) -> Any:
    """Faithfulness as a share: 1 is the clean run, 0 the corrupted one (numbers or columns).

    Raises:
        UserError: the two are equal.
    """
    if np.any(np.equal(clean, corrupted)):
        raise UserError(
            "nothing to normalise by: the clean and the corrupted run both have "
            f"{np.ravel(clean)[0]:.4g}"
        )
    return (values - corrupted) / (clean - corrupted)
