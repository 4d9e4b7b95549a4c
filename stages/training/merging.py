"""Write the merged model of an adapter (`--merge`): a Hugging Face directory that loads anywhere."""

from __future__ import annotations

import dataclasses

from stages.core.paths import AnyPath
from stages.core.progress import Progress
from stages.models.adapters import MERGED
from stages.models.checkpoints import resolve
from stages.models.lora import write_merged
from stages.models.pruning import lost
from stages.shards.lineage import Lineage, Source, read_lineage, write_lineage


def write_merged_model(out: AnyPath, progress: Progress) -> None:
    """Write `OUT/merged` from the adapter in `out`, unless it exists: an adapter never changes after it is written.

    Do nothing if the adapter's weights were pruned: they are gone.

    Raises:
      UserError: as `stages.models.lora.write_merged`.
    """
    merged, lineage = out / MERGED, read_lineage(out)
    if (merged / "config.json").is_file() or lost(out, "weights"):
        return
    progress.note(f"merging the adapter into {merged}")
    adapter = resolve(str(out))
    write_merged(
        adapter,
        merged,
        lambda directory: write_lineage(directory, _from_subdirectory(lineage)) if lineage else None,
    )


def _from_subdirectory(lineage: Lineage) -> Lineage:
    """Return a lineage whose relative paths start one directory deeper."""

    def moved(source: Source) -> Source:
        is_relative = source.path.startswith("..")  # names on the hub never start with this
        return dataclasses.replace(source, path=f"../{source.path}") if is_relative else source

    model = moved(lineage.model) if lineage.model else None
    return dataclasses.replace(lineage, inputs=tuple(map(moved, lineage.inputs)), model=model)
