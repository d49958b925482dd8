"""Grants: rights and a pattern of bucket names, such as ``read,write:tips`` or ``list:user-*``.

Pure: reads and matches; knows neither tokens nor the store.
"""

import re
from collections.abc import Iterable
from typing import NamedTuple, Self

#: in the order in which people list them
RIGHTS = ("read", "write", "delete", "list", "admin")

_PATTERN = re.compile(r"[A-Za-z0-9_.,-]{0,256}\*?")


class Grants(NamedTuple):
    """What a token allows, as PostgreSQL keeps it: ``right:pattern``, sorted, each once."""

    texts: tuple[str, ...]

    @classmethod
    def parse(cls, texts: Iterable[str]) -> Self:
        """Read grants as people write them; ValueError names every mistake at once."""
        grants: set[str] = set()
        mistakes = []
        for text in texts:
            rights, colon, pattern = text.partition(":")
            if not colon or not rights or not pattern:
                mistakes.append(f"“{text}” is not RIGHT[,RIGHT…]:BUCKET, such as read,write:tips")
                continue
            if not _PATTERN.fullmatch(pattern):
                mistakes.append(
                    f"“{pattern}” is no pattern: a bucket's name (A-Z a-z 0-9 _ . , -),"
                    " or the beginning of one and a * at its end"
                )
            for right in rights.split(","):
                if right in RIGHTS:
                    grants.add(f"{right}:{pattern}")
                else:
                    mistakes.append(f"“{right}” is no right: there are {', '.join(RIGHTS)}")
        if not grants and not mistakes:
            mistakes.append("a token needs at least one grant, such as read:tips")
        if mistakes:
            raise ValueError("; ".join(mistakes))
        return cls(tuple(sorted(grants)))

    def allow(self, right: str, bucket: str | None) -> bool:
        """Whether they allow this right in this bucket; None: in any bucket at all."""
        for text in self.texts:
            granted, _, pattern = text.partition(":")
            if granted == right and (bucket is None or _matches(pattern, bucket)):
                return True
        return False


def _matches(pattern: str, bucket: str) -> bool:
    return bucket.startswith(pattern[:-1]) if pattern.endswith("*") else bucket == pattern
