"""Divide the requests of a call into units for workers, so that shared prefixes are computed in one place."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace

from stages.maths.prefixes import sortable_bytes
from stages.sampling.protocol import Request


@dataclass(frozen=True)
class RequestUnit:
    """Requests that one worker samples in one call.

    Attributes:
      requests: some requests of the call, or parts of them (some of the keys).
      places: for each, the index of its request in the call and of its first key there.
      roots: bytes of their distinct prompts, in order.
    """

    requests: tuple[Request, ...]
    places: tuple[tuple[int, int], ...]
    roots: tuple[bytes, ...]

    @property
    def samples(self) -> int:
        """Number of samples."""
        return sum(len(request.keys) for request in self.requests)


def divide_requests(requests: Sequence[Request], workers: int, least: int) -> list[RequestUnit]:
    """Return units of decreasing size that cover all samples of a call once.

    Each unit takes 1 / (2·workers) of the samples that remain (guided self-scheduling, Polychronopoulos and Kuck 1987):
    the first units fill an engine's batch, the last ones are short, so all workers end at about the same time. Requests
    to one prompt stay together, in order of their prefixes; a prefix that does not fit opens the next unit.
    One worker takes the whole call.

    Args:
      least: smallest number of samples in a unit, except in the last one.
    """
    used = [index for index, request in enumerate(requests) if request.keys]
    root_of = {index: _root(requests[index]) for index in used}
    first = {root: position for position, root in reversed(list(enumerate(root_of.values())))}
    used.sort(key=lambda index: (first[root_of[index]], sortable_bytes(requests[index].prefix)))
    left = sum(len(requests[index].keys) for index in used)
    waiting = deque((index, 0) for index in used)
    units: list[RequestUnit] = []
    while waiting:
        size = left if workers == 1 else max(least, -(-left // (2 * workers)))
        taken = _take(requests, waiting, size)
        roots = tuple(dict.fromkeys(root_of[index] for _, (index, _) in taken))
        units.append(RequestUnit(tuple(one for one, _ in taken), tuple(place for _, place in taken), roots))
        left -= units[-1].samples
    return units


def _take(
    requests: Sequence[Request], waiting: deque[tuple[int, int]], size: int
) -> list[tuple[Request, tuple[int, int]]]:
    """Take about `size` samples from the front of `waiting` (request, its first key): requests, and their places."""
    taken: list[tuple[Request, tuple[int, int]]] = []
    room = size
    while waiting and room > 0:
        index, start = waiting[0]
        keys = requests[index].keys[start:]
        if taken and len(keys) > room and 2 * room <= size:
            break  # full enough: the next prefix goes to another unit as a whole
        waiting.popleft()
        if len(keys) > 2 * room:
            keys = keys[:room]
            waiting.appendleft((index, start + room))
        taken.append((replace(requests[index], keys=keys), (index, start)))
        room -= len(keys)
    return taken


def _root(request: Request) -> bytes:
    """Return the bytes of a request's prompt: its prefix up to the response."""
    return request.prefix[: request.text_start].tobytes()
