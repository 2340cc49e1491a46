"""Lesson 03: Fishers, penalty, averages, replay and five tasks in a row against autograd, closed forms and counts."""

import copy
import itertools
import math
from types import SimpleNamespace

import pytest
import small
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call, grad, vmap

from nbtools import notebooks, studies_03, tasks, zoo

TAUGHT = (
    "DATA load Shared fresh STEPS SIZE draw replayed pick mixed rows_in loss_sum learn old_model vectors accuracy "
    "wiki_pairs retrieval astray fisher squares batch_square ewc_penalty encoder_weights importance hold pull "
    "interpolate freeze wrap both run_arm joint ORDER in_a_row backward_transfer trace cosine per_row "
    "part_of pixels pictures seen seeing still old_pictures run_pictures CIFAR versus pick_setting"
)


@pytest.fixture(scope="module")
def lesson():
    """What the notebook defines, as attributes."""
    return SimpleNamespace(**notebooks.definitions("03", *TAUGHT.split()))


@pytest.fixture
def tiny(lesson, monkeypatch):
    """A BERT of two small layers with MiniLM's tokenizer in place of MiniLM; six sentences to test, four to tune on."""
    tokenizer, encoder = tasks.minilm()[1], small.bert()
    monkeypatch.setattr(tasks, "minilm", lambda: (encoder, tokenizer))
    parts = {"test": slice(0, 6), "val": slice(6, 10)}
    monkeypatch.setitem(own(lesson), "DATA", {k: SimpleNamespace(**vars(v) | parts) for k, v in lesson.DATA.items()})
    monkeypatch.setitem(own(lesson), "PAIRS", (lesson.DATA["films"].texts[:5], lesson.DATA["tweets"].texts[:5]))
    for cached in (lesson.old_model, lesson.importance):
        cached.cache_clear()
    yield
    for cached in (lesson.old_model, lesson.importance):
        cached.cache_clear()


def own(lesson):
    """The names that the notebook's definitions see."""
    return lesson.run_arm.__globals__


def same(a, b, prefix=""):
    """Whether two models' tensors under a prefix are the same to the bit."""
    a, b = a.state_dict(), b.state_dict()
    return all(torch.equal(value, b[name]) for name, value in a.items() if name.startswith(prefix))


# --- data, heads, batches


def test_splits_are_short_and_apart(lesson):
    for data in lesson.DATA.values():
        ids = tasks.minilm()[1](data.texts)["input_ids"]
        assert max(map(len, ids)) <= 16 and len(data.texts) == len(data.labels) == len(set(data.texts))
        assert data.test.start == 0 and data.test.stop == data.val.start and data.val.stop == data.pool.start
        assert data.pool.stop is None and len(data.texts[data.pool]) >= 250
        assert set(data.labels.tolist()) == set(range(len(data.names)))


def test_a_head_is_never_overwritten_and_an_unknown_one_is_named(lesson, tiny):
    model = lesson.fresh()
    with pytest.raises(ValueError, match=r"^there is no head for films, only for nothing$"):
        model(small.batch()[0], "films")
    model.add("films", 2)
    kept = model.heads["films"].weight.clone()
    with pytest.raises(ValueError, match=r"^films has a head already: adding one would overwrite what it has learned$"):
        model.add("films", 2)
    assert torch.equal(model.heads["films"].weight, kept)
    model.add("requests", 7)
    batch = small.batch()[0]
    assert (model(batch, "films").shape, model(batch, "requests").shape) == ((4, 2), (4, 7))
    hidden = model.encoder(**batch).last_hidden_state
    mean = torch.stack([h[m.bool()].mean(0) for h, m in zip(hidden, batch["attention_mask"], strict=True)])
    torch.testing.assert_close(model.embed(batch), mean)
    assert not model.encoder.embeddings.word_embeddings.weight.requires_grad


@pytest.mark.parametrize("share", [0.0, 0.01, 0.05, 0.1, 0.37, 1.0])
@pytest.mark.parametrize(("steps", "size"), [(24, 16), (7, 5), (1, 100)])
def test_replay_s_share_is_exact_and_even(lesson, share, steps, size):
    counts = lesson.replayed(steps, size, share)
    assert len(counts) == steps and sum(counts) == round(share * steps * size)
    assert max(counts) - min(counts) <= 1 and max(counts) <= size


@pytest.mark.parametrize("share", [-0.1, 1.2, 10])
def test_a_share_that_is_none_is_refused(lesson, share):
    with pytest.raises(ValueError, match=f"^share must be between 0 and 1, got {share}$"):
        lesson.replayed(4, 16, share)


