"""A person who opens the page while a fault is on: what it says is wrong, and after how long."""

from __future__ import annotations

import html
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from tests.coherence.faults import NONE, Fault
from tests.coherence.load import Count, Load
from tests.coherence.stack import Stack
from tests.service import Client, Service, wait_until

SECONDS = 5.0
_PAUSE = 0.2
_WARM = 500  # reads before the fault
_SAID = r"suspended|lease|gone|last minute|does not"
_CALM_SECONDS = 70.0  # a headline of the fault before may last for a minute


@dataclass
class Sight:
    """What the pages said during a fault; ``seconds`` until the words that it is known by."""

    fault: Fault
    seconds: float | None = None
    headline: str = ""
    others: set[str] = field(default_factory=set)  # what else was said meanwhile

    @property
    def ok(self) -> bool:
        """Whether it was said in time, and without a fault nothing is.

        But that requests are slow: the load takes all that the machine has.
        """
        if self.fault is NONE:
            return all("took longer than" in each for each in self.others)
        if not self.fault.shows:
            return True
        return self.seconds is not None and self.seconds <= SECONDS


def headlines(service: Service) -> list[str]:
    """What an instance's page says is wrong; nothing if it does not answer."""
    try:
        client = Client(service.admin_port, timeout=4)
        page = client.request("GET", "/", headers={"Accept": "text/html"}).body.decode()
        client.close()
    except OSError:
        return []
    return [html.unescape(each) for each in re.findall('<span class="what">(.*?)</span>', page)]


@contextmanager
def opened(stack: Stack, fault: Fault, load: Load) -> Iterator[Sight]:
    """The page of every instance is opened when the block begins, and read until it ends."""
    sight = Sight(fault)
    wait_until(lambda: load.count(Count.READS) > _WARM, 60, "the load has begun")

    def is_calm() -> bool:
        said = [each for service in stack.services for each in headlines(service)]
        return not any(re.search(fault.shows or _SAID, each) for each in said)

    with suppress(AssertionError):  # then what it says is no news, and is told as such
        wait_until(is_calm, _CALM_SECONDS)
    over = threading.Event()
    began = time.monotonic()

    def read(service: Service) -> None:
        while not over.is_set():
            for said in headlines(service):
                if fault.shows and re.search(fault.shows, said):
                    if sight.seconds is None:
                        sight.seconds, sight.headline = time.monotonic() - began, said
                else:
                    sight.others.add(said)
            over.wait(_PAUSE)

    readers = [threading.Thread(target=read, args=(service,)) for service in stack.services]
    for reader in readers:
        reader.start()
    try:
        yield sight
    finally:
        over.set()
        for reader in readers:
            reader.join()
