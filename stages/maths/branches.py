"""Find the branching points of the prefix tree that a group of independently sampled responses forms."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from stages.maths.prefixes import shared_prefixes
from stages.maths.ragged import Ragged, offsets_of


def branch_starts(responses: Ragged, group: ArrayLike) -> Ragged:
    """Return the tokens t > 0 of each response at which it branches off from others of its group (arXiv 2509.18314).

    At such a token fewer responses share y_{≤t} than share y_{<t}; a segment begins there. These offsets are the
    lengths of the common prefixes with the other responses, except that a response that is entirely a prefix of another
    has no token there.

    Args:
      responses: N ragged rows of token ids.
      group: [N] int, the question of each response, numbers from 0.

    Returns:
      N ragged rows, int64, increasing within a row: input for `partition.partition_at_boundaries`.

    Raises:
      ValueError: the number of groups is not N.
    """
    group = np.asarray(group, np.int64)
    if group.shape != (len(responses),):
        raise ValueError(f"expected a group for each of {len(responses)} responses; got {group.shape}")
    # With the group as its first token, a response shares no prefix with responses of other groups.
    order, common = shared_prefixes([np.append(group[i], tokens) for i, tokens in enumerate(responses)])
    common -= 1
    span = int(responses.lengths.max(initial=0)) + 1
    codes = [np.empty(0, np.int64)]  # each (response, length of a shared prefix) as response · span + length
    shared, distance = common, 1  # prefix lengths shared by responses at this distance in the sorted order
    while (shared > 0).any():
        left = np.flatnonzero(shared > 0)
        codes += [np.unique(order[position] * span + shared[left]) for position in (left, left + distance)]
        # In sorted order, two responses share the minimum of the prefixes shared by the neighbors between them.
        shared, distance = np.minimum(shared[:-1], common[distance:]), distance + 1
    response, start = np.divmod(np.unique(np.concatenate(codes)), span)
    has_token = start < responses.lengths[response]
    return Ragged(start[has_token], offsets_of(np.bincount(response[has_token], minlength=len(responses))))
