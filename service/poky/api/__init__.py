"""The HTTP contract of docs/http-api.md: routes, handlers, refusals. No psycopg2, no sockets.

Reading order: `routes` (what may be asked), `objects` (a handler reads, asks the store, answers),
`application` (how a handler is found).
"""

from poky.api.application import Application, application
from poky.api.hosts import of_known_host
from poky.api.origins import Origins
from poky.api.routes import ADMIN_ROUTES, LEASE_ROUTES, ROUTES, Route
from poky.api.services import Services, Sight

__all__ = [
    "ADMIN_ROUTES",
    "LEASE_ROUTES",
    "ROUTES",
    "Application",
    "Origins",
    "Route",
    "Services",
    "Sight",
    "application",
    "of_known_host",
]
