"""Access: who may do what, by tokens whose decisions end with the policy they were made under.

``grants`` reads and matches rights and bucket patterns, ``tokens`` makes and reads the tokens
themselves, ``gate`` decides for requests. Knows the store; knows nothing of routes or caches.
"""

from poky.access.gate import Decision, Gate, Place, Verdict
from poky.access.grants import RIGHTS, Grants
from poky.access.tokens import Token, are_id_and_hash, check_name

__all__ = [
    "RIGHTS",
    "Decision",
    "Gate",
    "Grants",
    "Place",
    "Token",
    "Verdict",
    "are_id_and_hash",
    "check_name",
]
