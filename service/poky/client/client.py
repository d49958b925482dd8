"""The client: one Poky, by its URL."""

from types import TracebackType
from typing import Any, Self

from poky.client.buckets import Bucket, Cache
from poky.client.wire import Wire, refused


class Client:
    """A Poky. Threads may share it; close it, or use it in ``with``.

    ``token``: as ``poky token create`` shows it. ``timeout``: seconds for one try of a request;
    ``tries``: how often one that did nothing is tried. ``cache``: how many objects are kept, to be
    asked for only if they have changed; never served without asking.
    """

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        timeout: float = 30.0,
        tries: int = 5,
        cache: int = 0,
    ) -> None:
        self._wire = Wire(url, token, timeout, tries)
        self._cache = Cache(cache)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._wire.close()

    def bucket(self, name: str) -> Bucket:
        """A bucket, which is not asked for here."""
        return Bucket(self._wire, name, self._cache)

    def buckets(self) -> list[dict[str, Any]]:
        """All buckets that may be listed: name, schema, estimated_rows, bytes and more."""
        answer = self._wire.read("GET", "/buckets")
        if answer.status != 200:
            raise refused(answer.status, answer.body)
        found: list[dict[str, Any]] = answer.json()["buckets"]
        return found
