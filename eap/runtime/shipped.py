"""Location of shipped files: `data/` in a checkout, else the installed copy."""

from importlib.resources import files
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]


def data_folder() -> Path:
    """Folder of task data, hand-made circuits, published numbers and the toy model."""
    checkout = CHECKOUT / "data"
    return checkout if (checkout / "families.json").exists() else Path(str(files("eap") / "_data"))
