"""Keep the keys and values of one call for the next, which finds them by their tokens."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from stages.maths.prefixes import common_prefix_length, sortable_bytes
from stages.sampling.embedded.kv_cache import KeyValueRows
from stages.sampling.prefix_tree import PrefixPath


class PrefixMemory:
    """Whole sequences (prefix and sample), one per row, up to a number of rows.

    Attributes:
      rows: their keys and values.
      hidden: [rows, H], the hidden state of each sequence's last token.
    """

    def __init__(self, model: Any, rows: int, length: int, width: int) -> None:
        config = model.get_decoder().config
        self.rows = KeyValueRows(config, rows, length, model.device, model.dtype)
        self.hidden = torch.zeros(rows, width, device=model.device, dtype=model.dtype)
        self.room = rows
        self._token_ids: dict[bytes, np.ndarray] = {}

    def keep(
        self, source: KeyValueRows, rows: np.ndarray, sequences: Sequence[np.ndarray], hidden: torch.Tensor
    ) -> None:
        """Copy sequences (int32 [T] each, in `rows` [N] of the source, with `hidden` [N, H]) while rows are free."""
        taken = []
        for i, token_ids in enumerate(sequences):
            name = sortable_bytes(token_ids)
            if len(self._token_ids) < self.room and name not in self._token_ids:
                self._token_ids[name] = token_ids
                taken.append(i)
        if taken:
            places = torch.arange(len(self._token_ids) - len(taken), len(self._token_ids), device=self.hidden.device)
            of = torch.from_numpy(rows[taken]).to(self.hidden.device)
            self.rows.copy(places, source, of, max(len(sequences[i]) for i in taken))
            self.hidden[places] = hidden[torch.tensor(taken, device=self.hidden.device)]

    def recall(self, paths: Sequence[PrefixPath]) -> list[PrefixPath]:
        """Return the paths with `known` and `known_row` filled in.

        Only the hidden state of a sequence's last token is kept. A state inside the known tokens therefore needs its
        last token computed again, unless both the sequence and the path end there.
        """
        order = sorted((name, row) for row, name in enumerate(self._token_ids))
        names, all_ids = [name for name, _ in order], list(self._token_ids.values())
        found = []
        for path in paths:
            at = bisect_left(names, sortable_bytes(path.token_ids))
            near = [order[i][1] for i in (at - 1, at) if 0 <= i < len(order)]
            known, row = max(
                ((common_prefix_length(path.token_ids, all_ids[row]), row) for row in near), default=(0, -1)
            )
            whole = known == len(path.token_ids) == len(all_ids[row]) and len(path.states) == 1
            if not whole:
                known = min(known, path.states[0].length - 1)
            found.append(replace(path, known=known, known_row=row) if known > path.shared else path)
        return found
