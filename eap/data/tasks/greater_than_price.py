"""Greater-than for prices: "The price of that lamp ranges from $ 1732 to $ 17" -> "33" .. "99"."""

from dataclasses import replace
from functools import partial

from eap.data.tasks import greater_than

ITEMS = tuple(
    """lamp watch phone bike table chair guitar piano sofa bed desk mirror jacket coat necklace ring
    bag camera tent stove boat engine""".split()
)
TEMPLATE = "The price of that {word} ranges from $ {start} to $ {head}"

generate = partial(greater_than.number_pairs, template=TEMPLATE, words=ITEMS)
"""Up to `n` pairs with prices."""

TASK = replace(
    greater_than.TASK,
    name="greater-than-price",
    display_name="Greater-Than (Price)",
    generate=generate,
    variant_of="greater-than",
    order=7,
    main=False,
    circuit_size=300,
)
