"""Followers: requests that wait for changes, and the thread that looks for them.

``cursors`` says what a reader has seen, ``feed`` asks once for all who wait for a bucket. Knows the
store; knows nothing of HTTP.
"""

from poky.feed.cursors import Cursor
from poky.feed.feed import Feed, Follower

__all__ = ["Cursor", "Feed", "Follower"]
