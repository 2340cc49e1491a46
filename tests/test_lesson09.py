"""Lesson 09: the known world by enumeration, the layout of rollouts, each loss against a formula, and PPO itself."""

import math
import os
from dataclasses import replace
from types import SimpleNamespace

import pytest
import small
import torch
from transformers import LlamaForCausalLM

from nbtools import bench, checks, notebooks, rollouts, studies_09, train, world, zoo
from nbtools.errors import NbtoolsError

TAUGHT = (
    "REF BETA best_of_n rloo_advantages gae clipped_loss rloo ppo_world grpo misprint ARMS run_world whiten ESTIMATORS "
    "Critic Four Shared Settings token_rewards collect ppo value_loss favourite measure normalised shuffled run_arm "
    "megabytes plain run_big"
)
QUIET = {"tick": lambda *a, **k: None}


@pytest.fixture(scope="module")
def lesson():
    """What the notebook defines, as attributes."""
    return SimpleNamespace(**notebooks.definitions("09", *TAUGHT.split()))


@pytest.fixture(scope="module")
def tokenizer():
    return zoo.pocket()[1]


def tiny(seed=0):
    """A small random Llama with the pocket model's vocabulary."""
    torch.manual_seed(seed)
    return LlamaForCausalLM(small.llama(vocab_size=2048, pad_token_id=0, bos_token_id=1, eos_token_id=2)).eval()


@pytest.fixture
def load(tokenizer):
    return lambda: (tiny(), tokenizer)


@pytest.fixture
def by_length():
    """A reward that needs no model: short answers earn more."""
    return lambda texts: torch.tensor([-float(len(text)) / 50 for text in texts])


# --- the known world


def test_the_tables_are_distributions_and_sampling_follows_them():
    policy, g = world.reference(), torch.Generator().manual_seed(0)
    logp = policy.logprobs()
    assert logp.shape == (3, 256) and torch.allclose(logp.exp().sum(-1), torch.ones(3), atol=1e-5)
    prompts = torch.arange(3).repeat(20_000)
    drawn = policy.sample(prompts, g)
    assert torch.equal(world.ANSWERS[world.index(drawn)], drawn)
    counts = torch.zeros(3, 256).index_put((prompts, world.index(drawn)), torch.ones(60_000), accumulate=True)
    assert world.distance((counts / 20_000 + 1e-12).log(), logp).max() < 0.06


def test_every_beginning_has_a_row_of_its_own():
    rows = {}
    for answer, places in zip(world.ANSWERS.tolist(), world.nodes(world.ANSWERS).tolist(), strict=True):
        for t, place in enumerate(places):
            assert rows.setdefault(place, tuple(answer[:t])) == tuple(answer[:t])
    assert sorted(rows) == list(range(world.NODES))


@pytest.mark.parametrize("beta", [0.1, 0.5, 2.0])
def test_the_optimum_is_where_reward_less_price_is_the_same_for_every_answer(beta):
    best, ref = world.optimum(beta), world.reference().logprobs()
    worth = world.rewards() - beta * (best - ref)
    assert (worth - worth[:, :1]).abs().max() < 1e-4
    assert world.measure(best, beta)["gap"] == 0 and world.measure(best, beta)["tv"] == 0
    other = (best + 0.3 * torch.randn_like(best)).log_softmax(-1)
    assert world.measure(other, beta)["gap"] > 0


@pytest.mark.parametrize("beta", [0, -1, math.nan, math.inf])
def test_a_price_that_is_none_is_refused(beta):
    with pytest.raises(NbtoolsError, match="beta must be a number above 0"):
        world.optimum(beta)


def test_a_reward_that_is_no_number_is_refused(lesson):
    with pytest.raises(NbtoolsError, match="every reward must be a number"):
        world.optimum(1.0, torch.full((3, 256), math.nan))
    score, zeros = torch.tensor([1.0, math.nan]), torch.zeros(2, 3)
    with pytest.raises(ValueError, match="reward of answer 1 is no number"):
        lesson.token_rewards(score, zeros, zeros, torch.ones(2, 3).long(), 0.1)


