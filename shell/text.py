"""Text from elsewhere (a server, another process) before it goes into messages, logs and terminals."""

from __future__ import annotations

MAX_CHARACTERS = 1024


def clean(text: str, limit: int = MAX_CHARACTERS) -> str:
    """`text` without control characters (a blank stands for each) and cut to `limit` characters."""
    cut = text[:limit]
    return cut if cut.isprintable() else "".join(c if c.isprintable() else " " for c in cut)