def test_draws_come_from_the_training_sentences_and_go_round(lesson):
    data = lesson.DATA["requests"]
    pool = dict(zip(data.texts[data.pool], data.labels[data.pool].tolist(), strict=True))
    texts, labels = lesson.draw("requests", len(pool) + 9, 3)
    assert [pool[text] for text in texts] == labels.tolist()
    assert set(texts[: len(pool)]) == set(pool) and texts[len(pool) :] != texts[:9]
    assert lesson.draw("requests", 5, 3)[0] == texts[:5] and lesson.draw("requests", 5, 4)[0] != texts[:5]
    assert lesson.draw("requests", 0, 0)[0] == []


def decoded(batch):
    return {
        task: tasks.minilm()[1].batch_decode(x["input_ids"], skip_special_tokens=True) for task, (x, y) in batch.items()
    }


def test_batches_hold_the_asked_share_of_each_old_task(lesson):
    old, steps = ("films", "requests", "products"), 10
    batches = lesson.mixed("tweets", old, 0.3, 1, steps)
    assert all(sum(len(y) for _, y in batch.values()) == lesson.SIZE == lesson.rows_in(batch) for batch in batches)
    seen = {task: sum((decoded(batch).get(task, []) for batch in batches), []) for task in (*old, "tweets")}
    assert {task: len(texts) for task, texts in seen.items()} == {
        "films": 16,
        "requests": 16,
        "products": 16,
        "tweets": 112,
    }
    for task, texts in seen.items():
        drawn, labels = lesson.draw(task, len(texts), 1)
        ids = tasks.minilm()[1](drawn)["input_ids"]
        assert sorted(texts) == sorted(tasks.minilm()[1].batch_decode(ids, skip_special_tokens=True))
        found = torch.cat([batch[task][1] for batch in batches if task in batch])
        assert torch.equal(found, labels)


def test_shuffling_permutes_the_old_labels_alone(lesson):
    plain, mixed_up = (lesson.mixed("tweets", ("films",), 0.5, 0, 6, shuffled=s) for s in (False, True))
    for a, b in zip(plain, mixed_up, strict=True):
        assert decoded(a) == decoded(b) and torch.equal(a["tweets"][1], b["tweets"][1])
    a, b = (torch.cat([batch["films"][1] for batch in batches]) for batches in (plain, mixed_up))
    assert not torch.equal(a, b) and a.sum() == b.sum()


def test_a_share_of_no_task_is_refused(lesson):
    with pytest.raises(ValueError, match=r"^a share of 0.1 is to be old, but no old task is named$"):
        lesson.mixed("tweets", (), 0.1)


# --- training


def test_the_loss_is_a_sum_and_the_penalty_counts_once(lesson, tiny):
    model = lesson.fresh().eval()
    model.add("films", 2), model.add("requests", 7)
    batch = lesson.mixed("requests", ("films",), 0.5, 0, 1)[0]
    apart = [F.cross_entropy(model(x, task), y, reduction="sum") for task, (x, y) in batch.items()]
    torch.testing.assert_close(lesson.loss_sum(model, batch), sum(apart))
    held = lesson.loss_sum(model, batch, lambda model: torch.tensor(3.0)) / lesson.rows_in(batch)
    torch.testing.assert_close(held, sum(apart) / 16 + 3)


def test_learning_leaves_old_heads_and_calls_after_each_step(lesson, tiny):
    model = lesson.fresh()
    model.add("films", 2), model.add("tweets", 2)
    before, rates = copy.deepcopy(model), []
    optimizer = lesson.learn(model, lesson.mixed("tweets", ("films",), 0.2, 0, 4), ["tweets"], 1e-3, after=rates.append)
    assert same(model, before, "heads.films") and not same(model, before, "heads.tweets")
    assert rates == pytest.approx([1e-3, 0.75e-3, 0.5e-3, 0.25e-3])
    open_weights = [p for p in model.encoder.parameters() if p.requires_grad]
    assert [id(p) for p in optimizer.param_groups[1]["params"]] == [id(p) for p in open_weights]
    moved = [
        not torch.equal(a, b) for a, b in zip(model.encoder.parameters(), before.encoder.parameters(), strict=True)
    ]
    assert sum(moved) > 0.8 * len(moved) and same(model, before, "encoder.embeddings.word_embeddings")
    lesson.learn(model, lesson.mixed("tweets", seed=0, steps=4), ["tweets"], 1e-3, warmup=0.5, after=rates.append)
    assert rates[4:] == pytest.approx([0, 0.5e-3, 1e-3, 0.5e-3])


