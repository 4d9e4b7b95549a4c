"""The critic: V(s) of the states of a trajectory, from a transformer's hidden states; scored, trained, saved.

    V(s) = w · h(s) + b        h(s): the last hidden state of the last token of s

A critic's directory is that of its backbone in the Hugging Face layout (`config.json`, `model.safetensors`, the
tokenizer's files) with two files beside: `value_head.safetensors` (`weight` [1, H], `bias` [1], float32) and, once it
was trained, `optimizer.safetensors` (see `stages.optimization.optimizer`). Any language model's directory is one whose head is
still to come: it starts at zero, so V = 0 everywhere.

Weights are float32 masters as in `stages.optimization.torch`; where bfloat16 is asked for the backbone runs under autocast,
the head is always float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from stages.core.errors import UserError
from stages.maths.gae import value_loss
from stages.models import checkpoints, devices, loading, saving
from stages.models.checkpoints import OPTIMIZER_FILE
from stages.optimization.optimizer import DEFAULT_ADAMW, AdamWConfig, Optimizer
from stages.optimization.torch import checkpoint_layers

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

TOKENS_PER_PASS = 16384
"""Where no number of trajectories is asked for, the most tokens in one pass without gradient, padding included."""


@dataclass(frozen=True, eq=False, slots=True)
class CriticExample:
    """The states of one trajectory that have a value.

    Attributes:
      tokens: int32 [T], prompt and response.
      lengths: int64 [M], rising: how many tokens each state holds; at least 1, or there is nothing to value.
      old_values: floating [M], as the critic that made the advantages said; None where none has spoken.
      returns: floating [M], what the values are to be; None where nothing is to be learned.
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
        adam: AdamWConfig = DEFAULT_ADAMW,
        *,
        compute: torch.dtype | None = None,
    ) -> None:
        """Take a model over.

        Args:
          backbone: gives `last_hidden_state`; weights in the type they are to be kept in.
          head: H to 1.
          compute: type of the backbone's matrix products; left out, that of the weights.
        """
        self.model = _ValueModel(backbone.eval(), head)  # no dropout: a state has one value
        self.context_length = loading.context_length(backbone.config)
        self.vocabulary = loading.vocabulary_size(backbone.config)
        self._compute = compute or backbone.dtype
        self.optimizer = Optimizer(self.model, adam)

    def value(self, group: Sequence[CriticExample]) -> Tensor:
        """V of every state of some trajectories, end to end [M], at least float32; differentiable unless `no_grad`.

        Attention is causal and padding stands on the right, so no mask is needed; what lies behind a trajectory's last
        state is not fed.
        """
        backbone, head = self.model.backbone, self.model.head
        length = max(int(visited.lengths[-1]) for visited in group)
        ids = np.zeros((len(group), length), np.int64)
        for row, visited in enumerate(group):
            ids[row, : visited.lengths[-1]] = visited.tokens[: visited.lengths[-1]]
        last = np.concatenate([row * length + visited.lengths - 1 for row, visited in enumerate(group)])
        device = head.weight.device
        with torch.autocast(device.type, dtype=self._compute, enabled=self._compute != backbone.dtype):
            hidden: Tensor = backbone(input_ids=torch.from_numpy(ids).to(device), use_cache=False).last_hidden_state
        chosen = hidden.flatten(0, 1).index_select(0, torch.from_numpy(last).to(device))
        return head(chosen.to(head.weight.dtype)).squeeze(-1)

    def save(
        self, directory: Path, tokenizer: PreTrainedTokenizerBase, write_more: Callable[[Path], None] | None = None
    ) -> None:
        """Write a critic's directory with the optimiser's state, atomically; see `saving.save_directory`."""
        from safetensors.torch import save_file

        def write_rest(unfinished: Path) -> None:
            save_file(self.model.head.state_dict(), unfinished / checkpoints.VALUE_HEAD_FILE)
            self.optimizer.save(unfinished / OPTIMIZER_FILE)
            if write_more:
                write_more(unfinished)

        saving.save_directory(directory, self.model.backbone, tokenizer, write_rest)


