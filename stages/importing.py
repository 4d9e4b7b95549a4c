"""`spo import`: turn responses that another tool sampled into trajectories: token ids, log-probabilities, rewards.

Reads verl's rollout dump, TRL's completions, lm-eval's logged samples, and any file with prompt, completion and reward.
Texts are tokenized with the tokenizer of the model that sampled them, and its log-probabilities are scored by one
forward pass per batch. Token ids in the file are used as they are.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from transformers import PreTrainedTokenizerBase

from stages.configs.importing import ROLES, Config
from stages.configs.shared import CHAT_DATE
from stages.core.errors import UserError
from stages.core.progress import Progress, Silent, Summary
from stages.core.storage import digest, file_digest
from stages.models import checkpoints, devices, loading
from stages.optimization.batches import Example
from stages.optimization.step import score_all
from stages.optimization.torch import TorchEngine, open_engine
from stages.responses.prompts import render_messages
from stages.shards.lineage import Source, describe, model_source
from stages.shards.schemas import TRAJECTORIES
from stages.shards.writing import open_part
from stages.tasks.data import read_rows
from stages.training.demonstrations import encode_examples

_NEEDED = {"prompt": "prompt_token_ids", "completion": "token_ids", "reward": None}
"""Role that every later stage needs → role that can take its place."""


@dataclass(frozen=True)
class _Response:
    """One response of the file.

    Attributes:
      example: prompt and response as tokens.
      prompt, text: as in the file, or as the chat template writes them; None if the file has token ids alone.
      finish_reason: None if the file does not say it.
    """

    example: Example
    prompt: str | None
    text: str | None
    reward: float | None
    reference: str
    question_id: str
    finish_reason: str | None


def run(config: Config, progress: Progress = Silent()) -> Summary:
    """Import the responses of a file.

    Raises:
      UserError: an unreadable file, missing columns, an unusable model, or a response that does not fit it.
      FingerprintMismatch: the output exists and was made otherwise.
    """
    started = time.monotonic()
    if not config.responses.is_file():
        raise UserError(f"{config.responses} is no file; expected responses as JSONL, JSON, CSV or Parquet")
    directory = checkpoints.resolve(config.model)
    # Later stages read these trajectories as those of `spo rollout`: the lineage has its stage and its options.
    lineage = describe(
        "rollout",
        TRAJECTORIES,
        config,
        (Source(config.responses.name, file_digest(config.responses), "import"),),
        model_source(config.model, checkpoints.digest(directory), config.out),
        ("torch", "transformers"),
    )
    notes: tuple[str, ...] = ()
    with open_part(config.out, 0, 1, lineage, TRAJECTORIES, overwrite=config.overwrite, progress=progress) as part:
        if not part.up_to_date:
            responses, notes = _read(config, loading.load_tokenizer(directory))
            sizes = [response.example.kept.size for response in responses]
            part.lineage = dataclasses.replace(
                part.lineage, config=part.lineage.config | {"max_tokens": config.max_tokens or max(sizes)}
            )
            logprobs = _score(config, directory, responses, progress)
            part.write(_table(config, responses, logprobs), {"sampled": sum(sizes)}, _statistics(responses))
    figures = dict(part.lineage.summary)
    return Summary(
        stage="import",
        out=str(config.out),
        rows=part.rows,
        seconds=time.monotonic() - started,
        up_to_date=part.up_to_date,
        reward=figures.pop("reward", None),
        figures=figures,
        notes=notes,
    )


def _read(config: Config, tokenizer: PreTrainedTokenizerBase) -> tuple[list[_Response], tuple[str, ...]]:
    """Return the responses as tokens, and lines for the user about what later stages lack.

    Raises:
      UserError: columns are missing (the message names all of them), or a value is of the wrong kind.
    """
    records = read_rows(config.responses)
    if not records:
        raise UserError(f"{config.responses} has no rows; expected one per response")
    roles = find_roles(config.columns, list(records[0]), str(config.responses))
    values = [{role: record.get(column) for role, column in roles.items()} for record in records]
    notes = []
    if "filter" in records[0]:  # lm-eval repeats a response for each filter of its answer
        first = records[0]["filter"]
        values = [value for value, record in zip(values, records, strict=True) if record["filter"] == first]
        notes += [f"of several filters of lm-eval, {first!r} is used"] * (len(values) < len(records))
    if "reference" not in roles:
        notes.append(
            "there is no reference: estimators that sample rollouts (monte-carlo) cannot grade, those of groups can do "
            "without"
        )
    elif config.task is None:
        notes.append("no --task: `spo estimate --estimator monte-carlo` will need its own")
    if "token_ids" not in roles:
        notes.append(
            "responses were tokenized from their texts: where the sampler drew other tokens for the same text, "
            "ratios are of these"
        )
    places = [f"{config.responses} row {row}" for row in range(len(values))]
    examples, texts = _encode(tokenizer, values, places)
    return [
        _response(value, example, *text, place)
        for value, example, text, place in zip(values, examples, texts, places, strict=True)
    ], tuple(notes)


def find_roles(given: Mapping[str, str], available: Sequence[str], location: str) -> dict[str, str]:
    """Return role → column.

    Raises:
      UserError: a given column does not exist, or roles that every later stage needs have no column.
    """
    if absent := [name for name in given.values() if name not in available]:
        raise UserError(f"{location} has no column {', '.join(absent)}; found {', '.join(available)}")
    found = {role: next((name for name in names if name in available), None) for role, names in ROLES.items()}
    roles = {role: name for role, name in {**found, **given}.items() if name}
    missing = [role for role, other in _NEEDED.items() if role not in roles and other not in roles]
    if missing:
        expected = "; ".join(f"{role} ({', '.join(ROLES[role])})" for role in missing)
        flags = " ".join(f"--column {role}=…" for role in missing)
        raise UserError(f"{location} has no column for {expected}; found {', '.join(available)}. Name yours: {flags}")
    return roles


def _encode(
    tokenizer: PreTrainedTokenizerBase, values: Sequence[Mapping[str, Any]], places: Sequence[str]
) -> tuple[list[Example], list[tuple[str | None, str | None]]]:
    """Return prompt and response of each row as tokens, and as texts where there are texts."""
    chat = any(isinstance(value.get("prompt"), list) for value in values)
    texts = [
        (_prompt(tokenizer, value.get("prompt"), place), _completion(value.get("completion"), place))
        for value, place in zip(values, places, strict=True)
    ]
    if all(value.get("prompt_token_ids") is not None and value.get("token_ids") is not None for value in values):
        return [
            _example(value["prompt_token_ids"], value["token_ids"], place)
            for value, place in zip(values, places, strict=True)
        ], texts
    pairs = []
    for (prompt, completion), place in zip(texts, places, strict=True):
        if prompt is None or completion is None:
            raise UserError(f"{place} has neither texts nor token ids of prompt and response")
        pairs.append((prompt, completion))
    examples = encode_examples(tokenizer, pairs, chat=chat)
    return [
        _without_end(example) if value.get("finish_reason") == "length" else example
        for value, example in zip(values, examples, strict=True)
    ], texts


def _prompt(tokenizer: PreTrainedTokenizerBase, value: Any, place: str) -> str | None:
    """Return a prompt as text; the messages of a chat in the tokenizer's template."""
    if not isinstance(value, list):
        return _text(value, "prompt", place)
    if not tokenizer.chat_template:
        raise UserError(f"{place} has messages as prompt, but the model's tokenizer has no chat template")
    return render_messages(tokenizer, value, datetime.fromisoformat(CHAT_DATE), place)