def test_vectors_keep_their_order(lesson, tiny):
    model, texts = lesson.fresh(), ["a long sentence about nothing at all", "short", "two words", "the end of it"]
    with torch.no_grad():
        alone = torch.cat([model.eval().embed(tasks.encode([text])) for text in texts])
    torch.testing.assert_close(lesson.vectors(model, texts, size=3), alone, atol=0.02, rtol=0.02)


def test_accuracy_and_retrieval_count(lesson, tiny, monkeypatch):
    model = lesson.fresh()
    model.add("films", 2)
    nn.init.zeros_(model.heads["films"].weight)
    model.heads["films"].bias.data = torch.tensor([0.0, 1.0])  # says praise, always
    for part in ("test", "val"):
        data = own(lesson)["DATA"]["films"]
        assert lesson.accuracy(model, "films", part) == data.labels[getattr(data, part)].double().mean().item()
    texts = lesson.DATA["films"].texts[:6]
    monkeypatch.setitem(own(lesson), "PAIRS", (texts, texts))
    assert lesson.retrieval(model) == 1
    monkeypatch.setitem(own(lesson), "PAIRS", (texts, [*texts[1:], texts[0]]))
    assert lesson.retrieval(model) == 0


def test_pairs_are_neighbours(lesson):
    first, second = lesson.wiki_pairs(20, 6)
    assert len(first) == len(second) == 20 and {len(text.split()) for text in first + second} == {6}
    articles = [" ".join(article.split()) for article in zoo.wikipedia()]
    assert all(any(f"{a} {b}" in article for article in articles) for a, b in zip(first, second, strict=True))


# --- Fisher


@pytest.fixture
def net():
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)), torch.randn(6, 1, 4)


def by_vmap(model, x, labels):
    """Gradients of each row's log p(label) by torch.func: {name: (N, ...)}."""

    def log_prob(weights, row, y):
        return functional_call(model, weights, (row[None],)).log_softmax(-1)[0].gather(0, y[None]).sum()

    weights = {name: p.detach() for name, p in model.named_parameters()}
    return vmap(grad(log_prob), in_dims=(None, 0, 0))(weights, x, labels)


def test_the_four_fishers_are_those_of_torch_func(lesson, net):
    model, rows = net
    params, x = dict(model.named_parameters()), rows[:, 0]
    p = model(x).softmax(-1).detach()
    exact, labels = lesson.fisher(model, params, list(rows)), torch.tensor([0, 2, 1, 1, 0, 2])
    each = [by_vmap(model, x, torch.full((6,), c)) for c in range(3)]
    own_rows = by_vmap(model, x, labels)
    for name in params:
        wanted = sum(torch.einsum("n,n...->...", p[:, c], each[c][name] ** 2) for c in range(3)) / 6
        torch.testing.assert_close(exact[name], wanted)
        torch.testing.assert_close(lesson.squares(model, params, rows, labels)[name], (own_rows[name] ** 2).mean(0))
        torch.testing.assert_close(lesson.batch_square(model, params, x, labels)[name], own_rows[name].mean(0) ** 2)
        torch.testing.assert_close(lesson.per_row(model, x, labels)[name], own_rows[name])
    drawn = torch.multinomial(p, 4000, True, generator=torch.Generator().manual_seed(0))
    sampled = 0.0
    for c in range(3):  # the sampled Fisher over 4,000 draws a row, by counts
        share = (drawn == c).double().mean(1).float()
        sampled = sampled + torch.einsum("n,n...->...", share, each[c]["0.weight"] ** 2) / 6
    torch.testing.assert_close(sampled, exact["0.weight"], rtol=0.1, atol=1e-3)


@pytest.mark.parametrize("B", [1, 2, 3])
def test_the_batched_square_is_one_over_b_of_the_exact_fisher(lesson, net, B):
    """Over all labellings, each with its probability, weight by weight."""
    model, rows = net
    params, x = dict(model.named_parameters()), rows[:B, 0]
    p = model(x).softmax(-1).detach()
    mean = dict.fromkeys(params, 0.0)
    for labels in itertools.product(range(3), repeat=B):
        chance = math.prod(p[b, y].item() for b, y in enumerate(labels))
        found = lesson.batch_square(model, params, x, torch.tensor(labels))
        mean = {name: mean[name] + chance * found[name] for name in params}
    for name, exact in lesson.fisher(model, params, list(rows[:B])).items():
        torch.testing.assert_close(mean[name], exact / B, rtol=1e-4, atol=1e-7)


