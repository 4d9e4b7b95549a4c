"""The kinds of input that are mutated: for each, one function that runs a case, and what must hold.

A case may end in a `SpoError`, which the command line prints as one line. Any other exception is a defect, and so is a
`Finding`: input that was accepted with content that is not what its writer wrote.
"""

from __future__ import annotations

import io
import json
import math
import shutil
import sys
import tomllib
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
import typer

from spo_cli import app
from stages.configs import run
from stages.core.errors import SpoError
from stages.core.json_files import read_json, read_json_lines
from stages.models import loading, saving
from stages.models.presets import make_model
from stages.models.pruning import read_pruned
from stages.pipeline.planning import make_plan
from stages.shards.lineage import read_lineage, write_lineage
from stages.shards.parts import open_artefact
from stages.shards.schemas import CUTPOINTS, TRAJECTORIES, Schema
from stages.tasks.datasets import make_task
from tests.fuzz.mutations import HOSTILE, hostile, mutate_bytes, mutate_value
from tests.shards import samples

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
CPU = torch.device("cpu")


class Finding(Exception):
    """Input was accepted although its content is wrong."""


@dataclass(frozen=True)
class Bench:
    """A folder for the files of one case after another, and the sound files that cases are mutated from."""

    folder: Path
    models: dict[str, Path] = field(default_factory=dict)

    @cached_property
    def parts(self) -> dict[str, tuple[Schema, bytes, pa.Table]]:
        """Return parts that spo wrote: name → (schema, bytes, rows)."""
        tables = {"t": (TRAJECTORIES, samples.trajectories(24)), "c": (CUTPOINTS, samples.cutpoints(24))}
        found = dict[str, tuple[Schema, bytes, pa.Table]]()
        for name, (schema, table) in tables.items():
            work = samples.lineage(schema=schema)
            path = samples.write_part(self.folder / "sound" / name, table=table, schema=schema, work=work)
            found[name] = schema, path.read_bytes(), open_artefact(path, schema).read_all(schema.names)
        return found

    @cached_property
    def recipes(self) -> list[dict[str, Any]]:
        """Return the recipes of the examples, as values."""
        return [
            tomllib.loads(path.read_text()) for path in sorted(EXAMPLES.rglob("*.toml")) if path.name != "plan.toml"
        ]

    @cached_property
    def model(self) -> Path:
        """Return a tiny model directory."""
        directory = self.folder / "sound" / "model"
        saving.save_directory(directory, *make_model("tiny", 0))
        write_lineage(directory, samples.lineage())
        (directory / "pruned.json").write_text(json.dumps({"weights": {}, "optimizer": {"a": "b"}}))
        (directory / "metrics.jsonl").write_text(json.dumps({"step": 1, "loss": 0.5}) + "\n")
        return directory

    @cached_property
    def commands(self) -> dict[str, Any]:
        """Return every command, with a body that does nothing."""
        found = {name: app.load_command(name) for name in app.VERBS}
        found |= {f"eval {form}": app.load_command("eval", [form]) for form in ("--regrade", "--compare", "--table")}
        for command in found.values():
            command.execute = lambda config: None
        return found


def damaged_part(random: Random, bench: Bench) -> None:
    """Bytes of a part are damaged: it is refused, or the rows are those that were written."""
    name = random.choice(list(bench.parts))
    schema, content, rows = bench.parts[name]
    other = bench.parts[random.choice(list(bench.parts))][1]
    path = bench.folder / "part-00000-of-00001.parquet"
    path.write_bytes(mutate_bytes(random, content, other))
    found = open_artefact(path, schema).read_all(schema.names)
    if not found.equals(rows):
        raise Finding("a damaged part was read, with other rows")


