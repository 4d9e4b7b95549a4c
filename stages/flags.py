"""The flags that several verbs share, each documented once: the task, the machine, sampling, training, the output."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from stages.config import flag, option
from stages.errors import UserError
from stages.progress import Progress
from stages.tasks import TASKS, Split
from stages.tasks.templates import SLOT, TEMPLATES

if TYPE_CHECKING:
    from stages.engines.adapters import Asked

DATA_OPTIONS_HELP = (
    "Tasks over data: question, answer, solution, id, subject and level name columns; grader (maths, number, exact) or "
    "your own reward=package.module:function judges; subset and revision are those of the hub."
)
DATA_HELP = (
    "a Parquet, JSONL or CSV file, a directory of them or of one such directory per task, a name on the hub, or `hub` "
    "for the task's own data set there."
)
TASK_HELP = f"Where questions and rewards come from: {', '.join(TASKS)}."


@dataclass(frozen=True, kw_only=True)
class MachineFlags:
    """Where and how fast a model runs."""

    device: str = option("auto, cpu, cuda or cuda:N.", default="auto", result=False)
    threads: int | None = option(
        "CPU threads; left out, torch decides. A tiny model is fastest with 1.", default=None, result=False, minimum=1
    )


@dataclass(frozen=True, kw_only=True)
class VllmFlags:
    """What vLLM alone is told."""

    tensor_parallel_size: int = option(
        "For vLLM: GPUs that share each layer of the model.", default=1, result=False, minimum=1
    )
    gpu_memory_utilization: float | None = option(
        "For vLLM: the share of each GPU's memory that it takes; left out, vLLM's own, and up to 4 GiB on a CPU.",
        default=None,
        result=False,
        above=0,
        maximum=1,
    )
    enforce_eager: bool = option(
        "For vLLM: neither compile nor capture graphs. Starts sooner, samples slower.", default=False, result=False
    )
    engine_arg: tuple[str, ...] = option(
        "For vLLM: any further argument of its engine, as key=value; may be repeated.", default=()
    )


@dataclass(frozen=True, kw_only=True)
class EngineFlags(MachineFlags, VllmFlags):
    """The sampling engine. Two of them, or two number formats, do not draw the same tokens."""

    engine: Literal["auto", "transformers", "vllm"] = option(
        "Sampling engine: the embedded one (transformers) or vllm; auto is vllm where it is installed and has a GPU.",
        default="auto",
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = option(
        "Number format of the model; auto is bfloat16 where the device has it, else float32.", default="auto"
    )
    max_batch_rows: int | None = option(
        "Most samples in flight; left out, the engine decides.", default=None, result=False, minimum=1
    )
    max_model_len: int | None = option(
        "Most tokens of prompt and response together; left out, as many as the model takes.", default=None, minimum=2
    )

    def engine_options(self) -> dict[str, Any]:
        """These flags as `stages.engines.sampling.open_sampler` takes them."""
        return {field.name: getattr(self, field.name) for field in fields(EngineFlags)}


C = TypeVar("C", bound=EngineFlags)


def with_engine(config: C, progress: Progress) -> C:
    """The config with the engine that `auto` stands for on this machine, which is told.

    Raises:
      UserError: vllm is asked for and not installed, or an option of vLLM's with the other engine.
    """
    from stages.engines.installed import choose_engine

    engine = choose_engine(config.engine, config.device, progress)
    given = [field for field in fields(VllmFlags) if getattr(config, field.name) != field.default]
    if engine != "vllm" and given:
        raise UserError(f"{flag(given[0])} is an option of vLLM: pass --engine vllm with it, or leave it out")
    return replace(config, engine=engine)


@dataclass(frozen=True, kw_only=True)
class OutputFlags:
    """Where a sharded artefact goes."""

    out: Path = option("Directory of the artefact that is written.", result=False, short="--output-dir")
    shard: str | None = option(
        "Which share of the work: I/N with I from 0 to N-1. Left out, the SLURM array variables decide, else 0/1.",
        default=None,
        result=False,
    )
    num_shards: int | None = option(
        "N, for an array of any form: its task of number I does share I/N. Outside an array, all are done.",
        default=None,
        minimum=1,
        result=False,
    )
    shards_per_task: int = option(
        "With --num-shards, K shares for each task of an array, which thus needs N/K tasks.",
        default=1,
        minimum=1,
        result=False,
    )
    overwrite: bool = option("Replace parts that were made with another configuration.", default=False, result=False)


@dataclass(frozen=True, kw_only=True)
class LoraFlags:
    """A low-rank adapter in place of the weights (peft)."""

    lora_r: int | None = option(
        "Train an adapter of this rank (LoRA), without dropout, in place of the weights; left out, all weights, or the "
        "adapter that the model is.",
        default=None,
        minimum=1,
    )
    lora_alpha: float | None = option(
        "The adapter is scaled by alpha / rank; left out, twice the rank.", default=None, above=0
    )
    lora_target_modules: tuple[str, ...] = option(
        "A linear layer that is adapted, such as q_proj; may be repeated. Left out, all but the output head.",
        default=(),
    )
    merge: bool = option("Write base and adapter as one model, too, into OUT/merged.", default=False, result=False)

    def adapter(self) -> Asked:
        """The adapter that these flags ask for, as `stages.engines.lora.plan` takes it."""
        from stages.engines.adapters import Asked

        return Asked(self.lora_r, self.lora_alpha, self.lora_target_modules, self.merge)


@dataclass(frozen=True, kw_only=True)
class ReportFlags:
    """Who else is told the metrics, which are always written as JSON lines."""

    report_to: tuple[Literal["tensorboard", "wandb"], ...] = option(
        "Show metrics in TensorBoard or Weights & Biases, too; event files, and the id of the run there, are kept in "
        "_logs/ beside what is written. Several may be named.",
        default=(),
        result=False,
    )


@dataclass(frozen=True, kw_only=True)
class TrainingFlags(LoraFlags, MachineFlags):
    """How a model is trained, and where it goes."""

    out: Path = option("Directory of the model that is written.", result=False, short="--output-dir")
    adam_beta1: float = option("Decay of the first moment.", default=0.9, minimum=0, below=1)
    adam_beta2: float = option("Decay of the second moment.", default=0.999, minimum=0, below=1)
    weight_decay: float = option("Decoupled decay of matrices.", default=0.0, minimum=0)
    max_grad_norm: float = option("The gradient is scaled down to this norm.", default=1.0, above=0)
    dtype: Literal["auto", "float32", "bfloat16"] = option(
        "Number format of the products; auto is bfloat16 where the device has it. Weights are kept in float32.",
        default="auto",
    )
    gradient_checkpointing: bool = option(
        "Recompute activations in the backward pass instead of keeping them.", default=False, result=False
    )
    save_every: int | None = option(
        "Steps between checkpoints of unfinished work; left out, one every five minutes.",
        default=None,
        minimum=1,
        result=False,
    )
    overwrite: bool = option("Replace a model that was made with another configuration.", default=False, result=False)


@dataclass(frozen=True, kw_only=True)
class QuestionFlags:
    """Which questions of a task, and how they are put to a model, whatever the task is."""

    split: Split = option("Which questions.", default="train")
    prompt_template: str | None = option(
        f"The prompt: {', '.join(TEMPLATES)}, a text with {SLOT} in it, or a file that holds one; left out, the task's "
        "own.",
        default=None,
    )
    chat_template: bool = option(
        "Put the prompt as a user's message into the chat template of the model's tokenizer.", default=False
    )
    system_prompt: str | None = option("The system message of that chat.", default=None)


@dataclass(frozen=True, kw_only=True)
class TaskFlags(QuestionFlags):
    """Which task."""

    task: str = option(TASK_HELP)
    data: str | None = option(f"The task's data: {DATA_HELP}", default=None, result=False)
    task_arg: tuple[str, ...] = option(
        f"An option of the task, as key=value; may be repeated. {DATA_OPTIONS_HELP}", default=()
    )


@dataclass(frozen=True, kw_only=True)
class SamplingFlags(QuestionFlags, EngineFlags, OutputFlags):
    """How many questions are answered, by which model, and how tokens are chosen."""

    model: str = option("The policy: a Hugging Face directory, or a name on the hub.", result=False, short="-m")
    num_questions: int | None = option("Questions to answer; left out, all of the split.", default=None, minimum=1)
    skip_questions: int = option("Questions to pass over first.", default=0, minimum=0)
    shuffle_seed: int | None = option(
        "Take the questions in an order drawn from this seed; past the last one a new order begins.", default=None
    )
    temperature: float = option("Sampling temperature; 0 is greedy.", default=1.0, minimum=0)
    top_p: float = option("Nucleus sampling: the smallest set with this probability.", default=1.0, above=0, maximum=1)
    top_k: int = option("Only the k most probable tokens; 0 keeps all.", default=0, minimum=0)
    stop: tuple[str, ...] = option("A text that ends a response; may be repeated.", default=())
    seed: int = option("Seed of every random number here.", default=0)
    chunk_questions: int = option(
        "Questions whose responses are committed at once: the most that a killed job loses.",
        default=64,
        minimum=1,
        result=False,
    )


@dataclass(frozen=True, kw_only=True)
class ResponseFlags(SamplingFlags, TaskFlags):
    """Responses to the questions of one task, of one greatest length."""

    max_tokens: int = option("Longest response in tokens.", default=1024, minimum=1)