def test_the_fisher_is_the_curvature_of_the_divergence(lesson, net):
    """KL(old, moved) is 1/2 F delta^2 for a small move of one weight."""
    model, rows = net
    params, x = dict(model.named_parameters()), rows[:, 0].double()
    exact = lesson.fisher(model, params, list(rows))["2.weight"][1, 2].item()
    other = copy.deepcopy(model).double()
    old = other(x).log_softmax(-1)
    other[2].weight.data[1, 2] += 1e-3
    kl = (old.exp() * (old - other(x).log_softmax(-1))).sum(1).mean().item()
    assert kl == pytest.approx(exact * 1e-6 / 2, rel=0.01)


def test_importance_is_the_films_fisher_row_by_row(lesson, tiny):
    model = lesson.old_model(0).eval()
    params, (texts, labels) = lesson.encoder_weights(model), lesson.draw("films", 32, 0)
    name = "encoder.encoder.layer.0.attention.self.query.weight"
    exact, batched, wanted, parts = 0.0, [], {}, lesson.importance("L2", 0)
    assert parts.keys() == params.keys() and all((f == 1).all() for f in parts.values())
    for text in texts:
        logits = model(tasks.encode([text]), "films")[0]
        p = logits.softmax(-1).detach()
        slope = torch.autograd.grad(logits[0] - logits[1], params[name])[0]
        exact = exact + p[0] * p[1] * slope**2 / 32  # two classes: the closed form
    for i in (0, 16):
        loss = F.cross_entropy(model(tasks.encode(texts[i : i + 16]), "films"), labels[i : i + 16])
        batched.append(torch.autograd.grad(loss, params[name])[0] ** 2)
    wanted = {"EWC": exact, "EWC batch": sum(batched) / 2}
    for how, value in wanted.items():
        apart = (lesson.importance(how, 0, 32)[name] - value).norm() / value.norm()  # they are tiny: no absolute bound
        assert value.norm() > 0 and apart < 1e-3


# --- penalties and averages


def test_the_penalty_and_its_gradient_are_the_closed_form(lesson):
    torch.manual_seed(0)
    start, f = {"a": torch.randn(3, 2), "b": torch.randn(4)}, {"a": torch.rand(3, 2), "b": torch.rand(4)}
    params = {name: (value + torch.randn_like(value)).requires_grad_() for name, value in start.items()}
    found = lesson.ewc_penalty(params | {"head": torch.ones(2, requires_grad=True)}, start, f)
    flat = [torch.cat([x[n].flatten() for n in start]).double() for x in (params, start, f)]
    assert found.item() == pytest.approx(((flat[0] - flat[1]) ** 2 @ flat[2]).item() / 2, rel=1e-5)
    found.backward()
    for name, p in params.items():
        torch.testing.assert_close(p.grad, f[name] * (p.detach() - start[name]))


def test_held_in_the_loss_and_pulled_after_the_step_are_one_penalty(lesson, tiny):
    model = copy.deepcopy(lesson.old_model(0))
    weights, start = (
        lesson.importance("EWC", 0),
        {n: p.detach().clone() for n, p in lesson.encoder_weights(model).items()},
    )
    held, after = lesson.hold(model, "EWC", 0, 50.0), lesson.pull(model, "EWC", 0, 50.0)
    assert held(model).item() == 0
    params = lesson.encoder_weights(model)
    with torch.no_grad():
        for p in params.values():
            p.add_(torch.randn_like(p), alpha=0.1)
    wanted = 25 * sum((weights[n] * (p - start[n]) ** 2).sum() for n, p in params.items())
    torch.testing.assert_close(held(model), wanted)
    away = {n: p.detach().clone() for n, p in params.items()}
    after(0.3)  # the minimum of rate x penalty + 1/2 distance^2 to where the step ended: its gradient is zero
    for n, p in params.items():
        slope = 0.3 * 50 * weights[n] * (p - start[n]) + (p - away[n])
        torch.testing.assert_close(slope, torch.zeros_like(slope), atol=1e-5, rtol=0)
    assert any(not torch.equal(p, away[n]) for n, p in params.items())


