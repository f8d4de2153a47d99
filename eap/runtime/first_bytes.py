"""What a file is by its first bytes, for messages that say what was given."""

KINDS = {
    b"\x1f\x8b": "a gzip file",
    b"PK\x03\x04": "a zip file (as torch.save and spreadsheets write)",
    b"PAR1": "Parquet",
    b"ARROW1": "an Arrow file",
    b"\x89HDF": "HDF5",
    b"\xff\xfe": "text in UTF-16",
    b"\xfe\xff": "text in UTF-16",
    b"\x80": "a pickle",
    b"{": "JSON",
    b"[": "JSON",
}
"""Kinds of files by how they begin."""


def kind_of(content: bytes) -> str:
    """The kind of a file that begins so; '' if nobody knows."""
    return next((kind for first, kind in KINDS.items() if content.startswith(first)), "")
