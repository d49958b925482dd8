"""The statements that each connection prepares: SQL is built nowhere else in the store.

Per function of schema ``poky``: the types of its parameters, and the row that it answers, whose
fields are its columns. A field added to a row is read from then on.
"""

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from poky.store.results import (
    Credential,
    Delete,
    Each,
    Found,
    Listed,
    Node,
    Object,
    Outcome,
    Policy,
    Put,
)


class Function(NamedTuple):
    """How a function of schema ``poky`` is called."""

    types: tuple[str, ...]
    row: Any  #: a NamedTuple
    columns: Mapping[str, str] = {}  #: of fields that are no columns by themselves
    verb: str = ""  #: what the function's name begins with, if not as the statement's
    function: str = ""  #: its name, if it is not that of the statement

    def prepare(self, name: str) -> str:
        """PREPARE ``name`` for the function of this name, or with the same number."""
        types = f" ({', '.join(self.types)})" if self.types else ""
        places = ", ".join(f"${number}" for number in range(1, len(self.types) + 1))
        function = self.function or name
        if self.verb:
            function = f"{self.verb}_{name.rpartition('_')[2]}"
        columns = ", ".join(self.columns.get(field, field) for field in self.row._fields)
        return f"PREPARE poky_{name}{types} AS SELECT {columns} FROM poky.{function}({places});"  # noqa: S608 - names of our own

    @property
    def places(self) -> str:
        """What follows the name in EXECUTE."""
        return f"({', '.join(['%s'] * len(self.types))})" if self.types else ""


_PUT = ("text", "text", "bytea", "text", "bigint", "text", "text", "text", "jsonb")
_DELETE = ("text", "text", "text", "text", "bigint")

# Above 256 kB, for a batch together, values are not fetched with the facts: a fetch takes five
# times their size in memory. COPY takes three times, and is sent once there is room for it.
_VALUE_IF_SMALL = {"value": "CASE WHEN octet_length(value) <= 262144 THEN value END"}
# Statements that several requests share have smaller ones: none waits for another's large value.
_IF_SHARED = {
    "value": "CASE WHEN octet_length(value) <= 32768 THEN value END",
    "size": "octet_length(value)",
}
_IF_SMALL_TOGETHER = {
    "value": "CASE WHEN sum(octet_length(value)) OVER () <= 262144 THEN value END",
    "size": "octet_length(value)",
}

FUNCTIONS = {
    "get": Function(("text", "text[]"), Found, _VALUE_IF_SMALL, function="get_many"),
    "get_many": Function(("text", "text[]"), Object, _IF_SMALL_TOGETHER),
    "put": Function(_PUT, Put),
    "put_many": Function(
        (_PUT[0], *(f"{each}[]" for each in _PUT[1:7]), "boolean", "text[]", "jsonb[]"), Outcome
    ),
    "delete": Function(_DELETE, Delete),
    "delete_many": Function(
        (_DELETE[0], *(f"{each}[]" for each in _DELETE[1:]), "boolean"), Outcome
    ),
    "get_each": Function(("text[]", "integer[]", "text[]", "integer[]"), Each, _IF_SHARED),
    "change_each": Function(
        ("boolean[]", "text[]", *(f"{each}[]" for each in _PUT[1:]), "integer"), Outcome
    ),
    "list_page": Function(("text", "text", "text", "integer", "boolean"), Listed),
    "nodes": Function((), Node),
    "credential": Function(("text", "text"), Credential),
    "require_policy": Function(("text",), Policy),
}
# The functions of single buckets, whose names end with a number, by what they begin with.
BUCKET_FUNCTIONS = {
    "get": Function(("text", "text[]"), Found, _VALUE_IF_SMALL),
    "share": Function(("text", "text[]"), Object, _IF_SHARED, "get"),
    "update": Function(_PUT, Put),
    "delete": Function(_DELETE, Delete),
}
# For reuse at each request.
EXECUTE = {name: f"EXECUTE poky_{name}{function.places}" for name, function in FUNCTIONS.items()}
BUCKET_EXECUTE = {
    verb: f"EXECUTE poky_{verb}_%d{function.places.replace('%', '%%')}"
    for verb, function in BUCKET_FUNCTIONS.items()
}
# Large values, one row after another in the order of distinct keys, up to a size.
# The columns: an Object's fields but for its size.
COPIED: Final = {
    field: {int: "bigint", int | None: "bigint", Any: "bytea"}.get(kind, "text")
    for field, kind in Object.__annotations__.items()
    if field != "size"
}
COPY_FACTOR: Final = 3  # what a value takes: libpq's buffer, its message, Python's bytes
_COPIED_COLUMNS = ", ".join(f"{field}::{kind}" for field, kind in COPIED.items())
COPY_OBJECTS: Final = (
    f"COPY (SELECT {_COPIED_COLUMNS}"  # noqa: S608 - names of our own
    " FROM unnest(%s::text[]) WITH ORDINALITY AS wanted (key, ordinal)"
    " JOIN poky.get_many(%s, %s) USING (key) WHERE octet_length(value) <= %s ORDER BY ordinal)"
    " TO STDOUT (FORMAT binary)"
)
COPY_PART: Final = "COPY (SELECT poky.get_part(%s, %s, %s, %s, %s)) TO STDOUT (FORMAT binary)"
