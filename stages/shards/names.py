"""The file names of parts, and the split (number of parts) that a directory holds; imports nothing heavy."""

from __future__ import annotations

import re

from stages.core.paths import AnyPath

_PART_NAME = re.compile(r"part-(\d{5})-of-(\d{5})\.parquet")
_CHUNKS_NAME = re.compile(r"\.part-\d{5}-of-(\d{5})")


def part_name(index: int, count: int) -> str:
    """Return the file name of a part: `part-00003-of-00008.parquet`."""
    return f"part-{index:05d}-of-{count:05d}.parquet"


def parse_part_name(name: str) -> tuple[int, int] | None:
    """Return (index, count) from the file name of a part; None for another name."""
    match = _PART_NAME.fullmatch(name)
    return (int(match[1]), int(match[2])) if match else None


def find_split(directory: AnyPath) -> int | None:
    """Return the number of parts that an artefact in a directory is divided into; None if no work is there.

    Finished parts count before committed chunks of unfinished ones. If splits are mixed, the one with the most finished
    parts is returned, and `open_part` refuses the others.
    """
    finished = [part for path in directory.glob("part-*.parquet") if (part := parse_part_name(path.name))]
    counts = [count for _, count in finished]
    if not counts:
        begun = {path: _CHUNKS_NAME.fullmatch(path.name) for path in directory.glob(".part-*")}
        counts = [int(match[1]) for path, match in begun.items() if match and any(path.glob("chunk-*"))]
    return max(sorted(set(counts)), key=counts.count) if counts else None
