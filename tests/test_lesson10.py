"""Lesson 10: the losses against trl and double precision, the known world, labels, the AI's logits, the studies."""

import copy
import json
import math
import os
import tempfile
from functools import cache
from types import SimpleNamespace

import pytest
import small
import torch
from transformers import LlamaForCausalLM

from nbtools import assets, notebooks, rollouts, sft, studies_10, world, zoo
from nbtools.errors import NbtoolsError

TAUGHT = (
    "BETA REF TRUE BEST PREFER dpo_loss ipo_loss simpo_loss pair_loss KINDS EPSILON GAMMA exact_loss of_beta "
    "draw_pairs fit_world world_arm start sampled ordered sums train_dpo measure run_arm labelled marks ARMS "
    "verdict ask_ab word_logits both_orders agreement chat_pairs on_pairs unseen PROMPT ANSWER small_decoder online "
    "ROUNDS exact ceiling comparisons hhh chat_start chat_split chat_arm VAL TEST"
)


@pytest.fixture(scope="module")
def lesson():
    """What the notebook defines, as attributes."""
    return SimpleNamespace(**notebooks.definitions("10", *TAUGHT.split()))


@pytest.fixture
def replace(lesson, monkeypatch):
    """Put another object in place of a name that the notebook's functions look up."""
    return lambda name, value: monkeypatch.setitem(lesson.train_dpo.__globals__, name, value)


@pytest.fixture
def tiny(lesson, replace):
    """A random Llama of two layers in the pocket model's place, with its tokenizer."""
    model = lesson.small_decoder(0).eval().requires_grad_(False)
    tokenizer = lesson.start()[1]
    replace("start", lambda: (model, tokenizer))
    return model, tokenizer


def test_a_bigger_judge_is_taken_from_a_folder(lesson, monkeypatch, tmp_path):
    """The cell that reads NBTOOLS_AI, as it stands in the notebook; the studies' own `ai` is another."""
    cells = json.loads(notebooks.find("10").read_text(encoding="utf-8"))["cells"]
    (cell,) = ("".join(c["source"]) for c in cells if c["cell_type"] == "code" and "NBTOOLS_AI" in "".join(c["source"]))
    tokenizer = zoo.smollm2()[1]
    LlamaForCausalLM(small.llama(vocab_size=len(tokenizer))).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    for name, layers in ((str(tmp_path), 2), ("", None)):
        monkeypatch.setenv("NBTOOLS_AI", name)
        exec(cell, found := {"os": os, "sft": sft})
        assert ("ai" in found) == bool(name)
        if name:
            model, own = found["ai"]()
            assert model.config.num_hidden_layers == layers and own.chat_template == tokenizer.chat_template
            assert not model.training and not any(p.requires_grad for p in model.parameters())
    assert "NBTOOLS_AI" not in notebooks.source_of("10", *studies_10.JUDGE10, *studies_10.POCKET10)


def some_pairs(tokenizer, count=8):
    """Rollouts of `count` chosen answers and then as many rejected ones, of unlike length."""
    prompts = [f"The film {i}" for i in range(count)]
    chosen = [" is good" + " and warm" * (i % 3) for i in range(count)]
    rejected = [" is dull" + " and cold and long" * (i % 2) for i in range(count)]
    return rollouts.pair_up(tokenizer, prompts * 2, chosen + rejected, 64)


class Answers:
    """As much of rollouts as an ordering of answers needs."""

    def __init__(self, answers):
        self.answers = answers

    def __len__(self):
        return len(self.answers)


# --- the losses


def double(logps, lengths=(4, 4), beta=0.3, wrong=0.2, gamma=0.5):
    """Every loss of one pair by plain floats."""
    c, r, rc, rr = logps
    h = (c - rc) - (r - rr)
    right, turned = (math.log1p(math.exp(-s * beta * h)) for s in (1, -1))
    return {
        "dpo": right,
        "ipo": (h - 1 / (2 * beta)) ** 2,
        "cdpo": (1 - wrong) * right + wrong * turned,
        "robust": ((1 - wrong) * right - wrong * turned) / (1 - 2 * wrong),
        "simpo": math.log1p(math.exp(-(beta * (c / lengths[0] - r / lengths[1]) - gamma))),
    }


