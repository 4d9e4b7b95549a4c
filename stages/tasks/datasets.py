"""Tasks over rows of data: `gsm8k`, `math`, `math500` …, and `custom` for any other data.

    spo eval --task math500 --data data/math500 …
    spo eval --task math500 --data HuggingFaceH4/MATH-500 --task-arg revision=… …
    spo rollout --task custom --data mine.csv --task-arg question=problem --task-arg answer=result …
    spo rollout --task custom --data mine.jsonl --task-arg reward=my_package.rewards:score …

Columns are found by the names that public data sets use (`stages.tasks.columns`); `--task-arg` names any others. A
grader compares answers: `maths` (math-verify with limits), `number` (GSM8K's), `exact` (string equality), or a user's
reward function (`stages.tasks.rewards`). The answer column may contain a worked solution with the answer in its last
box or after `####`; without an answer column, the solution column is used. Rows of MATH with an empty box are skipped.

To add a data set, add an entry to `DATASETS`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

from stages.core import storage
from stages.core.config import option
from stages.core.errors import UserError, one_of
from stages.tasks import Question, Split, read_options
from stages.tasks.columns import ROLES, ColumnMapping
from stages.tasks.data import DataSplits, open_data
from stages.tasks.graders import GRADERS, Grader
from stages.tasks.rewards import load_reward
from stages.tasks.templates import TEMPLATES
from stages.tasks.verdicts import Verdict


@dataclass(frozen=True)
class DatasetDefaults:
    """What is known about a data set. The field names are part of the task's digest.

    Attributes:
      hub: a public copy on the hub and its configuration ("": the data set's default); `--data hub` loads it.
      grader: name of the grader, unless the user chooses another.
      template, chat_message: names of the prompt templates without and with the model's chat template.
      test_only: whether the data set is a benchmark with one split; that split is the test split under any name.
    """

    hub: tuple[str, str] | None = None
    grader: str = "maths"
    template: str = "math-task"
    chat_message: str = "boxed"
    test_only: bool = False


DATASETS = {
    "gsm8k": DatasetDefaults(("openai/gsm8k", "main"), grader="number"),
    "math": DatasetDefaults(("DigitalLearningGmbH/MATH-lighteval", "")),  # 7,500 train, 5,000 test questions
    "math12k": DatasetDefaults(("nlile/hendrycks-MATH-benchmark", "")),  # 12,000 train; the test split is MATH-500
    "math500": DatasetDefaults(("HuggingFaceH4/MATH-500", ""), test_only=True),
    "aime24": DatasetDefaults(("HuggingFaceH4/aime_2024", ""), test_only=True),
    "amc23": DatasetDefaults(("math-ai/amc23", ""), test_only=True),
    "olympiadbench": DatasetDefaults(("Hothan/OlympiadBench", "OE_TO_maths_en_COMP"), test_only=True),
    "minerva_math": DatasetDefaults(("math-ai/minervamath", ""), test_only=True),
    "college_math": DatasetDefaults(test_only=True),
    "custom": DatasetDefaults(template="plain", chat_message="plain"),
}


@dataclass(frozen=True)
class DatasetOptions:
    """The options of `--task-arg`; "" uses the default of the data set."""

    question: str = option("Column of the question: a text, or the messages of a chat.", default="")
    answer: str = option("Column of the answer, alone or within its worked solution.", default="")
    solution: str = option("Column of the worked solution.", default="")
    id: str = option("Column of a permanent identifier; by default, the split and the row number.", default="")
    subject: str = option("Column that results are broken down by.", default="")
    level: str = option("Column that results are broken down by.", default="")
    grader: str = option("maths, number or exact.", default="")
    reward: str = option("Your own reward function instead of a grader, as package.module:function.", default="")
    subset: str = option("Configuration of a data set on the hub.", default="")
    revision: str = option("Commit or tag of a data set on the hub.", default="")

    def __post_init__(self) -> None:
        if self.grader and self.grader not in GRADERS:
            raise UserError(f"--grader must be {one_of(GRADERS, self.grader)}")
        if self.grader and self.reward:
            raise UserError("--grader and --task-arg reward exclude each other: give one of them")


@dataclass(frozen=True)
class Dataset:
    """A task over rows of data. Without data it has no questions, but it verifies responses."""

    name: str
    defaults: DatasetDefaults
    columns: ColumnMapping = field(repr=False)
    grader: Grader = field(repr=False)
    data: DataSplits | None
    digest: str

    @property
    def template(self) -> str:
        return TEMPLATES[self.defaults.template]

    @property
    def chat_message(self) -> str:
        return TEMPLATES[self.defaults.chat_message]

    def questions(self, split: Split) -> Sequence[Question]:
        if self.data is None:
            hub = f", or hub for {self.defaults.hub[0]}" if self.defaults.hub else ""
            raise UserError(
                f"task {self.name} needs --data: a Parquet, JSONL or CSV file, a directory of them, or a name on the "
                f"Hugging Face hub{hub}"
            )
        available = list(self.data.splits)
        is_only_split = self.defaults.test_only and split == "test" and len(available) == 1
        located = self.data.rows(available[0] if is_only_split else split, self.columns.choose)
        locations: dict[str, str] = {}  # question id → location of its row
        questions = []
        for i, (location, row) in enumerate(located):
            question = self.columns.question(row, location, self.name, f"{split}-{i}")
            if question is None:
                continue
            if other := locations.get(question.id):
                raise UserError(f"{location} has the same id as {other}: {question.id}; ids must be unique")
            locations[question.id] = location
            questions.append(question)
        if not questions:
            raise UserError(f"task has no questions: the {split} split of {self.data.source} is empty")
        return questions

    def verify(self, response: str, reference: str) -> Verdict:
        return self.verify_all([response], [reference])[0]

    def verify_all(self, responses: Sequence[str], references: Sequence[str]) -> list[Verdict]:
        """Grade many responses in one call: `maths` grades in parallel, and a reward function takes a batch."""
        return self.grader.verify_all(responses, references)


def make_task(name: str, data: str | None, options: Mapping[str, str]) -> Dataset:
    """Return the task of a data set in `DATASETS`.

    Raises:
      UserError: unreadable data, an unknown option, or a reward function that cannot be loaded.
    """
    defaults = DATASETS[name]
    chosen = read_options(DatasetOptions, name, options)
    if chosen.reward:
        grader, reward_columns, reward_digest = load_reward(chosen.reward)
    else:
        grader, reward_columns, reward_digest = GRADERS[chosen.grader or defaults.grader], None, ""
    user_columns = {role: getattr(chosen, role) for role in ROLES if getattr(chosen, role)}
    columns = ColumnMapping(grader, user_columns, reward_columns, skip_unanswered=name in ("math", "math12k"))
    splits = _open_splits(name, defaults, data, chosen) if data is not None else None
    identity = [name, asdict(defaults), asdict(chosen), reward_digest, splits.digest if splits else None]
    return Dataset(name, defaults, columns, grader, splits, storage.digest(json.dumps(identity).encode()))


def _open_splits(name: str, defaults: DatasetDefaults, data: str, chosen: DatasetOptions) -> DataSplits:
    subset = chosen.subset
    if data == "hub":
        if defaults.hub is None:
            raise UserError(f"no public copy of {name} is known: pass --data with a file or a name on the hub")
        data = defaults.hub[0]
    if defaults.hub and data == defaults.hub[0]:
        subset = subset or defaults.hub[1]
    return open_data(data, name, subset=subset, revision=chosen.revision)