def test_averaging_is_direct_arithmetic(lesson, tiny):
    start, end = lesson.fresh(), lesson.fresh()
    with torch.no_grad():
        for p in end.parameters():
            p.add_(torch.randn_like(p))
    end.add("tweets", 2)
    for share in (0.0, 0.3, 1.0):
        found = lesson.interpolate(start.state_dict(), end.state_dict(), share)
        for name, a in start.state_dict().items():
            torch.testing.assert_close(found[name], (1 - share) * a + share * end.state_dict()[name])
        assert torch.equal(found["heads.tweets.weight"], end.heads["tweets"].weight)
        end.load_state_dict(found) if share == 0 else None
        assert share or same(start, end)


def test_a_random_move_is_as_long_and_elsewhere(lesson, tiny):
    start = lesson.old_model(0)
    end = lesson.run_arm("nothing", 1e-3, 0)
    found = lesson.astray(start.state_dict(), end.state_dict(), 0)
    for name, a in start.state_dict().items():
        way, other = end.state_dict()[name] - a, found[name] - a
        assert other.norm().item() == pytest.approx(way.norm().item(), rel=1e-3, abs=1e-6)
        if way.norm() > 0 and way.numel() > 500:
            assert abs(F.cosine_similarity(way.flatten(), other.flatten(), dim=0).item()) < 0.2
    assert torch.equal(found["heads.tweets.weight"], end.heads["tweets"].weight)


# --- the arms


def test_arms_do_what_they_are_called(lesson, tiny):
    old = lesson.old_model(0)
    before = copy.deepcopy(old)
    run = {
        arm: lesson.run_arm(arm, 3e-4, 0, s) for arm, s in (("nothing", 0), ("L2", 1e12), ("averaging", 0), ("LoRA", 0))
    }
    run |= {
        "frozen layers": lesson.run_arm("frozen layers", 3e-4, 0, 1),
        "replay 10 %": lesson.run_arm("replay 10 %", 3e-4),
    }
    assert same(old, before), "an arm trained the old model itself"
    for arm, model in run.items():
        assert same(model.heads["films"], old.heads["films"]), arm
        assert list(model.heads) == ["films", "tweets"]
    assert not same(run["nothing"].encoder, old.encoder) and same(run["averaging"].encoder, old.encoder)
    held = [
        (p - q).abs().max().item()
        for p, q in zip(run["L2"].encoder.parameters(), old.encoder.parameters(), strict=True)
    ]
    assert max(held) < 1e-6
    lower, upper = (f"encoder.encoder.layer.{i}" for i in (0, 1))
    assert same(run["frozen layers"], old, lower) and not same(run["frozen layers"], old, upper)
    assert same(run["frozen layers"], old, "encoder.embeddings")
    adapted = {n for n, p in run["LoRA"].encoder.named_parameters() if p.requires_grad}
    assert adapted and all("lora_" in n and (".query." in n or ".value." in n) for n in adapted)
    assert not same(run["replay 10 %"].encoder, run["nothing"].encoder)


def test_the_same_seed_gives_the_same_arm_and_head(lesson, tiny):
    again = [lesson.run_arm("nothing", 3e-4, 1) for _ in range(2)]
    assert same(*again) and not same(again[0], lesson.run_arm("nothing", 3e-4, 2), "heads")


def test_early_stopping_keeps_the_best_of_both(lesson, tiny, monkeypatch):
    scores = iter([0.2, 0.9, 0.3])
    monkeypatch.setitem(own(lesson), "both", lambda model, part="val", seed=0: next(scores))
    stopped = lesson.run_arm("early stopping", 1e-3, 0)
    seen = []
    monkeypatch.setitem(own(lesson), "both", lambda model, part="val", seed=0: seen.append(copy.deepcopy(model)) or 0.0)
    lesson.run_arm("early stopping", 1e-3, 0)
    assert len(seen) == 3 and same(stopped, seen[1]) and not same(stopped, seen[2])


def test_joint_trains_both_heads_from_the_start(lesson, tiny):
    model = lesson.run_arm("joint", 1e-3, 0)
    assert list(model.heads) == ["films", "tweets"] and not same(
        model.heads["films"], lesson.old_model(0).heads["films"]
    )


def test_freezing_more_layers_than_there_are_is_refused(lesson, tiny):
    with pytest.raises(ValueError, match=r"^layers must be between 0 and 2, got 6$"):
        lesson.freeze(lesson.fresh(), 6)