def test_every_loss_in_double_precision(lesson):
    assert (lesson.EPSILON, lesson.GAMMA) == (0.2, 0.5)
    g = torch.Generator().manual_seed(0)
    logps = -30 + 5 * torch.randn(4, 20, generator=g)
    lengths = torch.randint(3, 15, (2, 20), generator=g)
    for kind in lesson.KINDS:
        out = lesson.pair_loss(kind, logps, 0.3, lengths)
        wanted = [double(row, size)[kind] for row, size in zip(logps.T.tolist(), lengths.T.tolist(), strict=True)]
        torch.testing.assert_close(out, torch.tensor(wanted), rtol=1e-4, atol=1e-4)


def trl_step(lesson, tokenizer, rows, **options):
    """trl's own batch, loss and gradients of one step: (inputs, loss, {name: gradient})."""
    from trl import DPOConfig, DPOTrainer

    from datasets import Dataset

    with tempfile.TemporaryDirectory() as folder:
        config = DPOConfig(
            folder,
            per_device_train_batch_size=len(rows),
            beta=0.3,
            bf16=False,
            gradient_checkpointing=False,
            train_sampling_strategy="sequential",
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
            **options,
        )
        data = Dataset.from_list(rows)
        models = [lesson.small_decoder(seed).cpu() for seed in (0, 1)]
        trainer = DPOTrainer(*models, config, train_dataset=data, processing_class=tokenizer)
        loss = trainer.compute_loss(trainer.model.train(), next(iter(trainer.get_train_dataloader())))
        loss.backward()
        return loss.item(), {name: p.grad for name, p in trainer.model.named_parameters()}


@pytest.mark.parametrize("kind", ["dpo", "ipo", "robust"])
def test_losses_and_gradients_are_those_of_trl(lesson, kind):
    tokenizer = lesson.start()[1]
    batch = some_pairs(tokenizer)
    ours, other = (lesson.small_decoder(seed).cpu() for seed in (0, 1))
    logps = [*lesson.exact(ours, batch).chunk(2), *lesson.exact(other, batch).detach().chunk(2)]
    torch.testing.assert_close(lesson.exact(ours, batch), rollouts.sequence_logprobs(ours, batch), atol=0.1, rtol=1e-3)
    if kind == "ipo":  # trl divides by length here, the paper does not
        lengths = batch.answer.sum(1).chunk(2)
        logps = [logp / lengths[i % 2] for i, logp in enumerate(logps)]
    loss = lesson.pair_loss(kind, logps, 0.3).mean()
    loss.backward()
    rows = [
        {"prompt": p, "chosen": a, "rejected": b}
        for p, a, b in zip(batch.prompts[:8], batch.answers[:8], batch.answers[8:], strict=True)
    ]
    options = {"dpo": {}, "ipo": {"loss_type": "ipo"}, "robust": {"loss_type": "robust", "label_smoothing": 0.2}}[kind]
    theirs, grads = trl_step(lesson, tokenizer, rows, **options)
    assert theirs == pytest.approx(loss.item(), abs=1e-6 if kind != "ipo" else 1e-5)
    assert abs(theirs - math.log(2)) > 1e-3
    for name, p in ours.named_parameters():
        torch.testing.assert_close(p.grad, grads[name], atol=2e-6, rtol=1e-4)


def test_losses_pull_towards_what_was_chosen_and_leave_the_reference(lesson):
    for kind in lesson.KINDS:
        logps = [torch.full((1,), -20.0, requires_grad=True) for _ in range(4)]
        lesson.pair_loss(kind, logps, 0.3).sum().backward()
        assert logps[0].grad < 0 < logps[1].grad and not any(v.grad is not None and v.grad.any() for v in logps[2:])


# --- the known world


def test_the_best_policy_is_the_minimum_of_dpo_by_enumeration(lesson):
    best = lesson.exact_loss(lesson.of_beta(lesson.BETA), lesson.BEST)
    p = lesson.PREFER
    entropy = -(p * p.log() + (1 - p) * (1 - p).log())
    ref = lesson.REF.exp()
    weight = ref[:, :, None] * ref[:, None, :] * (1 - torch.eye(256))
    assert best == pytest.approx(((weight * entropy).sum() / weight.sum()).item(), abs=1e-5)
    g = torch.Generator().manual_seed(0)
    for _ in range(5):
        other = (lesson.BEST + 0.3 * torch.randn(3, 256, generator=g)).log_softmax(-1)
        assert lesson.exact_loss(lesson.of_beta(lesson.BETA), other) > best


