"""What a training call starts from, found through the lineage: tables, models, temperature, optimiser state."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from stages.core.errors import UserError
from stages.core.paths import is_path_reference, relative_path
from stages.models import checkpoints, lora
from stages.models.adapters import Asked, Lora, is_adapter
from stages.models.pruning import check_optimiser, check_weights, digest_of
from stages.models.transfer import origin
from stages.optimization.optimizer import OPTIMISER_FILE
from stages.shards.lineage import Source, model_source, read_lineage
from stages.shards.origin import check_sampling_model, foreign_notes, sampling_model, trace_back
from stages.shards.parts import Artefact, artefact_source, open_artefact
from stages.shards.schemas import ADVANTAGES, TRAJECTORIES

SCHEDULE_STEPS = "schedule_steps"
"""The count, in a policy's lineage, of all optimiser steps that led to it, those skipped included."""
LOST = "-"
"""In the place of an iteration whose advantages are lost, so that the others keep their age."""


@dataclass(frozen=True)
class Sampled:
    """The experience of one iteration.

    Attributes:
      age: iterations since: 0 for this one's.
      sampler: directory of the model that sampled it; None where nobody asks for it.
      own: whether that is the policy, and recorded log-probabilities are there to be compared with its own.
    """

    advantages: Artefact
    trajectories: Artefact
    age: int
    sampler: Path | None
    own: bool = False


@dataclass(frozen=True)
class StartingPoint:
    """Everything found, and how the lineage names it.

    Attributes:
      sampled: the experience, oldest first.
      policy, reference: model directories; reference None where it is the policy itself, or not asked for.
      adapter: what is trained in place of the policy's weights; None: all of them.
      base: the directory of the weights that an adapter changes; None where there is none.
      optimiser: whether the policy's directory holds a state to continue.
      steps_before: optimiser steps of the calls that this one continues.
      temperature: of the distribution that the trajectories were sampled from.
      model, inputs: for the lineage of the work.
      notes: what a reader should know.
    """

    sampled: tuple[Sampled, ...]
    policy: Path
    reference: Path | None
    adapter: Lora | None
    base: Path | None
    optimiser: bool
    steps_before: int
    temperature: float
    model: Source
    inputs: tuple[Source, ...]
    notes: tuple[str, ...]

    def check_not_pruned(self) -> None:
        """Called before work begins; where it has been done already, nobody needs the files.

        Raises:
          UserError: weights, or the optimiser's state, that were pruned.
        """
        samplers = (sampled.sampler for sampled in self.sampled)
        for directory in dict.fromkeys((self.policy, self.base, self.reference, *samplers)):
            if directory:
                check_weights(directory)
        if self.optimiser:
            check_optimiser(self.policy)


def find_starting_point(
    out: Path,
    advantages: Sequence[Path],
    trajectories: Sequence[Path] | None,
    *,
    model: str | None,
    reference_model: str | None,
    temperature: float | None,
    continue_optimiser: bool,
    adapter: Asked,
    life: int | None = None,
    recorded: bool = False,
) -> StartingPoint:
    """Resolve what was left out (None) through the trajectories' lineage.

    Args:
      advantages: oldest first; `-` holds the place of an iteration whose artefact is lost.
      trajectories: theirs, in the same order.
      adapter: what is said of the adapter that is to be trained.
      life: artefacts older than so many iterations are passed over.
      recorded: nobody needs the models that sampled.

    Raises:
      UserError: something is neither given nor told by a lineage, or is no longer there; the output is the policy; an
        artefact is given twice.
      IncompleteInput: an input is not whole.
    """
    opened, notes = _open_inputs(advantages, trajectories, life)
    newest = opened[-1][1]
    name = model or _sampling_model(newest)
    policy = checkpoints.resolve(name, whole=continue_optimiser).resolve()
    if out.resolve() in (policy, origin(policy)):
        raise UserError(f"--out {out} is the policy to start from; expected another directory")
    mine = model_source(name, checkpoints.digest(policy), out)
    trained = lora.plan(policy, adapter)
    base = checkpoints.base_of(policy).resolve() if trained else None
    notes += [f"training an adapter of rank {trained.r}; the weights in {base} stay as they are"] if trained else []
    notes += [*foreign_notes(*(artefact for rows, sampled, _ in opened for artefact in (rows, sampled)))]
    notes += check_sampling_model(newest, mine, named=model is not None)
    experience = tuple(
        Sampled(
            rows,
            sampled,
            age,
            None if recorded else _find_sampler(sampled, policy, mine, age),
            _is_own(sampled, mine, age, recorded),
        )
        for rows, sampled, age in opened
    )
    inputs = [artefact_source(artefact, out) for rows, sampled, _ in opened for artefact in (rows, sampled)]
    reference, anchor = _find_reference(reference_model, policy, mine, out, base)
    inputs += [anchor] if anchor else []
    state, before = policy / OPTIMISER_FILE, None
    content = digest_of(state, "optimizer") if trained is None or is_adapter(policy) else None
    continues = continue_optimiser and content is not None
    if content and continues:
        inputs.append(Source(relative_path(origin(policy) / state.name, out), content, "optimizer"))
        before = read_lineage(policy)
    if temperature is None:
        temperature = _sampling_temperature([sampled for _, sampled, _ in opened])
    return StartingPoint(
        sampled=experience,
        policy=policy,
        reference=reference,
        adapter=trained,
        base=base,
        optimiser=continues,
        steps_before=before.counts.get(SCHEDULE_STEPS, 0) if before else 0,
        temperature=temperature,
        model=mine,
        inputs=tuple(inputs),
        notes=tuple(dict.fromkeys(notes)),
    )