def has_head(directory: Path) -> bool:
    """Whether a model directory is a critic's already."""
    return (directory / checkpoints.VALUE_HEAD_FILE).is_file()


def open_critic(
    directory: Path,
    adam: AdamWConfig = DEFAULT_ADAMW,
    *,
    device: str = "auto",
    dtype: str = "auto",
    gradient_checkpointing: bool = False,
    continue_optimizer: bool = False,
) -> Critic:
    """The critic of a directory with float32 masters; with its optimiser's state if that is there and asked for.

    A directory without a value head gives a critic whose head is zero.

    Raises:
      UserError: see `loading.load_backbone`, `adam.Optimizer.load`; a head of another width, or torn.
    """
    place = devices.pick_device(device)
    backbone = loading.load_backbone(directory, place, torch.float32)
    head = nn.Linear(backbone.config.get_text_config().hidden_size, 1)
    _load_head(head, directory)
    if gradient_checkpointing:
        checkpoint_layers(backbone)
    critic = Critic(backbone, head.to(place), adam, compute=devices.pick_dtype(dtype, place))
    if continue_optimizer and has_head(directory) and (directory / OPTIMIZER_FILE).is_file():
        critic.optimizer.load(directory / OPTIMIZER_FILE)
    return critic


def _load_head(head: nn.Linear, directory: Path) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not has_head(directory):
        with torch.no_grad():
            head.weight.zero_()
            head.bias.zero_()
        return
    path = directory / checkpoints.VALUE_HEAD_FILE
    try:
        state = load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    expected, found = ({name: [*value.shape] for name, value in of.items()} for of in (head.state_dict(), state))
    if found != expected:
        raise UserError(f"{path} holds {found}; expected {expected}, the head of the backbone beside it")
    head.load_state_dict(state)


def score_states(
    critic: Critic, visited: Sequence[CriticExample], size: int | None = None
) -> Iterator[tuple[int, NDArray[np.floating]]]:
    """Values of all states, without gradient: pairs of a trajectory's index and its [M].

    Args:
      size: trajectories in one pass; None: as many as `TOKENS_PER_PASS` holds.
    """
    with torch.no_grad():
        for group in _groups(visited, size):
            chosen = [visited[index] for index in group]
            flat = critic.value(chosen).cpu().numpy()
            ends = np.cumsum([one.lengths.size for one in chosen])
            yield from zip(group, np.split(flat, ends[:-1]), strict=True)


def update_critic(
    critic: Critic, batch: Sequence[CriticExample], size: int, learning_rate: float, clip: float | None
) -> dict[str, float]:
    """One optimiser step towards the returns, in passes of at most `size` trajectories: the split does not matter.

    Args:
      clip: how far a value may move from the old one before the loss lets go of it; None: any distance.

    Returns:
      `critic/…`: loss, value_mean, explained_variance (1 − Var(G − V)/Var(G), before the step; not there where all
      returns agree), clip_ratio, grad_norm.

    Raises:
      FloatingPointError: the loss or the gradient is not finite; the weights are as they were.
    """
    states = sum(visited.lengths.size for visited in batch)
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
        loss, watched = value_loss(values, old, returns, states, clip)
        loss.backward()
        for name, value in ({"loss": loss.detach()} | vars(watched)).items():
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


def _groups(visited: Sequence[CriticExample], size: int | None) -> list[list[int]]:
    """Trajectories with a state, by length, the longest first: like lengths share a pass, so little is padding."""
    filled = [index for index, one in enumerate(visited) if one.lengths.size]
    filled.sort(key=lambda index: -int(visited[index].lengths[-1]))
    groups: list[list[int]] = []
    room = 0
    for index in filled:
        if not groups or len(groups[-1]) == room:
            groups.append([])
            room = size or max(1, TOKENS_PER_PASS // int(visited[index].lengths[-1]))
        groups[-1].append(index)
    return groups
