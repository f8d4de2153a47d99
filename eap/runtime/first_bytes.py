"""Kind of a file by its first bytes, for messages about files of a wrong kind."""

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
"""Kinds of files, by their first bytes."""


def kind_of(content: bytes) -> str:
    """Kind of a file that begins with these bytes; '' if unknown."""
    return next((kind for first, kind in KINDS.items() if content.startswith(first)), "")