def edited_part(random: Random, bench: Bench) -> None:
    """Another tool changes a value and writes the part again with our footer: it is refused."""
    schema, _, rows = bench.parts["t"]
    original = pq.read_table(pa.BufferReader(bench.parts["t"][1]))
    column = random.choice(schema.names)
    values = original[column].to_pylist()
    at = random.randrange(len(values))
    changed = _changed(random, values[at])
    try:
        array = pa.array([*values[:at], changed, *values[at + 1 :]], original.schema.field(column).type)
    except (pa.ArrowException, TypeError, ValueError, OverflowError):
        return  # the column cannot hold the value
    edited = original.set_column(original.schema.get_field_index(column), original.schema.field(column), array)
    path = bench.folder / "part-00000-of-00001.parquet"
    try:
        pq.write_table(edited.replace_schema_metadata(original.schema.metadata), path)
    except pa.ArrowException:
        return  # nor can it hold no value
    found = open_artefact(path, schema).read_all(schema.names)
    if not found.equals(rows):
        raise Finding(f"an edited {column} was read although the footer describes other rows")


def _changed(random: Random, value: Any) -> Any:
    if isinstance(value, float):
        return random.choice((1 - value, -value - 1, math.nan, math.inf, value + 1e-3))
    if isinstance(value, list):
        return random.choice((value[:-1], [*value, 0], value[::-1] or [1], [v + 1 for v in value]))
    if isinstance(value, int):
        return value + random.choice((-1, 1, 1000))
    return random.choice(("", f"{value}x", None))


def foreign_part(random: Random, bench: Bench) -> None:
    """Rows of another tool have values that no one expects: they are refused, or usable by every stage."""
    rows = samples.trajectories(random.choice((1, 4, 12))).to_pylist()
    optional = [name for name in rows[0] if random.random() < 0.1]
    rows = [{name: value for name, value in row.items() if name not in optional} for row in rows]
    column = random.choice([name for name in rows[0] if name not in optional])
    for row in rows if random.random() < 0.3 else [random.choice(rows)]:
        row[column] = _changed(random, row[column]) if random.random() < 0.6 else hostile(random)
    try:
        table = pa.Table.from_pylist(rows)
    except (pa.ArrowException, TypeError, ValueError, OverflowError):
        return  # Parquet cannot hold the values
    path = bench.folder / "foreign.parquet"
    try:
        pq.write_table(table, path)
    except (pa.ArrowException, ValueError):
        return
    found = open_artefact(path, TRAJECTORIES).read_all(TRAJECTORIES.names).to_pylist()
    for row in found:
        tokens, logprobs, reward = row["token_ids"], row["logprobs"], row["reward"]
        if tokens is None or logprobs is None or len(tokens) != len(logprobs):
            raise Finding(f"{len(tokens or [])} tokens with {len(logprobs or [])} log-probabilities")
        if not all(-math.inf < value <= 0 for value in logprobs):
            raise Finding(f"log-probabilities {logprobs}")
        if reward is not None and not math.isfinite(reward):
            raise Finding(f"reward {reward}")
        if any(token < 0 for token in tokens):
            raise Finding(f"tokens {tokens}")
    if len({row["trajectory_id"] for row in found}) < len(found):
        raise Finding("two rows have one id")


def recipe(random: Random, bench: Bench) -> None:
    """A recipe has wrong values, keys, tables or bytes."""
    value = random.choice(bench.recipes)
    if random.random() < 0.8:
        content = to_toml(mutate_value(random, value)).encode("utf-8", "surrogatepass")
    else:
        content = mutate_bytes(random, to_toml(value).encode(), b"[train]\nlr = 1\n[slurm]\ntime = 'x'\n")
    path = bench.folder / "recipe.toml"
    path.write_bytes(content)
    options: dict[str, Any] = {"iterations": None if random.random() < 0.1 else 1}  # a hundred take their time
    if random.random() < 0.2:
        names = ("train.lr", "run.out", "eval", "x", "train.learning_rate", "slurm.train.nodes")
        options["overrides"] = (f"{random.choice(names)}={random.choice(HOSTILE)}",)
    plan = make_plan(run.Config(recipe=path, **options))
    if len(plan.iterations) > 100_000:
        raise Finding(f"a plan of {len(plan.iterations)} iterations")


