"""Hosts: the names by which the admin listener is asked.

A page may have its own name resolve to a loopback address (DNS rebinding) and is then of the same
origin as the listener. Its name still stands in Host.
"""

import ipaddress
import re
from collections.abc import Collection
from typing import Any, Final

from poky.api.guard import Handler
from poky.config import Config
from poky.http import Answer, Environ, Later, refuse

_PORT: Final = re.compile(r":[0-9]*$")


def of_known_host(config: Config, handler: Handler) -> Handler:
    """The admin listener's handler, for requests to a known host; 421 for others."""
    known = _Known(config.admin_listen, config.admin_hosts)

    def knowing(services: Any, environ: Environ, **names: Any) -> Answer | Later:
        host = environ.get("HTTP_HOST")
        if host is not None and not known.has(host):
            raise refuse(
                421,
                "host_unknown",
                "Ask this listener by a loopback or its own address; the operator can allow other"
                " names in POKY_ADMIN_HOSTS.",
            )
        return handler(services, environ, **names)

    return knowing


class _Known:
    def __init__(self, listen: str, names: Collection[str]) -> None:
        self._names = {listen.lower(), *names}
        address = _address(listen)
        # A name can be made to resolve to any address; an address is what it is.
        self._any_address = not listen or (address is not None and address.is_unspecified)
        self._addresses = {_address(each) for each in self._names} - {None}

    def has(self, host: str) -> bool:
        name = name_of(host)
        if is_loopback(name) or name in self._names:
            return True
        address = _address(name)
        return address is not None and (self._any_address or address in self._addresses)


def name_of(host: str) -> str:
    """The name or address in a field Host, without its port; an IPv6 address keeps its brackets."""
    return _PORT.sub("", host).lower().removesuffix(".")


def is_loopback(host: str) -> bool:
    """Whether this is localhost or a loopback address, in brackets or not."""
    address = _address(host)
    return host == "localhost" or (address is not None and address.is_loopback)


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return None