def test_five_tasks_in_a_row_keep_the_first_head(lesson, tiny, monkeypatch):
    """A head made anew for each task would delete the first task, not forget it."""
    heads, learn = [], lesson.learn

    def watched(model, *args, **options):
        optimizer = learn(model, *args, **options)
        heads.append({task: head.weight.detach().clone() for task, head in model.heads.items()})
        return optimizer

    monkeypatch.setitem(own(lesson), "learn", watched)
    for arm in ("nothing", "replay 10 %", "averaging"):
        heads.clear()
        model, found = lesson.in_a_row(arm, 1e-3, 0, steps=2)
        assert [list(at) for at in heads] == [list(lesson.ORDER[: i + 1]) for i in range(5)]
        for i, task in enumerate(lesson.ORDER):
            assert torch.equal(model.heads[task].weight, heads[i][task]), (arm, task)
        assert set(found) == {(i, j) for i in range(5) for j in range(i + 1)}
    assert set(lesson.in_a_row("nothing", 1e-3, 0, "val", 1)[1]) == {(4, j) for j in range(5)}


def test_backward_transfer_by_hand(lesson):
    found = {(i, i): 0.9 for i in range(5)} | {(4, 0): 0.5, (4, 1): 0.7, (4, 2): 0.9, (4, 3): 1.0}
    assert lesson.backward_transfer(found) == pytest.approx((-0.4 - 0.2 + 0.0 + 0.1) / 4)


# --- pictures


class Body(nn.Module):
    """A small picture network with a norm and a last layer called as EfficientNet's is."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.classifier = nn.Conv2d(3, 6, 3, stride=8), nn.BatchNorm2d(6), nn.Linear(6, 10)

    def forward(self, x):
        return self.classifier(self.norm(self.conv(x)).relu().mean((2, 3)))


@pytest.fixture
def eyes(lesson, monkeypatch):
    """The small network in place of EfficientNet-Lite0."""
    monkeypatch.setattr(zoo, "efficientnet_lite0", Body)
    lesson.old_pictures.cache_clear()
    yield
    lesson.old_pictures.cache_clear()


def test_picture_splits_are_apart_and_of_their_classes(lesson):
    for task, classes in (("first", range(5)), ("second", range(5, 10))):
        parts = [lesson.part_of(task, part).tolist() for part in ("test", "val", "pool")]
        assert [len(part) for part in parts] == [300, 200, 4500] and len({*itertools.chain(*parts)}) == 5000
        assert {*lesson.CIFAR[1][parts[0]].tolist()} == {*classes}
    x = lesson.pixels(torch.tensor([3, 4]))
    assert x.shape == (2, 3, 64, 64) and -1 <= x.min() < x.max() <= 1


def test_picture_batches_hold_the_share_and_training_pictures_alone(lesson, monkeypatch):
    monkeypatch.setitem(own(lesson), "pixels", lambda index: index)
    batches = lesson.pictures(0.25, 1, 6)
    index = {task: torch.cat([batch[task][0] for batch in batches]) for task in ("first", "second")}
    assert all(sum(len(y) for _, y in batch.values()) == lesson.SIZE for batch in batches)
    assert {task: len(own_index) for task, own_index in index.items()} == {"first": 24, "second": 72}
    for task, found in index.items():
        assert {*found.tolist()} <= {*lesson.part_of(task, "pool").tolist()} and len(set(found.tolist())) == len(found)
        labels = torch.cat([batch[task][1] for batch in batches])
        assert torch.equal(labels, lesson.CIFAR[1][found] - 5 * (task == "second"))
    assert set(lesson.pictures(0.0, 0, 2)[0]) == {"second"} and set(lesson.pictures(1.0, 0, 2)[0]) == {"first"}


def test_what_is_seen_is_counted_over_its_part(lesson, eyes):
    model = lesson.seeing()
    nn.init.zeros_(model.heads["first"].weight)
    model.heads["first"].bias.data = torch.tensor([0.0, 1.0, 0.0, 0.0, 0.0])  # says automobile, always
    for part in ("test", "val"):
        labels = lesson.CIFAR[1][lesson.part_of("first", part)]
        assert lesson.seen(model, "first", part) == (labels == 1).double().mean().item()


def test_picture_arms_move_what_they_say(lesson, eyes):
    old = lesson.old_pictures(0)
    before = copy.deepcopy(old)
    run = {arm: lesson.run_pictures(arm, 1e-2, 0, s) for arm, s in
           (("nothing", 0), ("L2", 1e12), ("averaging", 0.0), ("replay 10 %", 0), ("head alone", 0),
            ("statistics alone", 0), ("joint", 0))}  # fmt: skip
    assert same(old, before), "an arm trained the old model itself"
    weights = {name for name, _ in old.encoder.named_parameters()}
    moved = {}
    for arm, model in run.items():
        assert list(model.heads) == ["first", "second"]
        assert arm == "joint" or same(model.heads["first"], old.heads["first"]), arm
        there = old.encoder.state_dict()
        moved[arm] = {name for name, value in model.encoder.state_dict().items() if not torch.equal(value, there[name])}
    assert moved["nothing"] == moved["replay 10 %"] == weights and moved["joint"] >= weights
    assert not moved["averaging"] and not moved["head alone"]
    assert moved["statistics alone"] == {"norm.running_mean", "norm.running_var", "norm.num_batches_tracked"}
    far = [(a - b).abs().max() for a, b in zip(run["L2"].encoder.parameters(), old.encoder.parameters(), strict=True)]
    assert max(far) < 1e-6
    assert not same(run["replay 10 %"].encoder, run["nothing"].encoder)


def test_l2_on_pictures_is_the_pull(lesson, eyes, monkeypatch):
    """Averaging with the start after a step is w* + (w - w*) / (1 + rate strength), at the step's own rate."""
    asked = []
    monkeypatch.setitem(
        own(lesson), "learn", lambda model, batches, heads, lr, seed, **options: asked.append((model, options["after"]))
    )
    old = lesson.seeing()
    monkeypatch.setitem(own(lesson), "old_pictures", lambda seed: old)
    model = lesson.run_pictures("L2", 1e-3, 0, 50.0)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p))
    away = copy.deepcopy(model)
    asked[0][1](0.02)
    for name, p in model.encoder.named_parameters():
        start, far = (dict(m.encoder.named_parameters())[name] for m in (old, away))
        torch.testing.assert_close(p, start + (far - start) / 2)
    assert same(model.heads["second"], away.heads["second"])