def test_best_of_n_against_draws(lesson):
    assert torch.allclose(lesson.best_of_n(1), lesson.REF.logprobs(), atol=1e-4)
    g, n, p = torch.Generator().manual_seed(1), 4, 1
    drawn = world.index(lesson.REF.sample(torch.full((40_000,), p), g)).view(-1, n)
    rewards = world.rewards()[p]
    winners = drawn.gather(1, rewards[drawn].argmax(1, keepdim=True))[:, 0]
    share = torch.bincount(winners, minlength=256) / len(winners)
    assert (share - lesson.best_of_n(n)[p].exp()).abs().sum() / 2 < 0.06


def gradient(policy, loss):
    policy.zero_grad()
    loss.backward()
    return policy.logits.grad.flatten().clone()


@pytest.mark.parametrize("arm", ["rloo", "ppo_world", "grpo both changed"])
def test_the_first_step_climbs_the_objective(lesson, arm):
    """The mean gradient over many draws points where enumeration says that J rises."""
    policy, g, ref = world.Policy(seed=3, scale=0.7), torch.Generator().manual_seed(0), lesson.REF
    logp = policy.logprobs()
    price = lesson.BETA * world.kl(logp, ref.logprobs().detach())
    true = gradient(policy, -((logp.exp() * world.rewards()).sum(-1) - price).mean())
    x, mean = torch.arange(3).repeat_interleave(32), 0
    step = {
        "rloo": lesson.rloo,
        "ppo_world": lesson.ppo_world,
        "grpo both changed": lambda p, b: lesson.grpo(p, b, divide=False, price="reward"),
    }[arm]
    for _ in range(300):
        y = policy.sample(x, g)
        b = SimpleNamespace(x=x, y=y, r=world.reward(x, y), ref=ref.token_logprobs(x, y).detach())
        mean = mean + gradient(policy, next(iter(step(policy, b)))) / 300
    assert torch.cosine_similarity(mean, true, dim=0) > 0.9


def test_grpo_as_published_and_the_misprint(lesson):
    """The price as a loss is k3, the advantage is divided; the misprint has no gradient at all."""
    policy, ref = world.Policy(seed=3, scale=0.7), lesson.REF
    x = torch.arange(3).repeat_interleave(32)
    y = policy.sample(x, torch.Generator().manual_seed(0))
    b = SimpleNamespace(x=x, y=y, r=world.reward(x, y), ref=ref.token_logprobs(x, y).detach())
    logp = policy.token_logprobs(x, y)
    group = b.r.view(3, 32)
    advantage = ((group - group.mean(1, keepdim=True)) / (group.std(1, keepdim=True) + 1e-4)).view(-1, 1)
    d = (b.ref - logp).double()
    wanted = -(advantage * (logp - logp.detach()).exp()).mean() + lesson.BETA * (d.exp() - 1 - d).mean()
    loss = next(iter(lesson.grpo(policy, b)))
    assert loss.item() == pytest.approx(wanted.item(), abs=1e-5)
    assert torch.allclose(gradient(policy, loss), gradient(policy, wanted), atol=1e-6)
    assert gradient(policy, next(iter(lesson.misprint(policy, b)))).abs().max() == 0


def test_runs_come_nearer_and_the_misprint_stands_still(lesson):
    for arm in lesson.ARMS:
        found = lesson.run_world(arm, 0.03, 0, steps=40, every=20)
        assert [draws for draws, _ in found] == [0, 1920, 3840]
        start, end = found[0][1]["tv"], found[-1][1]["tv"]
        assert end == start if arm == "misprint" else end < 0.95 * start
    with pytest.raises(ValueError, match="an arm is one of RLOO, PPO"):
        lesson.run_world("ppo", 0.03, 0)