def to_toml(value: Any) -> str:
    """Return a value as TOML, or as text that looks like it where TOML has no notation for it."""
    if isinstance(value, dict):
        return "".join(
            f"[{_key(name)}]\n" + "".join(f"{_key(key)} = {_toml_value(one)}\n" for key, one in table.items())
            if isinstance(table, dict)
            else f"{_key(name)} = {_toml_value(table)}\n"
            for name, table in sorted(value.items(), key=lambda item: isinstance(item[1], dict))
        )
    return f"x = {_toml_value(value)}\n"


def _key(name: str) -> str:
    return name if name.isascii() and name.replace("_", "").replace("-", "").isalnum() else json.dumps(name)


def _toml_value(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_key(name)} = {_toml_value(one)}" for name, one in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml_value, value)) + "]"
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f") if isinstance(value, str) else _plain(value)


def _plain(value: Any) -> str:
    return hex(value) if isinstance(value, int) and abs(value) > 2**62 else json.dumps(value)


def flags(random: Random, bench: Bench) -> None:
    """A command line has flags of the command with values that no one expects."""
    name = random.choice(list(bench.commands))
    command = bench.commands[name]
    spellings = [one for param in command.params for one in (*param.opts, *param.secondary_opts) if one[0] == "-"]
    words = name.split()[1:]
    for _ in range(random.randrange(5)):
        flag = random.choice(spellings)
        if random.random() < 0.1:
            at = random.randrange(len(flag) + 1)
            flag = flag[:at] + random.choice("xy-= ") + flag[at + 1 :]
        words += random.choice(([flag], [flag, _word(random)], [f"{flag}={_word(random)}"], [_word(random)]))
    words += [_word(random)] * random.randrange(2)
    try:
        with redirect_stdout(io.StringIO()):  # of --help
            command.main(args=words, prog_name="spo", standalone_mode=False)
    except (typer.TyperException, typer.Exit, typer.Abort):
        return


def _word(random: Random) -> str:
    if random.random() < 0.4:
        return random.choice(("1", "2", "0.5", "auto", "cpu", "runs/x", "train", "all", "0/1", "a=b", "6-6", "4..32"))
    return str(random.choice(HOSTILE)).replace("\0", "").encode("utf-8", "replace").decode()


def data(random: Random, bench: Bench) -> None:
    """A file of questions has wrong values or bytes: it is refused, or each row is a question with its own text."""
    rows: list[Any] = [{"question": f"{i} + 1?", "answer": str(i + 1), "unique_id": f"q{i}"} for i in range(5)]
    kind = random.choice((".jsonl", ".json", ".csv", ".parquet"))
    path = bench.folder / f"train{kind}"
    if kind == ".csv":
        text = "question,answer,unique_id\n" + "".join(
            f"{r['question']},{r['answer']},{r['unique_id']}\n" for r in rows
        )
        path.write_bytes(mutate_bytes(random, text.encode(), b'"a""b",\r\n\x00\xef\xbb\xbf'))
    elif kind == ".parquet":
        sink = pa.BufferOutputStream()
        pq.write_table(pa.Table.from_pylist(rows), sink)
        path.write_bytes(mutate_bytes(random, sink.getvalue().to_pybytes(), bench.parts["t"][1]))
    else:
        mutated = [mutate_value(random, row) if random.random() < 0.4 else row for row in rows]
        lines = [json.dumps(row) for row in mutated]
        content = ("\n".join(lines) if kind == ".jsonl" else f"[{','.join(lines)}]").encode()
        is_damaged = random.random() < 0.4
        path.write_bytes(mutate_bytes(random, content, b'[[[[{"a": 1e999}\n') if is_damaged else content)
        if not is_damaged:
            return _check_questions(path, mutated)
    try:
        make_task("custom", str(path), {"grader": "exact", "id": "unique_id"}).questions("train")
    finally:
        path.unlink()
    return None


