"""Files are written in a temporary place and moved when they are complete."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def is_taken(target: Path) -> bool:
    """Whether there is a file, or a folder that is not empty."""
    return target.is_file() or (target.is_dir() and any(target.iterdir()))


@contextmanager
def replacing(target: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `target`; move it there when the block ends well.

    The block may create a file or a folder at the temporary path. On an error the temporary
    path is removed and whatever stood at `target` stays untouched.

    Args:
        target: where the finished file or folder belongs; its parent is created.
    """
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    workplace = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    draft, old = workplace / target.name, workplace / "old"
    try:
        yield draft
        if draft.is_dir() and target.exists():
            target.rename(old)
        try:
            os.replace(draft, target)
        except OSError:
            if old.exists():
                old.rename(target)
            raise
    finally:
        shutil.rmtree(workplace, ignore_errors=True)
