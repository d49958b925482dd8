"""The statements that each connection prepares: SQL is built nowhere else in the store."""

# Per verb: the parameters of a bucket's own function, and the columns read of its answer.
BUCKET_FUNCTIONS = {
    "get": "(text) AS SELECT revision, hash, modified_at, unchanged_since, content_type, value"
    " FROM poky.{}($1)",
    "put": "(text, bytea, text, bigint, text, text, text) AS SELECT outcome, revision, hash,"
    " modified_at, outbox_id FROM poky.{}($1, $2, $3, $4, $5, $6, $7)",
    "delete": "(text, text, text, bigint) AS SELECT outcome, outbox_id"
    " FROM poky.{}($1, $2, $3, $4)",
}
BUCKET_FUNCTION_PLACES = {
    "get": "(%s)",
    "put": "(%s, %s, %s, %s, %s, %s, %s)",
    "delete": "(%s, %s, %s, %s)",
}
# Prepared once per connection: PostgreSQL parses and analyses each of them only once.
STATEMENTS = {
    "get": "(text, text) AS SELECT revision, hash, modified_at, unchanged_since, content_type,"
    " value FROM poky.get($1, $2)",
    "put": "(text, text, bytea, text, bigint, text, text, text) AS SELECT outcome, revision, hash,"
    " modified_at, outbox_id FROM poky.put($1, $2, $3, $4, $5, $6, $7, $8)",
    "delete": "(text, text, text, text, bigint) AS SELECT outcome, outbox_id"
    " FROM poky.delete($1, $2, $3, $4, $5)",
    "get_many": "(text, text[]) AS SELECT key, revision, hash, modified_at, content_type, value"
    " FROM poky.get_many($1, $2)",
    "put_many": "(text, text[], bytea[], text[], bigint[], text[], text[], boolean, text[]) AS"
    " SELECT ordinal, outcome, revision, hash, modified_at, outbox_id"
    " FROM poky.put_many($1, $2, $3, $4, $5, $6, $7, $8, $9)",
    "delete_many": "(text, text[], text[], text[], bigint[], boolean) AS"
    " SELECT ordinal, outcome, revision, hash, modified_at, outbox_id"
    " FROM poky.delete_many($1, $2, $3, $4, $5, $6)",
    "nodes": "AS SELECT name, url, generation, lease_seconds, leased_at, suspended_at, drained,"
    " held, purged_at FROM poky.nodes()",
    "list": "(text, text, text, integer) AS SELECT key, size, revision, hash, modified_at,"
    " content_type FROM poky.list($1, $2, $3, $4)",
}