def _check_questions(path: Path, rows: Sequence[Any]) -> None:
    try:
        found = make_task("custom", str(path), {"grader": "exact"}).questions("train")
    finally:
        path.unlink()
    expected = [row["question"] for row in rows if isinstance(row, dict) and isinstance(row.get("question"), str)]
    for question in found:
        if question.prompt not in expected:
            raise Finding(f"the question {question.prompt!r:.80} is not in the file")


def state(random: Random, bench: Bench) -> None:
    """A JSON file of a model directory has wrong values or bytes."""
    name, read = random.choice(_STATE)
    directory = bench.folder / "state"
    directory.mkdir(exist_ok=True)
    content = (bench.model / name).read_bytes()
    if random.random() < 0.5:
        content = mutate_bytes(random, content, b'[{"a":null}')
    else:
        content = json.dumps(mutate_value(random, json.loads(content))).encode()
    (directory / name).write_bytes(content)
    read(directory)


_STATE: Sequence[tuple[str, Callable[[Path], object]]] = (
    ("spo.json", read_lineage),
    ("pruned.json", lambda directory: (read_pruned(directory, "weights"), read_pruned(directory, "optimizer"))),
    ("metrics.jsonl", lambda directory: read_json_lines(directory / "metrics.jsonl")),
    ("config.json", lambda directory: read_json(directory / "config.json")),
)


def model(random: Random, bench: Bench) -> None:
    """A file of a model directory has wrong values or bytes."""
    names = ("config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json", "model.safetensors")
    names = [name for name in names if (bench.model / name).exists()]
    name = random.choice(names)
    directory = bench.folder / "model"
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    for path in bench.model.iterdir():
        if path.name != name:
            (directory / path.name).symlink_to(path)
    content = (bench.model / name).read_bytes()
    if name.endswith(".json") and random.random() < 0.7:
        content = json.dumps(mutate_value(random, json.loads(content))).encode()
    else:
        content = mutate_bytes(random, content, b"[null, {}]")
    (directory / name).write_bytes(content)
    loading.load_tokenizer(directory)
    loading.load_model(directory, CPU, torch.float32)


def command(random: Random, bench: Bench) -> None:
    """A whole `spo show` of a damaged or foreign part prints neither a traceback nor a control character."""
    _, content, _ = bench.parts[random.choice(list(bench.parts))]
    path = bench.folder / "part-00000-of-00001.parquet"
    if random.random() < 0.5:
        rows = samples.trajectories(4).to_pylist()
        for row in rows:
            row["text"] = row["finish_reason"] = "\x1b[2J\u202e\r\x07"
            row["trajectory_id"] += random.choice(("\x1b]0;x\x07", "\x9b2J", "\u2066"))
        pq.write_table(pa.Table.from_pylist(rows, schema=TRAJECTORIES.arrow.remove_metadata()), path)
    else:
        path.write_bytes(mutate_bytes(random, content))
    more = random.choice(([], ["--row", "0"], ["--json"], ["--tree", "q0"], ["--schema"]))
    output, hook, code = io.StringIO(), sys.excepthook, None
    try:
        with redirect_stdout(output), redirect_stderr(output):
            app.main(["show", str(path), *more])
    except SystemExit as end:
        code = end.code
    finally:
        sys.excepthook = hook
    if not output.getvalue().replace("\n", "").replace("\t", "").isprintable():
        raise Finding(f"unprintable output: {output.getvalue()!r:.300}")
    if code not in (0, 2, 3):
        raise Finding(f"exit code {code}: {output.getvalue()[-500:]}")


Case = Callable[[Random, Bench], None]
DOMAINS: dict[str, tuple[Case, int]] = {
    "damaged parts": (damaged_part, 2500),
    "edited parts": (edited_part, 600),
    "foreign parts": (foreign_part, 1400),
    "recipes": (recipe, 1500),
    "flags": (flags, 2000),
    "data": (data, 1200),
    "state": (state, 400),
    "models": (model, 350),
    "commands": (command, 50),
}
"""Name → the function of a case, and the number of cases of a whole run: 10,000 in all."""
EXPECTED = (SpoError,)
