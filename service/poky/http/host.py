"""What connections and workers need of the server that they belong to."""

from __future__ import annotations

from collections.abc import Callable, MutableSet
from typing import Any, Protocol

from poky.http.answers import Answer
from poky.http.head import Environ
from poky.http.later import Later
from poky.http.memory import Budget

Check = Callable[[Environ], Answer | Later | None]
OnResponse = Callable[[Environ, int, int, float], None]


class Host(Protocol):
    """What a connection needs of the server that accepted it; `Server` says what each is for."""

    max_body_bytes: int
    max_header_bytes: int
    max_headers: int
    closing: bool
    environ: Environ

    @property
    def timeout(self) -> Any: ...

    @property
    def wsgi_app(self) -> Any: ...

    @property
    def check(self) -> Check | None: ...

    @property
    def budget(self) -> Budget: ...

    @property
    def on_response(self) -> OnResponse | None: ...

    @property
    def connections(self) -> MutableSet[Any]: ...

    @property
    def busy(self) -> set[Any]: ...

    @property
    def requests(self) -> Any: ...

    def stamp(self) -> str: ...