def _completion(value: Any, place: str) -> str | None:
    """Return a completion as text: a text, a list that holds one (lm-eval), or the last message of a chat (TRL)."""
    while isinstance(value, list) and value:
        if len(value) > 1 and not isinstance(value[-1], dict):
            raise UserError(f"{place} has {len(value)} responses in one row; expected one, with its reward")
        value = value[-1]
    if isinstance(value, dict):
        value = value.get("content")
    return _text(value, "completion", place)


def _text(value: Any, role: str, place: str) -> str | None:
    if value is not None and not isinstance(value, str):
        raise UserError(f"{place} must have a text or messages as {role}; got {value!r:.60}")
    return value


def _example(prompt: Any, response: Any, place: str) -> Example:
    """Return token ids of a file as an example."""
    try:
        before, own = np.asarray(prompt, np.int32), np.asarray(response, np.int32)
    except (TypeError, ValueError, OverflowError) as error:
        raise UserError(f"{place} has no token ids where they should be: {error}") from error
    if before.ndim != 1 or own.ndim != 1 or not before.size or not own.size:
        raise UserError(f"{place} must have at least one token of prompt and of response")
    kept = np.arange(before.size, before.size + own.size)
    return Example(np.concatenate([before, own]), kept, np.ones(own.size), response_tokens=own.size)


