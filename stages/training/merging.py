"""Owns `--merge`: the whole model beside an adapter, a Hugging Face directory that loads anywhere."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from stages.core.progress import Progress
from stages.models.adapters import MERGED
from stages.models.checkpoints import resolve
from stages.models.lora import write_merged
from stages.models.pruning import lost
from stages.shards.lineage import Lineage, Source, read_lineage, write_lineage


def merge_beside(out: Path, progress: Progress) -> None:
    """Writes `OUT/merged` from the adapter in `out`, unless it is there: an adapter never changes once it is written.

    Where the adapter's weights were pruned, there is nothing to merge, and nobody who needs it.

    Raises:
      UserError: as `stages.models.lora.write_merged`.
    """

    merged, lineage = out / MERGED, read_lineage(out)
    if (merged / "config.json").is_file() or lost(out, "weights"):
        return
    progress.note(f"merging the adapter into {merged}")
    adapter = resolve(str(out))
    write_merged(adapter, merged, lambda directory: write_lineage(directory, _deeper(lineage)) if lineage else None)


def _deeper(lineage: Lineage) -> Lineage:
    """The same lineage as seen from a directory within."""

    def seen(source: Source) -> Source:
        local = source.path.startswith("..")  # names on the hub never begin so
        return dataclasses.replace(source, path=f"../{source.path}") if local else source

    model = seen(lineage.model) if lineage.model else None
    return dataclasses.replace(lineage, inputs=tuple(map(seen, lineage.inputs)), model=model)
