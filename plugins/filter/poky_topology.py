"""What the inventory says of the other hosts, as this role needs it."""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

HostVars = Mapping[str, Mapping[str, Any]]


def poky_backend_names(hosts: Iterable[str], hostvars: HostVars, ports: Iterable[int]) -> list[str]:
    """The names that Varnish has for the instances of these hosts: poky_<host>_<port>.

    ``ports`` are those of a host that sets none of its own.
    """
    return [
        f"poky_{re.sub('[^A-Za-z0-9]', '_', host)}_{port}"
        for host in hosts
        for port in hostvars[host].get("poky_ports") or ports
    ]


def poky_addresses(hosts: Iterable[str], hostvars: HostVars, here: str) -> list[str]:
    """The addresses under which the host ``here`` reaches these hosts."""
    return ["127.0.0.1" if host == here else _address(hostvars[host], host) for host in hosts]


def poky_purge_listeners(
    hosts: Iterable[str], hostvars: HostVars, loopback: bool, port: int
) -> list[dict[str, str]]:
    """The purge listeners of these caches, by the names under which they answer."""
    listeners = []
    for host in hosts:
        known = hostvars[host]
        address = "127.0.0.1" if loopback else _address(known, host)
        listeners.append(
            {
                "name": known.get("varnish_identity") or host,
                "url": f"http://{address}:{known.get('varnish_purge_port') or port}",
            }
        )
    return listeners


def poky_targets(hosts: Iterable[str], hostvars: HostVars) -> list[str]:
    """The kinds of Python that releases must be built for, such as cp311-x86_64."""
    facts = [hostvars[host]["ansible_facts"] for host in hosts]
    versions = [(each["python"]["version"], each["architecture"]) for each in facts]
    return sorted({f"cp{one['major']}{one['minor']}-{machine}" for one, machine in versions})


def _address(known: Mapping[str, Any], host: str) -> str:
    default = known.get("ansible_facts", {}).get("default_ipv4", {}).get("address")
    return known.get("poky_address") or default or host


class FilterModule:
    """The filters by their names in templates."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Name to function."""
        return {
            function.__name__: function
            for function in (
                poky_backend_names,
                poky_addresses,
                poky_purge_listeners,
                poky_targets,
            )
        }
