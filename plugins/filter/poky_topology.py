"""What the inventory says of other hosts, as the roles need it of each other.

A variable that a host does not set has the default of role poky, which is written there alone.
"""

import functools
import ipaddress
import re
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

import yaml

# As poky.register_node has them.
_PRIVATE = (
    *("127.0.0.0/8", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10"),
    *("::1/128", "fc00::/7"),
)
_LOCAL_DOMAINS = (".internal", ".local", ".lan", ".localdomain", ".home.arpa")

# Where exporters listen (role monitoring).
_EXPORTERS = (9100, 9113, 9131, 9187)
_PROMETHEUS = 9090

HostVars = Mapping[str, Mapping[str, Any]]


def poky_setting(known: Mapping[str, Any], name: str) -> Any:
    """A variable of role poky as a host has it; its default must be a plain value."""
    return known[name] if known.get(name) is not None else _defaults()[name]


@functools.cache
def _defaults() -> dict[str, Any]:
    roles = Path(__file__).resolve().parents[2] / "roles"
    defaults: dict[str, Any] = yaml.safe_load((roles / "poky/defaults/main.yml").read_text())
    return defaults


def poky_monitoring_faults(groups: Mapping[str, Sequence[str]], hostvars: HostVars) -> list[str]:
    """Say which instances Prometheus could not ask, in one sentence."""
    watching = [
        host
        for host in groups.get("monitoring", ())
        if str(hostvars[host].get("monitoring_prometheus")).lower() not in ("false", "no", "0")
    ]
    deaf = [
        host
        for host in groups.get("service", ())
        if _is_loopback(str(poky_setting(hostvars[host], "poky_admin_listen")))
        and watching not in ([], [host])
    ]
    if not deaf:
        return []
    return [
        f"The admin listener of {', '.join(deaf)} is on loopback, where Prometheus on"
        f" {', '.join(watching)} cannot ask it: set poky_admin_listen to an address that only the"
        " monitoring host can reach, or monitoring_prometheus to false."
    ]


def poky_backends(hosts: Iterable[str], hostvars: HostVars, loopback: bool) -> list[dict[str, Any]]:
    """The instances of these hosts as Varnish has them: name, host and port of each.

    ``loopback``: cache and service are one host, and the instances listen there alone.
    """
    backends = []
    for host in hosts:
        known = hostvars[host]
        address = known.get("poky_listen") or ("127.0.0.1" if loopback else _address(known, host))
        for port in poky_setting(known, "poky_ports"):
            (name,) = poky_backend_names([host], {host: {"poky_ports": [port]}})
            backends.append({"name": name, "host": address, "port": port})
    return backends


def poky_backend_names(hosts: Iterable[str], hostvars: HostVars) -> list[str]:
    """The names that Varnish has for the instances of these hosts: poky_<host>_<port>."""
    return [
        f"poky_{re.sub('[^A-Za-z0-9]', '_', host)}_{port}"
        for host in hosts
        for port in poky_setting(hostvars[host], "poky_ports")
    ]


def poky_addresses(hosts: Iterable[str], hostvars: HostVars, here: str) -> list[str]:
    """The addresses under which the host ``here`` reaches these hosts."""
    return ["127.0.0.1" if host == here else _address(hostvars[host], host) for host in hosts]


def poky_shards(groups: Mapping[str, Sequence[str]], hostvars: HostVars) -> list[dict[str, Any]]:
    """The further databases of the inventory: ``number`` and ``host`` of each, by number."""
    found = [(int(hostvars[host]["poky_shard"]), host) for host in groups.get("shards", [])]
    return [{"number": number, "hosts": [host]} for number, host in sorted(found)]


def poky_dsn_value(value: str) -> str:
    """Any text, quoted for libpq's keyword form (PostgreSQL: Connection Strings)."""
    escaped = str(value).replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def poky_dsns(
    shards: Iterable[Mapping[str, Any]], hostvars: HostVars, here: str, login: Mapping[str, Any]
) -> str:
    """The value of POKY_SHARDS: number=postgresql://… of each, as the host ``here`` reaches it.

    ``shards``: {number, hosts, port} of each; hosts of the inventory stand for their addresses.
    ``login``: user, password, database, and options in libpq's keyword form.
    """
    words = []
    for shard in shards:
        hosts = [
            ("127.0.0.1" if host == here else _address(hostvars[host], host))
            if host in hostvars
            else host
            for host in shard["hosts"]
        ]
        port = int(shard.get("port") or 5432)
        places = ",".join(f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host in hosts)
        options = dict(word.split("=", 1) for word in shlex.split(str(login.get("options") or "")))
        if len(hosts) > 1:
            options["target_session_attrs"] = "read-write"
        user, password = (quote(str(login[name]), safe="") for name in ("user", "password"))
        query = "?" + urlencode(options, quote_via=quote) if options else ""
        words.append(
            f"{shard['number']}=postgresql://{user}:{password}@{places}/{login['database']}{query}"
        )
    return " ".join(words)


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


def poky_outside(caches: Iterable[Mapping[str, str]]) -> list[Mapping[str, str]]:
    """The caches whose address is not private: the service may not register those itself."""
    return [cache for cache in caches if not _is_private(urlsplit(cache["url"]).hostname or "")]


def _is_private(host: str) -> bool:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return "." not in host or host.endswith(_LOCAL_DOMAINS)
    return any(address in ipaddress.ip_network(network) for network in _PRIVATE)


def poky_prometheus_url(here: str, groups: Mapping[str, Sequence[str]], hostvars: HostVars) -> str:
    """Where the host ``here`` reaches the first Prometheus of ours; empty: there is none for it."""
    for host in groups.get("monitoring", []):
        known = hostvars[host]
        listen = str(known.get("monitoring_listen") or "127.0.0.1")
        if known.get("monitoring_prometheus") in (False, "false", "no"):
            continue
        port = known.get("monitoring_port") or _PROMETHEUS
        if host == here:
            return f"http://{'127.0.0.1' if _is_any(listen) else listen}:{port}"
        if not _is_loopback(listen):
            return f"http://{_address(known, host) if _is_any(listen) else listen}:{port}"
    return ""


def _is_any(listen: str) -> bool:
    return listen in ("0.0.0.0", "::", "*")  # noqa: S104  # not to listen there


def _is_loopback(listen: str) -> bool:
    return listen == "localhost" or (
        _is_address(listen) and ipaddress.ip_address(listen).is_loopback
    )


def poky_targets(hosts: Iterable[str], hostvars: HostVars) -> list[str]:
    """The kinds of Python that releases must be built for, such as cp311-x86_64."""
    facts = [hostvars[host]["ansible_facts"] for host in hosts]
    versions = [(each["python"]["version"], each["architecture"]) for each in facts]
    return sorted({f"cp{one['major']}{one['minor']}-{machine}" for one, machine in versions})


def poky_accepts(
    host: str,
    groups: Mapping[str, Sequence[str]],
    hostvars: HostVars,
    ssh: Iterable[int],
    further: Iterable[Mapping[str, Any]] = (),
) -> list[str]:
    """What the groups of a host need others to reach there, as rules of nft.

    ``ssh``: the ports of SSH. ``further``: {ports, from} of each further rule.
    """
    known = hostvars[host]

    def given(name: str, default: int) -> int:
        return int(known.get(name) or default)

    def addresses(group: str) -> list[str]:
        return [_address(hostvars[each], each) for each in groups.get(group, []) if each != host]

    rules: list[tuple[Iterable[int], Sequence[str] | None]] = [(ssh, None)]
    if host in groups.get("web", []):
        rules.append(([given("nginx_http_port", 80), given("nginx_https_port", 443)], None))
    if host in groups.get("cache", []):
        rules.append(([given("varnish_port", 6081)], addresses("web")))
        rules.append(([given("varnish_purge_port", 6091)], addresses("service")))
    if host in groups.get("service", []):
        ports = [int(port) for port in poky_setting(known, "poky_ports")]
        rules.append((ports + [port + 2000 for port in ports], addresses("cache")))
    if host in groups.get("database", []):
        rules.append(([5432], addresses("service")))
    if groups.get("shards", []) and host in {*groups.get("database", []), *groups["shards"]}:
        # A bucket that moves goes from one to the other.
        others = [*addresses("service"), *addresses("database"), *addresses("shards")]
        rules.append(([5432], list(dict.fromkeys(others))))
    if len(groups.get("database", [])) > 1 and host in {
        *groups["database"],
        *groups.get("etcd", []),
    }:
        # A cluster: PostgreSQL and Patroni to each other and for haproxy, etcd for all of them.
        members = [*addresses("database"), *addresses("etcd"), *addresses("service")]
        rules.append(([2379, 2380, 5432, 8008], list(dict.fromkeys(members))))
    # PgBackRest's, both ways, where the repository is on another host.
    if host in groups.get("backup", []):
        clients = [*addresses("database"), *addresses("shards")]
        rules.append(([given("backup_port", 8432)], clients))
    elif host in {*groups.get("database", []), *groups.get("shards", [])}:
        rules.append(([given("backup_port", 8432)], addresses("backup")))
    if host in groups.get("monitoring", []) and not _is_loopback(
        str(known.get("monitoring_listen") or "127.0.0.1")
    ):
        rules.append(([given("monitoring_port", _PROMETHEUS)], addresses("service")))
    if others := addresses("monitoring"):
        ports = [int(port) + 1000 for port in poky_setting(known, "poky_ports")]
        if len(groups.get("database", [])) > 1:
            if host in groups["database"]:
                ports.append(given("patroni_rest_port", 8008))
            if host in groups.get("service", []):
                ports.append(given("haproxy_metrics_port", 8405))
        rules.append((sorted({*_EXPORTERS, *ports}), others))
    rules += [(each["ports"], each.get("from") or None) for each in further]
    return list(
        dict.fromkeys(line for ports, sources in rules for line in _accepts(ports, sources))
    )


def _accepts(ports: Iterable[int], sources: Sequence[str] | None) -> list[str]:
    """Rules of nft; None: for all, and none for an empty list."""
    accepted = "tcp dport { " + ", ".join(str(int(port)) for port in ports) + " } accept"
    if sources is None:
        return [accepted]
    lines = []
    for family, version in (("ip", 4), ("ip6", 6)):
        networks = [
            each for each in sources if ipaddress.ip_network(each, strict=False).version == version
        ]
        if networks:
            lines.append(f"{family} saddr {{ {', '.join(networks)} }} {accepted}")
    return lines


def poky_ip_allow(
    groups: Mapping[str, Sequence[str]], hostvars: HostVars, names: Iterable[str]
) -> list[str]:
    """Whom the service talks with, itself by its address, if all have one; else nothing.

    ``names``: of databases and statsd, with or without a port.
    """
    hosts = dict.fromkeys(
        host
        for group in ("service", "cache", "web", "database", "shards", "monitoring")
        for host in groups.get(group, [])
    )
    found = [_address(hostvars[host], host) for host in hosts]
    found += [re.sub(r"^([^:]+):\d+$", r"\1", name) for name in names if name]
    return ["localhost", *dict.fromkeys(found)] if all(map(_is_address, found)) else []


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


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
                poky_setting,
                poky_monitoring_faults,
                poky_backends,
                poky_backend_names,
                poky_addresses,
                poky_shards,
                poky_dsn_value,
                poky_dsns,
                poky_purge_listeners,
                poky_outside,
                poky_prometheus_url,
                poky_accepts,
                poky_ip_allow,
                poky_targets,
            )
        }