def test_estimators_against_enumeration(lesson):
    g = torch.Generator().manual_seed(5)
    logits, other = torch.randn(2, 8, generator=g, dtype=torch.float64)
    logits.requires_grad_()
    p, q = logits.log_softmax(0), other.log_softmax(0)
    true = (p.exp() * (p - q)).sum()
    slopes = [torch.autograd.grad(kl, logits, retain_graph=True)[0] for kl in (true, (q.exp() * (q - p)).sum())]
    means, losses = {}, {}
    for name, estimate in lesson.ESTIMATORS.items():
        mean = (p.exp().detach() * estimate(p - q)).sum()
        means[name], losses[name] = mean.item(), torch.autograd.grad(mean, logits, retain_graph=True)[0]
    assert means["k1"] == pytest.approx(true.item()) and means["k3"] == pytest.approx(true.item())
    assert abs(means["k2"] - true.item()) > 0.05
    assert losses["k1"].abs().max() < 1e-12
    assert torch.allclose(losses["k2"], slopes[0]) and torch.allclose(losses["k3"], slopes[1])


@pytest.mark.parametrize("name", ["rloo_advantages", "gae", "clipped_loss"])
def test_the_notebook_s_own_answers_pass_their_checks(lesson, name):
    outcome = checks.examine(checks.exercises()[name], getattr(lesson, name))
    assert outcome.passed, outcome.problems


# --- rollouts


def test_padding_and_what_is_behind_the_end_move_nothing(tokenizer):
    model = tiny()
    train.seed_everything(0)
    batch = rollouts.sample(model, tokenizer, ["The film", "A very long opening of words", "It"], 12)
    batch = rollouts.pair_up(tokenizer, batch.prompts, ["is good.", "and so it goes on and on", "works"], 40)
    assert batch.mask.sum(1).unique().numel() == 3 and (batch.mask == 0).any()
    with torch.no_grad():
        logp = rollouts.token_logprobs(model, batch)
        other = replace(batch, ids=torch.where(batch.mask == 0, 99, batch.ids))
        assert torch.equal(rollouts.token_logprobs(model, other), logp)
        for i in range(3):
            alone = rollouts.pair_up(tokenizer, [batch.prompts[i]], [batch.answers[i]], 40)
            assert rollouts.sequence_logprobs(model, alone)[0] == pytest.approx(logp[i].sum().item(), abs=1e-3)
    assert logp.shape == batch.answer.shape and (logp * (1 - batch.answer)).abs().max() == 0


def test_log_probabilities_are_those_of_each_token(tokenizer):
    model, prompt, answer = tiny(), "The film is", "a joy to see"
    batch = rollouts.pair_up(tokenizer, [prompt], [answer], 40)
    ids = tokenizer(prompt)["input_ids"] + tokenizer(answer, add_special_tokens=False)["input_ids"] + [2]
    assert batch.ids[0].tolist() == ids and batch.ids[0, 0] == tokenizer.bos_token_id
    with torch.no_grad(), train.autocast():
        logits = model(torch.tensor([ids])).logits[0].float()
    for temperature in (1.0, 0.7):
        logp = (logits / temperature).log_softmax(-1)
        wanted = [logp[t - 1, ids[t]].item() for t in range(len(ids) - len(batch.answer[0]), len(ids))]
        got = rollouts.token_logprobs(model, batch, temperature)[0].tolist()
        assert got == pytest.approx(wanted, abs=0.02)  # bfloat16 where the processor has it


def test_an_answer_ends_with_its_first_end_token():
    tokens = torch.tensor([[5, 6, 2, 2, 9], [2, 5, 5, 5, 5], [5, 6, 7, 8, 9]])
    wanted = [[1, 1, 1, 0, 0], [1, 0, 0, 0, 0], [1, 1, 1, 1, 1]]
    assert rollouts.until_end(tokens, 2).tolist() == wanted