def _without_end(example: Example) -> Example:
    """Return a truncated response without the end token that `encode_examples` adds."""
    if example.kept.size < 2:
        return example
    kept = example.kept[:-1]
    return Example(example.tokens[:-1], kept, np.ones(kept.size), response_tokens=kept.size)


def _response(
    value: Mapping[str, Any], example: Example, prompt: str | None, text: str | None, place: str
) -> _Response:
    reward, reference = value.get("reward"), value.get("reference")
    if reward is not None:
        try:
            reward = float(reward)
        except (TypeError, ValueError) as error:
            raise UserError(f"{place} must have a number as reward; got {reward!r:.60}") from error
        reward = None if math.isnan(reward) else reward
    reason = value.get("finish_reason")
    if reason not in (None, "stop", "length"):
        raise UserError(f"{place} must have the finish_reason stop or length; got {reason!r:.60}")
    name = value.get("question_id")
    before = example.tokens[: example.kept[0]].astype("<i4").tobytes()
    return _Response(
        example,
        prompt,
        text,
        reward,
        "" if reference is None else str(reference),
        f"q{digest(before)[:12]}" if name is None else str(name),
        reason,
    )


def _score(config: Config, directory: Path, responses: Sequence[_Response], progress: Progress) -> list[np.ndarray]:
    """Return the log-probabilities [T] of each response under the model.

    Raises:
      UserError: a response is longer than the model's context, or has a token that the model does not know.
    """
    if busy := devices.use_threads(config.threads):
        progress.note(busy)
    engine = open_engine(directory, device=config.device, dtype=config.dtype)
    _check_fits(engine, config, responses)
    progress.start("import", len(responses), "responses")
    found: list[Any] = [None] * len(responses)
    examples = [response.example for response in responses]
    for index, logprobs in score_all(engine, examples, config.per_device_batch_size, config.temperature):
        found[index] = np.minimum(logprobs, 0.0)
        progress.advance(1, examples[index].tokens.size)
    engine.close()
    return found


def _check_fits(engine: TorchEngine, config: Config, responses: Sequence[_Response]) -> None:
    for row, response in enumerate(responses):
        tokens = response.example.tokens
        if tokens.size > engine.context_length or tokens.max() >= engine.vocabulary or tokens.min() < 0:
            raise UserError(
                f"response {row} of {config.responses} has {tokens.size} tokens with its prompt, the largest id is "
                f"{tokens.max()}; {config.model} takes {engine.context_length} tokens of {engine.vocabulary}: pass the "
                "model that sampled it"
            )


def _table(config: Config, responses: Sequence[_Response], logprobs: Sequence[np.ndarray]) -> pa.Table:
    """Return one row of `TRAJECTORIES` per response."""
    numbers: Counter[str] = Counter()
    rows = []
    for response, scores in zip(responses, logprobs, strict=True):
        example, question = response.example, response.question_id
        tokens = example.tokens[example.kept]
        truncated = config.max_tokens is not None and tokens.size >= config.max_tokens
        rows.append(
            {
                "trajectory_id": f"{question}/{numbers[question]}",
                "parent_id": None,
                "question_id": question,
                "depth": 0,
                "prompt": response.prompt,
                "prompt_token_ids": example.tokens[: example.kept[0]],
                "token_ids": tokens,
                "logprobs": scores,
                "text": response.text,
                "finish_reason": response.finish_reason or ("length" if truncated else "stop"),
                "answer": None,
                "reference": response.reference,
                "reward": response.reward,
            }
        )
        numbers[question] += 1
    return pa.Table.from_pylist(rows, schema=TRAJECTORIES.arrow)


def _statistics(responses: Sequence[_Response]) -> dict[str, float]:
    """Return what `spo rollout` says about independent responses."""
    rewards = [response.reward for response in responses if response.reward is not None]
    figures = {"reward": float(np.mean(rewards))} if rewards else {}
    lengths = [response.example.kept.size for response in responses]
    questions = len({response.question_id for response in responses})
    return figures | {"questions": float(questions), "completions/mean_length": float(np.mean(lengths))}
