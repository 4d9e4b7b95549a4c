"""Tasks over rows of data: `gsm8k`, `math`, `math500` … and `custom`, your own. One table tells them apart.

    spo eval --task math500 --data data/math500 …
    spo eval --task math500 --data HuggingFaceH4/MATH-500 --task-arg revision=… …
    spo rollout --task custom --data mine.csv --task-arg question=problem --task-arg answer=result …
    spo rollout --task custom --data mine.jsonl --task-arg reward=my_package.rewards:score …

The columns go by the names that public data sets use (`stages.tasks.columns`); others are named with `--task-arg`. The
answer is compared by a grader: `maths` (math-verify with limits), `number` (GSM8K's), `exact` (letter by letter), or by
a function of your own (`stages.tasks.rewards`). An answer may be given within its worked solution, in the last box or
after `####`; without an answer column the solution is looked into. Rows of MATH with an empty box are left out.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

from stages.core import storage
from stages.core.config import option
from stages.core.errors import UserError
from stages.tasks import Question, Split, Verdict, read_options
from stages.tasks.columns import ROLES, Columns
from stages.tasks.data import DataSplits, open_data
from stages.tasks.graders import GRADERS, Grader
from stages.tasks.rewards import load_reward
from stages.tasks.templates import TEMPLATES


@dataclass(frozen=True)
class Source:
    """What is known of a data set.

    Attributes:
      hub: a public copy and its configuration ("": its own default); what `--data hub` loads.
      grader: the one that fits, if no other is asked for.
      template, chat_message: the prompt, by name, without and with a chat template.
      test_only: a benchmark: it has one split, which is the test split under any name.
    """

    hub: tuple[str, str] | None = None
    grader: str = "maths"
    template: str = "math-task"
    chat_message: str = "boxed"
    test_only: bool = False


SOURCES = {
    "gsm8k": Source(("openai/gsm8k", "main"), grader="number"),
    "math": Source(("DigitalLearningGmbH/MATH-lighteval", "")),  # 7,500 to train on, 5,000 to test on
    "math12k": Source(("nlile/hendrycks-MATH-benchmark", "")),  # 12,000 to train on, MATH-500 to test on
    "math500": Source(("HuggingFaceH4/MATH-500", ""), test_only=True),
    "aime24": Source(("HuggingFaceH4/aime_2024", ""), test_only=True),
    "amc23": Source(("math-ai/amc23", ""), test_only=True),
    "olympiadbench": Source(("Hothan/OlympiadBench", "OE_TO_maths_en_COMP"), test_only=True),
    "minerva_math": Source(("math-ai/minervamath", ""), test_only=True),
    "college_math": Source(test_only=True),
    "custom": Source(template="plain", chat_message="plain"),
}


@dataclass(frozen=True)
class Options:
    """What `--task-arg` can change; left out, as the data set has it."""

    question: str = option("Column of the question: a text, or the messages of a chat.", default="")
    answer: str = option("Column of the answer, alone or within its worked solution.", default="")
    solution: str = option("Column of the worked solution.", default="")
    id: str = option("Column that names a question for ever; left out, split and row number do.", default="")
    subject: str = option("Column that results are broken down by.", default="")
    level: str = option("Column that results are broken down by.", default="")
    grader: str = option("maths, number or exact.", default="")
    reward: str = option("Your own function in place of a grader, as package.module:function.", default="")
    subset: str = option("Configuration of a hub data set.", default="")
    revision: str = option("Commit or tag of a hub data set.", default="")

    def __post_init__(self) -> None:
        if self.grader and self.grader not in GRADERS:
            raise UserError(f"--grader must be one of {', '.join(GRADERS)}; got {self.grader!r}")
        if self.grader and self.reward:
            raise UserError("--grader and reward are two ways to judge a response: give one of them")


@dataclass(frozen=True)
class Dataset:
    """A task over some data; without data it has no questions, but verifies."""

    name: str
    source: Source
    columns: Columns = field(repr=False)
    grader: Grader = field(repr=False)
    data: DataSplits | None
    digest: str

    @property
    def template(self) -> str:
        return TEMPLATES[self.source.template]

    @property
    def chat_message(self) -> str:
        return TEMPLATES[self.source.chat_message]

    def questions(self, split: Split) -> Sequence[Question]:
        if self.data is None:
            known = f", or hub for {self.source.hub[0]}" if self.source.hub else ""
            raise UserError(
                f"task {self.name} needs --data: a Parquet, JSONL or CSV file, a directory of them, or a name on the "
                f"Hugging Face hub{known}"
            )
        there = list(self.data.splits)
        only = there[0] if self.source.test_only and split == "test" and len(there) == 1 else split
        placed = self.data.rows(only, self.columns.choose)
        asked: dict[str, str] = {}
        questions = []
        for i, (where, row) in enumerate(placed):
            question = self.columns.question(row, where, self.name, f"{split}-{i}")
            if question is None:
                continue
            if other := asked.get(question.id):
                raise UserError(f"{where} has the id of {other}: {question.id}; ids name one question each")
            asked[question.id] = where
            questions.append(question)
        if not questions:
            raise UserError(f"task has no questions: the {split} split of {self.data.source} is empty")
        return questions

    def verify(self, response: str, reference: str) -> Verdict:
        return self.verify_all([response], [reference])[0]

    def verify_all(self, responses: Sequence[str], references: Sequence[str]) -> list[Verdict]:
        """A verdict on each response, all at once: graders work in parallel, reward functions on batches."""
        return self.grader.verify_all(responses, references)


def make_task(name: str, data: str | None, options: Mapping[str, str]) -> Dataset:
    """The task of a name in `SOURCES`.

    Raises:
      UserError: no data there, an option that does not exist, a reward function that cannot be had.
    """
    source = SOURCES[name]
    chosen = read_options(Options, name, options)
    if chosen.reward:
        grader, wanted, made_with = load_reward(chosen.reward)
    else:
        grader, wanted, made_with = GRADERS[chosen.grader or source.grader], None, ""
    named = {role: getattr(chosen, role) for role in ROLES if getattr(chosen, role)}
    columns = Columns(grader, named, wanted, skip_unanswered=name in ("math", "math12k"))
    rows = _open_data(name, source, data, chosen) if data is not None else None
    parts = [name, asdict(source), asdict(chosen), made_with, rows.digest if rows else None]
    return Dataset(name, source, columns, grader, rows, storage.digest(json.dumps(parts).encode()))


def _open_data(name: str, source: Source, data: str, chosen: Options) -> DataSplits:
    subset = chosen.subset
    if data == "hub":
        if source.hub is None:
            raise UserError(f"no public copy of {name} is known: pass --data with a file, or with its name on the hub")
        data = source.hub[0]
    if source.hub and data == source.hub[0]:
        subset = subset or source.hub[1]
    return open_data(data, name, subset=subset, revision=chosen.revision)
