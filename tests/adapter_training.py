"""Train small adapters, for the tests that read, merge, score and sample them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from stages.models import adapters, loading, saving
from stages.models.adapters import Lora
from stages.models.presets import make_model
from stages.optimization.batches import Example
from stages.optimization.objective import Objective
from stages.optimization.step import update
from stages.optimization.torch import TorchEngine, open_engine

SMALL = Lora(r=4, alpha=8.0, targets=("q_proj", "v_proj"))


def save_base(directory: Path, seed: int = 0) -> Path:
    saving.save_directory(directory, *make_model("tiny", seed))
    return directory


def train_adapter(base: Path, directory: Path) -> Path:
    """Write an adapter after two steps."""
    return save(train(open_engine(base, device="cpu", adapter=SMALL), 2), directory)


def make_examples(count: int = 5) -> list[Example]:
    generator = np.random.default_rng(0)
    return [
        Example(
            tokens=generator.integers(32, 127, size=12 + index).astype(np.int32),
            kept=np.arange(5, 12 + index),
            advantages=generator.normal(size=7 + index),
        )
        for index in range(count)
    ]


def train(engine: TorchEngine, steps: int) -> TorchEngine:
    for _ in range(steps):
        update(engine, make_examples(), Objective(beta=0.0), 2, 1e-2)
    return engine


def save(engine: TorchEngine, directory: Path) -> Path:
    base = Path(str(adapters.peft_config(engine.model).base_model_name_or_path))
    engine.save(directory, loading.load_tokenizer(base), lambda unfinished: None)
    return directory


def logits(model: torch.nn.Module) -> Tensor:
    with torch.no_grad():
        return model(input_ids=torch.arange(40, 72)[None], use_cache=False).logits[0]
