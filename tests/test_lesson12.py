"""Lesson 12: its samplers, pacings, weights and correlations against scipy's numbers, enumeration and closed forms."""

import inspect
import itertools
import math
from types import SimpleNamespace

import pytest
import small
import torch
import torch.nn.functional as F
from torch import nn

from nbtools import notebooks, studies_12, tasks, zoo

TAUGHT = (
    "ARMS BATCH DATA FULL Head HEAD_RATE LOOKS MEASURES N SHORT TOKENS WARM accuracy again build draw easy_first "
    "excluded expected_visits experiment fit flip flip_p fold_loss hardest_wrong holm inputs judge learned "
    "logistic losses measured mixture open_first optimizer_of pacing plan ranks right run_arm self_paced "
    "self_paced_weights spearman split spread states steps_until_learned visits"
)


@pytest.fixture(scope="module")
def lesson():
    """What the notebook defines, as attributes."""
    return SimpleNamespace(**notebooks.definitions("12", *TAUGHT.split()))


@pytest.fixture
def world(lesson):
    """The lesson's functions with made states in place of MiniLM's: vectors whose first number tells the label.

    Yields a function that sets a name in the notebook's own namespace.
    """
    own = lesson.fit.__globals__
    before = dict(own)
    g, n = torch.Generator().manual_seed(0), len(lesson.DATA.texts)
    mean = 0.02 * torch.randn(n, 384, generator=g)
    mean[:, 0] = 4 * (2 * lesson.DATA.labels - 1)
    fifth, mask = torch.randn(n, 5, 12, generator=g), (torch.rand(n, 5, generator=g) < 0.7).float()
    mask[:, 0] = 1
    own["states"] = lambda: SimpleNamespace(mean=mean, fifth=fifth, mask=mask)
    yield own.__setitem__
    own.clear()
    own.update(before)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


# --- data and noise


def test_the_split_is_short_apart_and_has_each_sentence_s_own_ratings(lesson):
    data, rows = lesson.DATA, {}
    for row in zoo.vader("movie"):
        rows.setdefault(row["text"], []).append((row["rating"] > 0, row["ratings"]))
    parts = [range(*part.indices(len(data.texts))) for part in (data.test, data.val, data.pool)]
    assert [len(part) for part in parts[:2]] == [1500, 900] and sum(map(len, parts)) == len(data.texts)
    assert parts[0].stop == parts[1].start and parts[1].stop == parts[2].start
    assert len(set(data.texts)) == len(data.texts) == len(data.labels) == len(data.ratings) == len(data.length)
    for i in range(0, len(data.texts), 97):
        assert (bool(data.labels[i]), data.ratings[i]) in rows[data.texts[i]]
        assert tasks.encode([data.texts[i]])["input_ids"].shape[1] == data.length[i] <= lesson.TOKENS


def test_spread_is_the_sample_standard_deviation(lesson):
    found = lesson.spread([[1, 2, 3, 4], [2, 2]])
    assert found.tolist() == pytest.approx([math.sqrt(5 / 3), 0.0])


@pytest.mark.parametrize(
    ("share", "count", "turned"), [(0, 10, 0), (0.2, 600, 120), (0.4, 600, 240), (0.5, 7, 4), (0.25, 10, 2)]
)
def test_noise_turns_round_its_exact_share(lesson, share, count, turned):
    labels = torch.randint(2, (count,), generator=seeded(3))
    given = labels.clone()
    noisy, wrong = lesson.flip(labels, share, seeded(0))
    assert int(wrong.sum()) == turned == round(share * count) and torch.equal(noisy != labels, wrong)
    assert torch.equal(given, labels) and set(noisy.tolist()) <= {0, 1}
    again, other = lesson.flip(labels, share, seeded(0))[1], lesson.flip(labels, share, seeded(1))[1]
    assert torch.equal(again, wrong) and (count < 100 or share == 0 or not torch.equal(other, wrong))


def test_each_sentence_is_as_likely_to_be_turned_round(lesson):
    times = sum(lesson.flip(torch.zeros(20).long(), 0.3, seeded(s))[1].double() for s in range(2000))
    assert (times - 600).abs().max() < 5 * math.sqrt(2000 * 0.3 * 0.7)


@pytest.mark.parametrize("share", [-0.1, 0.51, 4, math.nan])
def test_a_share_that_cannot_be_is_refused(lesson, share):
    with pytest.raises(ValueError, match="^the share of wrong labels must be between 0 and 0.5 .*, got"):
        lesson.flip(torch.zeros(4).long(), share, seeded(0))


