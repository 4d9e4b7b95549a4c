"""Open a model with transformers: in the embedded engine if it computes this model, else in the plain one."""

from __future__ import annotations

from pathlib import Path

from stages.models import devices, loading
from stages.sampling.embedded.engine import CannotSample, TransformersSampler
from stages.sampling.plain import PlainSampler


def open_sampler(
    model_dir: Path,
    *,
    device: str = "auto",
    dtype: str = "auto",
    max_batch_rows: int | None = None,
    max_model_len: int | None = None,
) -> TransformersSampler | PlainSampler:
    """Load a model directory for sampling.

    Args:
      device, dtype: as in `devices.pick_device` and `devices.pick_dtype`.
      max_batch_rows, max_model_len: as in `TransformersSampler`.

    Raises:
      UserError: the model cannot be loaded, or transformers' own ways to compute it disagree.
    """
    place = devices.pick_device(device)
    model = loading.load_model(model_dir, place, devices.pick_dtype(dtype, place))
    tokenizer = loading.load_tokenizer(model_dir)
    limits = {"max_batch_rows": max_batch_rows, "max_model_len": max_model_len}
    try:
        return TransformersSampler(model, tokenizer, **limits)
    except CannotSample as obstacle:
        return PlainSampler(model, tokenizer, str(obstacle), **limits)