# --- the studies


def test_the_studies_rows(lesson, tiny, monkeypatch):
    monkeypatch.setattr(studies_03, "_lesson03", lambda *names: lesson)
    cell = {"arm": "nothing", "lr": 1e-3, "seed": 0}
    tuned = studies_03.measures_run(cell | {"phase": "tune"})
    assert tuned["score"] == tuned["new"]
    tuned = studies_03.measures_run(cell | {"phase": "tune", "arm": "lower rate"})
    assert tuned["score"] == (tuned["new"] + tuned["old"]) / 2
    row = studies_03.measures_run(cell | {"phase": "report"})
    assert row["before old"] == round(lesson.accuracy(lesson.old_model(0), "films"), 4)
    assert {"old", "new", "retrieval", "random old", "random retrieval", "old 0.5", "new 0.75"} <= row.keys()
    for arms in (studies_03.measures_arms, studies_03.more_arms):
        assert all(1 <= len(settings) <= 4 for settings in arms(False).values())
        assert all(len(arms(True)[arm]) >= len(settings) for arm, settings in arms(False).items())
    assert not studies_03.measures_arms(False).keys() & studies_03.more_arms(False).keys()


def test_the_row_of_five_tasks_holds_what_was_found(lesson, monkeypatch):
    found = {(i, j): 0.1 * i + 0.01 * j for i in range(5) for j in range(i + 1)}
    asked = []
    told = SimpleNamespace(
        in_a_row=lambda *args: (asked.append(args), found),
        backward_transfer=lesson.backward_transfer,
        ORDER=lesson.ORDER,
    )
    monkeypatch.setattr(studies_03, "_lesson03", lambda *names: told)
    row = studies_03.row_run({"phase": "report", "arm": "averaging", "lr": 1e-4, "seed": 2})
    assert asked == [("averaging", 1e-4, 2, "test")]
    assert row["mean"] == pytest.approx(0.42) and row["transfer"] == pytest.approx(0.25)
    assert (row["first 3"], row["new 3"], row["end 3"]) == (0.3, 0.33, 0.43)
    tuned = studies_03.row_run({"phase": "tune", "arm": "nothing", "lr": 1e-4, "seed": 2})
    assert tuned == {"score": pytest.approx(0.42)}
    assert asked[1][3] == "val"