def test_samples_are_drawn_as_the_model_says(tokenizer):
    """The first token's frequencies over many draws are its probabilities; the likeliest with greedy."""
    model = tiny()
    with torch.no_grad():
        model.lm_head.weight.mul_(20)
        first = model(torch.tensor([tokenizer("The film")["input_ids"]])).logits[0, -1].softmax(0)
    train.seed_everything(0)
    batch = rollouts.sample(model, tokenizer, ["The film"] * 2000, 1)
    share = torch.bincount(batch.ids[:, -1], minlength=2048) / 2000
    likely = first.topk(5).indices
    assert (share[likely] - first[likely]).abs().max() < 0.05
    assert rollouts.sample(model, tokenizer, ["The film"], 1, greedy=True).ids[0, -1] == first.argmax()


def test_rows_are_picked_with_their_texts(tokenizer):
    batch = rollouts.pair_up(tokenizer, ["a", "b", "c"], ["one", "two", "three"], 40)
    two = batch.pick(torch.tensor([2, 0]))
    assert (two.prompts, two.answers, len(two)) == (["c", "a"], ["three", "one"], 2)
    assert torch.equal(two.ids, batch.ids[[2, 0]]) and two.texts == ["c three", "a one"]
    starts = {part: rollouts.openings(part) for part in ("train", "test")}
    assert all(len(set(texts)) == len(texts) for texts in starts.values())
    assert all(len(text.split()) == 3 for texts in starts.values() for text in texts)
    assert [t for t in starts["test"] if t in set(starts["train"])] != starts["test"]


def test_bad_input_is_named_in_a_sentence(tokenizer):
    model = tiny()
    for prompts, words in (
        ([], "there are no prompts"),
        (["ok", " "], "at least one word, got ' '"),
        ([None], "at least one word, got None"),
        (["word " * 60], "has 6[0-9] tokens, and there is room for 44: shorten it"),
    ):
        with pytest.raises(NbtoolsError, match=words):
            rollouts.encode(tokenizer, prompts, 44)
    with pytest.raises(NbtoolsError, match="temperature must be above 0, got 0"):
        rollouts.sample(model, tokenizer, ["The film"], temperature=0)
    with pytest.raises(NbtoolsError, match="an answer must hold at least one token, got ''"):
        rollouts.pair_up(tokenizer, ["The film"], [""], 40)
    with pytest.raises(NbtoolsError, match="part must be train or test, got 'val'"):
        rollouts.openings("val")


# --- PPO by its parts


def test_whiten_as_trl_does(lesson):
    from trl.experimental.ppo.ppo_trainer import masked_whiten

    g = torch.Generator().manual_seed(0)
    x, mask = torch.randn(6, 9, generator=g) * 3 + 2, (torch.rand(6, 9, generator=g) > 0.4).long()
    out = lesson.whiten(x, mask)
    assert (out * (1 - mask)).abs().max() == 0
    kept = out[mask.bool()]
    assert kept.mean().abs() < 1e-5 and kept.var(correction=0).item() == pytest.approx(1, abs=1e-4)
    count = int(mask.sum())
    theirs = masked_whiten(x, mask.bool()) * mask  # with n - 1 in the variance
    assert torch.allclose(out, theirs * math.sqrt(count / (count - 1)), atol=1e-4)


def test_the_score_goes_to_the_last_real_token(lesson):
    answer = torch.tensor([[1, 1, 1], [1, 1, 0], [1, 0, 0]])
    logp, ref = torch.full((3, 3), -1.0), torch.full((3, 3), -3.0)
    out = lesson.token_rewards(torch.tensor([10.0, 20.0, 30.0]), logp, ref, answer, 0.5)
    assert out.tolist() == [[-1.0, -1.0, 9.0], [-1.0, 19.0, 0.0], [29.0, 0.0, 0.0]]


