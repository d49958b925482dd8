"""The WSGI application of a listener: finds the route, calls its handler, shows refusals."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import bottle  # type: ignore[import-untyped]

from poky.api.openapi import document
from poky.api.routes import Route, show_help
from poky.api.services import Services
from poky.http import Answer, Environ, Refused, problem
from poky.store import StoreError

StartResponse = Callable[[str, list[tuple[str, str]]], Any]


class Application(bottle.Bottle):  # type: ignore[misc]
    """Bottle's router without its globals: handlers take the environ and return an Answer.

    Half of stock Bottle's time goes into binding a request and casting a response per request.
    """

    def wsgi(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes | memoryview]:
        """Answer a request; only a defect of ours gets past this as an exception."""
        try:
            route, names = self.router.match(environ)
            environ["poky.route"] = route.rule
            answer = route.callback(environ, **names)
        except Refused as refused:
            answer = refused.answer
        except StoreError as error:
            answer = _show_store_error(error, environ)
        except bottle.HTTPError as error:
            answer = _show_routing_error(error, environ)
        start_response(answer.status, answer.headers)
        return [answer.body]

    __call__ = wsgi


def application(routes: Sequence[Route], services: Services) -> Application:
    """The application of a listener with these routes."""
    services = services._replace(help=show_help(routes), document=document(services.config, routes))
    made = Application()
    for route in routes:
        for method in route.methods:
            made.route(route.path, method=method, callback=partial(route.handler, services))
    return made


def _show_store_error(error: StoreError, environ: Environ) -> Answer:
    detail = error.detail
    if error.code == "bucket_not_found":
        detail += " Create it with PUT /buckets/{bucket} on the admin listener, or: "
        detail += "poky bucket create NAME."
    elif error.code == "bucket_not_empty":
        detail += " Add ?keys=drop to drop it with its keys."
    headers = []
    if error.unknown:
        environ["poky.outcome"] = "unknown"
        headers.append(("Poky-Outcome", "unknown"))
    return problem(error.status, error.code, detail, headers)


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
