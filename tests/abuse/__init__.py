"""``make abuse``: what strangers may try, against the service alone (D) and through nginx (N).

Raw requests (corpus, raw, http2), slow clients and floods (slow), memory (memory) and work that
others must not wait for (stalls). Each gives rows of a table: what was asked, what was seen, and
violations, of which there must be none. What is expected stands with each case as data.
"""

from tests.abuse import http2, memory, raw, slow, stalls

PARTS = {
    "raw": raw.run,
    "http2": http2.run,
    "slow": slow.run,
    "stalls": stalls.run,
    "memory": memory.run,
}
