"""Find what a training call starts from through the lineage: tables, models, temperature, optimizer state."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from stages.core.errors import UserError
from stages.core.paths import AnyPath, is_path_reference, relative_path
from stages.models import checkpoints, loading, lora
from stages.models.adapters import Lora, LoraOptions, is_adapter
from stages.models.checkpoints import OPTIMIZER_FILE
from stages.models.pruning import check_optimizer, check_weights, digest_of
from stages.models.transfer import origin
from stages.shards.lineage import Source, model_source, read_lineage
from stages.shards.origin import check_sampling_model, foreign_notes, sampling_model, staleness, trace_back
from stages.shards.parts import Artefact, artefact_source, open_artefact
from stages.shards.schemas import ADVANTAGES, TRAJECTORIES
from stages.training.kept_rollouts import open_rollouts

SCHEDULE_STEPS = "schedule_steps"
"""Name of a count in a policy's lineage: all optimizer steps that led to it, including skipped ones."""
LOST = "-"
"""Stands for an iteration whose advantages are lost, so that the other iterations keep their age."""


@dataclass(frozen=True)
class Iteration:
    """The artefacts of one iteration.

    Attributes:
      age: iterations since then; 0 for the current one.
      sampler: directory of the model whose log-probabilities are the old ones: the one that sampled it, or the policy
        if the mismatch correction covers the difference; None if it is not needed.
      staleness: iterations of training between the model that sampled and the policy, as the trajectories record it.
      sampled_by_policy: whether the policy itself sampled it, so that the recorded log-probabilities can be compared
        with the policy's.
      rollouts: the kept rollouts; None if they are not trained on.
    """

    advantages: Artefact
    trajectories: Artefact
    age: int
    sampler: Path | None = None
    staleness: int = 0
    sampled_by_policy: bool = False
    rollouts: Artefact | None = None


@dataclass(frozen=True)
class StartingPoint:
    """The inputs of a training call.

    Attributes:
      iterations: the experience, oldest first.
      policy, reference: model directories; reference is None if it is the policy itself or there is no KL term.
      adapter: the adapter that is trained instead of the policy's weights; None: all weights are trained.
      base: directory of the weights that the adapter changes; None without an adapter.
      resumes_optimizer: whether the optimizer state in the policy's directory is continued.
      steps_before: optimizer steps of the calls that this one continues.
      temperature: sampling temperature of the trajectories.
      model, inputs: sources for the lineage of the output.
      notes: messages for the user.
    """

    iterations: tuple[Iteration, ...]
    policy: Path
    reference: Path | None
    adapter: Lora | None
    base: Path | None
    resumes_optimizer: bool
    steps_before: int
    temperature: float
    model: Source
    inputs: tuple[Source, ...]
    notes: tuple[str, ...]

    @property
    def staleness(self) -> int:
        """Iterations of training between the model that sampled the newest trajectories and the policy."""
        return self.iterations[-1].staleness

    def check_not_pruned(self) -> None:
        """Check that every model still has its weights. Call it only if the output is not up to date.

        Raises:
          UserError: weights or the optimizer state were pruned.
        """
        samplers = (iteration.sampler for iteration in self.iterations)
        for directory in dict.fromkeys((self.policy, self.base, self.reference, *samplers)):
            if directory:
                check_weights(directory)
        if self.resumes_optimizer:
            check_optimizer(self.policy)


