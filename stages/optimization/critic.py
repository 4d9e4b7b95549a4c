"""The critic: estimate V(s) of the states of a trajectory from a transformer's hidden states; score, train and save it.

    V(s) = w · h(s) + b        h(s): the last hidden state of the last token of s

A critic's directory holds its backbone in the Hugging Face layout (`config.json`, `model.safetensors`, the tokenizer's
files), `value_head.state` (`weight` [1, H], `bias` [1], float32) and, after training, `optimizer.state`
(see `stages.optimization.optimizer`). The directory of a language model has no head yet: its critic starts with a zero
head, so V = 0 everywhere.

Weights are float32 masters as in `stages.optimization.torch`. With bfloat16 the backbone runs under autocast; the head
always computes in float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from stages.core.errors import UserError
from stages.core.paths import AnyPath
from stages.maths.gae import value_loss
from stages.models import checkpoints, devices, loading, saving
from stages.models.checkpoints import OPTIMIZER_FILE
from stages.models.guard import guarded
from stages.optimization.optimizer import DEFAULT_ADAMW, AdamWConfig, Optimizer
from stages.optimization.torch import checkpoint_layers

TOKENS_PER_PASS = 16384
"""Default limit of tokens, including padding, in one pass without gradient."""


@dataclass(frozen=True, eq=False, slots=True)
class CriticExample:
    """The states of one trajectory that a critic values.

    Attributes:
      tokens: int32 [T], prompt and response.
      lengths: int64 [M], rising: number of tokens of each state; at least 1.
      old_values: floating [M], values of the critic that computed the advantages; None if the states are only scored.
      returns: floating [M], regression targets; None if the states are only scored.
    """

    tokens: NDArray[np.int32]
    lengths: NDArray[np.int64]
    old_values: NDArray[np.floating] | None = None
    returns: NDArray[np.floating] | None = None


class _ValueModel(nn.Module):
    def __init__(self, backbone: PreTrainedModel, head: nn.Linear) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head


class Critic:
    """A backbone and a value head in this process."""

    def __init__(
        self,
        backbone: PreTrainedModel,
        head: nn.Linear,
        config: AdamWConfig = DEFAULT_ADAMW,
        *,
        compute: torch.dtype | None = None,
    ) -> None:
        """Take over a model.

        Args:
          backbone: model that returns `last_hidden_state`; its weights keep their type.
          head: linear layer from H to 1.
          config: AdamW's settings.
          compute: type of the backbone's matrix products. Default: the type of its weights.
        """
        self.model = _ValueModel(backbone.eval(), head)  # no dropout: a state has exactly one value
        self.context_length = loading.context_length(backbone.config)
        self.vocabulary = loading.vocabulary_size(backbone.config)
        self._compute = compute or backbone.dtype
        self.optimizer = Optimizer(self.model, config)

    def value(self, group: Sequence[CriticExample]) -> Tensor:
        """Return V of every state of some trajectories, concatenated [M], at least float32.

        Differentiable outside `torch.no_grad`. Attention is causal and padding is on the right, so no mask is needed;
        tokens after the last state of a trajectory are not fed.
        """
        backbone, head = self.model.backbone, self.model.head
        length = max(int(example.lengths[-1]) for example in group)
        ids = np.zeros((len(group), length), np.int64)
        for row, example in enumerate(group):
            ids[row, : example.lengths[-1]] = example.tokens[: example.lengths[-1]]
        last = np.concatenate([row * length + example.lengths - 1 for row, example in enumerate(group)])
        device = head.weight.device
        with torch.autocast(device.type, dtype=self._compute, enabled=self._compute != backbone.dtype):
            hidden: Tensor = backbone(input_ids=torch.from_numpy(ids).to(device), use_cache=False).last_hidden_state
        chosen = hidden.flatten(0, 1).index_select(0, torch.from_numpy(last).to(device))
        return head(chosen.to(head.weight.dtype)).squeeze(-1)

    def save(
        self, directory: AnyPath, tokenizer: PreTrainedTokenizerBase, write_more: Callable[[Path], None] | None = None
    ) -> None:
        """Write a critic's directory with the optimizer's state, atomically; see `saving.save_directory`."""

        def write_rest(unfinished: Path) -> None:
            save_file(self.model.head.state_dict(), unfinished / checkpoints.VALUE_HEAD_FILE)
            self.optimizer.save(unfinished / OPTIMIZER_FILE)
            if write_more:
                write_more(unfinished)

        saving.save_directory(directory, self.model.backbone, tokenizer, write_rest)


def has_head(directory: Path) -> bool:
    """Return whether a model directory has a value head."""
    return (directory / checkpoints.VALUE_HEAD_FILE).is_file()


def open_critic(
    directory: Path,
    config: AdamWConfig = DEFAULT_ADAMW,
    *,
    device: str = "auto",
    dtype: str = "auto",
    gradient_checkpointing: bool = False,
    continue_optimizer: bool = False,
) -> Critic:
    """Open the critic in a directory with float32 masters; without a value head there, the head is zero.

    Args:
      continue_optimizer: also load the optimizer's state, if the directory has one.

    Raises:
      UserError: as `loading.load_backbone` and `Optimizer.load`; the head is corrupt or has another width.
    """
    target = devices.pick_device(device)
    backbone = loading.load_backbone(directory, target, torch.float32)
    head = nn.Linear(backbone.config.get_text_config().hidden_size, 1)
    _load_head(head, directory)
    if gradient_checkpointing:
        checkpoint_layers(backbone)
    critic = Critic(backbone, head.to(target), config, compute=devices.pick_dtype(dtype, target))
    if continue_optimizer and has_head(directory) and (directory / OPTIMIZER_FILE).is_file():
        critic.optimizer.load(directory / OPTIMIZER_FILE)
    return critic


def _load_head(head: nn.Linear, directory: Path) -> None:
    if not has_head(directory):
        with torch.no_grad():
            head.weight.zero_()
            head.bias.zero_()
        return
    path = directory / checkpoints.VALUE_HEAD_FILE
    with guarded(path.name, path.parent):
        state = load_file(path)
    expected, found = ({name: [*one.shape] for name, one in tensors.items()} for tensors in (head.state_dict(), state))
    if found != expected:
        raise UserError(f"{path} holds {found}; expected {expected}, which fits the backbone in the same directory")
    head.load_state_dict(state)


def score_states(
    critic: Critic, examples: Sequence[CriticExample], size: int | None = None
) -> Iterator[tuple[int, NDArray[np.floating]]]:
    """Yield the values of all states, without gradient: index of a trajectory, and its [M].

    Args:
      size: trajectories per pass; None: as many as fit in `TOKENS_PER_PASS`.
    """
    with torch.no_grad():
        for group in _groups(examples, size):
            chosen = [examples[index] for index in group]
            flat = critic.value(chosen).cpu().numpy()
            ends = np.cumsum([one.lengths.size for one in chosen])
            yield from zip(group, np.split(flat, ends[:-1]), strict=True)


def update_critic(
    critic: Critic, batch: Sequence[CriticExample], size: int, learning_rate: float, clip: float | None
) -> dict[str, float]:
    """Take one optimizer step towards the returns, in passes of at most `size` trajectories.

    The split into passes does not change the result, except for rounding.

    Args:
      clip: the clip range of values around the old ones (`maths.gae.value_loss`); None: no clipping.

    Returns:
      `critic/…`: loss, value_mean, explained_variance (1 − Var(G − V)/Var(G), before the step; absent if all returns
      are equal), clip_ratio, grad_norm.

    Raises:
      FloatingPointError: the loss or the gradient is not finite; the weights are unchanged.
    """
    states = sum(example.lengths.size for example in batch)
    if not states:
        return {}
    sums: dict[str, Tensor] = {}
    for group in _groups(batch, size):
        chosen = [batch[index] for index in group]
        values = critic.value(chosen)
        old, returns = (
            torch.from_numpy(np.concatenate([getattr(one, name) for one in chosen])).to(values)
            for name in ("old_values", "returns")
        )
        loss, group_sums = value_loss(values, old, returns, states, clip)
        loss.backward()
        for name, value in ({"loss": loss.detach()} | vars(group_sums)).items():
            sums[name] = sums[name] + value.double() if name in sums else value.double()
    totals = dict(zip(sums, torch.stack(list(sums.values())).tolist(), strict=True))
    if not math.isfinite(totals["loss"]):
        critic.optimizer.discard()
        raise FloatingPointError(f"the critic's loss is {totals['loss']}")
    figures = {
        "critic/loss": totals["loss"],
        "critic/value_mean": totals["value"] / states,
        "critic/clip_ratio": totals["clipped"] / states,
    }
    spread = float(np.var(np.concatenate([one.returns for one in batch if one.returns is not None])))
    if spread > 0:
        unexplained = totals["squared_error"] / states - (totals["error"] / states) ** 2
        figures["critic/explained_variance"] = 1 - unexplained / spread
    return figures | {"critic/grad_norm": critic.optimizer.step(learning_rate)}


def _groups(examples: Sequence[CriticExample], size: int | None) -> list[list[int]]:
    """Group the trajectories with states by length, the longest first, so that a pass has little padding."""
    filled = [index for index, one in enumerate(examples) if one.lengths.size]
    filled.sort(key=lambda index: -int(examples[index].lengths[-1]))
    groups: list[list[int]] = []
    room = 0
    for index in filled:
        if not groups or len(groups[-1]) == room:
            groups.append([])
            room = size or max(1, TOKENS_PER_PASS // int(examples[index].lengths[-1]))
        groups[-1].append(index)
    return groups
