"""The one-process optimization engine: a Hugging Face model, AdamW, the masked head.

Weights are float32 masters, whatever type they were stored in: at learning rates such as 1e-6, updates are smaller than
the spacing of bfloat16 numbers and would be lost. With bfloat16, the decoder runs under autocast and the head
multiplies in bfloat16. Saved directories hold the masters, so nothing is lost between iterations.

On the CPU the same calls give the same bits. On a GPU, attention's backward pass may add in another order.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_layers import GradientCheckpointingLayer

from stages.core.errors import UserError
from stages.core.paths import AnyPath
from stages.models import agreement, devices, loading, saving
from stages.models.adapters import Lora
from stages.models.checkpoints import OPTIMIZER_FILE
from stages.models.split import MODEL_FAILURES, Split
from stages.optimization import lora
from stages.optimization.batches import Example, MicroBatch, TokenTree, collate, padded
from stages.optimization.head import Scored, default_chunk, selected_log_probs, selected_log_probs_of
from stages.optimization.optimizer import DEFAULT_ADAMW, AdamWConfig, Optimizer
from stages.optimization.packing import packed


class TorchEngine:
    """A causal language model in this process; implements `step.Engine`.

    Attributes:
      model: the network, with an adapter on it if one is trained.
      compute: type of the matrix products.
      mixed: some weights have another type, so the decoder runs under autocast.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        config: AdamWConfig = DEFAULT_ADAMW,
        *,
        compute: torch.dtype | None = None,
        gradient_checkpointing: bool = False,
        head_chunk: int | None = None,
    ) -> None:
        """Take over a model.

        Args:
          model: its weights keep their type.
          config: AdamW's settings.
          compute: type of the matrix products. Default: the type of the weights.
          gradient_checkpointing: recompute each layer in the backward pass instead of keeping its activations.
          head_chunk: positions per pass through the output head. Default: by the size of the vocabulary.

        Raises:
          UserError: the scores disagree with the model's own forward pass.
        """
        self.model = model.eval()  # no dropout: the old log-probabilities come from the same function
        self.context_length = loading.context_length(model.config)
        self._split = Split(model)
        self.vocabulary = self._split.vocabulary
        self.compute = compute or model.dtype
        self.mixed = any(parameter.dtype != self.compute for parameter in model.parameters())
        self._chunk = head_chunk
        self.optimizer = Optimizer(model, config)
        if gradient_checkpointing:
            checkpoint_layers(model)
        self._check_scores()

    def score(self, batch: MicroBatch, temperature: float) -> Scored:
        """Score as `step.Engine.score`."""
        targets = torch.from_numpy(batch.targets).to(self._device)
        states = self._states(batch, self.compute)
        head = self._split.linear
        if head is not None:
            return selected_log_probs(
                states, head.weight, head.bias, targets, temperature=temperature, chunk=self._chunk
            )
        chunk = self._chunk or default_chunk(self.vocabulary)
        return selected_log_probs_of(self._own_logits, states, targets, temperature=temperature, chunk=chunk)

    def _own_logits(self, states: Tensor) -> Tensor:
        with torch.autocast(states.device.type, dtype=states.dtype, enabled=self._mixes(states.dtype)):
            return self._split.logits(states)

    def _mixes(self, compute: torch.dtype) -> bool:
        return self.mixed and compute != torch.float32

    @property
    def _device(self) -> torch.device:
        return next(self.model.parameters()).device

    def _states(self, batch: MicroBatch, compute: torch.dtype) -> Tensor:
        """Return the hidden states [M, H] that predict the kept tokens."""
        device = self._device
        ids, positions = (torch.from_numpy(array).to(device) for array in (batch.input_ids, batch.positions))
        attention = self._tree_inputs(batch.tree, compute) if batch.tree else {}
        with torch.autocast(device.type, dtype=compute, enabled=self._mixes(compute)):
            hidden: Tensor = self._split.backbone(input_ids=ids, use_cache=False, **attention).last_hidden_state
        return hidden.flatten(0, 1).index_select(0, positions).to(compute)

    def _tree_inputs(self, tree: TokenTree, compute: torch.dtype) -> dict[str, Tensor]:
        """Return positions [B, L] and the attention mask [B, 1, L, L] of rows that are trees."""
        depth, ends = (torch.from_numpy(array).to(self._device) for array in (tree.depth, tree.ends))
        index = torch.arange(ends.shape[1], device=ends.device)
        mask = (index <= index[:, None]) & (index[:, None] < ends[:, None, :])  # token i sees j: j ≤ i < ends[j]
        if self.model.config._attn_implementation != "sdpa":  # eager attention adds the mask to its scores
            mask = torch.zeros_like(mask, dtype=compute).masked_fill_(~mask, torch.finfo(compute).min)
        return {"position_ids": depth, "attention_mask": mask[:, None]}

    def check_trees(self, longest: int) -> None:
        """Reject a model that cannot read several sequences packed as one tree.

        Two short sequences with a common prefix are read padded and packed, in the precision of the weights, and the
        hidden states are compared.

        Args:
          longest: length of the longest sequence that will be read, in tokens.

        Raises:
          UserError: the attention window is shorter than that, or the model mixes tokens by other means than masked
            attention and positions (such as recurrence or convolution).
        """
        config = self.model.config.get_text_config()
        windows = [getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size")]
        reach = min([window for window in windows if isinstance(window, int)], default=longest)
        problem = f"its attention reaches {reach} tokens back, of {longest}" if reach < longest else None
        tokens = np.arange(10, dtype=np.int32) % self.vocabulary
        fork = np.concatenate([tokens[:4], tokens[:3:-1]])
        pair = [Example(one, np.array([5, 9]), np.ones(2)) for one in (tokens, fork)]
        try:
            problem = problem or self._tree_problem(pair)
        except MODEL_FAILURES:
            problem = "its layers take no attention mask for trees"
        if problem:
            raise UserError(
                f"models of the family {self.model.config.model_type} cannot read sequences packed as trees: {problem}"
                "; pass --no-packing to feed every sequence by itself"
            )

    @torch.no_grad()
    def _tree_problem(self, pair: list[Example]) -> str | None:
        """Return how two sequences read as one tree differ from the same ones read separately."""
        alone, together = (
            {index: states for group, batch in layout(pair, 2) for index, states in self._by_example(group, batch)}
            for layout in (padded, packed)
        )
        for index, states in alone.items():
            rounding = max(1e-4, 8 * torch.finfo(states.dtype).eps) * float(states.abs().max())
            if not torch.allclose(together[index], states, rtol=0, atol=rounding):
                return "after a fork, its hidden states differ from those of a separate sequence"
        return None

    def _by_example(self, group: list[int], batch: MicroBatch) -> list[tuple[int, Tensor]]:
        states = self._states(batch, self.model.dtype)
        return list(zip(group, states.chunk(len(group)), strict=True))

    def backward(self, loss: Tensor, *, last: bool = True) -> None:
        """Accumulate as `step.Engine.backward`; one process has nothing to reduce after the last pass."""
        del last
        loss.backward()

    def step(self, learning_rate: float) -> float:
        """Step as `step.Engine.step`."""
        return self.optimizer.step(learning_rate)

    def discard(self) -> None:
        """Clear the accumulated gradient."""
        self.optimizer.discard()

    def save(
        self,
        directory: AnyPath,
        tokenizer: PreTrainedTokenizerBase,
        write_more: Callable[[Path], None],
    ) -> None:
        """Save as `step.Engine.save`."""

        def write_rest(unfinished: Path) -> None:
            self.optimizer.save(unfinished / OPTIMIZER_FILE)
            write_more(unfinished)

        saving.save_directory(directory, self.model, tokenizer, write_rest)

    def close(self) -> None:
        """Free the memory: nothing else references the weights."""
        del self.model, self._split, self.optimizer

    def _check_scores(self) -> None:
        """Compare the scores of padded sequences of different lengths with the model's own pass over each of them.

        Raises:
          UserError: they disagree.
        """
        architecture = agreement.describe_architecture(self.model, "trainer", self.compute)
        if agreement.recall(architecture):
            return
        affordable = agreement.affordable_tokens(self.model)
        lengths = agreement.check_lengths(self.model.config, self.context_length, affordable)
        sequences = agreement.check_tokens(self.model.config, self.vocabulary, lengths)
        examples = [Example(one, np.arange(1, one.size), np.ones(one.size - 1)) for one in sequences]
        with torch.no_grad():
            scored = self.score(collate(examples), 1.0).logprobs.float().cpu().numpy()
        found = np.split(scored, np.cumsum([one.size - 1 for one in sequences])[:-1])
        expected = [agreement.plain_logprobs(self._split, one, 1, 1.0) for one in sequences]
        difference, allowed = agreement.disagreement(found, expected), agreement.tolerance(self.compute)
        if difference > allowed:
            raise UserError(
                f"scores of the {self.model.config.model_type} model differ by {difference:.3g} nats per token from "
                f"those of its own forward pass (allowed: {allowed:g}): it cannot be trained in padded batches"
            )
        agreement.remember(architecture, True)


def open_engine(
    directory: Path,
    config: AdamWConfig = DEFAULT_ADAMW,
    *,
    device: str = "auto",
    dtype: str = "auto",
    gradient_checkpointing: bool = False,
    head_chunk: int | None = None,
    continue_optimizer: bool = False,
    adapter: Lora | None = None,
    seed: int = 0,
) -> TorchEngine:
    """Open the model in a directory for training, with float32 masters.

    Args:
      continue_optimizer: also load the optimizer's state, if the directory has one.
      adapter: a new adapter to train instead of the full weights; the adapter in a directory is continued without it.
      seed: seed of a new adapter.

    Raises:
      UserError: as `lora.open_to_train`, `TorchEngine` and `Optimizer.load`.
    """
    target = devices.pick_device(device)
    compute = devices.pick_dtype(dtype, target)
    engine = TorchEngine(
        lora.open_to_train(directory, target, compute, adapter, seed),
        config,
        compute=compute,
        gradient_checkpointing=gradient_checkpointing,
        head_chunk=head_chunk,
    )
    if continue_optimizer and (directory / OPTIMIZER_FILE).is_file():
        engine.optimizer.load(directory / OPTIMIZER_FILE)
    return engine


def checkpoint_layers(model: PreTrainedModel) -> None:
    """Recompute each layer in the backward pass instead of keeping its activations.

    transformers checkpoints a layer only while the `training` flag of the layer itself is set. Its children stay in
    evaluation mode, so there is still no dropout.
    """
    model.gradient_checkpointing_enable({"use_reentrant": False})
    for module in model.modules():
        if isinstance(module, GradientCheckpointingLayer):
            module.training = True