def coded(run_arm, lesson):
    """A lesson whose models are one number; an accuracy tells the number, the task and the part."""

    def model(number):
        layer = nn.Linear(1, 1, bias=False)
        layer.weight.data.fill_(number)
        return layer

    def accuracy(model, task, part="test"):
        return model.weight.item() + {"films": 0.1, "tweets": 0.2}[task] + {"val": 0.0, "test": 0.01}[part]

    return SimpleNamespace(
        run_arm=lambda *args: model(run_arm(*args)),
        old_model=lambda seed: model(0.0),
        accuracy=accuracy,
        interpolate=lesson.interpolate,
    )


def test_a_strength_s_row_holds_both_parts_and_the_averages(lesson, monkeypatch):
    asked = []
    told = coded(lambda *args: asked.append(args) or 0.4, lesson)
    monkeypatch.setattr(studies_03, "_lesson03", lambda *names: told)
    cell = {"phase": "report", "arm": "nothing, 0.0003, 0", "way": "nothing", "lr": 3e-4, "strength": 0, "seed": 2}
    row = studies_03.strength_run(cell)
    ends = {"val old": 0.5, "val new": 0.6, "test old": 0.51, "test new": 0.61, "val start": 0.1, "test start": 0.11}
    shares = {"val old 0.125": 0.15, "test new 0.25": 0.31, "test old 0.5": 0.31, "val new 0.75": 0.5}
    assert {name: row[name] for name in ends | shares} == pytest.approx(ends | shares)
    held = studies_03.strength_run(cell | {"way": "EWC", "strength": 1e8})
    assert held.keys() == {"val old", "val new", "test old", "test new"}
    assert studies_03.strength_run(cell | {"lr": 3e-5}).keys() == held.keys()
    assert asked == [("nothing", 3e-4, 2, 0), ("EWC", 3e-4, 2, 1e8), ("nothing", 3e-5, 2, 0)]
    assert studies_03.strength_run(cell | {"phase": "tune"}) == {"score": 0.0} and len(asked) == 3
    for full in (False, True):
        arms = studies_03.strength_arms(full)
        assert all(len(settings) == 1 for settings in arms.values())
        assert {"nothing", *studies_03.STRENGTHS} <= {settings[0]["way"] for settings in arms.values()}


def test_the_pictures_rows(lesson, monkeypatch):
    asked = []
    told = SimpleNamespace(
        run_pictures=lambda *args: asked.append(args) or "end",
        old_pictures=lambda seed: "start",
        seen=lambda model, task, part="test": (
            {"end": 0.4, "start": 0.7}[model] + {"first": 0.0, "second": 0.2}[task] + {"val": 0.01, "test": 0.0}[part]
        ),
    )
    monkeypatch.setattr(studies_03, "_lesson03", lambda *names: told)
    cell = {"arm": "nothing", "lr": 1e-3, "seed": 1}
    assert studies_03.pictures_run(cell | {"phase": "tune"})["score"] == pytest.approx(0.61)
    assert studies_03.pictures_run(cell | {"phase": "tune", "arm": "L2", "strength": 7})["score"] == pytest.approx(0.51)
    row = studies_03.pictures_run(cell | {"phase": "report"})
    assert row == pytest.approx({"old": 0.4, "new": 0.6, "before old": 0.7})
    assert asked == [("nothing", 1e-3, 1, 0), ("L2", 1e-3, 1, 7), ("nothing", 1e-3, 1, 0)]
    assert studies_03.pictures_arms(False).keys() == studies_03.pictures_arms(True).keys()


def test_a_verdict_needs_the_whole_interval(lesson):
    assert lesson.versus((0.02, 0.01), (-0.01, 0.02)) == "films +0.020 ± 0.010  tweets -0.010 ± 0.020  films better"
    assert lesson.versus((0.0, 0.0), (-0.03, 0.02)).endswith("  tweets worse")


def test_the_rule_takes_the_best_tweets_of_those_that_keep_the_films(lesson, monkeypatch):
    def setting(old, new):
        two = torch.tensor([-0.01, 0.01])  # two seeds
        return {"val old": old + two, "val new": new + two, "test old": two, "test new": 1 - new + two}

    monkeypatch.setitem(own(lesson), "START", {"val": 0.8, "test": 0.0})
    monkeypatch.setitem(own(lesson), "LINES", {"rate": {"3e-04": setting(0.5, 0.9)}})  # loses 0.3: 0.1 is allowed
    line = {"safe": setting(0.8, 0.85), "best": setting(0.705, 0.9), "greedy": setting(0.69, 0.95)}
    assert lesson.pick_setting(line) == "best"
    assert lesson.pick_setting({"greedy": line["greedy"]}) is None
