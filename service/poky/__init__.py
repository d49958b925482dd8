"""Poky: a bucketed key-value store over HTTP on PostgreSQL, with a cache that is never stale.

Read in this order: ``api`` (what may be asked), ``store`` and ``sql/functions`` (how it is
kept), ``cache`` (how copies stay true), ``process`` and ``http`` (the process and its wire),
``schema`` (how a database gets there), ``cli`` (the command).
"""

__version__ = "0.1.0"