def test_with_wrong_labels_robust_keeps_its_minimum_and_cdpo_does_not(lesson):
    def slope(kind, noise):
        logp = lesson.BEST.clone().requires_grad_()
        lesson.exact_loss(lambda *logps: lesson.pair_loss(kind, logps, lesson.BETA), logp, noise).backward()
        return logp.grad.abs().max().item()

    assert slope("robust", 0.2) < 1e-6 and slope("dpo", 0.0) < 1e-6
    assert min(slope("dpo", 0.2), slope("cdpo", 0.2), slope("robust", 0.0), slope("ipo", 0.0)) > 1e-4


def test_the_exact_loss_is_the_mean_over_many_drawn_pairs(lesson):
    x, win, lose = lesson.draw_pairs(200_000, 3, 0.1)
    logp = world.Policy(seed=5).logprobs().detach()
    loss = lesson.of_beta(0.4)
    drawn = loss(logp[x, win], logp[x, lose], lesson.REF[x, win], lesson.REF[x, lose]).mean()
    assert lesson.exact_loss(loss, logp, 0.1) == pytest.approx(drawn.item(), abs=0.01)


@pytest.mark.parametrize("noise", [0.0, 0.2, 0.5])
def test_drawn_pairs_are_labelled_by_bradley_and_terry(lesson, noise):
    x, win, lose = lesson.draw_pairs(50_000, 1, noise)
    assert len(x) == 50_000 and not (win == lose).any() and {*x.tolist()} == {0, 1, 2}
    sure = lesson.PREFER[x, win, lose].maximum(lesson.PREFER[x, lose, win])  # of the better one
    right = (lesson.TRUE[x, win] > lesson.TRUE[x, lose]).float()
    assert right.mean() == pytest.approx((sure * (1 - noise) + (1 - sure) * noise).mean().item(), abs=0.01)
    again = lesson.draw_pairs(50_000, 1, noise)
    assert all(torch.equal(a, b) for a, b in zip((x, win, lose), again, strict=True))


def test_training_in_the_known_world_begins_at_the_reference_and_ends_at_the_optimum(lesson):
    loss = lesson.of_beta(lesson.BETA)
    torch.testing.assert_close(lesson.fit_world(loss, None, 0.1, 0).logprobs(), lesson.REF)
    steps = []
    policy = lesson.fit_world(loss, None, 0.1, 120, tick=lambda step, steps_, loss: steps.append(loss))
    assert world.measure(policy.logprobs(), lesson.BETA)["tv"] < 0.1
    assert len(steps) == 120 and steps[-1] < steps[0] == pytest.approx(math.log(2), abs=1e-5)
    many = lesson.world_arm("dpo", 30000, 0.0, lesson.BETA, 0.1, 60, 0)
    few = lesson.world_arm("dpo", 300, 0.0, lesson.BETA, 0.1, 60, 0)
    coins = lesson.world_arm("dpo", 30000, 0.5, lesson.BETA, 0.1, 60, 0)
    start = world.measure(lesson.REF, lesson.BETA)["tv"]
    assert many["tv"] < start - 0.2 < few["tv"] and coins["tv"] > start - 0.05


# --- the language model


def test_pairs_are_ordered_and_what_tells_nothing_is_left_out(lesson):
    batch = Answers(["a", "b", "c", "d", "e", "f", "c", "g"])
    win, lose = lesson.ordered(batch, torch.tensor([1.0, 2, 3, 4, 0, 5, 9, 4]))
    assert win.tolist() == [0, 5] and lose.tolist() == [4, 1]  # pair 2 has equal answers, pair 3 equal scores


def test_a_rate_of_zero_changes_nothing_and_the_reference_never_moves(lesson, tiny):
    model, tokenizer = tiny
    batch, before = some_pairs(tokenizer), copy.deepcopy(model.state_dict())
    win, lose = torch.arange(8), torch.arange(8, 16)
    for lr in (0.0, 1e-2):
        policy = copy.deepcopy(model).requires_grad_()
        history = lesson.train_dpo(policy, batch, win, lose, 0.1, lr)
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
        moved = any(not torch.equal(value, before[name]) for name, value in policy.state_dict().items())
        assert moved == bool(lr) and history[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)


