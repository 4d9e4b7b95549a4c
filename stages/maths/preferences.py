"""Compute the loss of pairs of a right and a wrong response to one question.

Tensors have one value per pair, [P]: log-ratios of whole responses, log π_θ(y) − log π_ref(y), summed over the tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from stages.maths.losses import check_shapes

PENALTY = 50.0
"""λ of DPO-positive in the code of VinePPO, which has β = 0.1 with it."""


def dpo_positive(right: Tensor, wrong: Tensor, beta: float, penalty: float = PENALTY) -> Tensor:
    """Return the DPO-positive loss of each pair: [P] (arXiv 2402.13228, as released with VinePPO, arXiv 2410.01679).

        ℓ = − log σ( β ( d_right − d_wrong − λ max(0, −d_right) ) )        d = log π_θ(y) − log π_ref(y)

    Without the penalty (λ = 0) it is DPO, which may lower the probability of both responses of a pair.

    Args:
      right, wrong: [P] log-ratios d.
      beta: β > 0.
      penalty: λ ≥ 0.

    Raises:
      ValueError: the shapes differ or are not [P], or β or λ is out of range.
    """
    check_shapes(right, wrong)
    if beta <= 0 or penalty < 0:
        raise ValueError(f"expected beta > 0 and a penalty of at least 0; got {beta} and {penalty}")
    return -functional.logsigmoid(beta * (right - wrong - penalty * torch.relu(-right)))
