"""Archives that models come in: nothing in them is larger than it is, leads elsewhere, or is hidden.

torch writes its archives (zip) without compression. So what an archive unpacks to is never larger than its file, and
whatever declares more is refused before anything is read.
"""

from __future__ import annotations

import os
import re
import stat
import zipfile

import torch

from sortify.errors import SourceError

_OUTSIDE = re.compile(r"^[/\\]|(^|[/\\])\.\.([/\\]|$)")


def is_archive(path: str) -> bool:
    """Whether a file looks like an archive."""
    try:
        return zipfile.is_zipfile(path)
    except zipfile.BadZipFile:  # one that claims to go on in other files
        return False


def check_archive(path: str) -> dict[str, int]:
    """The records of an archive and their sizes in bytes, as torch reads them.

    Raises:
        SourceError: it is no such archive, or it is compressed, or declares more bytes than it has, or names files
            outside of itself or a link.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except Exception as error:
        raise SourceError(f"'{path}' is damaged or truncated: no archive of torch") from error
    names, size = [entry.filename for entry in entries], os.path.getsize(path)
    if any(entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1 for entry in entries):
        raise SourceError(f"'{path}' holds compressed or encrypted records, which torch does not write")
    if sum(entry.file_size for entry in entries) > size:
        raise SourceError(f"'{path}' declares records of more bytes than it has ({size})")
    if len(set(names)) != len(names):
        raise SourceError(f"'{path}' holds two records of one name")
    if outside := [name for name in names if _OUTSIDE.search(name)]:
        raise SourceError(f"'{path}' names a file outside of itself ({outside[0]!r:.100})")
    if links := [entry.filename for entry in entries if stat.S_ISLNK(entry.external_attr >> 16)]:
        raise SourceError(f"'{path}' holds a link ({links[0]!r:.100})")
    try:
        reader = torch._C.PyTorchFileReader(path)
        records = {name: reader.get_record_size(name) for name in reader.get_all_records()}
    except RuntimeError as error:
        raise SourceError(f"'{path}' is damaged or truncated: no archive of torch") from error
    if sum(records.values()) > size:
        raise SourceError(f"'{path}' declares records of more bytes than it has ({size})")
    return records
