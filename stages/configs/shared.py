"""Define the options that several verbs share: the task, the machine, sampling, training, the output."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal

from stages.core.config import option
from stages.core.paths import AnyPath
from stages.models.adapters import LoraOptions
from stages.tasks import TASKS, Split
from stages.tasks.templates import SLOT, TEMPLATES

DATA_HELP = (
    "a Parquet, JSONL or CSV file, a directory of them or of one per task, a data set on the Hugging Face hub, or hub "
    "for the task's own."
)
TASK_HELP = f"Source of questions and rewards: {', '.join(TASKS)}."
TASK_ARG_HELP = (
    "For data: question=COLUMN, likewise answer, solution, id, subject and level; grader=maths, number or exact; "
    "reward=package.module:function; subset and revision of a data set on the hub."
)
VLLM_GROUP = "vLLM"
"""Heading of the options that only vLLM reads."""

SAMPLED = "--temperature above 0"
"""What the options need that a greedy choice of tokens does not read."""


def device_option() -> Any:
    """Declare --device."""
    return option(
        "Device of the model: auto (a GPU if there is one), cpu, cuda or cuda:N.",
        default="auto",
        group="Engine",
        result=False,
        metavar="DEVICE",
    )


def threads_option() -> Any:
    """Declare --threads."""
    return option(
        "CPU threads. A tiny model runs fastest with 1.",
        default=None,
        default_text="set by PyTorch, at most the processors that a container may use",
        group="Engine",
        result=False,
        minimum=1,
        maximum=4096,
    )


CHAT_DATE = "2024-07-26"  # of the Llama 3.1 templates; default of --chat-date


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """The sampling engine. Samples differ across engines and dtypes."""

    GROUP = "Engine"

    engine: Literal["auto", "transformers", "vllm"] = option(
        "Sampling engine: embedded (transformers) or vLLM. auto is vllm if it is installed and there is a GPU.",
        default="auto",
        common=True,
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = option(
        "Number format of the model. auto is bfloat16 if the device supports it, else float32.", default="auto"
    )
    max_batch_rows: int | None = option(
        "Maximum number of samples in flight.",
        default=None,
        default_text="set by the engine",
        result=False,
        minimum=1,
    )
    max_model_len: int | None = option(
        "Maximum length of prompt and response together, in tokens.",
        default=None,
        default_text="the model's own",
        minimum=2,
    )
    device: str = device_option()
    threads: int | None = threads_option()
    tensor_parallel_size: int = option(
        "Number of GPUs that share each layer of the model.", default=1, result=False, minimum=1, group=VLLM_GROUP
    )
    gpu_memory_utilization: float | None = option(
        "Share of each GPU's memory that vLLM takes, from 0 to 1.",
        default=None,
        default_text="vLLM's own; on a CPU, up to 4 GiB",
        result=False,
        above=0,
        maximum=1,
        group=VLLM_GROUP,
    )
    enforce_eager: bool = option(
        "Neither compile the model nor capture graphs: vLLM starts sooner and samples slower.",
        default=False,
        result=False,
        group=VLLM_GROUP,
    )
    engine_arg: tuple[str, ...] = option(
        "Any other argument of vLLM's engine.", default=(), metavar="KEY=VALUE", group=VLLM_GROUP
    )

    def engine_options(self) -> dict[str, Any]:
        """Return these options as `stages.sampling.pool.SamplerPool.open` takes them."""
        return {field.name: getattr(self, field.name) for field in fields(EngineOptions)}


@dataclass(frozen=True, kw_only=True)
class OutputOptions:
    """Output directory and shards of an artefact."""

    GROUP = "Output"

    out: AnyPath = option("Directory of the artefact to write.", result=False, short="--output-dir")
    shard: str | None = option(
        "Compute shard I of N, with I from 0 to N-1; all: every shard, divided as the output directory already is.",
        default=None,
        default_text="the SLURM array task, else all",
        metavar="I/N|all",
        group="Shards",
        result=False,
    )
    num_shards: int | None = option(
        "Number of shards; task I of a SLURM array computes shard I, and a call outside an array computes all of them.",
        default=None,
        default_text="the size of the SLURM array, else the number of parts in the output directory, else 1",
        group="Shards",
        minimum=1,
        result=False,
    )
    shards_per_task: int = option(
        "With --num-shards N: number of shards that each array task computes; the array then has N / K tasks.",
        default=1,
        metavar="K",
        group="Shards",
        minimum=1,
        result=False,
    )
    overwrite: bool = option(
        "Replace parts that were made with another configuration.", default=False, result=False, common=True
    )


@dataclass(frozen=True, kw_only=True)
class SignalOptions:
    """What happens if responses leave nothing to learn."""

    GROUP = "Output"

    fail_on_no_signal: bool = option(
        "End with exit code 5 if the responses leave nothing to learn: all rewards equal, or nearly all responses "
        "truncated or without an answer.",
        default=False,
        result=False,
    )


@dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """Trackers of the metrics. JSON lines are always written."""

    GROUP = "Output"

    report_to: tuple[Literal["tensorboard", "wandb"], ...] = option(
        "Also report metrics to TensorBoard or Weights & Biases. Their files are in _logs/ beside the output.",
        default=(),
        result=False,
        common=True,
    )


@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """The options of `spo sft` and `spo train`: optimization, LoRA, output. Weights are kept in float32."""

    GROUP = "Optimization"

    out: AnyPath = option("Directory of the model to write.", result=False, group="Output", short="--output-dir")
    adam_beta1: float = option("Decay rate of Adam's first moment.", default=0.9, minimum=0, below=1)
    adam_beta2: float = option("Decay rate of Adam's second moment.", default=0.999, minimum=0, below=1)
    weight_decay: float = option("Decoupled weight decay of matrices.", default=0.0, minimum=0)
    max_grad_norm: float = option("Gradients with a larger norm are scaled down to this one.", default=1.0, above=0)
    dtype: Literal["auto", "float32", "bfloat16"] = option(
        "Number format of matrix products. auto is bfloat16 if the device supports it. Weights are kept in float32.",
        default="auto",
        group="Engine",
    )
    gradient_checkpointing: bool = option(
        "Recompute activations in the backward pass instead of keeping them.",
        default=False,
        result=False,
        group="Engine",
    )
    save_steps: int | None = option(
        "Steps between checkpoints of unfinished work.",
        default=None,
        default_text="a checkpoint every five minutes",
        minimum=1,
        result=False,
        group="Output",
    )
    overwrite: bool = option(
        "Replace a model that was made with another configuration.",
        default=False,
        result=False,
        group="Output",
        common=True,
    )
    lora_r: int | None = option(
        "Train a LoRA adapter of this rank, without dropout, in place of the weights.",
        default=None,
        default_text="all weights, or the model's own adapter",
        minimum=1,
        group="LoRA",
    )
    lora_alpha: float | None = option(
        "Scale of the adapter; its output is multiplied by alpha / rank.",
        default=None,
        default_text="twice the rank",
        above=0,
        group="LoRA",
    )
    lora_target_modules: tuple[str, ...] = option(
        "Linear layer to adapt, such as q_proj.", default=(), default_text="all except the output head", group="LoRA"
    )
    merge: bool = option(
        "Also write the base model with the adapter merged into it, to OUT/merged.",
        default=False,
        result=False,
        group="LoRA",
    )
    device: str = device_option()
    threads: int | None = threads_option()

    def adapter(self) -> LoraOptions:
        """Return the adapter that these options describe, as `stages.models.lora.plan` takes it."""
        return LoraOptions(self.lora_r, self.lora_alpha, self.lora_target_modules, self.merge)


@dataclass(frozen=True, kw_only=True)
class QuestionOptions:
    """Split of the questions, and the format of their prompts; the same for one task and for several."""

    GROUP = "Input"

    split: Split = option("Split of the questions.", default="train", common=True)
    prompt_template: str | None = option(
        f"Prompt around the question: {', '.join(TEMPLATES)}, a text that contains {SLOT}, or a file with such a text.",
        default=None,
        default_text="the task's own",
        metavar="TEMPLATE",
        group="Prompt",
    )
    chat_template: bool = option(
        "Put the prompt, as a user message, into the chat template of the model's tokenizer.",
        default=False,
        group="Prompt",
    )
    system_prompt: str | None = option(
        "System message for --chat-template.", default=None, default_text="none", metavar="TEXT", group="Prompt"
    )
    chat_date: str = option(
        "Date that a chat template writes as today's (strftime_now). It is fixed: a rerun has the same prompts.",
        default=CHAT_DATE,
        metavar="YYYY-MM-DD",
        group="Prompt",
        added=True,
    )


@dataclass(frozen=True, kw_only=True)
class TaskOptions:
    """One task with its data and options."""

    GROUP = "Input"

    task: str = option(TASK_HELP)
    data: str | None = option(
        f"Data of the task: {DATA_HELP}",
        default=None,
        default_text="none, for tasks that need no data",
        result=False,
        common=True,
        metavar="PLACE",
    )
    task_arg: tuple[str, ...] = option(
        f"Option of the task. {TASK_ARG_HELP}", default=(), metavar="KEY=VALUE", common=True
    )


@dataclass(frozen=True, kw_only=True)
class SamplingOptions:
    """Model, selection of questions, and sampling: the options that `spo rollout` and `spo eval` share."""

    GROUP = "Sampling"

    model: str = option(
        "Policy: a directory in Hugging Face format, or a name on the hub.",
        result=False,
        group="Input",
        metavar="MODEL",
        short="-m",
    )
    num_questions: int | None = option(
        "Number of questions to answer.",
        default=None,
        default_text="all of the split",
        group="Input",
        common=True,
        minimum=1,
    )
    skip_questions: int = option("Number of questions to skip first.", default=0, minimum=0, group="Input")
    shuffle_seed: int | None = option(
        "Seed of a random order of the questions. After the last question a new order begins.",
        default=None,
        default_text="the order of the split",
        group="Input",
    )
    overlong_prompts: Literal["error", "skip"] = option(
        "What happens to a prompt that leaves no room for a response in the context: it ends the command before any "
        "work (error), or its question is left out and counted (skip).",
        default="skip",
        group="Prompt",
        result=False,
    )
    temperature: float = option("Sampling temperature; 0 is greedy.", default=1.0, minimum=0, common=True)
    top_p: float = option(
        "Sample from the smallest set of tokens with this total probability.",
        default=1.0,
        default_text="1, all tokens",
        above=0,
        maximum=1,
    )
    top_k: int = option(
        "Sample from the K most probable tokens.", default=0, default_text="0, all tokens", minimum=0, metavar="K"
    )
    stop: tuple[str, ...] = option("Text that ends a response.", default=(), metavar="TEXT")
    seed: int = option("Seed of all random numbers.", default=0, common=True)
    chunk_questions: int = option(
        "Number of questions whose responses are committed at once; a killed job loses at most these.",
        default=64,
        minimum=1,
        result=False,
        group="Output",
    )

    def unread(self) -> dict[str, str]:
        """Return the options that greedy sampling does not read."""
        return dict.fromkeys(("top_p", "top_k"), SAMPLED) if self.temperature == 0 else {}
