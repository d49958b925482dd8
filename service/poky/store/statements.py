"""The statements that each connection prepares: SQL is built nowhere else in the store.

Per function of schema ``poky``: the types of its parameters, and the row that it answers, whose
fields are its columns. A field added to a row is read from then on.
"""

from typing import Any, NamedTuple

from poky.store.results import Delete, Found, Listed, Node, Object, Outcome, Put


class Function(NamedTuple):
    """How a function of schema ``poky`` is called."""

    types: tuple[str, ...]
    row: Any  #: a NamedTuple

    def prepare(self, name: str) -> str:
        """PREPARE for the function ``name``."""
        types = f" ({', '.join(self.types)})" if self.types else ""
        places = ", ".join(f"${number}" for number in range(1, len(self.types) + 1))
        columns = ", ".join(self.row._fields)
        return f"PREPARE poky_{name}{types} AS SELECT {columns} FROM poky.{name}({places});"  # noqa: S608 - names of our own

    @property
    def places(self) -> str:
        """What follows the name in EXECUTE."""
        return f"({', '.join(['%s'] * len(self.types))})" if self.types else ""


_PUT = ("text", "text", "bytea", "text", "bigint", "text", "text", "text", "jsonb")
_DELETE = ("text", "text", "text", "text", "bigint")

FUNCTIONS = {
    "get_many": Function(("text", "text[]"), Found),
    "put": Function(_PUT, Put),
    "put_many": Function(
        (_PUT[0], *(f"{each}[]" for each in _PUT[1:7]), "boolean", "text[]", "jsonb[]"), Outcome
    ),
    "delete": Function(_DELETE, Delete),
    "delete_many": Function(
        (_DELETE[0], *(f"{each}[]" for each in _DELETE[1:]), "boolean"), Outcome
    ),
    "list": Function(("text", "text", "text", "integer"), Listed),
    "nodes": Function((), Node),
}
# The functions of single buckets, whose names end with a number, by what they begin with.
BUCKET_FUNCTIONS = {
    "get": Function(("text", "text[]"), Object),
    "update": Function(_PUT, Put),
    "delete": Function(_DELETE, Delete),
}
# For reuse at each request.
EXECUTE = {name: f"EXECUTE poky_{name}{function.places}" for name, function in FUNCTIONS.items()}
BUCKET_EXECUTE = {
    verb: f"EXECUTE poky_{verb}_%d{function.places.replace('%', '%%')}"
    for verb, function in BUCKET_FUNCTIONS.items()
}
