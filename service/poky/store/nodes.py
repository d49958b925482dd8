"""Cache nodes, their leases, and the changes that they may not have heard of."""

from collections.abc import Sequence

from poky.store.pool import Pool
from poky.store.results import Change, Node


class Nodes(Pool):
    """What the caches need of the database. ``drained``: all leases of a node have expired."""

    def nodes(self) -> list[Node]:
        """All caches, by name: to be asked after a commit, never before."""
        return [Node(*row) for row in self._read_freely("EXECUTE poky_nodes", ())]

    def register_node(self, node: str, url: str) -> bool:
        """Make a cache known, or its new address; it starts suspended. Whether anything changed."""
        return bool(self._write_freely("SELECT poky.register_node(%s, %s)", (node, url))[0][0])

    def lease(self, node: str, seconds: float) -> str | None:
        """The generation under which a cache may use its copies from when it asked; None is no."""
        generation: str | None = self._write_freely("SELECT poky.lease(%s, %s)", (node, seconds))[
            0
        ][0]
        return generation

    def suspend_node(self, node: str, hold: bool = False) -> Node | None:
        """Grant a cache no more leases; also if it is suspended already. None: no such cache."""
        rows = self._write_freely("SELECT * FROM poky.suspend_node(%s, %s)", (node, hold))
        return Node(*rows[0]) if rows else None

    def drain_node(self, node: str, generation: str) -> bool:
        """Say that the leases of a suspended cache have certainly run out."""
        return bool(self._write_freely("SELECT poky.drain_node(%s, %s)", (node, generation))[0][0])

    def end_node(self, node: str, generation: str) -> bool:
        """Say that a suspended cache had ended by then: it has no lease, and no pause to keep."""
        return bool(self._write_freely("SELECT poky.end_node(%s, %s)", (node, generation))[0][0])

    def reinstate_node(self, node: str, generation: str) -> bool:
        """Let a cache take part again, unless its pause is not over; whether it does now."""
        return bool(
            self._write_freely("SELECT poky.reinstate_node(%s, %s)", (node, generation))[0][0]
        )

    def resume_node(self, node: str) -> bool:
        """Hold a cache no longer; False if there is no such cache."""
        return bool(self._write_freely("SELECT poky.resume_node(%s)", (node,))[0][0])

    def remove_node(self, node: str) -> bool:
        """Forget a cache that is suspended and drained; StoreError 409 if it may hold a lease."""
        return bool(self._write_freely("SELECT poky.remove_node(%s)", (node,))[0][0])

    def renew_generations(self) -> float:
        """Invalidate every copy; the seconds after which none of them is in use any more."""
        return float(self._write_freely("SELECT poky.renew_generations()", ())[0][0])

    def unconfirmed(self, seconds: float, limit: int) -> list[Change]:
        """The oldest changes without a confirmed purge, of at least this age in seconds."""
        rows = self._read_freely(
            "SELECT id, bucket, key FROM poky.unconfirmed(%s, %s)", (seconds, limit)
        )
        return [Change(*row) for row in rows]

    def confirm(self, ids: Sequence[int]) -> None:
        """Every cache has heard of these changes, or was suspended since."""
        self._write_freely("SELECT poky.confirm(%s)", (list(ids),))