def test_the_value_loss_is_clipped_around_the_old_values(lesson):
    values, old, returns = torch.tensor([[1.0, 0.1, 5.0]]), torch.zeros(1, 3), torch.tensor([[2.0, 2.0, 0.0]])
    wanted = (max(1.0, 1.8**2) + 1.9**2) / 2 / 2  # the third token is masked
    got = lesson.value_loss(values, old, returns, torch.tensor([[1, 1, 0]]), 0.2)
    assert got.item() == pytest.approx(wanted, abs=1e-5)


def test_a_value_sees_what_came_before_its_token_and_no_more(lesson, tokenizer):
    torch.manual_seed(0)
    critic = lesson.Critic(tiny().model)
    batch = rollouts.pair_up(tokenizer, ["The film is", "A"], ["a joy to see", "flop"], 40)
    assert critic(batch).abs().max() == 0, "the head starts at zero"
    torch.nn.init.normal_(critic.head.weight)
    with torch.no_grad():
        values = critic(batch)
        ids = batch.ids.clone()
        ids[0, -batch.answer.shape[1] + 1] = 77  # the second token of the first answer
        other = critic(replace(batch, ids=ids))
    assert torch.equal(other[0, :2], values[0, :2]) and (other[0, 2:] != values[0, 2:]).any()
    assert torch.equal(other[1], values[1]) and (values * (1 - batch.answer)).abs().max() == 0


def quick(lesson, **changes):
    return lesson.Settings(**{"answers": 8, "iterations": 2, "tokens": 6, "lr": 1e-3} | changes)


