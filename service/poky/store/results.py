"""What the store answers: one tuple per kind of row. Knows nothing of ours."""

from typing import Any, NamedTuple

from poky.store.literals import Value


class Object(NamedTuple):
    """An object as it is stored; times are whole seconds since 1970.

    No copy older than this one can be dated later than ``unchanged_since``. A large ``value`` is
    None until there is room for it: ``size`` is known before.
    """

    key: str
    revision: int
    hash: str
    modified_at: int
    unchanged_since: int
    content_type: str
    content_encoding: str | None
    expires_at: int | None
    milliseconds_left: int | None  #: until then, by PostgreSQL's clock when the statement began
    value: Any  #: bytes, or a memoryview: a copy would be a tenth of what a large one costs to read
    size: int


class Found(NamedTuple):
    """A row of one object: its key and its size are known without. ``value``: None if large."""

    revision: int
    hash: str
    modified_at: int
    unchanged_since: int
    content_type: str
    content_encoding: str | None
    expires_at: int | None
    milliseconds_left: int | None
    value: Any


class Each(NamedTuple):
    """A row of poky.get_each: an object, or a bucket that is not there (the rest is None)."""

    bucket: int  #: counted from 1
    key: str | None
    revision: int
    hash: str
    modified_at: int
    unchanged_since: int
    content_type: str
    content_encoding: str | None
    expires_at: int | None
    milliseconds_left: int | None
    value: Any
    size: int


class Expiry(NamedTuple):
    """When a write's object shall expire: after a ttl (0: never), or at a time."""

    ttl: int | None = None
    expires_at: int | None = None


class Write(NamedTuple):
    """A change of a single object: a put, or a delete, whose value is None."""

    bucket: str
    key: str
    value: Value | None
    content_type: str
    modified_at: int | None  #: of a delete: what poky.delete calls p_unmodified_since
    if_match: str | None
    if_none_match: str | None
    content_encoding: str | None = None
    expiry: Expiry | None = None  #: None: as the bucket has it

    @property
    def size(self) -> int:
        """Bytes of the value."""
        return 0 if self.value is None else len(self.value.content)


class Put(NamedTuple):
    """What a put came to: inserted, updated or rejected (then the rest is None)."""

    outcome: str
    revision: int
    hash: str
    modified_at: int
    outbox_id: int | None
    expires_at: int | None = None


class Delete(NamedTuple):
    """What a delete came to: deleted, missing or rejected."""

    outcome: str
    outbox_id: int | None


class Outcome(NamedTuple):
    """What one item of a batch came to; ``ordinal`` counts from 1."""

    ordinal: int
    outcome: str
    revision: int | None
    hash: str | None
    modified_at: int | None
    outbox_id: int | None
    expires_at: int | None = None


class Listed(NamedTuple):
    """An object as a listing shows it: everything but the value.

    By level, an entry for several keys has their beginning as ``key``, and nothing else. ``next``
    is of the row without a key that ends a page early: the store's own.
    """

    key: str
    size: int
    revision: int
    hash: str
    modified_at: int
    content_type: str
    content_encoding: str | None
    expires_at: int | None
    next: str | None = None


class Page(NamedTuple):
    """A page of a listing; ``next``: what the following one begins after, None: there is none.

    It may have less than was asked for although more follows, where thousands have expired.
    """

    entries: list[Listed]
    next: str | None


class Bucket(NamedTuple):
    """A bucket with PostgreSQL's estimate of its rows, and its bytes on disk.

    ``default_ttl``: seconds after which an object expires that is written without a ttl.
    ``changes_kept``: seconds for which its changes are kept; None: they are not recorded.
    """

    name: str
    kind: str
    estimated_rows: int
    bytes: int
    default_ttl: int | None
    changes_kept: int | None
    shard: int | None = None  #: where there are several databases


class Node(NamedTuple):
    """A cache; times are whole seconds since 1970.

    ``suspended_at`` is None while it takes part. ``drained``: its leases from before have run out.
    """

    name: str
    url: str
    generation: str
    lease_seconds: float
    leased_at: int | None
    suspended_at: int | None
    drained: bool
    held: bool
    purged_at: int | None


class Change(NamedTuple):
    """A change that a cache may not have heard of; an empty key stands for the whole bucket."""

    id: int
    bucket: str
    key: str


class Credential(NamedTuple):
    """What a token may do and whether a bucket is public, under one policy.

    ``hashes`` is empty where there is no valid token; ``seconds_left`` is None without an end.
    """

    policy: str
    public_read: bool
    hashes: list[str]
    grants: list[str]
    seconds_left: float | None


class Policy(NamedTuple):
    """The answer of poky.require_policy: nothing, for it refuses or lets the next statement run."""

    require_policy: None


class TokenRow(NamedTuple):
    """A token as an administrator sees it; times are whole seconds since 1970."""

    id: str
    name: str
    hash: str
    grants: list[str]
    is_rotating: bool
    created_at: int
    expires_at: int | None
    last_used_on: str | None
