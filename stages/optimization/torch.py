"""The one-process optimisation engine: a Hugging Face model, AdamW, the masked head.

Weights are float32 masters, whatever type they were stored in: at learning rates such as 1e-6 a bfloat16 weight does
not move. Where bfloat16 is asked for, the decoder runs under autocast and the head multiplies in bfloat16. Saved
directories hold the masters, so nothing is lost between iterations.

On the CPU the same calls give the same bits. On a GPU, attention's backward pass may add in another order.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from torch import Tensor, nn

from stages.core.errors import UserError
from stages.models import devices, loading, saving
from stages.models.checkpoints import OPTIMIZER_FILE
from stages.optimization import lora
from stages.optimization.batches import Example, MicroBatch, TokenTree, padded
from stages.optimization.head import Scored, selected_log_probs
from stages.optimization.optimizer import DEFAULT_ADAMW, AdamWConfig, Optimizer
from stages.optimization.packing import packed

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from stages.models.adapters import Lora


class TorchEngine:
    """A causal language model in this process; see `optimisation.Engine`.

    Attributes:
      model: with everything that is trained.
      compute: type of the matrix products. mixed: some weights are of another, so the decoder runs under autocast.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        adam: AdamWConfig = DEFAULT_ADAMW,
        *,
        compute: torch.dtype | None = None,
        gradient_checkpointing: bool = False,
        head_chunk: int | None = None,
    ) -> None:
        """Take a model over.

        Args:
          model: weights in the type they are to be kept in.
          compute: type of the matrix products; left out, that of the weights.
          gradient_checkpointing: recompute each layer in the backward pass instead of keeping its activations.
          head_chunk: positions per pass through the output head; left out, by the size of the vocabulary.

        Raises:
          UserError: the model's logits are not its output head's product alone.
        """
        self.model = model.eval()  # no dropout: the old log-probabilities are of the same function
        self.context_length = loading.context_length(model.config)
        self._decoder = cast("nn.Module", model.get_decoder())
        self._head = cast("nn.Linear", model.get_output_embeddings())
        self.vocabulary = self._head.weight.shape[0]
        self.compute = compute or model.dtype
        self.mixed = any(parameter.dtype != self.compute for parameter in model.parameters())
        self._chunk = head_chunk
        self.optimizer = Optimizer(model, adam)
        if gradient_checkpointing:
            checkpoint_layers(model)
        self._check_head()

    def score(self, batch: MicroBatch, temperature: float) -> Scored:
        targets = torch.from_numpy(batch.targets).to(self._head.weight.device)
        return selected_log_probs(
            self._states(batch, self.compute),
            self._head.weight,
            self._head.bias,
            targets,
            temperature=temperature,
            chunk=self._chunk,
        )

    def _states(self, batch: MicroBatch, compute: torch.dtype) -> Tensor:
        """The hidden states [M, H] that predict the kept tokens."""
        device = self._head.weight.device
        ids, positions = (torch.from_numpy(array).to(device) for array in (batch.input_ids, batch.positions))
        seen = self._tree_inputs(batch.tree, compute) if batch.tree else {}
        with torch.autocast(device.type, dtype=compute, enabled=self.mixed and compute != torch.float32):
            hidden: Tensor = self._decoder(input_ids=ids, use_cache=False, **seen).last_hidden_state
        return hidden.flatten(0, 1).index_select(0, positions).to(compute)

    def _tree_inputs(self, tree: TokenTree, compute: torch.dtype) -> dict[str, Tensor]:
        """Positions [B, L] and the attention mask [B, 1, L, L] of rows that are trees."""
        depth, ends = (torch.from_numpy(array).to(self._head.weight.device) for array in (tree.depth, tree.ends))
        place = torch.arange(ends.shape[1], device=ends.device)
        mask = (place <= place[:, None]) & (place[:, None] < ends[:, None, :])
        if self.model.config._attn_implementation != "sdpa":  # it adds the mask to its scores
            mask = torch.zeros_like(mask, dtype=compute).masked_fill_(~mask, torch.finfo(compute).min)
        return {"position_ids": depth, "attention_mask": mask[:, None]}

    def check_trees(self, longest: int) -> None:
        """Refuse a model that cannot read several sequences as one tree.

        Two short sequences that begin alike are read both ways, in the weights' own precision.

        Args:
          longest: tokens of the longest sequence that will be read.

        Raises:
          UserError: its attention looks at a window that is shorter, or it reads otherwise than by masked attention
            and positions (a recurrent or convolving layer, say).
        """
        config = self.model.config.get_text_config()
        windows = [getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size")]
        reach = min([window for window in windows if isinstance(window, int)], default=longest)
        problem = f"its attention reaches {reach} tokens back, of {longest}" if reach < longest else None
        tokens = np.arange(10, dtype=np.int32) % self.vocabulary
        fork = np.concatenate([tokens[:4], tokens[:3:-1]])
        pair = [Example(one, np.array([5, 9]), np.ones(2)) for one in (tokens, fork)]
        with torch.no_grad():
            alone, together = (
                {index: states for group, batch in layout(pair, 2) for index, states in self._by_example(group, batch)}
                for layout in (padded, packed)
            )
        for index, states in alone.items():
            rounding = max(1e-4, 8 * torch.finfo(states.dtype).eps) * float(states.abs().max())
            if not torch.allclose(together[index], states, rtol=0, atol=rounding):
                problem = "a token behind a fork does not see its own past alone"
        if problem:
            raise UserError(
                f"models of the family {self.model.config.model_type} cannot read sequences packed as trees: {problem}"
                "; pass --no-packing, which feeds every sequence on its own"
            )

    def _by_example(self, group: list[int], batch: MicroBatch) -> list[tuple[int, Tensor]]:
        states = self._states(batch, self.model.dtype)
        return list(zip(group, states.chunk(len(group)), strict=True))

    def backward(self, loss: Tensor, *, last: bool = True) -> None:
        del last
        loss.backward()

    def step(self, learning_rate: float) -> float:
        return self.optimizer.step(learning_rate)

    def discard(self) -> None:
        self.optimizer.discard()

    def save(
        self,
        directory: Path,
        tokenizer: PreTrainedTokenizerBase,
        write_more: Callable[[Path], None],
    ) -> None:
        def write_rest(unfinished: Path) -> None:
            self.optimizer.save(unfinished / OPTIMIZER_FILE)
            write_more(unfinished)

        saving.save_directory(directory, self.model, tokenizer, write_rest)

    def close(self) -> None:
        """See `optimisation.Engine.close`: nothing else holds the weights."""
        del self.model, self._decoder, self._head, self.optimizer

    def _check_head(self) -> None:
        """Some families scale or cap the logits after the head; scored here they would be silently wrong."""
        ids = np.arange(min(8, self.vocabulary), dtype=np.int64)[None]
        batch = MicroBatch(ids[:, :-1], np.arange(ids.size - 1), ids[0, 1:])
        with torch.no_grad():
            given = torch.from_numpy(ids).to(self._head.weight.device)
            logits = self.model(input_ids=given[:, :-1], use_cache=False).logits[0].float()
            expected = logits.log_softmax(-1).gather(-1, given[0, 1:, None]).squeeze(-1)
            found = self.score(batch, 1.0).logprobs
        if not torch.allclose(found.float(), expected, rtol=0.02, atol=0.02, equal_nan=True):
            raise UserError(
                f"models of the family {self.model.config.model_type} change the logits after their output head, "
                "which this engine does not; expected a model whose logits are its head's product alone"
            )


def open_engine(
    directory: Path,
    adam: AdamWConfig = DEFAULT_ADAMW,
    *,
    device: str = "auto",
    dtype: str = "auto",
    gradient_checkpointing: bool = False,
    head_chunk: int | None = None,
    continue_optimizer: bool = False,
    adapter: Lora | None = None,
    seed: int = 0,
) -> TorchEngine:
    """The model of a directory with float32 masters; with its optimiser's state if that is there and asked for.

    Args:
      adapter: what is trained in place of the weights of a whole model; that of an adapter's directory is gone on with.
      seed: of a new adapter.

    Raises:
      UserError: see `lora.open_to_train`, `TorchEngine` and `adam.Optimizer.load`.
    """
    place = devices.pick_device(device)
    compute = devices.pick_dtype(dtype, place)
    engine = TorchEngine(
        lora.open_to_train(directory, place, compute, adapter, seed),
        adam,
        compute=compute,
        gradient_checkpointing=gradient_checkpointing,
        head_chunk=head_chunk,
    )
    if continue_optimizer and (directory / OPTIMIZER_FILE).is_file():
        engine.optimizer.load(directory / OPTIMIZER_FILE)
    return engine


def checkpoint_layers(model: PreTrainedModel) -> None:
    """transformers checkpoints a layer only while that layer's own flag says training; its children stay in eval."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    model.gradient_checkpointing_enable({"use_reentrant": False})
    for module in model.modules():
        if isinstance(module, GradientCheckpointingLayer):
            module.training = True
