"""The proof of the promise (docs/cache.md): real processes, real faults, and every read checked.

``python -m tests.coherence`` (``make coherence``) starts PostgreSQL, two instances of the service,
two Varnish nodes and nginx, writes and reads as fast as it can while one fault after the other
strikes, and checks the whole history. Read in this order: ``history`` (what is recorded),
``checker`` (what is wrong), ``load`` (writers and readers), ``stack``, ``faults``, ``sabotage``.
"""