def test_dpo_learns_the_order_it_is_given_and_pads_do_nothing(lesson, tiny):
    model, tokenizer = tiny
    batch = some_pairs(tokenizer, 64)
    win, lose = torch.arange(64), torch.arange(64, 128)
    for kind in ("dpo", "ipo", "simpo"):
        policy = copy.deepcopy(model).requires_grad_()
        history = lesson.train_dpo(policy, batch, win, lose, 0.5, 1e-2, kind=kind)
        chosen, rejected = (lesson.sums(policy, batch) - lesson.sums(model, batch)).chunk(2)
        assert (chosen > rejected).float().mean() > 0.9 and len(history) == 8
    touched = copy.copy(batch)
    touched.ids = torch.where(batch.mask == 0, 77, batch.ids)
    assert (batch.mask == 0).any()
    torch.testing.assert_close(lesson.sums(model, batch), lesson.sums(model, touched), atol=1e-4, rtol=0)


def test_two_steps_are_those_of_a_loop_by_hand(lesson, tiny):
    """One batch of 16 pairs, met twice: each step has the gradient of its own batch alone, clipped, at a tenth more."""
    model, tokenizer = tiny
    batch, ours, theirs = some_pairs(tokenizer, 16), *(copy.deepcopy(model).requires_grad_() for _ in range(2))
    lesson.train_dpo(ours, batch, torch.arange(16), torch.arange(16, 32), 0.5, 1e-2)
    optimizer, ref = torch.optim.AdamW(theirs.parameters(), weight_decay=0), lesson.sums(model, batch)
    for rate in (1e-3, 2e-3):
        optimizer.param_groups[0]["lr"] = rate
        chosen, rejected = (rollouts.sequence_logprobs(theirs, batch) - ref).chunk(2)
        loss = -torch.nn.functional.logsigmoid(0.5 * (chosen - rejected)).mean()
        grads = torch.autograd.grad(loss, [*theirs.parameters()])
        size = torch.stack([grad.norm() for grad in grads]).norm().clamp(min=1)
        for p, grad in zip(theirs.parameters(), grads, strict=True):
            p.grad = grad / size
        optimizer.step()
    torch.testing.assert_close(lesson.sums(ours, batch), lesson.sums(theirs, batch), atol=2e-3, rtol=0)
    assert (lesson.sums(ours, batch) - ref).abs().max() > 0.1


def test_only_what_is_open_is_trained(lesson, tiny):
    model, tokenizer = tiny
    policy = copy.deepcopy(model)
    policy.lm_head.weight.requires_grad_()
    lesson.train_dpo(policy, some_pairs(tokenizer), torch.arange(8), torch.arange(8, 16), 0.1, 1e-2)
    moved = {name for name, p in policy.named_parameters() if not torch.equal(p, model.get_parameter(name))}
    assert moved == {"lm_head.weight"}


def test_labels_by_reward_ai_both_and_coins(lesson, replace):
    pairs = 40
    batch = Answers([str(i) for i in range(2 * pairs)])
    replace("sampled", lambda count, seed: batch)
    scores = torch.arange(2.0 * pairs)  # by reward the second answers are better, by the AI the first ones
    replace("marks", lambda by, count, seed: scores if by == "reward" else -scores)
    first = {arm: lesson.labelled(arm, pairs, 0)[0] < pairs for arm in ("reward", "ai", "mixed", "shuffled")}
    assert not first["reward"].any() and first["ai"].all()
    assert first["mixed"].tolist() == [False] * 20 + [True] * 20
    assert 8 < first["shuffled"].sum() < 32
    win, lose = lesson.labelled("shuffled", pairs, 0)
    assert ((win - lose).abs() == pairs).all()


def test_untouched_is_the_reference_itself(lesson, tiny):
    policy, history = lesson.run_arm("untouched", 8, 0.1, 1e-3, 0)
    assert policy is tiny[0] and history == []


