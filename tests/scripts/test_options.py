"""Every option of every script that takes a number has a range, and says it."""

from __future__ import annotations

import argparse
import math
import re

import pytest
from running import EXPERIMENTS, FIGURES, call

from eap.commands import check_data, compare, view
from eap.studies import shell

COMMANDS = {"check-data": check_data.main, "compare": compare.main, "view": view.main}
ODD = (
    "0", "-1", "-0", "nan", "inf", "-inf", "1e99", "1e-99", "9" * 40, "9" * 20, "", " ", "1.5",
    "0x10", "1,000", "one", "True", "None",
)  # fmt: skip


class ParsedError(Exception):
    """Carries a parser out of a script that would parse its arguments."""


def parser_of(script, monkeypatch):
    """The parser of a script, or of a command of `eap`."""

    def parse(parser, *_):
        raise ParsedError(parser)

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse)
    # What a script makes of an error is a line; here the error is what is wanted.
    monkeypatch.setattr(shell, "explain", lambda error: (None, 1))
    with pytest.raises(ParsedError) as caught:
        COMMANDS[script]() if script in COMMANDS else call(script)
    return caught.value.args[0]


def number_or_message(kind, text):
    """What a text is to a type of numbers: the number, or what the refusal says."""
    try:
        return kind(text), None
    except argparse.ArgumentTypeError as error:
        return None, str(error)


@pytest.mark.parametrize("script", [*EXPERIMENTS, *FIGURES, "mib.py", *COMMANDS])
def test_odd_numbers_are_in_range_or_refused_in_one_line(script, monkeypatch):
    numbers = 0
    for action in parser_of(script, monkeypatch)._actions:
        option = action.option_strings[-1] if action.option_strings else action.dest
        assert action.type not in (int, float), f"{option} has no range: give it a shell.Number"
        if not (isinstance(action.type, shell.Number) or action.type is shell.gigabytes):
            # A default that is a number is of an option that takes numbers.
            assert isinstance(action.default, bool) or not isinstance(action.default, int | float)
            continue
        numbers += 1
        for text in ODD:
            number, message = number_or_message(action.type, text)
            if message is None:
                assert math.isfinite(number), (option, text)
                assert 0 <= number <= 2**60, (option, text)
            else:
                ends = r"(from|above) [\d.e-]+ (to|and below|and at most) .*"
                said = rf"'{re.escape(text)}' is not an? .* {ends}"
                assert re.fullmatch(said, message), message
                assert len(message) < 200
    assert numbers or script in (*FIGURES, "view")


def test_the_range_of_an_option_is_that_of_the_argument_that_it_is_given_to(monkeypatch):
    options = {
        action.dest: action.type for action in parser_of("stability.py", monkeypatch)._actions
    }
    for name in ("n_resamples", "n_subsets", "n_random", "seed", "batch_size", "head"):
        assert options[name] == shell.number_of(name)
