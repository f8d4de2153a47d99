"""Greater-than for growing sequences: "1208, 1216, 1223, 1233, 1256, 12" -> "57" .. "99".

In the corrupted prompt, the fifth number is the first of the next century (of the next ten if
digits are single tokens), and the sixth begins there.
"""

from dataclasses import replace
from random import Random

from eap.data.tasks import greater_than
from eap.data.tasks.task import Keep, draw_pairs, keep_all
from eap.data.vocabulary import Vocabulary


def generate(
    random: Random, vocabulary: Vocabulary, keep: Keep = keep_all, *, n: int = 820
) -> list[dict[str, str]]:
    """Up to `n` sequences that begin between 1000 and 1899."""
    digits = vocabulary.digits_per_piece
    base = 10**digits
    reach = 30 if digits == 2 else 3
    valid = vocabulary.splits_numbers(range(1000, 1930))
    starts = sorted(year for year in valid if year < 1900)
    if not starts:
        raise ValueError("no number from 1000 to 1899 is split as the task needs")

    def draw(_: int) -> dict[str, str] | None:
        years = [random.choice(starts)]
        while len(years) < 5:
            following = [y for y in range(years[-1] + 1, years[-1] + reach) if y in valid]
            if not following:
                return None
            years.append(random.choice(following))
        label = years[4] % base
        jumped = (years[3] // base + 1) * base + 1
        if not 2 <= label <= base - 2 or jumped >= 1900 or jumped not in valid:
            return None
        begin = ", ".join(map(str, years[:4]))
        clean, corrupted = (f"{begin}, {fifth}, {fifth // base}" for fifth in (years[4], jumped))
        return {"clean": clean, "corrupted": corrupted, "correct_idx": str(label)}

    return draw_pairs(n, draw, keep)


TASK = replace(
    greater_than.TASK,
    name="greater-than-sequence",
    display_name="Greater-Than (Sequence)",
    generate=generate,
    variant_of="greater-than",
    order=8,
    main=False,
)
