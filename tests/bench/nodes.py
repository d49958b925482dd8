"""Cache nodes that confirm every purge and keep nothing: python -m tests.bench.nodes COUNT.

Prints their POKY_CACHES, and ends with its input.
"""

from __future__ import annotations

import sys
from contextlib import ExitStack

from tests.fake_cache import FakeCache

if __name__ == "__main__":
    with ExitStack() as stack:
        nodes = [stack.enter_context(FakeCache(f"node-{n}")) for n in range(int(sys.argv[1]))]
        print(" ".join(f"{each.name}={each.url}" for each in nodes), flush=True)
        sys.stdin.read()
