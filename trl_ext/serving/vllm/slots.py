# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""Which request has which slot of the value models' cache."""

import heapq
from collections.abc import Hashable, Iterator, Sequence


class SlotPool:
    """
    Slots that requests take when they are guided, and keep as long as there are enough.

    Where more requests are guided at once than there are slots, some take the slots of others in the same step, and
    their texts are read again at every token.

    Args:
        count (`int`): Number of slots.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._free = list(range(count))  # a heap: low slots first, so that those in use are neighbours
        self._slots: dict[Hashable, int] = {}  # in the order of their last use

    def __len__(self) -> int:
        return len(self._slots)

    def release(self, request: Hashable) -> None:
        """A request has ended, or is guided no longer."""
        slot = self._slots.pop(request, None)
        if slot is not None:
            heapq.heappush(self._free, slot)

    def waves(self, requests: Sequence[Hashable]) -> Iterator[list[int]]:
        """Positions of the requests that can have slots at the same time, those that have one first."""
        if len(requests) <= self.count:
            yield list(range(len(requests)))
            return
        order = sorted(range(len(requests)), key=lambda i: requests[i] not in self._slots)
        for start in range(0, len(order), self.count):
            yield sorted(order[start : start + self.count])

    def assign(self, requests: Sequence[Hashable]) -> list[int]:
        """
        The slot of each request: its own, a free one, or that of the request that was not asked for longest.

        Args:
            requests (`Sequence[Hashable]`): At most as many as there are slots.
        """
        for request in requests:
            if request in self._slots:
                self._slots[request] = self._slots.pop(request)  # used last
        for request in requests:
            if request not in self._slots:
                if not self._free:
                    self.release(next(iter(self._slots)))
                self._slots[request] = heapq.heappop(self._free)
        return [self._slots[request] for request in requests]
