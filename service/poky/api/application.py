"""The WSGI application of a listener: finds the route, calls its handler, shows refusals."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import bottle  # type: ignore[import-untyped]

from poky.access import Gate
from poky.api.guard import Handler, asked_ahead, guarded
from poky.api.later import in_lane, show_store_error
from poky.api.openapi import document
from poky.api.origins import Origins, share, share_later, writes
from poky.api.routes import Route, show_help
from poky.api.services import Services
from poky.api.timing import timed
from poky.http import Answer, Environ, Later, Refused, problem
from poky.store import StoreError

StartResponse = Callable[[str, list[tuple[str, str]]], Any]


class _BodyAwaited(Exception):
    """A handler has checked the head, and asks for the body."""


class _Awaited:
    """The body of a request of which only the head is there."""

    def read(self) -> bytes:
        raise _BodyAwaited


_AWAITED = _Awaited()


class Application(bottle.Bottle):  # type: ignore[misc]
    """Bottle's router without its globals: handlers take the environ and return an Answer.

    Half of stock Bottle's time goes into binding a request and casting a response per request.
    """

    def __init__(self) -> None:
        super().__init__()
        self.checks: dict[Any, Callable[..., Any]] = {}  #: by callback, without store and caches

    def wsgi(
        self, environ: Environ, start_response: StartResponse
    ) -> Iterable[bytes | memoryview] | Later:
        """Answer a request; only a defect of ours gets past this as an exception."""
        try:
            route, names = self.router.match(environ)
            environ["poky.route"] = route.name
            answer = route.callback(environ, **names)
        except Refused as refused:
            answer = refused.answer
        except StoreError as error:
            answer = show_store_error(error, environ)
        except bottle.HTTPError as error:
            answer = _show_routing_error(error, environ)
        if type(answer) is Later:
            return answer
        start_response(answer.status, answer.headers)
        return [answer.body]

    __call__ = wsgi

    def check(self, environ: Environ) -> Answer | Later | None:
        """The refusal that the head of a request decides before its body has come, or None."""
        try:
            route, names = self.router.match(environ)
            environ["poky.route"] = route.name
            if route.callback in self.checks:
                answer = self.checks[route.callback]({**environ, "wsgi.input": _AWAITED}, **names)
                return answer if type(answer) is Later else None
        except _BodyAwaited:
            pass
        except Refused as refused:
            return refused.answer
        except StoreError as error:
            return show_store_error(error, environ)
        except bottle.HTTPError as error:
            return _show_routing_error(error, environ)
        return None


class SharedApplication(Application):
    """An application whose answers pages of other origins may read."""

    def __init__(self, origins: Origins) -> None:
        super().__init__()
        self._origins = origins

    def wsgi(
        self, environ: Environ, start_response: StartResponse
    ) -> Iterable[bytes | memoryview] | Later:
        """Answer a request, with the fields that browsers ask for."""
        fields = self._origins.fields(environ)
        answer = super().wsgi(
            environ, lambda status, headers: start_response(status, [*headers, *fields])
        )
        return share_later(answer, fields) if type(answer) is Later else answer

    __call__ = wsgi

    def check(self, environ: Environ) -> Answer | Later | None:
        """The refusal that the head of a request decides, with the same fields."""
        answer = super().check(environ)
        if isinstance(answer, Later):
            return share_later(answer, self._origins.fields(environ))
        return share(answer, self._origins.fields(environ)) if answer else None


def application(
    routes: Sequence[Route],
    services: Services,
    gate: Gate | None = None,
    *,
    origins: Origins | None = None,
    door: Callable[[Handler], Handler] | None = None,
) -> Application:
    """The application of a listener with these routes; with a gate, tokens decide who may what.

    ``origins``: whose pages it is shared with, besides its own. ``door``: what every handler is
    put behind.
    """
    services = services._replace(help=show_help(routes), document=document(services.config, routes))
    nothing: Any = None
    head_only = services._replace(store=nothing, caches=nothing)
    origins = origins or Origins()
    made = SharedApplication(origins) if origins else Application()
    for route in routes:
        handler = ahead = route.handler
        if gate is not None and route.right != "none":
            handler = guarded(handler, route.right, gate)
            ahead = asked_ahead(route.handler, route.right, gate, services.lanes["access"])
        if any(map(writes, route.methods)):
            handler, ahead = origins.guarding(handler), origins.guarding(ahead)
        if door is not None:
            handler, ahead = door(handler), door(ahead)
        callback: Callable[..., Answer | Later] = partial(ahead, services)
        if route.lane:
            callback = partial(in_lane, services.lanes[route.lane], partial(handler, services))
        if services.stages is not None:
            callback = timed(callback, services.stages)
        if route.takes_body:
            made.checks[callback] = partial(ahead, head_only)
        for method in route.methods:
            made.route(_rule(route.path), method=method, callback=callback, name=route.path)
    if origins:
        for path in dict.fromkeys(route.path for route in routes):
            methods = {method for route in routes if route.path == path for method in route.methods}
            made.route(
                _rule(path), method="OPTIONS", callback=origins.preflight(methods), name=path
            )
    return made


def _rule(path: str) -> str:
    """A row's path as Bottle's router reads it: a key has slashes, and is the rest of the path."""
    return path.replace("<key>", "<key:re:.+>")


def _show_routing_error(error: Any, environ: Environ) -> Answer:
    if error.status_code == 405:
        allow = error.headers.get("Allow", "")
        methods = sorted({*allow.split(","), *(["HEAD"] if "GET" in allow else [])})
        allowed = ", ".join(methods)
        return problem(
            405,
            "method_not_allowed",
            f"Use one of these methods here: {allowed}.",
            [("Allow", allowed)],
        )
    return problem(
        404, "path_not_found", "There is nothing at this path. GET /help lists what there is."
    )
