"""How many machines a load takes: a model, whose inputs are the figures of docs/performance.json.

``make capacity`` writes the tables of docs/scale.md anew; a test compares them.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "scale.md"

_BUSY = 0.6  # how much of a core may be used: the rest is for peaks, and for a host that is lost
_BYTES_PER_OBJECT = 410  # besides its value: row, index, what the fill factor leaves free
_SHARD_BYTES = 2e12  # so much one cluster is backed up, restored and vacuumed in a night
_HOST_CORES = 16
_CONNECTIONS = 300  # of one PostgreSQL


class Load(NamedTuple):
    """What clients do."""

    keys: float
    value_bytes: int
    requests: float  #: a second
    writes: float  #: share of the requests
    hits: float  #: share of the reads that a cache answers


class Need(NamedTuple):
    """What that takes, in cores (of the machine that was measured) and bytes."""

    front: float  #: Varnish and the service
    purges: float  #: of that, for telling the caches
    database: float
    bytes: float
    shards: int
    hosts: int  #: for Varnish and the service
    first: str  #: what gives way first


LOADS = (
    Load(1e6, 1000, 1e3, 0.1, 0.8),
    Load(1e8, 1000, 1e4, 0.05, 0.9),
    Load(1e9, 1000, 1e5, 0.05, 0.9),
    Load(1e10, 1000, 1e5, 0.05, 0.9),
    Load(1e10, 1000, 1e6, 0.05, 0.9),
    Load(1e10, 1000, 1e6, 0.2, 0.9),
)


def figures() -> dict[str, tuple[float, float]]:
    """CPU microseconds of one operation, before the database and in it, by name."""
    rows = json.loads((ROOT / "docs" / "performance.json").read_text())
    return {row["name"]: (row["service_us"], row["postgres_us"]) for row in rows}


def need(load: Load, cost: dict[str, tuple[float, float]]) -> Need:
    """What a load takes; each cache node is told of every write."""
    writes = load.requests * load.writes
    hits = load.requests * (1 - load.writes) * load.hits
    misses = load.requests - writes - hits
    front = hits * cost["get.hit"][0] + misses * cost["get.miss"][0]
    front = (front + writes * cost["put.through"][0]) / 1e6
    database = (misses * cost["get.miss"][1] + writes * cost["put.through"][1]) / 1e6
    per_node = max(cost["put.purged-2"][0] - cost["put.purged"][0], 0)
    size = load.keys * (load.value_bytes + _BYTES_PER_OBJECT)
    hosts, purges = 2, 0.0
    for _ in range(100):  # a host more is a node more to tell, which takes cores again
        purges = writes * hosts * per_node / 1e6
        wanted = max(2, -int(-(front + purges) // (_HOST_CORES * _BUSY)))
        if wanted <= hosts:
            break
        hosts = wanted
    by_bytes = size / _SHARD_BYTES
    by_cores = database / (_HOST_CORES * _BUSY)
    shards = max(1, -int(-max(by_bytes, by_cores) // 1))
    shares = {
        "PostgreSQL's disks": by_bytes,
        "PostgreSQL's CPU": by_cores,
        "Varnish and the service": front / (_HOST_CORES * _BUSY) / 2,
        "purges": 4 * purges / (_HOST_CORES * _BUSY),
    }
    first = max(shares, key=lambda name: shares[name])
    if max(shares.values()) < 1:
        first = f"nothing; {first} would"
    return Need(front + purges, purges, database, size, shards, hosts, first)


def table() -> str:
    """The loads, and what each takes."""
    cost = figures()
    lines = [
        "| keys of 1 kB | requests/s | writes | hits | cores before PostgreSQL"
        " | of these for purges | cores of PostgreSQL | data | shards | service hosts"
        " | what gives way first |",
        "|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|---|",
    ]
    for load in LOADS:
        found = need(load, cost)
        lines.append(
            f"| {load.keys:.0e} | {load.requests:,.0f} | {load.writes:.0%} | {load.hits:.0%}"
            f" | {found.front:.1f} | {found.purges:.1f} | {found.database:.1f}"
            f" | {found.bytes / 1e12:.2f} TB | {found.shards} | {found.hosts} | {found.first} |"
        )
    return "\n".join(lines).replace("e+0", "e").replace("e+", "e")


def inputs() -> str:
    """The figures that the model takes."""
    cost = figures()
    named = {
        "get.hit": "a hit, at Varnish",
        "get.miss": "a miss, through Varnish and the service",
        "put.through": "a write, through Varnish and the service",
    }
    lines = ["| operation | us before PostgreSQL | us in it |", "|---|--:|--:|"]
    lines += [
        f"| {says} | {cost[name][0]:.0f} | {cost[name][1]:.0f} |" for name, says in named.items()
    ]
    per_node = cost["put.purged-2"][0] - cost["put.purged"][0]
    lines.append(f"| one more cache node that hears of a write | {per_node:.0f} | |")
    return "\n".join(lines)


def written(page: str) -> str:
    """The page with the tables as the model has them now."""
    for name, text in {"inputs": inputs(), "loads": table()}.items():
        page = re.sub(
            rf"(<!-- {name} -->\n).*?(<!-- end -->)",
            lambda match, text=text: f"{match[1]}\n{text}\n\n{match[2]}",  # type: ignore[misc]
            page,
            flags=re.DOTALL,
        )
    return page


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text()))
    print(table())