def test_online_pairs_come_from_the_policy_as_it_is_and_the_reference_stays(lesson, tiny, replace):
    model, _ = tiny
    rounds, seen = [], []

    def sample(writer, *given):
        seen.append(writer)
        return rollouts.sample(writer, *given)

    def fake(policy, batch, win, lose, beta, lr, seed, ref, tick):
        rounds.append((batch, ref, seed))
        policy.lm_head.weight.data.mul_(0).index_fill_(0, torch.tensor([50 + len(rounds)]), 1.0)
        return [{"loss": 0.0}]

    replace("train_dpo", fake)
    replace("rollouts", SimpleNamespace(**vars(rollouts) | {"sample": sample}))
    replace("ordered", lambda batch, scores: (torch.tensor([0]), torch.tensor([1])))
    replace("scorers", lambda: {"reward": lambda texts: torch.zeros(len(texts))})
    policy, history = lesson.run_arm("online", 16, 0.1, 1e-3, 3)
    assert len(history) == len(rounds) == lesson.ROUNDS == 8 and {len(batch) for batch, *_ in rounds} == {4}
    assert (
        len({text for batch, *_ in rounds for text in batch.prompts}) == 16 and len({seed for *_, seed in rounds}) == 8
    )
    for batch, ref, _ in rounds:
        torch.testing.assert_close(ref, lesson.sums(model, batch))
    assert len(seen) == 8 and all(writer is policy for writer in seen) and policy is not model
    assert not torch.equal(policy.lm_head.weight, model.lm_head.weight)


# --- the AI


