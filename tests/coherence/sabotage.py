"""Ways to break the promise on purpose: the checker must see each of them, or it proves nothing.

What is broken in Varnish is in tests.vcl.sabotage, what is broken in the service in ``instance``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from tests.coherence.faults import FAULTS, MOVES, NONE, Fault, leases_late, purges_late

_SLOW_READS = next(fault for fault in FAULTS if fault.name == "slow-reads")
_PURGES_DROPPED = next(fault for fault in FAULTS if fault.name == "purges-dropped")
_EXPIRING = next(fault for fault in FAULTS if fault.name == "expiring")


@dataclass(frozen=True)
class Sabotage:
    """What is broken, and the fault under which it shows soonest."""

    name: str
    says: str
    shows_with: Fault = NONE
    vcl: str = ""
    alterations: str = ""

    @property
    def fault(self) -> Fault:
        return replace(
            self.shows_with,
            name=self.name,
            says=self.says,
            vcl=self.vcl,
            alterations=f"{self.shows_with.alterations} {self.alterations}".strip(),
        )


SABOTAGES = (
    Sabotage(
        "plain-purge",
        "PURGE removes the object; a fetch in flight is inserted after it.",
        _SLOW_READS,
        vcl="plain-purge",
    ),
    Sabotage(
        "purge-before-commit",
        "The caches hear of a change before it is made.",
        alterations="purge_before_commit",
    ),
    Sabotage(
        "no-purge-on-insert",
        "An insert assumes that no cache can know anything of the object.",
        _SLOW_READS,
        alterations="no_purge_on_insert",
    ),
    Sabotage(
        "no-purge-for-batches",
        "Only single writes are purged.",
        alterations="no_purge_for_batches",
    ),
    Sabotage(
        "aliases-cached",
        "Every spelling of an object's URL is cached; a purge names only one.",
        vcl="aliases-cached",
    ),
    Sabotage(
        "lease-from-end",
        "A lease counts from the end of its fetch.",
        Fault("", "", leases_late),
        vcl="lease-from-end",
    ),
    Sabotage(
        "nodes-before-commit",
        "A write reads the nodes before its commit; one that joins meanwhile is not purged.",
        _PURGES_DROPPED,
        alterations="nodes_before_commit",
    ),
    Sabotage(
        "refusals-first",
        "A refusal is answered before the caches know what it tells.",
        Fault("", "", purges_late),
        alterations="refusals_first",
    ),
    Sabotage(
        "expiry-ignored",
        "A copy is kept as long as any other, whatever the service says is left.",
        _EXPIRING,
        vcl="expiry-ignored",
    ),
)

# With several databases (SHARDS=3).
MOVE_SABOTAGES = (
    Sabotage(
        "stays-skipped",
        "What was recorded before the bucket moved is left out.",
        MOVES[0],
        alterations="stays_skipped",
    ),
    Sabotage(
        "stays-repeated",
        "Who goes on after a move is told of a stay once more, now and then.",
        MOVES[0],
        alterations="stays_repeated",
    ),
)

# With tokens (tests.coherence.tokens).
TOKEN_SABOTAGES = (
    Sabotage(
        "decision-not-purged",
        "PURGE /policy is confirmed, and decisions stay.",
        vcl="decision-not-purged",
    ),
    Sabotage(
        "decision-without-lease",
        "A decision is found again under another lease than the one it was made under.",
        _PURGES_DROPPED,
        vcl="decision-without-lease",
    ),
    Sabotage(
        "decision-for-any-bucket",
        "What was decided for one bucket holds for all.",
        vcl="decision-for-any-bucket",
    ),
    Sabotage(
        "decisions-kept",
        "The service keeps a decision, and no statement asks whether it still holds.",
        alterations="decisions_kept",
    ),
)
