"""The codes of problem details: the contract's, the wire's and the store's, as one table."""

from poky import http, store

CODES = {
    **http.CODES,
    **store.CODES,
    "admin_listener_needed": "Without tokens, buckets are made and dropped on the admin listener.",
    "answer_too_large": "The answer would be larger than answers may be: ask for less at a time.",
    "bad_condition": "If-Match or If-None-Match cannot be read.",
    "bad_content_encoding": "The content coding is none of those that are stored.",
    "bad_content_type": "The content type cannot be sent back as a header field.",
    "bad_item": "An item of a batch is not as it should be; nothing was done.",
    "bad_json": "The body of a batch is not JSON in UTF-8.",
    "bad_query": "The query has an unknown or repeated parameter, or a value that is not one.",
    "batch_too_large": "The batch has too many bytes or items: split it.",
    "cache_outdated": "The object expires, and the cache is of a release that would serve it late.",
    "cross_site": "A page of an origin that is not allowed sent this.",
    "date_in_future": "The new modified_at is too far ahead.",
    "digest_mismatch": "The body does not match the digest that was sent with it.",
    "host_unknown": "The admin listener is asked by a name that is not its own.",
    "method_not_allowed": "The path has no such method: see Allow.",
    "object_not_found": "There is no such object.",
    "objects_hidden": "The admin listener's pages do not show keys and values.",
    "not_confirmed": "A delete by prefix does not repeat the prefix.",
    "partial_write": "Content-Range on a write: only whole values are stored.",
    "path_not_found": "There is nothing at this path.",
    "right_needed": "The token does not grant this right in this bucket.",
    "token_needed": "There is no valid token in Authorization.",
    "value_not_text": "A value is not UTF-8: ask for the objects media type.",
    "value_too_large": "The value is larger than those that are stored.",
}