def find_starting_point(
    out: AnyPath,
    advantages: Sequence[AnyPath],
    trajectories: Sequence[AnyPath] | None,
    *,
    model: str | None,
    reference_model: str | None,
    temperature: float | None,
    continue_optimizer: bool,
    adapter: LoraOptions,
    replay_window: int | None = None,
    recorded: bool = False,
    corrected: bool = False,
    with_rollouts: bool = False,
) -> StartingPoint:
    """Open the inputs, and resolve options that were not given (None) through the lineage of the trajectories.

    Args:
      out: directory of the output; the lineage has paths relative to it.
      advantages: oldest first; `-` stands for an iteration whose artefact is lost.
      trajectories: the trajectories of the advantages, in the same order.
      adapter: the options of the adapter to train.
      replay_window: skip artefacts that are this many iterations old or older; None: use all.
      recorded: use the recorded log-probabilities, so that the models that sampled are not needed.
      corrected: a mismatch correction weights the loss of stale trajectories of the current iteration, so their old
        log-probabilities are those of the policy, and the model that sampled them is not needed.
      with_rollouts: open the kept rollouts beside the advantages, too.

    Raises:
      UserError: an option is neither given nor recorded in a lineage; a file is missing; the output is the policy; an
        artefact is given twice.
      IncompleteInput: parts of an input are missing.
    """
    opened, notes = _open_inputs(advantages, trajectories, replay_window)
    newest = opened[-1].trajectories
    policy, policy_source = _find_policy(model or _sampling_model(newest), out, whole=continue_optimizer)
    trained = lora.plan(policy, adapter)
    base = checkpoints.base_of(policy).resolve() if trained else None
    notes += [lora.describe(trained, base)] if trained and base else []
    notes += foreign_notes(*(artefact for one in opened for artefact in (one.advantages, one.trajectories)))
    notes += check_sampling_model(newest, policy_source, named=model is not None)
    iterations = [_complete(one, policy, policy_source, recorded, corrected, with_rollouts) for one in opened]
    kept = [one.rollouts for one in iterations if one.rollouts]
    read = [*(artefact for one in opened for artefact in (one.advantages, one.trajectories)), *kept]
    reference, reference_source = _find_reference(reference_model, policy, policy_source, out, base)
    state = _find_optimizer_state(policy, out, trained) if continue_optimizer else None
    before = read_lineage(policy) if state else None
    if temperature is None:
        temperature = _sampling_temperature([*(one.trajectories for one in opened), *kept])
    return StartingPoint(
        iterations=tuple(iterations),
        policy=policy,
        reference=reference,
        adapter=trained,
        base=base,
        resumes_optimizer=state is not None,
        steps_before=before.counts.get(SCHEDULE_STEPS, 0) if before else 0,
        temperature=temperature,
        model=policy_source,
        inputs=(*(artefact_source(one, out) for one in read), *filter(None, (reference_source, state))),
        notes=tuple(dict.fromkeys(notes)),
    )


def _find_policy(name: str, out: AnyPath, *, whole: bool) -> tuple[Path, Source]:
    """Return the directory of the policy to start from, and its source for the lineage.

    Args:
      whole: get the optimizer state with the weights (see `checkpoints.resolve`).

    Raises:
      UserError: the output would replace the policy.
    """
    policy = checkpoints.resolve(name, whole=whole).resolve()
    if out.resolve() in (policy, origin(policy)):
        raise UserError(f"--out {out} is the policy to start from; expected another directory")
    return policy, model_source(name, checkpoints.digest(policy), out)


def _complete(
    opened: Iteration, policy: Path, policy_source: Source, recorded: bool, corrected: bool, with_rollouts: bool
) -> Iteration:
    """Return an iteration with the model of its old log-probabilities and its kept rollouts, if they are needed."""
    rows, sampled, age = opened.advantages, opened.trajectories, opened.age
    stale = staleness(sampled)
    if recorded:
        sampler = None
    else:
        sampler = policy if corrected and stale and not age else _find_sampler(sampled, policy, policy_source, age)
    return dataclasses.replace(
        opened,
        sampler=sampler,
        staleness=stale,
        sampled_by_policy=_is_sampled_by_policy(sampled, policy_source, age, recorded),
        rollouts=open_rollouts(rows, sampled) if with_rollouts else None,
    )


def _find_optimizer_state(policy: Path, out: AnyPath, adapter: Lora | None) -> Source | None:
    """Return the source of the optimizer state in the policy's directory; None if there is none to continue.

    The state beside whole weights is not one of an adapter: a new adapter starts with a fresh optimizer.
    """
    if adapter is not None and not is_adapter(policy):
        return None
    content = digest_of(policy / OPTIMIZER_FILE, "optimizer")
    return Source(relative_path(origin(policy) / OPTIMIZER_FILE, out), content, "optimizer") if content else None


def _open_inputs(
    advantages: Sequence[AnyPath], trajectories: Sequence[AnyPath] | None, replay_window: int | None
) -> tuple[list[Iteration], list[str]]:
    """Return the advantages, trajectories and age of each iteration, oldest first; and notes for the user."""
    if trajectories and len(trajectories) != len(advantages):
        raise UserError(
            f"{len(advantages)} advantages but {len(trajectories)} --trajectories; expected one for each of the "
            "advantages, in the same order"
        )
    if str(advantages[-1]) == LOST:
        raise UserError(f"the last of the advantages is the current iteration; expected a path, got {LOST}")
    opened: list[Iteration] = []
    for index, path in enumerate(advantages):
        age = len(advantages) - 1 - index
        if str(path) != LOST and (replay_window is None or age < replay_window):
            rows = open_artefact(path, ADVANTAGES)
            sampled = trace_back(rows, TRAJECTORIES, trajectories[index] if trajectories else None)
            opened.append(Iteration(rows, sampled, age))
    seen: dict[str, AnyPath] = {}
    for rows in (one.advantages for one in opened):
        first = seen.setdefault(rows.fingerprint(), rows.path)
        if first is not rows.path:
            raise UserError(f"{first} and {rows.path} are the same advantages; expected every iteration once")
    skipped = max(0, len(advantages) - replay_window) if replay_window else 0
    if not skipped:
        return opened, []
    return opened, [f"skipped {skipped} artefacts from outside the replay window of {replay_window} iterations"]