def states(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def moved(before, model):
    return {name for name, p in model.named_parameters() if not torch.equal(before[name], p)}


def test_ppo_moves_policy_and_critic_and_never_the_reference(lesson, load, by_length):
    models = lesson.Four(load)
    before = {name: states(getattr(models, name)) for name in ("policy", "ref", "critic")}
    history = lesson.ppo(models, quick(lesson), by_length, **QUIET)
    assert len(history) == 2 and set(history[0]) == {"reward", "kl", "ended", "ratio", "texts"}
    assert history[0]["kl"] == 0 and history[1]["kl"] != 0
    assert all(p.grad is None for group in models.trained() for p in group), "no gradient is left for the next step"
    assert max(row["ratio"] for row in history) < 0.02, "nothing has moved before the first step on a draw"
    assert len(moved(before["policy"], models.policy)) == len(before["policy"])
    assert not moved(before["ref"], models.ref) and moved(before["critic"], models.critic)


def test_a_rate_of_zero_freezes_the_policy(lesson, load, by_length):
    models = lesson.Four(load)
    policy, critic = states(models.policy), states(models.critic)
    lesson.ppo(models, quick(lesson, lr=0.0), by_length, **QUIET)
    assert not moved(policy, models.policy) and moved(critic, models.critic)


def test_the_same_seed_gives_the_same_run(lesson, load, by_length):
    runs = [lesson.ppo(lesson.Four(load), quick(lesson), by_length, seed, **QUIET) for seed in (0, 0, 1)]
    assert [row["texts"] for row in runs[0]] == [row["texts"] for row in runs[1]]
    assert runs[0][0]["texts"] != runs[2][0]["texts"]


def test_ppo_learns_what_is_rewarded(lesson, load):
    """A reward for an answer's first letters being what they are seldom: its share must grow."""
    wanted = "e"
    score = lambda texts: torch.tensor([sum(c == wanted for c in text) / 10 for text in texts])  # noqa: E731
    models = lesson.Four(load)
    history = lesson.ppo(models, quick(lesson, answers=64, iterations=12, beta=0.0, lr=3e-3), score, **QUIET)
    first, last = (sum(row["reward"] for row in rows) / 3 for rows in (history[:3], history[-3:]))
    assert last > first + 0.05


def test_what_stands_behind_the_end_does_not_reach_the_update(lesson, load, by_length, monkeypatch):
    """Every number that `collect` hands on is 0 there, whatever the models say of the padding."""
    models = lesson.Four(load)
    b = lesson.collect(models, quick(lesson, tokens=20), by_length, rollouts.openings()[:16])
    behind = b.batch.answer == 0
    if behind.any():
        for numbers in (b.old, b.values, b.advantages):
            assert numbers[behind].abs().max() == 0
    assert b.facts["kl"] == 0 and 0 <= b.facts["ended"] <= 1


def test_an_answer_without_end_loses(lesson, load, tokenizer):
    """With an end token forced into every answer, or into none, the sums of rewards differ by the price of it."""
    models, sums = lesson.Four(load), {}
    for name, bias in (("ends", 50.0), ("never", -50.0)):
        head = torch.nn.Linear(64, 2048)
        torch.nn.init.zeros_(head.weight)
        torch.nn.init.zeros_(head.bias)
        head.bias.data[2] = bias
        models.policy.lm_head = models.ref.lm_head = head
        b = lesson.collect(models, quick(lesson, unended=3.0), lambda texts: torch.ones(len(texts)), ["The film"] * 4)
        sums[name] = (b.returns[:, 0].mean().item(), b.facts["ended"])
    assert sums["ends"] == (pytest.approx(1.0, abs=1e-4), 1.0)
    assert sums["never"][0] == pytest.approx((1 - 3) * 0.95 ** (6 - 1), abs=1e-3) and sums["never"][1] == 0.0


def test_shared_adapters_are_three_models_in_one(lesson, load, by_length):
    models, four = lesson.Shared(load), lesson.Four(load)
    base = {name: p for name, p in states(models.policy).items() if "lora_" not in name}
    batch = rollouts.sample(four.policy, four.tokenizer, ["The film", "It is"], 6)
    with torch.no_grad():
        assert torch.allclose(models.logprobs(batch), four.logprobs(batch), atol=1e-4)
        assert torch.allclose(models.ref_logprobs(batch), four.ref_logprobs(batch), atol=1e-4)
    before = states(models.policy)
    lesson.ppo(models, quick(lesson), by_length, **QUIET)
    changed = moved(before, models.policy)
    assert changed and not changed & set(base), "the base never moves"
    assert {part for name in changed for part in ("policy", "critic") if f".{part}." in name} == {"policy", "critic"}
    with torch.no_grad():
        assert torch.allclose(models.ref_logprobs(batch), four.ref_logprobs(batch), atol=1e-4)
        logp = models.logprobs(batch)
        for name, p in models.policy.named_parameters():
            if ".critic." in name:
                p.add_(1.0)
        assert torch.equal(models.logprobs(batch), logp), "the critic's adapter is no part of the policy"
    weights, training = lesson.megabytes(models)
    whole = lesson.megabytes(four)
    assert weights < whole[0] / 2 and training < whole[1] / 4


def test_four_models_are_counted_to_the_byte(lesson, load):
    each = sum(p.numel() for p in tiny().parameters())
    body = sum(p.numel() for p in tiny().model.parameters()) + 65
    weights, training = lesson.megabytes(lesson.Four(load))
    assert weights * 1e6 == pytest.approx(4 * (2 * each + body)) and training * 1e6 == pytest.approx(12 * (each + body))


def test_favourite_phrase_and_shuffled_rewards(lesson):
    texts = ["a great film indeed", "It is a great film", "nothing", "a great film. a great film"]
    assert lesson.favourite(texts) == ("a great film", 0.75) and lesson.favourite(["so", "be it"]) == ("", 0.0)
    torch.manual_seed(0)
    score = lesson.shuffled(lambda texts: torch.arange(100.0))
    out = score(["x"] * 100)
    assert out.sort().values.tolist() == list(range(100)) and (out == torch.arange(100.0)).sum() < 10


def test_the_bigger_model_is_measured_before_and_after(lesson, load, by_length, monkeypatch):
    parts, put = [], lambda name, value: monkeypatch.setitem(lesson.run_big.__globals__, name, value)
    measure = lesson.measure

    def seen(models, part):
        parts.append(part)
        return measure(models, part)

    put("measure", seen)
    put("bigger", load)
    put("scorers", lambda: dict.fromkeys(("reward", "judge"), by_length))
    still = lesson.run_big(0, 0.0, 1, slice(3, 9), **QUIET)
    assert parts == [slice(3, 9)] * 2 and still["gain in reward"] == still["gain in judge"] == 0 == still["kl"]
    assert lesson.run_big(0, 0.1, 1, slice(3, 9), **QUIET)["kl"] != 0


def test_arms_are_named(lesson):
    with pytest.raises(ValueError, match="an arm is ppo or shuffled, got 'dpo'"):
        lesson.run_arm("dpo", 0.1, 1e-3, 0)


def test_the_study_runs_the_lesson(monkeypatch, lesson):
    history = [{"kl": float(i), "reward": i / 2, "texts": ["a b"]} for i in range(4)]
    fake = SimpleNamespace(
        VAL=slice(0, 2),
        run_arm=lambda *a, **k: ("models", history),
        measure=lambda models, part=None: {"reward": 1.0 if part else 2.0, "kl": 3.0, "judge": 0.5},
        scorers=lambda: {"judge": lambda texts: torch.ones(len(texts))},
        run_world=lambda arm, lr, seed: [(0, {"tv": 0.7}), (96, {"tv": 0.1, "gap": 0.2})],
    )
    monkeypatch.setattr(studies_09, "_lesson09", lambda *names: fake)
    cell = {"arm": "ppo", "beta": 0.1, "lr": 1e-4, "seed": 0}
    assert studies_09.ppo_run(cell | {"phase": "tune"})["score"] == pytest.approx(0.7)
    row = studies_09.ppo_run(cell | {"phase": "report"})
    assert row["reward"] == 2.0 and row["curve"] == "0.00,0.00,1.00 3.00,1.50,1.00" and row["sample"] == "a b"
    fake.run_big = lambda seed, part="test", **given: {
        "reward": seed + given["lr"] * 1e4,
        "kl": 2.0 * (part == fake.VAL),
    }
    big = cell | {"iterations": 60, "phase": "tune"}
    assert studies_09.big_run(big) == {"score": 0.9} and studies_09.big_run(big | {"iterations": 6}) == {"score": 0.0}
    assert studies_09.big_run(big | {"phase": "report"}) == {"reward": 1.0, "kl": 0.0}
    row = studies_09.world_run({"arm": "PPO", "lr": 0.1, "seed": 0})
    assert row["score"] == -0.1 and row["curve"] == "0.7000 0.1000"


# --- against trl's trainer


def test_the_bench_runs_both_loops_on_the_same_models(lesson, load, by_length, tmp_path):
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    stand_in = SimpleNamespace(Four=lambda: lesson.Four(load), scorers=lambda: {"reward": by_length}, ppo=lesson.ppo)
    pair = bench.ppo_pair(stand_in, quick(lesson, beta=0.0), 0, tmp_path)
    ref = states(pair["trl"][0].ref)
    laps = bench.in_turns({name: loop for name, (_, loop) in pair.items()}, 2)
    assert len(laps) == 2 and all({*lap} == {"ours", "trl"} for lap in laps)
    for models, _ in pair.values():
        assert moved(ref, models.policy) and not moved(ref, models.ref)


@pytest.mark.parametrize(("trl", "reward", "status"), [(1.2, 0.5, 0), (0.8, 0.5, 1), (1.2, 3.0, 1)])
def test_the_verdict_on_ppo(capsys, trl, reward, status):
    from nbtools import records

    laps = [{"ours": [1.0, 1.0, 1.0], "trl": [trl, trl, trl]}] * 4
    earned = {
        name: [{"reward": r + d, "kl": 1.0} for d in (-0.1, 0, 0.1)] for name, r in (("ours", 0.5), ("trl", reward))
    }
    assert bench.ppo_verdict(laps, earned, records.interval) == status
    assert f"ours has {trl:.2f} of trl's speed" in capsys.readouterr().out