@pytest.fixture
def judge(lesson, replace):
    """A random Llama with SmolLM2's tokenizer in the AI's place."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(zoo.smollm2_folder())
    torch.manual_seed(0)
    model = LlamaForCausalLM(small.llama(vocab_size=len(tokenizer), initializer_range=0.3)).eval()
    replace("ai", lambda: (model, tokenizer))
    return model, tokenizer


def test_logits_behind_a_kept_prefix_are_those_of_the_whole_text(lesson, judge):
    model, tokenizer = judge
    prefix, texts = (
        "Review: good\nSentiment: positive\n\nReview:",
        [" a dull film\nSo", " warm\nSo", " long and winding\nSo"],
    )
    out = lesson.word_logits(prefix, texts, (" positive", " negative"), size=2)
    ids = [tokenizer.encode(word)[0] for word in (" positive", " negative")]
    for row, text in zip(out, texts, strict=True):
        tokens = tokenizer.encode(prefix) + tokenizer.encode(text)
        with torch.no_grad():
            torch.testing.assert_close(row, model(torch.tensor([tokens])).logits[0, -1, ids], atol=1e-4, rtol=1e-4)


def test_both_orders_exchange_the_sentences(lesson, judge):
    pairs = [("A warm film.", "A dull mess."), ("Good.", "Bad and long.")]
    one, two = lesson.both_orders(pairs)
    back = lesson.both_orders([pair[::-1] for pair in pairs])
    torch.testing.assert_close(torch.stack([one, two]), torch.stack(back[::-1]))
    head, rest = lesson.ask_ab(*pairs[0])
    assert head.endswith("Sentence A:") and "A warm film.\nSentence B: A dull mess." in rest and "Prefer" in head


def test_agreement_of_a_judge_that_always_says_a_and_of_one_that_knows(lesson, replace):
    from nbtools import raters

    pairs = raters.pairs("movie", 50, 4, "test", "two")
    good = {a["text"] for a, _ in pairs}
    replace("both_orders", lambda found: [torch.tensor([[3.0, 1.0]] * len(found))] * 2)
    replace("by_one", lambda texts: torch.tensor([float(text in good) for text in texts]))
    row = lesson.agreement(50, 4)
    assert (row["first order"], row["second order"], row["says A"]) == (1, 0, 1)
    assert row["both orders"] <= 0.5 and row["one by one"] > 0.9


def test_the_ceiling_leaves_the_choosing_raters_out(lesson, monkeypatch):
    from nbtools import raters

    rows = [
        {"ratings": [4, -1, -1]},
        {"ratings": [0, 0, 0]},
    ]  # every rater of the first is alone against the two others
    monkeypatch.setattr(raters, "snippets", lambda domain, part: rows)
    assert lesson.ceiling(200) == 0.0
    rows[0]["ratings"], rows[1]["ratings"] = [4, 1, 1], [1, 0, 0]  # 1 against 1 is no choice
    assert lesson.ceiling(200) == 1.0


def test_chats_are_cut_and_long_prompts_left_out(lesson, judge):
    tokenizer = judge[1]
    said = [{"role": "user", "content": "Hi"}]
    rows = [(said, "Hello " * 40, "No."), ([{"role": "user", "content": "long " * 200}], "a", "b")]
    batch = lesson.chat_pairs(tokenizer, rows)
    assert len(batch) == 2 and batch.answer.sum(1).tolist() == [lesson.ANSWER, 3]
    assert tokenizer.eos_token_id in batch.ids[1].tolist()[-lesson.ANSWER :]


def test_chats_are_split_so_that_no_choice_sees_what_is_reported(lesson):
    for seed in (0, 1):
        val, own, test = lesson.chat_split(78, seed)
        assert sorted(torch.cat([val, own, test]).tolist()) == list(range(78)) and (len(val), len(own)) == (14, 40)
    assert torch.equal(val, lesson.chat_split(78, 0)[0]) and not torch.equal(own, lesson.chat_split(78, 0)[1])
    assert lesson.VAL.stop <= lesson.TEST.start


def test_chat_arms_learn_from_their_own_pairs_alone(lesson, judge, replace):
    model, tokenizer = judge
    met = []

    def learn(policy, batch, win, lose, beta, lr, seed, ref):
        met.append((win, lose))
        return lesson.train_dpo(policy, batch, win, lose, beta, lr, seed, ref=ref)

    replace("chat_model", lambda arm, seed: (copy.deepcopy(model).requires_grad_(), tokenizer))
    replace(
        "conversations", lambda: [([{"role": "user", "content": f"Is it {i}?"}], f"Yes, {i}.", "No") for i in range(70)]
    )
    replace("chat_start", cache(lesson.chat_start.__wrapped__))
    replace("hhh", lambda policy: policy.lm_head.weight.detach().double().sum().item())
    still = lesson.chat_arm("dpo", 0.0, 1)
    assert still["chosen"] == pytest.approx(0, abs=1e-4) and still["loss"] == pytest.approx(math.log(2), abs=1e-4)
    assert still["hhh"] == still["hhh before"] and still["likelier"] == still["likelier before"]
    replace("train_dpo", lambda *given, ref, tick: learn(*given, ref))
    moved, val = lesson.chat_arm("dpo", 1e-2, 1), lesson.chat_arm("dpo", 1e-2, 1, "val")
    own = lesson.chat_split(moved["pairs"], 1)[1]
    assert all(torch.equal(win, own) and torch.equal(lose, own + moved["pairs"]) for win, lose in met)
    assert moved["chosen"] != 0 and "hhh" not in val and val["loss"] != moved["loss"]
    assert moved["hhh before"] == still["hhh"] != moved["hhh"]


def test_hhh_asks_by_token_and_knows_the_better_answer(lesson, judge, replace):
    rows = lesson.comparisons.__wrapped__()
    source = [json.loads(path.read_text()) for path in sorted(assets.path("hhh-alignment").glob("*.json"))]
    wanted = {
        text for task in source for row in task["examples"] for text, mark in row["target_scores"].items() if mark
    }
    assert len(rows) == 70 and all(better in wanted for _, better, _ in rows)
    assert sum(len(task["examples"]) for task in source) == 221
    rate = {"a": -1.0, "b": -2.0}  # of a token; answers of ten tokens and of two

    def fake(model, batch):
        return torch.tensor([rate[a.strip()[0]] for a in batch.answers]) * batch.answer.sum(1)

    replace("rollouts", SimpleNamespace(pair_up=rollouts.pair_up, sequence_logprobs=fake))
    assert lesson.hhh(judge[0], [("Hi", "a " * 10, "b")] * 3 + [("Hi", "b", "a " * 10)]) == 0.75


# --- bad input


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda m: m.dpo_loss(*torch.zeros(4, 2), 0), "beta must be above 0, got 0"),
        (lambda m: m.ipo_loss(*torch.zeros(4, 2), -1), "beta must be above 0, got -1"),
        (lambda m: m.pair_loss("kto", torch.zeros(4, 2), 0.1), "a loss is dpo, ipo, simpo, cdpo, robust, got 'kto'"),
        (lambda m: m.draw_pairs(0, 0), "at least 1 pair and noise from 0 to 0.5, got 0 and 0.0"),
        (lambda m: m.draw_pairs(5, 0, 0.7), "got 5 and 0.7"),
        (lambda m: m.ordered(Answers(["a", "b"]), torch.tensor([1.0, math.nan])), "the score of answer 1 is no number"),
        (lambda m: m.ordered(Answers(["a", "a"]), torch.tensor([1.0, 2.0])), "no pair is left"),
        (lambda m: m.run_arm("best", 8, 0.1, 1e-3, 0), "an arm is reward, ai, mixed, shuffled, untouched, online"),
        (lambda m: rollouts.pair_up(m.start()[1], ["The film"], [""], 64), "at least one token, got ''"),
        (lambda m: rollouts.pair_up(m.start()[1], ["word " * 90], ["a"], 64), "there is room for 63: shorten it"),
    ],
)
def test_bad_input_gives_a_sentence(lesson, call, sentence):
    with pytest.raises((ValueError, NbtoolsError), match=sentence):
        call(lesson)


def test_bad_chats_give_a_sentence(lesson, judge):
    said, tokenizer = [{"role": "user", "content": "Hi"}], judge[1]
    for answers in (("Yes.", "Yes."), ("Yes.", " ")):
        with pytest.raises(ValueError, match="two different answers, none of them empty; got 'Yes.'"):
            lesson.chat_pairs(tokenizer, [(said, *answers)])
    with pytest.raises(ValueError, match="no conversation has a prompt of at most 80 tokens"):
        lesson.chat_pairs(tokenizer, [([{"role": "user", "content": "long " * 200}], "a", "b")])
    plain = copy.copy(tokenizer)
    plain.chat_template = None
    with pytest.raises(NbtoolsError, match="chat"):
        lesson.chat_pairs(plain, [(said, "a", "b")])


# --- the studies


def test_cells_of_the_studies_tune_and_report(lesson, monkeypatch):
    history = [{"accuracy": i / 8, "chosen": -i, "rejected": -2.0 * i} for i in range(8)]
    batch = SimpleNamespace(answer=torch.tensor([[1, 1], [1, 0]]))
    stub = SimpleNamespace(
        VAL="val",
        run_arm=lambda arm, pairs, beta, lr, seed: ("policy", history),
        measure=lambda policy, part=None, seed=0: {"reward": 1.0, "kl": 2.0, "part": 1.0 if part == "val" else 0.0},
        on_pairs=lambda policy, *pairs: {"accuracy": 0.75, "chosen": -1.0},
        unseen=lambda: (),
        sampled=lambda pairs, seed: batch,
        labelled=lambda arm, pairs, seed: (torch.tensor([0]), torch.tensor([1])),
        agreement=lambda count, seed: {"both orders": 0.12341},
        world_arm=lambda *given: {"tv": 0.25, "given": float(len(given))},
        chat_arm=lambda arm, lr, seed, part="test": {"loss": 0.5 if part == "val" else 0.25},
    )
    monkeypatch.setattr(studies_10, "_lesson10", lambda *names: stub)
    cell = {"arm": "reward", "beta": 0.1, "lr": 1e-4, "seed": 1, "phase": "tune"}
    assert studies_10.pocket_run(cell) == {"score": 0.9}
    row = studies_10.labels_run(cell | {"phase": "report", "pairs": 384})
    assert (row["chosen tokens"], row["rejected tokens"], row["part"]) == (2, 1, 0)
    assert (row["accuracy"], row["first"], row["again"]) == (0.75, 1.5 / 8, 5.5 / 8)
    assert len(row["way"].split()) == 8 and row["way"].split()[3] == "-3.00,-6.00"
    assert "way" not in studies_10.pocket_run(cell | {"phase": "report", "arm": "online"})
    assert studies_10.pocket_run(cell | {"pairs": 384}) == studies_10.labels_run(cell | {"pairs": 384}) == {"score": 0}
    assert studies_10.judge_run(cell) == {"score": 0.0}
    assert studies_10.judge_run({"seed": 1, "phase": "report"}) == {"both orders": 0.1234}
    assert studies_10.chat_run(cell) == {"score": -0.5}
    assert studies_10.chat_run(cell | {"phase": "report"}) == {"loss": 0.25}
    given = {"pairs": 300, "noise": 0.2, "steps": 3}
    assert studies_10.loss_run(cell | given)["score"] == studies_10.world_run(cell | given | {"arm": "coins"})["score"]


def test_the_grids_name_arms_that_exist(lesson):
    studies = studies_10.STUDIES
    assert tuple(studies["dpo-loss"].arms(False)) == lesson.KINDS
    assert {*studies["dpo-labels"].arms(False), *studies["dpo"].arms(False)} == set(lesson.ARMS)
    assert set(studies["dpo"].arms(False)) <= set(lesson.ARMS)
