"""/status, /help, /openapi.json and /metrics: what a service says of itself."""

from typing import Any

from poky.api.request import prefers, read_query
from poky.api.services import Services
from poky.http import Answer, Environ, json, text


def get_status(services: Services, environ: Environ) -> Answer:
    """Whether this process can serve: for probes as text, for people as JSON."""
    state = services.health.check()
    status = 200 if state.ok else 503
    if "verbose" not in read_query(environ, "verbose") and not prefers(
        environ, "application/json", "text/plain"
    ):
        return text("ok" if state.ok else f"database {state.database}", status)
    return json(
        {
            "release": services.config.release,
            "database": state.database,
            "schema": state.schema,
            "server": state.server,
            "inflight": max(services.inflight() - 1, 0),
            "instance": services.config.instance,
            "background": services.background(),
            **_shards(services),
        },
        status,
    )


def _shards(services: Services) -> dict[str, Any]:
    """What each database of several says; nothing where there is one."""
    found = [
        {
            "shard": each.number,
            "database": each.state.database,
            "schema": each.state.schema,
            "server": each.state.server,
        }
        for each in services.sight.shards()
    ]
    return {"shards": found} if found else {}


def get_help(services: Services, environ: Environ) -> Answer:
    """The routes of this listener and their statuses as a table."""
    return text(services.help)


def get_openapi(services: Services, environ: Environ) -> Answer:
    """The contract as OpenAPI 3.1."""
    return json(services.document)


def get_metrics(services: Services, environ: Environ) -> Answer:
    """Metrics in Prometheus' text format."""
    return Answer(
        "200 OK",
        [("Content-Type", "text/plain; version=0.0.4; charset=utf-8")],
        services.metrics(),
    )