def test_a_draw_is_from_the_pool_by_its_seed_and_the_noise_leaves_the_sentences(lesson):
    clean, noisy, other = lesson.draw(0.0, 5), lesson.draw(0.4, 5), lesson.draw(0.4, 6)
    assert torch.equal(clean.index, noisy.index) and not torch.equal(clean.index, other.index)
    assert len(set(clean.index.tolist())) == lesson.N and clean.index.min() >= lesson.DATA.pool.start
    assert clean.index.max() < len(lesson.DATA.texts) and not clean.wrong.any()
    assert torch.equal(clean.labels, lesson.DATA.labels[clean.index])
    assert torch.equal(noisy.labels != clean.labels, noisy.wrong) and noisy.wrong.sum() == 240
    assert len(lesson.draw(0.0, 0, 1000).index) == 1000
    for count in (0, 10**6):
        with pytest.raises(ValueError, match=f"^count must be between 1 and 2,083, .*, got {count}$"):
            lesson.draw(0.0, 0, count)


# --- difficulty


@pytest.mark.parametrize(
    ("a", "b", "scipy"),  # scipy 1.17.1: scipy.stats.spearmanr(a, b).statistic
    [
        ([1, 2, 3, 4, 5], [5, 6, 7, 8, 7], 0.8207826816681233),
        ([3, 1, 4, 1, 5, 9, 2, 6], [2, 7, 1, 8, 2, 8, 1, 8], 0.19885368120992467),
        ([0.5, 0.5, 0.5, 2, 7], [1, 3, 2, 2, -1], -0.5735393346764044),
        ([1, 2, 3], [30, 20, 10], -1.0),
    ],
)
def test_spearman_is_scipy_s(lesson, a, b, scipy):
    assert lesson.spearman(torch.tensor(a), torch.tensor(b)) == pytest.approx(scipy, abs=1e-12)


def test_spearman_and_ranks_on_many_ties_are_scipy_s(lesson):
    stats = pytest.importorskip("scipy.stats")
    for seed in range(20):
        a = torch.randint(12, (300,), generator=seeded(seed)).float()
        b = a + 5 * torch.randn(300, generator=seeded(seed + 100))
        assert lesson.ranks(a).tolist() == stats.rankdata(a.numpy()).tolist()
        assert lesson.spearman(a, b) == pytest.approx(stats.spearmanr(a.numpy(), b.numpy()).statistic, abs=1e-12)


def test_ranks_share_the_mean_place(lesson):
    assert lesson.ranks(torch.tensor([10.0, 20.0, 10.0, 5.0, 10.0])).tolist() == [3, 5, 3, 1, 3]


def test_what_cannot_correlate_is_refused(lesson):
    for a, b in (([1.0], [1.0]), ([1.0, 2.0], [1.0, 2.0, 3.0])):
        with pytest.raises(ValueError, match="^two lists of the same length of at least 2 can correlate, got"):
            lesson.spearman(torch.tensor(a), torch.tensor(b))
    with pytest.raises(ValueError, match="^a list of equal numbers has no order, so nothing to correlate$"):
        lesson.spearman(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 3.0]))


def test_a_sentence_is_learned_from_the_look_after_its_last_error(lesson):
    for rows in itertools.product(itertools.product([False, True], repeat=4), repeat=1):
        right = torch.tensor(rows).T  # (4 looks, 1 sentence)
        wanted = next((k for k in range(4) if all(rows[0][k:])), 4)
        assert lesson.learned(right).tolist() == [wanted]
    assert lesson.learned(torch.tensor([[True, False, False], [True, True, False]])).tolist() == [0, 1, 2]


def test_the_reference_loss_of_a_sentence_does_not_know_its_own_label(lesson):
    x, labels = torch.randn(60, 4, generator=seeded(0)), torch.randint(2, (60,), generator=seeded(1))
    before = lesson.fold_loss(x, labels, generator=seeded(2))
    turned = labels.clone()
    turned[7] = 1 - turned[7]
    after = lesson.fold_loss(x, turned, generator=seeded(2))
    p = torch.exp(-before[7].double()) + torch.exp(-after[7].double())
    assert p.item() == pytest.approx(1, abs=1e-5)  # the same model, asked for the one label and for the other
    assert (before - after).abs().max() > 1e-3


