"""Labels and groups that users give to nodes: checks, and reading them from saved pages."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from eap.graph.numbering import GraphConfig
from eap.runtime.errors import UserError, quoted

MOST_CHARACTERS = 60
_CONTENT = re.compile(r'<script type="application/json" id="content">(.*?)</script>', re.DOTALL)


def check_labels(config: GraphConfig, texts: Any) -> None:
    """Check that labels or groups are texts by node of the graph.

    Raises:
        UserError: they are not.
    """
    if not isinstance(texts, Mapping):
        raise UserError(f"labels and groups must be texts by node, not {type(texts).__name__}")
    nodes = {*config.sender_names, "logits"}
    for node, text in texts.items():
        if node not in nodes:
            raise UserError(f"the graph has no node {quoted(str(node), 40)} to label")
        if not isinstance(text, str) or len(text) > MOST_CHARACTERS:
            raise UserError(
                f"the label or group of {node} is not a string of at most {MOST_CHARACTERS} "
                "characters"
            )


def read_labels(path: Path, groups: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """Read labels and groups from a page that was saved with "Save page", and add `groups`.

    Raises:
        UserError: the file does not exist, or is not the page of a circuit.
    """
    try:
        content = _CONTENT.search(path.read_text(encoding="utf8"))
        known = json.loads(content[1]) if content else {}
        return dict(known["labels"]), {**known["groups"], **groups}
    except OSError as error:
        raise UserError(f"cannot read labels from {path}: {error.strerror or error}") from None
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path} is not the page of a circuit with labels and groups") from None