def _find_sampler(trajectories: Artefact, policy: Path, policy_source: Source, age: int) -> Path:
    """Return the model that sampled, for the denominators of the ratios; the policy if it is the same model.

    Trajectories of the current iteration without a recorded model count as sampled by the policy.

    Raises:
      UserError: the model is not recorded, is missing or has changed.
    """
    recorded = trajectories.lineage.model if trajectories.lineage else None
    if (recorded is None and age == 0) or (recorded and recorded.fingerprint == policy_source.fingerprint):
        return policy
    remedy = "pass --old-logprobs recorded to use the log-probabilities that were recorded while sampling"
    if recorded is None:
        raise UserError(f"{trajectories.path} does not record which model sampled it, so it cannot be scored: {remedy}")
    located = trajectories.locate(recorded.path)
    if not located.exists() and is_path_reference(recorded.path):
        raise UserError(f"the model that sampled {trajectories.path} is no longer at {located}: {remedy}")
    found = checkpoints.resolve(str(located) if located.exists() else recorded.path).resolve()
    if checkpoints.digest(found) != recorded.fingerprint:
        raise UserError(f"the model {recorded.path} has changed since it sampled {trajectories.path}: {remedy}")
    return found


def _is_sampled_by_policy(trajectories: Artefact, policy_source: Source, age: int, recorded: bool) -> bool:
    """Return whether the policy sampled these trajectories.

    If the model is not recorded, it counts as the policy only in the current iteration, and only if the recorded
    log-probabilities are used.
    """
    model = trajectories.lineage.model if trajectories.lineage else None
    return model.fingerprint == policy_source.fingerprint if model else recorded and age == 0


def _find_reference(
    name: str | None, policy: Path, policy_source: Source, out: AnyPath, base: Path | None
) -> tuple[Path | None, Source | None]:
    """Return the directory of the reference and its source for the lineage; None twice if it is the policy or unused.

    Args:
      name: the reference model; None without a KL term, or for the policy.
      base: directory of the weights that an adapter changes. A reference with the same weights is this directory, so
        that they are in memory once.

    Raises:
      UserError: the reference has another vocabulary.
    """
    if name is None:
        return None, None
    directory = checkpoints.resolve(name).resolve()
    source = dataclasses.replace(model_source(name, checkpoints.digest(directory), out), stage="reference")
    if source.fingerprint == policy_source.fingerprint:
        return None, None
    if base and source.fingerprint == checkpoints.digest(base):
        return base, source
    _check_vocabulary(policy, directory)
    return directory, source


def _check_vocabulary(policy: Path, reference: Path) -> None:
    """Refuse a reference with another vocabulary: the KL divergence compares probabilities of the same tokens."""
    of_policy, of_reference = (loading.load_tokenizer(directory).get_vocab() for directory in (policy, reference))
    if of_policy != of_reference:
        raise UserError(
            f"the reference {reference} has another vocabulary ({len(of_reference)} tokens) than the policy {policy} "
            f"({len(of_policy)}): pass a --reference-model with the same tokenizer, or --beta 0"
        )


def _sampling_model(trajectories: Artefact) -> str:
    """Return the model that sampled the trajectories.

    Raises:
      UserError: it is not recorded.
    """
    model = sampling_model(trajectories)
    if model is None:
        raise UserError(f"{trajectories.path} does not record which model sampled it: pass --model")
    return model


def _sampling_temperature(trajectories: Sequence[Artefact]) -> float:
    """Return the one temperature at which all trajectories were sampled.

    Raises:
      UserError: a temperature is not recorded, is 0 (greedy), or differs from the others.
    """
    found: dict[float, AnyPath] = {}
    for artefact in trajectories:
        temperature = artefact.lineage.config.get("temperature") if artefact.lineage else None
        if temperature is None:
            raise UserError(f"{artefact.path} does not record its sampling temperature: pass --temperature")
        if temperature == 0:
            raise UserError(
                f"{artefact.path} was sampled greedily (temperature 0), so all responses to a question are alike; "
                "expected trajectories sampled at a temperature above 0"
            )
        found.setdefault(float(temperature), artefact.path)
    if len(found) > 1:
        several = ", ".join(f"{path} at {temperature:g}" for temperature, path in found.items())
        raise UserError(f"the trajectories were sampled at several temperatures ({several}); expected a single one")
    return next(iter(found))
