"""The critic: values, steps compared with a plain implementation, directories, and learning."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen2Model

from stages.core.errors import UserError
from stages.models import checkpoints, loading
from stages.models.presets import make_byte_tokenizer
from stages.optimization.critic import Critic, CriticExample, has_head, open_critic, score_states, update_critic
from stages.optimization.optimizer import AdamWConfig

ADAM = AdamWConfig(weight_decay=0.1, max_grad_norm=0.5)
CLIP = 0.2


def configuration(**changes: object) -> Qwen2Config:
    settings: dict[str, object] = {
        "vocab_size": 23,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 64,
    }
    return Qwen2Config(**settings | changes)  # pyright: ignore[reportArgumentType]


def make_critic(seed: int = 0) -> Critic:
    torch.manual_seed(seed)
    return Critic(Qwen2Model(configuration()).double(), nn.Linear(16, 1).double(), ADAM)


def make_examples(seed: int = 0, count: int = 7) -> list[CriticExample]:
    """Trajectories of uneven length with some of their states; the third has none."""
    generator = np.random.default_rng(seed)
    found = []
    for index in range(count):
        prompt, response = generator.integers(2, 6), generator.integers(3, 20)
        lengths = prompt + np.flatnonzero(generator.random(response) < (0.0 if index == 2 else 0.5))
        old = generator.normal(size=lengths.size)
        tokens = generator.integers(23, size=prompt + response).astype(np.int32)
        found.append(CriticExample(tokens, lengths.astype(np.int64), old, old + generator.normal(size=lengths.size)))
    return found


def plain_values(critic: Critic, example: CriticExample) -> torch.Tensor:
    """Value one trajectory alone, with all its tokens and an attention mask."""
    ids = torch.from_numpy(example.tokens).long()[None]
    hidden = critic.model.backbone(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state[0]
    return critic.model.head(hidden).squeeze(-1)[torch.from_numpy(example.lengths - 1)]


def plain_step(critic: Critic, batch: Sequence[CriticExample], rate: float) -> float:
    """Take the step without batching, padding or chunks."""
    model = critic.model
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": ADAM.weight_decay}, {"params": others, "weight_decay": 0.0}], lr=rate
    )
    losses = []
    for example in batch:
        assert example.old_values is not None
        assert example.returns is not None
        values, old, returns = plain_values(critic, example), *map(torch.tensor, (example.old_values, example.returns))
        near = old + (values - old).clamp(-CLIP, CLIP)
        losses.append(0.5 * torch.maximum((values - returns) ** 2, (near - returns) ** 2))
    loss = torch.cat(losses).mean()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), ADAM.max_grad_norm)
    optimizer.step()
    return loss.item()


def assert_same(one: Critic, other: Critic, tolerance: float) -> None:
    others = dict(other.model.named_parameters())
    for name, value in one.model.named_parameters():
        torch.testing.assert_close(others[name], value, rtol=0, atol=tolerance, msg=name)


@pytest.mark.parametrize("size", [1, 3, None])
def test_a_state_has_the_same_value_in_a_batch_as_alone(size: int | None) -> None:
    critic, batch = make_critic(), make_examples()
    found = dict(score_states(critic, batch, size))
    assert sorted(found) == [0, 1, 3, 4, 5, 6]
    for index, values in found.items():
        np.testing.assert_allclose(values, plain_values(critic, batch[index]).detach().numpy(), rtol=0, atol=1e-12)


def test_a_value_does_not_depend_on_later_tokens() -> None:
    critic, (example, *_) = make_critic(), make_examples()
    cut = int(example.lengths[0])
    ((_, whole),) = score_states(critic, [example])
    ((_, parted),) = score_states(critic, [CriticExample(example.tokens[:cut], example.lengths[:1])])
    np.testing.assert_allclose(parted[0], whole[0], rtol=0, atol=1e-12)


def test_passes_group_similar_lengths_within_the_token_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    fed: list[tuple[int, ...]] = []
    critic = make_critic()
    critic.model.backbone.register_forward_pre_hook(
        lambda _, args, kwargs: fed.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    monkeypatch.setattr("stages.optimization.critic.TOKENS_PER_PASS", 40)
    batch = make_examples(count=20)
    assert len(dict(score_states(critic, batch))) == 19
    assert all(rows * length <= 40 for rows, length in fed)
    assert [length for _, length in fed] == sorted((length for _, length in fed), reverse=True)
    assert len(fed) < 19


@pytest.mark.parametrize("size", [1, 3, 64])
def test_a_step_equals_the_plain_one_for_any_split(size: int) -> None:
    plain, ours, batch = make_critic(), make_critic(), make_examples()
    expected = plain_step(plain, batch, 1e-2)
    figures = update_critic(ours, batch, size, 1e-2, CLIP)
    assert figures["critic/loss"] == pytest.approx(expected, abs=1e-12)
    assert_same(plain, ours, 1e-9)


def test_metrics_equal_those_of_numpy() -> None:
    critic, batch = make_critic(), make_examples()
    found = dict(score_states(critic, batch))
    values = np.concatenate([found[index] for index in sorted(found)])
    returns = np.concatenate([one.returns for one in batch if one.returns is not None])
    figures = update_critic(critic, batch, 2, 0.0, CLIP)
    assert figures["critic/value_mean"] == pytest.approx(values.mean())
    assert figures["critic/explained_variance"] == pytest.approx(1 - np.var(returns - values) / np.var(returns))
    assert 0 < figures["critic/clip_ratio"] < 1


def test_equal_returns_have_no_explained_variance() -> None:
    one = make_examples()[0]
    same = CriticExample(one.tokens, one.lengths, one.old_values, np.ones(one.lengths.size))
    assert "critic/explained_variance" not in update_critic(make_critic(), [same], 1, 0.0, CLIP)


def test_a_loss_that_is_not_finite_is_an_error_and_leaves_the_weights_unchanged() -> None:
    critic, (one, *_) = make_critic(), make_examples()
    with pytest.raises(FloatingPointError, match="the critic's loss is nan"):
        update_critic(
            critic, [CriticExample(one.tokens, one.lengths, one.old_values, one.lengths * np.nan)], 1, 1e-2, CLIP
        )
    assert_same(critic, make_critic(), 0.0)


@pytest.mark.parametrize("tied", [True, False])
def test_a_language_model_opens_as_a_critic_with_a_zero_head(tied: bool, tmp_path: Path, capfd) -> None:
    torch.manual_seed(0)
    Qwen2ForCausalLM(configuration(tie_word_embeddings=tied)).save_pretrained(tmp_path)
    capfd.readouterr()
    critic, batch = open_critic(tmp_path, device="cpu"), make_examples()
    assert not has_head(tmp_path)
    assert all(not values.any() for _, values in score_states(critic, batch))
    before = [p.clone() for p in critic.model.head.parameters()]
    update_critic(critic, batch, 4, 1e-2, CLIP)
    assert all(not torch.equal(p, q) for p, q in zip(before, critic.model.head.parameters(), strict=True))
    assert capfd.readouterr() == ("", "")


def open_trained(directory: Path, tmp_path: Path, steps: int = 1) -> Critic:
    """Train a critic of a fresh backbone for a few steps, and save it."""
    torch.manual_seed(0)
    Qwen2ForCausalLM(configuration()).save_pretrained(tmp_path / "model")
    critic = open_critic(tmp_path / "model", ADAM, device="cpu")
    for seed in range(steps):
        update_critic(critic, make_examples(seed), 4, 1e-2, CLIP)
    critic.save(directory, make_byte_tokenizer())
    return critic


def test_a_saved_critic_returns_the_same_values_and_resumes_training_exactly(tmp_path: Path) -> None:
    critic = open_trained(tmp_path / "critic", tmp_path)
    again = open_critic(tmp_path / "critic", ADAM, device="cpu", continue_optimizer=True)
    assert_same(critic, again, 0.0)
    for one in (critic, again):
        update_critic(one, make_examples(5), 4, 1e-2, CLIP)
    assert_same(critic, again, 0.0)
    fresh = open_critic(tmp_path / "critic", ADAM, device="cpu")
    update_critic(fresh, make_examples(5), 4, 1e-2, CLIP)
    with pytest.raises(AssertionError):
        assert_same(critic, fresh, 0.0)


def test_its_directory_has_the_hugging_face_layout_and_a_digest_that_covers_the_head(tmp_path: Path) -> None:
    critic = open_trained(tmp_path / "critic", tmp_path)
    assert checkpoints.resolve(str(tmp_path / "critic")) == tmp_path / "critic"
    before = checkpoints.digest(tmp_path / "critic")
    with torch.no_grad():
        critic.model.head.bias.add_(1.0)
    critic.save(tmp_path / "critic", make_byte_tokenizer())
    assert checkpoints.digest(tmp_path / "critic") != before
    assert not [entry.name for entry in tmp_path.iterdir() if entry.name.startswith(".")]


def test_a_critic_is_rejected_as_a_language_model(tmp_path: Path) -> None:
    open_trained(tmp_path / "critic", tmp_path)
    with pytest.raises(UserError, match=r"critic is a critic; expected a language model"):
        loading.load_model(tmp_path / "critic", torch.device("cpu"), torch.float32)


def test_a_head_of_another_width_is_rejected(tmp_path: Path) -> None:
    open_trained(tmp_path / "critic", tmp_path)
    save_file(nn.Linear(8, 1).state_dict(), tmp_path / "critic" / checkpoints.VALUE_HEAD_FILE)
    with pytest.raises(UserError, match=r"value_head.state holds .*\[1, 8\].*expected .*\[1, 16\]"):
        open_critic(tmp_path / "critic", device="cpu")


def test_bfloat16_keeps_float32_masters_and_a_float32_head(tmp_path: Path) -> None:
    open_trained(tmp_path / "critic", tmp_path)
    exact = dict(score_states(open_critic(tmp_path / "critic", device="cpu"), make_examples()))
    narrow = open_critic(tmp_path / "critic", device="cpu", dtype="bfloat16")
    for index, values in score_states(narrow, make_examples()):
        assert values.dtype == np.float32
        np.testing.assert_allclose(values, exact[index], rtol=0, atol=0.1)
        assert not np.array_equal(values, exact[index])
    assert all(parameter.dtype == torch.float32 for parameter in narrow.model.parameters())


def test_gradient_checkpointing_does_not_change_the_step(tmp_path: Path) -> None:
    open_trained(tmp_path / "critic", tmp_path)
    one, other = (
        open_critic(tmp_path / "critic", ADAM, device="cpu", gradient_checkpointing=on) for on in (False, True)
    )
    for critic in (one, other):
        update_critic(critic, make_examples(3), 4, 1e-2, CLIP)
    assert_same(one, other, 1e-6)


def test_a_critic_learns_a_simple_value_function() -> None:
    """The return is 1 once token 7 has occurred, else 0: after 150 steps the critic explains most of the variance."""
    critic = make_critic()
    generator = np.random.default_rng(0)

    def draw(count: int) -> list[CriticExample]:
        tokens = generator.integers(23, size=(count, 16)).astype(np.int32)
        seen = (tokens == 7).cumsum(1) > 0
        lengths = np.arange(1, 17)
        return [
            CriticExample(row, lengths, np.zeros(16), found.astype(float))
            for row, found in zip(tokens, seen, strict=True)
        ]

    first = update_critic(critic, draw(16), 16, 1e-2, None)
    last = [update_critic(critic, draw(16), 16, 1e-2, None) for _ in range(150)][-1]
    unseen = update_critic(critic, draw(200), 200, 0.0, None)
    assert last["critic/loss"] < 0.3 * first["critic/loss"]
    assert unseen["critic/explained_variance"] > max(0.8, first["critic/explained_variance"] + 0.5)
