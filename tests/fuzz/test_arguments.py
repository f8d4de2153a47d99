"""Whatever is typed behind a script's name: settings, or status 2 and one line."""

from __future__ import annotations

import contextlib
import io

from hypothesis import example, given
from hypothesis import strategies as st
from outcomes import CELLS, campaign, result_or_refusal

from eap import UserError
from eap.studies import shell
from eap.studies.settings import Settings

OPTIONS = (
    "--model", "--task", "--tasks", "--data", "--head", "--batch_size", "--seed", "--device",
    "--dtype", "--memory", "--output", "--ig_steps", "--ig_rule", "--end", "--sizes",
    "--prepend_bos", "--drop_unfit", "--overwrite", "-m", "-t", "--he", "--unknown", "--",
)  # fmt: skip
WORDS = st.sampled_from(OPTIONS) | CELLS | st.sampled_from(["toy", "ioi", "..", "/", "a/b", "-1"])


def settings_from(words: list[str], *, tasks: bool) -> Settings:
    parser = shell.make_parser("A script.", tasks=tasks)
    shell.add_size_arguments(parser)
    shell.add_ig_arguments(parser)
    return shell.settings_of(parser.parse_args(words))


@campaign
@given(st.lists(WORDS, max_size=6), st.booleans())
@example(["--data", "~0"], False)
@example(["--output", "~nobody/there", "--model", "~nobody"], False)
def test_words_are_settings_or_one_line(words, tasks):
    said, status = io.StringIO(), 0
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        try:
            result_or_refusal(lambda: settings_from(words, tasks=tasks))
        except SystemExit as end:
            status = end.code or 0
    assert status in (0, 2)  # 0: --help
    if status:
        (line,) = said.getvalue().splitlines()
        assert line.startswith("error: ")
        assert len(line) <= 400


@campaign
@given(
    st.dictionaries(
        st.sampled_from(["model", "tasks", "head", "seed", "batch_size", "memory", "ig_steps",
                         "ig_rule", "dtype", "output"]),
        CELLS | st.integers() | st.floats() | st.none() | st.booleans() | st.tuples(CELLS),
        max_size=3,
    )
)  # fmt: skip
def test_settings_of_anything_are_settings_or_one_line(values):
    result_or_refusal(lambda: Settings(**values), UserError)
