"""How the values of settings are written that are more than a word or a number."""

import re
from dataclasses import dataclass
from typing import NamedTuple

_HOST = re.compile(r"[a-z0-9._-]+|\[[0-9a-f:.]+\]")
_ORIGIN = re.compile(rf"[a-z][a-z0-9+.-]*://(?:{_HOST.pattern})(?::[0-9]{{1,5}})?")
_PROMETHEUS = re.compile(rf"(?i)https?://(?:{_HOST.pattern})(?::[0-9]{{1,5}})?(?:/[^\s?#]*)?")


@dataclass(frozen=True)
class CacheNode:
    """A cache to be told of every change; without a name, it is learned from its answers."""

    name: str
    url: str

    def __str__(self) -> str:
        return f"{self.name}={self.url}" if self.name else self.url


def _words(text: str, form: re.Pattern[str], what: str) -> tuple[str, ...]:
    words = text.lower().split()
    if wrong := [word for word in words if not form.fullmatch(word)]:
        verb = "is" if len(wrong) == 1 else "are"
        raise ValueError(f"{', '.join(f'“{word}”' for word in wrong)} {verb} not {what}")
    return tuple(dict.fromkeys(words))


def origins(text: str) -> tuple[str, ...]:
    """Origins of pages (RFC 6454), or * alone. ValueError says which is none."""
    if text == "*":
        return ("*",)
    found = _words(text, _ORIGIN, "scheme://host or scheme://host:port, or * alone")
    return tuple(re.sub(r"^(http:.*):80$|^(https:.*):443$", r"\1\2", each) for each in found)


def hosts(text: str) -> tuple[str, ...]:
    """Names and addresses without ports. ValueError says which is none."""
    return _words(text, _HOST, "a name or address without a port")


def prometheus(text: str) -> str:
    """The URL of a Prometheus. ValueError if it is none."""
    if not _PROMETHEUS.fullmatch(text):
        raise ValueError(f"“{text}” is not http://host:port")
    return text.rstrip("/")


def caches(text: str) -> tuple[CacheNode, ...]:
    """Caches as name=http://host:port. ValueError says which is none."""
    nodes = []
    for word in text.split():
        match = re.fullmatch(r"(?:([A-Za-z0-9_.-]+)=)?(http://[^\s/=]+:\d{1,5})/?", word)
        if not match:
            raise ValueError(f"“{word}” is not name=http://host:port")
        nodes.append(CacheNode(match[1] or "", match[2]))
    if len({node.url for node in nodes}) < len(nodes):
        raise ValueError("a cache is named twice")
    return tuple(nodes)


class Shard(NamedTuple):
    """A database besides control that has buckets."""

    number: int
    dsn: str

    def __str__(self) -> str:
        return f"{self.number}={self.dsn}"


def shards(text: str) -> tuple[Shard, ...]:
    """Databases as number=postgresql://…, by number, 1 to 255. ValueError, without a password."""
    return _shards(text, least=1)


def shards_and_control(text: str) -> tuple[Shard, ...]:
    """The same, with control as number 0 where it is named."""
    return _shards(text, least=0)


def _shards(text: str, least: int) -> tuple[Shard, ...]:
    found: dict[int, str] = {}
    for position, word in enumerate(text.split(), start=1):
        match = re.fullmatch(r"(0|[1-9]\d{0,2})=(postgres(?:ql)?://\S+)", word)
        if not match or not least <= int(match[1]) <= 255:
            raise ValueError(
                f"word {position} is not number=postgresql://…, the number {least} to 255"
            )
        if int(match[1]) in found:
            raise ValueError(f"shard {match[1]} is named twice")
        found[int(match[1])] = match[2]
    return tuple(Shard(*each) for each in sorted(found.items()))