def _open_inputs(
    advantages: Sequence[Path], trajectories: Sequence[Path] | None, life: int | None
) -> tuple[list[tuple[Artefact, Artefact, int]], list[str]]:
    """Advantages, their trajectories and their age, oldest first; and what a reader should know."""
    if trajectories and len(trajectories) != len(advantages):
        raise UserError(
            f"{len(advantages)} advantages but {len(trajectories)} --trajectories; expected one of each, in one order"
        )
    if str(advantages[-1]) == LOST:
        raise UserError(f"the last of the advantages is this iteration's; expected a path, got {LOST}")
    opened: list[tuple[Artefact, Artefact, int]] = []
    for place, path in enumerate(advantages):
        age = len(advantages) - 1 - place
        if str(path) != LOST and (life is None or age < life):
            rows = open_artefact(path, ADVANTAGES)
            opened.append((rows, trace_back(rows, TRAJECTORIES, trajectories[place] if trajectories else None), age))
    seen: dict[str, Path] = {}
    for rows, _, _ in opened:
        twice = seen.setdefault(rows.fingerprint(), rows.path)
        if twice is not rows.path:
            raise UserError(f"{twice} and {rows.path} are the same advantages; expected each iteration's once")
    passed_over = max(0, len(advantages) - life) if life else 0
    return opened, [f"passed over {passed_over} artefacts older than {life} iterations"] if passed_over else []


def _find_sampler(trajectories: Artefact, policy: Path, mine: Source, age: int) -> Path:
    """The model that sampled, whose probabilities the ratios are taken to; the policy, where it is that one.

    Trajectories of this iteration that do not say are taken to be the policy's.
    """
    lineage = trajectories.lineage
    told = lineage.model if lineage else None
    if (told is None and age == 0) or (told and told.fingerprint == mine.fingerprint):
        return policy
    remedy = "pass --old-logprobs recorded to take the ones that were recorded when sampling"
    if told is None:
        raise UserError(f"{trajectories.path} does not say which model sampled it, so it cannot be scored: {remedy}")
    there = trajectories.locate(told.path)
    if not there.exists() and is_path_reference(told.path):
        raise UserError(f"the model that sampled {trajectories.path} lies no longer at {there}: {remedy}")
    found = checkpoints.resolve(str(there) if there.exists() else told.path).resolve()
    if checkpoints.digest(found) != told.fingerprint:
        raise UserError(f"the model {told.path} has changed since {trajectories.path} was sampled with it: {remedy}")
    return found


def _is_own(trajectories: Artefact, mine: Source, age: int, recorded: bool) -> bool:
    """Whether the policy sampled them; of those that do not say, if this iteration's are taken as the old ones."""
    told = trajectories.lineage.model if trajectories.lineage else None
    return told.fingerprint == mine.fingerprint if told else recorded and age == 0


def _find_reference(
    name: str | None, policy: Path, mine: Source, out: Path, base: Path | None
) -> tuple[Path | None, Source | None]:
    """The reference's directory, and how the lineage names it; None twice where it is the policy, or not asked for.

    Args:
      mine: the policy's own source.
      base: the weights that an adapter changes: a copy of them is known by its digest, and not loaded beside them.
    """
    if name is None:
        return None, None
    directory = checkpoints.resolve(name).resolve()
    anchor = dataclasses.replace(model_source(name, checkpoints.digest(directory), out), stage="reference")
    if anchor.fingerprint == mine.fingerprint:
        return None, None
    if base and anchor.fingerprint == checkpoints.digest(base):
        return base, anchor
    _check_vocabulary(policy, directory)
    return directory, anchor


def _check_vocabulary(policy: Path, reference: Path) -> None:
    """A KL compares probabilities of the same tokens; another tokenizer gives the ids another meaning."""
    mine, theirs = (checkpoints.load_tokenizer(directory).get_vocab() for directory in (policy, reference))
    if mine != theirs:
        raise UserError(
            f"the reference {reference} has another vocabulary ({len(theirs)} tokens) than the policy {policy} "
            f"({len(mine)}): pass a --reference-model of the same tokenizer, or --beta 0"
        )


def _sampling_model(trajectories: Artefact) -> str:
    model = sampling_model(trajectories)
    if model is None:
        raise UserError(f"{trajectories.path} does not say which model sampled it: pass --model")
    return model


def _sampling_temperature(trajectories: Sequence[Artefact]) -> float:
    """The one temperature that all were sampled at.

    Raises:
      UserError: one does not say, was sampled greedily, or at another temperature than the rest.
    """
    found: dict[float, Path] = {}
    for artefact in trajectories:
        temperature = artefact.lineage.config.get("temperature") if artefact.lineage else None
        if temperature is None:
            raise UserError(f"{artefact.path} does not say its sampling temperature: pass --temperature")
        if temperature == 0:
            raise UserError(
                f"{artefact.path} was sampled greedily (temperature 0), which leaves nothing to choose between; "
                "expected trajectories sampled at a temperature above 0"
            )
        found.setdefault(float(temperature), artefact.path)
    if len(found) > 1:
        told = ", ".join(f"{path} at {temperature:g}" for temperature, path in found.items())
        raise UserError(f"the trajectories were sampled at several temperatures ({told}); expected one of all")
    return next(iter(found))