def test_the_reference_loss_finds_labels_that_do_not_fit_and_is_a_regularised_optimum(lesson):
    x = torch.randn(200, 3, generator=seeded(0))
    labels = (x[:, 0] > 0).long()
    labels[:20] = 1 - labels[:20]
    found = lesson.fold_loss(x, labels, generator=seeded(3))
    assert found[:20].mean() > 3 * found[20:].mean()
    fold = torch.randperm(200, generator=seeded(3)) % 5
    weight, bias = torch.zeros(2, 3, requires_grad=True), torch.zeros(2, requires_grad=True)
    slow = torch.optim.Adam([weight, bias], lr=0.05)
    for _ in range(600):
        slow.zero_grad()
        rest = fold != 0
        (F.cross_entropy(x[rest] @ weight.T + bias, labels[rest]) + 0.01 * weight.square().sum()).backward()
        slow.step()
    wanted = F.cross_entropy(x[fold == 0] @ weight.T + bias, labels[fold == 0], reduction="none")
    assert torch.allclose(found[fold == 0], wanted, atol=2e-3)


def test_measures_are_what_they_say_and_another_is_refused(lesson, world):
    task = lesson.draw(0.2, 1)
    assert torch.equal(lesson.measured("length", task), lesson.DATA.length[task.index].float())
    assert torch.equal(lesson.measured("spread", task), lesson.spread([lesson.DATA.ratings[i] for i in task.index]))
    loss = lesson.measured("loss", task, 4)
    assert torch.equal(loss, lesson.measured("loss", task, 4)) and not torch.equal(
        loss, lesson.measured("loss", task, 5)
    )
    assert lesson.hardest_wrong(loss, task.wrong) == 1.0  # these vectors tell the true label
    assert lesson.hardest_wrong(-loss, task.wrong) < 0.1
    with pytest.raises(ValueError, match="^a measure is one of spread, length, loss, steps, got 'age'$"):
        lesson.measured("age", task)
    one, two = lesson.again("spread", task)
    i = task.index[3]
    halves = [lesson.DATA.ratings[i][0::2], lesson.DATA.ratings[i][1::2]]
    assert [one[3].item(), two[3].item()] == pytest.approx(lesson.spread(halves).tolist())


def test_steps_until_learned_are_looked_at_in_one_iid_run(lesson, world):
    task, seen = lesson.draw(0.0, 1), []
    fit = lesson.fit

    def spy(weights_at, task, steps, lr, seed, look):
        seen.append(weights_at(0, None))
        return fit(weights_at, task, steps, lr, seed, look=look)

    world("fit", spy)
    found = lesson.steps_until_learned(task, steps=40, every=10)
    assert seen[0].tolist() == [1.0] * lesson.N
    assert set(found.tolist()) <= {0, 10, 20, 30, 40} and (found <= 30).double().mean() > 0.9


# --- samplers


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0, math.inf])
def test_each_sentence_is_drawn_as_often_as_the_pacing_says(lesson, world, monkeypatch, power):
    order, steps, count = torch.randperm(lesson.N, generator=seeded(9)), 60, torch.zeros(lesson.N)
    world("inputs", lambda index, opened: (count.index_add_(0, index, torch.ones(len(index))), torch.zeros(16, 384))[1])
    task = SimpleNamespace(index=torch.arange(lesson.N), labels=torch.zeros(lesson.N).long())

    def weights_at(step, model):
        return lesson.open_first(order, lesson.pacing(step, steps, power=power))

    for seed in range(8):
        lesson.fit(weights_at, task, steps, 1e-3, seed)
    wanted = torch.zeros(lesson.N, dtype=torch.float64)
    for step in range(steps):
        share = 0.2 + 0.8 * (min(1.0, step / 48) ** power if power < math.inf else float(step >= 48))
        wanted[order[: round(share * lesson.N)]] += 8 * 16 / round(share * lesson.N)
    assert count.sum() == 8 * steps * 16
    assert torch.allclose(8 * lesson.expected_visits(weights_at, steps), wanted)
    assert ((count - wanted) / wanted.sqrt()).abs().max() < 6
    groups = [
        (a.sum() - b.sum()) / b.sum().sqrt() for a, b in zip(count[order].chunk(5), wanted[order].chunk(5), strict=True)
    ]
    assert max(map(abs, groups)) < 4


def test_visits_are_draws_by_the_weights(lesson):
    weights = torch.tensor([1.0, 0.0, 3.0])
    found = lesson.visits(lambda step, model: weights, 500, seed=3)
    assert found.sum() == 500 * lesson.BATCH and found[1] == 0
    assert found[2].item() / found.sum().item() == pytest.approx(0.75, abs=0.02)
    assert lesson.expected_visits(lambda step, model: weights, 500).tolist() == pytest.approx([2000, 0, 6000])


