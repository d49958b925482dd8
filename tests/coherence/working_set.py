"""How many reads of many keys, each read seldom, are answered from the cache."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path

from tests.bench.load import Http
from tests.coherence.stack import Stack

KEYS = 100_000
SECONDS = 300
_SLICE_SECONDS = 5
_BATCH = 1000
_READS = re.compile(
    r'^poky_requests_total\{method="GET",route="/kv/<bucket>/<key>",.*\} (\S+)$', re.M
)


def hit_ratio(folder: Path, seconds: float, watch: Callable[[float], None]) -> tuple[int, float]:
    """Read 100,000 keys of 200 B evenly through one node, empty at first: reads, and share of hits.

    A hit is what the service was not asked for.
    """
    with Stack(folder, nodes=1, gated=False, lease_seconds=10, storage="malloc,1g") as stack:
        bucket = stack.create_bucket("working-set")
        for first in range(1, KEYS + 1, _BATCH):
            numbers = range(first, first + _BATCH)
            nothing = [None] * _BATCH
            stack.store.put_many(
                bucket,
                [f"key-{number}" for number in numbers],
                [b"x" * 200] * _BATCH,
                ["text/plain"] * _BATCH,
                nothing,
                nothing,
                nothing,
                atomic=False,
            )
        (cache,) = stack.caches
        load = Http([cache.port], f"/kv/{bucket}/key-", KEYS)
        asked_before, reads_before, began = _asked(stack), cache.requests(), time.monotonic()
        while time.monotonic() < began + seconds:
            load.run(_SLICE_SECONDS)
            watch(time.monotonic() - began)
        reads = cache.requests() - reads_before
        return reads, 1 - (_asked(stack) - asked_before) / reads


def _asked(stack: Stack) -> float:
    """How many objects the instances were asked for."""
    return sum(
        float(count)
        for service in stack.services
        for count in _READS.findall(service.admin().get("/metrics").body.decode())
    )