def test_open_first_opens_the_head_of_the_order(lesson):
    order = torch.tensor([3, 1, 0, 2])
    for share, opened in ((0.01, [3]), (0.5, [3, 1]), (0.75, [3, 1, 0]), (1.0, [3, 1, 0, 2])):
        assert lesson.open_first(order, share).nonzero().flatten().tolist() == sorted(opened)


@pytest.mark.parametrize(("options", "sentence"), [
    ({"step": -1}, "^steps must be above 0 and step between 0 and steps, got 10 and -1$"),
    ({"step": 11}, "^steps must .*, got 10 and 11$"), ({"step": 0, "steps": 0}, "^steps must .*, got 0 and 0$"),
    ({"start": 0}, "^start and end must be above 0 and at most 1, got 0 and 0.8$"),
    ({"end": 1.5}, "^start and end must be above 0 and at most 1, got 0.2 and 1.5$"),
    ({"power": -1}, "^power must be at least 0, got -1$"), ({"power": math.nan}, "^power must be at least 0, got nan$"),
])  # fmt: skip
def test_a_pacing_that_cannot_be_is_refused(lesson, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        lesson.pacing(**{"step": 1, "steps": 10} | options)


def test_nan_is_refused_in_one_sentence(lesson):
    with pytest.raises(ValueError, match="^1 difficulties are nan: they have no place in an order$"):
        lesson.easy_first(torch.tensor([1.0, math.nan]), seeded(0))
    with pytest.raises(ValueError, match="^2 of 3 losses are nan: the model has diverged$"):
        lesson.self_paced_weights(torch.tensor([math.nan, 1.0, math.nan]), torch.tensor([0, 1, 1]), 1.0)


PACED = ("iid", "random paced", "easy first", "hard first")


def test_passes_show_each_sentence_once_a_pass(lesson, world):
    task = lesson.draw(0.0, 2)
    weights_at = lesson.plan("passes", task, 300, 3)
    drawn = torch.cat([weights_at(step, None) for step in range(300)])
    assert len(drawn) == 4800 and torch.equal(torch.bincount(drawn), torch.full((lesson.N,), 8))
    first, second = drawn[: lesson.N], drawn[lesson.N : 2 * lesson.N]
    assert len(first.unique()) == len(second.unique()) == lesson.N and not torch.equal(first, second)
    inputs, seen = lesson.inputs, []
    world("inputs", lambda index, opened: (seen.append(index), inputs(index, opened))[1])
    lesson.run_arm("passes", task, 40, 1e-3, 3)
    shown = torch.cat([index for index in seen if len(index) == lesson.BATCH])
    again = lesson.plan("passes", task, 40, 3)
    assert torch.equal(shown[:640], task.index[torch.cat([again(step, None) for step in range(40)])])


def test_same_visits_are_those_of_easy_first_in_no_order(lesson, world):
    task, hard = lesson.draw(0.4, 2), torch.rand(lesson.N, generator=seeded(1))
    paced, same = (lesson.plan(arm, task, 60, 3, hard) for arm in ("easy first", "same visits"))
    wanted = lesson.expected_visits(paced, 60)
    assert torch.allclose(lesson.expected_visits(same, 60), wanted) and wanted.sum() == pytest.approx(60 * 16)
    assert torch.equal(same(0, None), same(59, None)) and wanted.max() > 3 * wanted.min()


def test_the_paced_arms_open_as_many_and_in_their_order(lesson, world):
    task, hard = lesson.draw(0.4, 2), torch.rand(lesson.N, generator=seeded(1))
    for step in (0, 100, 150, 299):
        opened = {arm: lesson.plan(arm, task, 300, 3, hard)(step, None) > 0 for arm in PACED}
        count = round(lesson.N * (0.2 + 0.8 * min(1, step / 240)))
        assert opened["iid"].all()
        assert {int(opened[arm].sum()) for arm in PACED[1:]} == {count}
        if count < lesson.N:
            assert hard[opened["easy first"]].max() < hard[~opened["easy first"]].min()
            assert hard[opened["hard first"]].min() > hard[~opened["hard first"]].max()
            assert not torch.equal(opened["random paced"], opened["easy first"])
            overlap = (opened["random paced"] & opened["easy first"]).sum().item() / count
            assert overlap == pytest.approx(count / lesson.N, abs=0.15)
    part = lesson.plan("easiest part", task, 300, 3, hard)
    assert [int((part(step, None) > 0).sum()) for step in (0, 299)] == [360, 360]
    by_loss = lesson.plan("easy first", task, 300, 3)(0, None) > 0
    assert not task.wrong[by_loss].any()  # the reference loss, of vectors that tell the label
    with pytest.raises(ValueError, match="^an arm is one of iid, passes, .*, got 'best first'$"):
        lesson.plan("best first", task, 300)


# --- self-pacing


def test_self_paced_weights_are_kumar_s_choice_balanced(lesson):
    for seed in range(20):
        values, labels = torch.rand(8, generator=seeded(seed)), torch.tensor([0, 1] * 4)
        weights = lesson.self_paced_weights(values, labels, 0.6)
        choices = torch.tensor(list(itertools.product([0.0, 1.0], repeat=8)))
        best = choices[(choices @ values - 0.6 * choices.sum(1)).argmin()] > 0
        for c in (0, 1):
            own = labels == c
            assert weights[own].sum().item() == pytest.approx(4)
            if best[own].any():
                assert torch.equal(weights[own] > 0, best[own])
            else:
                assert (weights[own] > 0).nonzero().item() == values[own].argmin()


def test_self_paced_weights_of_an_empty_and_of_an_all_hard_batch(lesson):
    empty = lesson.self_paced_weights(torch.zeros(0), torch.zeros(0).long(), 1.0)
    assert empty.shape == (0,) and empty.sum() == 0
    weights = lesson.self_paced_weights(torch.tensor([9.0, 8.0, 7.0, math.inf]), torch.tensor([0, 0, 1, 1]), 0.01)
    assert weights.tolist() == [0, 2, 2, 0] and weights.isfinite().all()


def test_self_pacing_looks_by_its_threshold_and_keeps_the_classes(lesson, world):
    task, looks = lesson.draw(0.4, 2), []
    own = torch.rand(lesson.N, generator=seeded(0))
    world("losses", lambda model, index, labels, opened: (looks.append(1), own)[1])
    weights_at = lesson.self_paced(task, 300)
    for step in range(300):
        weights = weights_at(step, None)
        if step < 60:
            assert weights.tolist() == [1.0] * lesson.N and not looks
        for c in (0, 1):
            assert weights[task.labels == c].sum().item() == pytest.approx(int((task.labels == c).sum()), rel=1e-5)
        last = step - step % 15
        if step >= 60:
            limit = own.quantile(min(1.0, 0.2 + 0.8 * last / 240))
            assert torch.equal(weights > 0, own <= limit)
    assert len(looks) == 16  # at 60, 75 .. 285
    cold = lesson.self_paced(task, 300, warm=0.0)
    assert (cold(0, None) > 0).double().mean().item() == pytest.approx(0.2, abs=0.01)


def test_precision_and_recall_of_what_is_left_out(lesson):
    weights, wrong = torch.tensor([0, 0, 0, 1.0, 2.0]), torch.tensor([True, True, False, True, False])
    assert lesson.excluded(weights, wrong) == {"precision": 2 / 3, "recall": 2 / 3}
    assert lesson.excluded(torch.ones(5), wrong) == {"precision": 0, "recall": 0}
    assert lesson.excluded(torch.zeros(5), ~wrong) == {"precision": 2 / 5, "recall": 1}
    assert lesson.excluded(weights, torch.zeros(5).bool()) == {"precision": 0, "recall": 0}


# --- model, training, study


def test_the_top_on_kept_states_is_the_whole_model(lesson, monkeypatch):
    torch.manual_seed(0)
    config = small.bert().config
    config.num_hidden_layers = 6
    encoder = type(small.bert())(config, add_pooling_layer=False).eval()
    tokenizer = tasks.minilm()[1]
    monkeypatch.setattr(tasks, "minilm", lambda: (encoder, tokenizer))
    batch = tasks.encode(lesson.DATA.texts[:5])
    with torch.no_grad():
        layers = encoder(**batch, output_hidden_states=True).hidden_states
        model = lesson.build("top", seed=1).eval()
        x = layers[5], batch["attention_mask"].float()
        assert torch.allclose(model.embed(x), tasks.build().eval().embed(batch).float(), atol=1e-5)
        plain = lesson.build("head").eval()
        assert torch.equal(plain.embed(layers[6][:, 0]), layers[6][:, 0])
    with pytest.raises(ValueError, match="^opened must be head or top, got 'all'$"):
        lesson.build("all")


def test_optimizers_have_their_rates_and_the_library_s_layer_stays(lesson):
    plain = lesson.optimizer_of(lesson.build("head"), 3e-4)
    assert [group["lr"] for group in plain.param_groups] == [3e-4]
    model = lesson.build("top")
    head, body = lesson.optimizer_of(model, 1e-5).param_groups
    assert (head["lr"], body["lr"], body["weight_decay"]) == (lesson.HEAD_RATE, 1e-5, 0)
    assert {id(p) for p in body["params"]} == {id(p) for p in model.layer.parameters()}
    with torch.no_grad():
        next(model.layer.parameters()).add_(1)
    fresh = tasks.minilm()[0].encoder.layer[5]
    assert not torch.equal(next(fresh.parameters()), next(model.layer.parameters()))


def test_losses_and_accuracy_by_hand(lesson, world):
    model = lesson.build("head").train()
    index = torch.arange(700)
    labels = lesson.DATA.labels[index]
    found = lesson.losses(model, index, labels)
    assert model.training and not found.requires_grad
    logits = model(lesson.inputs(index)).detach()
    assert torch.allclose(found, F.cross_entropy(logits, labels, reduction="none"), atol=1e-5)
    part = slice(100, 660)
    wanted = (logits[part].argmax(1) == labels[part]).double().mean().item()
    assert lesson.accuracy(model, part) == pytest.approx(wanted)


def test_runs_repeat_by_their_seed_and_arms_start_alike(lesson, world):
    task = lesson.draw(0.4, 0)
    one, out = lesson.run_arm("easy first", task, 20, 1e-3, seed=4)
    two, _ = lesson.run_arm("easy first", task, 20, 1e-3, seed=4)
    other, _ = lesson.run_arm("easy first", task, 20, 1e-3, seed=5)
    weights = [model.head[0].weight for model in (one, two, other)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
    assert set(out) == {"precision", "recall"} and out["precision"] == 1.0  # 40 % out, all of them wrong
    inputs, drawn = lesson.inputs, []
    world("inputs", lambda index, opened: (drawn.append(index.tolist()), inputs(index, opened))[1])
    for seed in (4, 5):
        lesson.fit(lambda step, model: torch.ones(lesson.N), task, 1, 1e-3, seed)
    assert drawn[0] != drawn[1]
    starts = []
    for arm in lesson.ARMS:
        seen = []
        weights_at = lesson.plan(arm, task, 2, 4)
        lesson.fit(weights_at, task, 2, 1e-3, 4, look=lambda s, m, w, seen=seen: seen.append(m.head[0].weight.clone()))
        starts.append(seen[0])
    assert all(torch.equal(start, starts[0]) for start in starts)
    assert not torch.equal(lesson.build(seed=5).head[0].weight, starts[0])


def test_easy_first_trains_better_than_hard_first_where_labels_are_wrong(lesson, world):
    task = lesson.draw(0.4, 0)
    right = [
        lesson.accuracy(lesson.run_arm(arm, task, 60, 1e-3, 0)[0], lesson.DATA.val)
        for arm in ("easy first", "hard first")
    ]
    assert right[0] > right[1] + 0.05


def test_mixtures_draw_one_half_from_each_source_and_in_their_order(lesson):
    clean_share = {}
    for arm in ("mixed", "quality first", "quality last", "clean alone", "as it comes"):
        task, weights_at = lesson.mixture(arm, 100, seed=1)
        assert not task.wrong[:150].any() and task.wrong[150:].sum() == 180
        assert torch.equal(task.labels != lesson.DATA.labels[task.index], task.wrong)
        shares = []
        for step in range(100):
            weights = weights_at(step, None)
            assert weights[:150].unique().numel() == weights[150:].unique().numel() == 1
            shares.append((weights[:150].sum() / weights.sum()).item())
        clean_share[arm] = shares
    for arm, mean in (
        ("mixed", 0.5),
        ("quality first", 0.5),
        ("quality last", 0.5),
        ("clean alone", 1),
        ("as it comes", 0.25),
    ):
        assert sum(clean_share[arm]) / 100 == pytest.approx(mean, abs=1e-5)
    assert clean_share["quality first"][0] == 1 and clean_share["quality first"][-1] == 0
    assert clean_share["quality last"] == pytest.approx(clean_share["quality first"][::-1], abs=1e-6)
    with pytest.raises(ValueError, match="^a mixture is one of mixed, .*, got 'best'$"):
        lesson.mixture("best", 10)
    with pytest.raises(ValueError, match="^the clean source must hold 1 to 599 of the 600 sentences, got 600$"):
        lesson.mixture("mixed", 10, small=600)


@pytest.mark.parametrize("run", ["order_run", "variant_run", "top_run", "control_run"])
def test_the_studies_tune_on_validation_and_read_the_test_sentences(lesson, world, monkeypatch, run):
    parts, calls = [], []
    monkeypatch.setattr(studies_12, "_lesson12", lambda *names: lesson)
    studies_12._hard.cache_clear()
    monkeypatch.setattr(lesson, "accuracy", lambda model, part, opened: (parts.append((part, opened)), 0.75)[1])
    hits = torch.arange(1500) < 225  # the first tenth, and half of the second
    monkeypatch.setattr(lesson, "right", lambda model, part, opened: (parts.append((part, opened)), hits)[1])
    monkeypatch.setattr(lesson, "losses", lambda model, index, labels, opened: torch.linspace(0, 1, len(index)))

    def run_arm(arm, task, steps, lr, seed, opened, **options):
        calls.append((arm, steps, lr, seed, opened, options))
        return "model", {"precision": 0.5, "recall": 0.5}

    monkeypatch.setattr(lesson, "run_arm", run_arm)
    arm = "root" if run == "variant_run" else "easy first"
    cell = {"arm": arm, "noise": 0.4, "steps": 300, "times": 3.0}
    tuned = getattr(studies_12, run)(cell | {"phase": "tune", "seed": 1000})
    assert tuned["score"] == 0.75 and all(part == lesson.DATA.val for part, _ in parts)
    assert [call[3] for call in calls] == list(range(1000, 1000 + len(calls)))
    parts.clear(), calls.clear()
    row = getattr(studies_12, run)(cell | {"phase": "report", "seed": 7})
    opened = "top" if run == "top_run" else "head"
    assert parts == [(lesson.DATA.test, opened)] and "score" not in row and row["precision"] == 0.5
    assert row["accuracy"] == 0.15 and row["tenths"] == [1.0, 0.5] + 8 * [0.0]
    assert row["memorised"] == pytest.approx(0.6931, abs=0.01)
    arm, steps, lr, seed, where, options = calls[0]
    assert (arm, steps, seed, where) == ("easy first", 300, 7, opened)
    assert [row["rate"], lr] == pytest.approx([3e-4 if run == "top_run" else 9e-4] * 2)
    assert torch.equal(options["hard"], lesson.measured("loss", lesson.draw(0.4, 7), 7))
    assert options.get("power") == (0.5 if run == "variant_run" else None)
    studies_12._hard.cache_clear()


def test_every_arm_of_a_study_is_known_and_gets_the_same_rates(lesson, world, monkeypatch):
    monkeypatch.setattr(studies_12, "_lesson12", lambda *names: lesson)
    for name, study in studies_12.STUDIES.items():
        arms = study.arms(False)
        assert study.lesson == "12" and len({str(settings) for settings in arms.values()}) == 1, name
        assert study.conditions(False)
    assert list(studies_12.STUDIES["curriculum"].arms(False)) == list(lesson.ARMS)
    assert len(studies_12.STUDIES["curriculum"].conditions(False)) == 6
    task = lesson.draw(0.4, 1)
    for options in studies_12.VARIANTS.values():
        options = {key: value for key, value in options.items() if key != "measure"}
        lesson.run_arm(options.pop("arm"), task, 2, 1e-3, **options)
    for arm in studies_12.STUDIES["curriculum-mixture"].arms(False):
        lesson.mixture(arm, 10)


def test_the_study_of_measures_correlates_each_pair_once(lesson, world, monkeypatch):
    monkeypatch.setattr(studies_12, "_lesson12", lambda *names: lesson)
    monkeypatch.setitem(
        lesson.measured.__globals__, "steps_until_learned", lambda task, seed: torch.rand(600, generator=seeded(seed))
    )
    monkeypatch.setattr(lesson, "states", lesson.fit.__globals__["states"])
    assert studies_12.measures_run({"phase": "tune"}) == {"score": 0.0}
    row = studies_12.measures_run({"phase": "report", "noise": 0.4, "seed": 1})
    pairs = {f"{a} {b}" for a, b in itertools.combinations(lesson.MEASURES, 2)}
    assert pairs | {f"{m} itself" for m in ("spread", "loss", "steps")} | {f"{m} wrong" for m in lesson.MEASURES} | {
        "reference accuracy"
    } == set(row)
    assert row["reference accuracy"] > 0.9  # the world's vectors tell the label, even where 40 % are wrong
    assert row["loss wrong"] == 1.0 and abs(row["steps itself"]) < 0.2


# --- the verdict


def test_the_sign_flip_p_is_the_share_of_sign_patterns_by_enumeration(lesson):
    differences = torch.tensor([[0.3, 0.0], [0.1, 0.2], [-0.05, 0.2], [0.2, -0.2]])
    found = lesson.flip_p(differences)
    for column, p in zip(differences.T.tolist(), found.tolist(), strict=True):
        patterns = [
            sum(s * d for s, d in zip(signs, column, strict=True)) for signs in itertools.product((-1, 1), repeat=4)
        ]
        assert p == sum(abs(total) >= abs(sum(column)) - 1e-6 for total in patterns) / 16
    assert lesson.flip_p(torch.full((10, 1), 0.1)).item() == 2 / 2**10


def test_the_sign_flip_p_is_near_the_t_test_s(lesson):
    x = torch.tensor([0.012, -0.004, 0.02, 0.015, 0.001, 0.03, -0.01, 0.012, 0.008, 0.018])
    assert lesson.flip_p(x[:, None]).item() == pytest.approx(0.0241, abs=0.015)  # scipy.stats.ttest_1samp(x, 0).pvalue


@pytest.mark.parametrize(
    ("p", "adjusted"),  # statsmodels.stats.multitest.multipletests(p, method="holm")[1]
    [
        ([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02]),
        ([0.5, 0.6], [1.0, 1.0]),
        ([0.2], [0.2]),
        ([0.02, 0.02], [0.04, 0.04]),
    ],
)
def test_holm_s_p_values_are_statsmodels(lesson, p, adjusted):
    assert lesson.holm(torch.tensor(p, dtype=torch.float64)).tolist() == pytest.approx(adjusted)


def test_a_verdict_needs_seeds_and_texts_and_holm(lesson, capsys):
    """Gains of 0.02 that each seed shows but one tenth of the texts makes; that all tenths show; and none."""
    noise = 0.001 * torch.randn(3, 10, 10, generator=seeded(0))
    one, all_ = torch.zeros(10, 10), torch.full((10, 10), 0.02)
    one[:, 0] = 0.2
    iid = torch.full((10, 10), 0.7)
    lesson.judge(
        [(name, iid + gain + extra, iid) for name, gain, extra in zip("abc", (one, all_, 0 * one), noise, strict=True)]
    )
    lesson.judge([("d", iid, iid + all_ + noise[0])], ("above", "below"))
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[-1] for line in lines] == [
        "cannot be told apart", "helps", "cannot be told apart", "below",
    ]  # fmt: skip
    assert "+0.020 ± 0.000 seeds ± 0.045 texts  Holm p 0.006" in lines[0]  # 3 * 2 / 2 ** 10; 0.02 * t of 9 degrees


def test_a_verdict_that_holm_does_not_keep(lesson, capsys):
    """Eight seeds of ten gain 0.02, two lose 0.01: p is 12 * 2 / 2 ** 10, and four times that among five."""
    iid, gains = torch.full((10, 10), 0.7), torch.tensor([0.02] * 8 + [-0.01] * 2)[:, None]
    even = torch.tensor([0.01, -0.01] * 5)[:, None]
    lesson.judge([("a", iid + gains, iid), ("b", iid + 0.02, iid), *((name, iid + even, iid) for name in "cde")])
    lines = capsys.readouterr().out.splitlines()
    assert "+0.014 ± 0.009 seeds ± 0.000 texts  Holm p 0.094  cannot be told apart" in lines[0]
    assert lines[1].endswith("helps")
    lesson.judge([("a", iid + gains, iid)])
    assert capsys.readouterr().out.endswith("Holm p 0.023  helps\n")


def test_the_panel_reports_steps_and_whom_it_left_out(lesson, world):
    ticks = []
    names = list(inspect.signature(lesson.experiment).parameters)
    values = {"arm": "easy first", "wrong_labels": 0.4, "steps": 4, "lr": 1e-3, "power": 1.0, "seed": 0}
    assert names == ["tick", *values]
    found = lesson.experiment(lambda *a, **k: ticks.append(a), **values)
    assert ticks == [(i, 4) for i in range(4)] and 0 <= found["accuracy"] <= 1 and found["precision"] == 1.0
    assert isinstance(lesson.build("head").head, nn.Sequential)
