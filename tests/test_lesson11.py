"""Lesson 11: its samplers, weightings and gradients against closed forms, brute force, autograd and hand-made cases."""

import itertools
import math
import random
from types import SimpleNamespace

import pytest
import small
import torch
import torch.nn.functional as F
from torch import nn

from nbtools import notebooks, studies_11, tasks, zoo

TAUGHT = (
    "SIZES TASKS KINDS HELD_OUT EACH TRAINED KEPT LONGEST parts sentence load encode through frozen batch_of MultiTask "
    "build loss_of skill best_spans answers_of read mixing SAMPLING probabilities share_out Fixed uncertainty_loss "
    "Uncertainty best_s gradnorm_step GradNorm pcgrad PCGrad METHODS draws stream losses_of fit gradient cosines "
    "verdict experiment"
)
QUIET = {"tick": lambda *a, **k: None}
FEW = ("movie", "intents", "answers")  # one task of each kind


@pytest.fixture(scope="module")
def lesson():
    """What the notebook defines, as attributes."""
    return SimpleNamespace(**notebooks.definitions("11", *TAUGHT.split()))


@pytest.fixture
def tiny(lesson, monkeypatch):
    """A BERT of two small layers with MiniLM's tokenizer in place of MiniLM, one of its layers trained."""
    tokenizer, encoder = tasks.minilm()[1], small.bert().eval()
    monkeypatch.setattr(tasks, "minilm", lambda: (encoder, tokenizer))
    monkeypatch.setitem(lesson.fit.__globals__, "TRAINED", 1)
    lesson.KEPT.clear()
    yield encoder
    lesson.KEPT.clear()


@pytest.fixture
def short(lesson, monkeypatch):
    """A dozen texts in each held-out part."""
    for data in lesson.load().values():
        monkeypatch.setattr(data, "test", data.test[:12])
        monkeypatch.setattr(data, "val", data.val[:12])
    monkeypatch.setitem(lesson.HELD_OUT, "val", 12)


# --- data


def test_parts_share_no_group(lesson):
    groups = [f"g{i // 7}" for i in range(3000)]
    found = lesson.parts(groups)
    sets = [{groups[i] for i in found[name]} for name in ("test", "val", "pool")]
    assert not sets[0] & sets[1] and not sets[1] & sets[2] and not sets[0] & sets[2]
    assert (len(found["test"]), len(found["val"])) == (lesson.HELD_OUT["test"], lesson.HELD_OUT["val"])
    assert len(found["pool"]) > 2600 and len({*found["test"], *found["val"], *found["pool"]}) <= 3000
    assert found == lesson.parts(groups) != lesson.parts(groups, seed=1)


def test_no_text_page_or_claim_is_in_two_parts(lesson):
    for name, data in lesson.load().items():
        assert len(data.pool) >= lesson.SIZES[name] and len(data.targets) == len(data.texts)
        texts = [{str(data.texts[i]) for i in getattr(data, part)} for part in ("test", "val", "pool")]
        assert not texts[0] & texts[1] and not texts[1] & texts[2] and not texts[0] & texts[2]
    claims = lesson.load()["claims"]
    pages = [{claims.texts[i][1].split(":")[0] for i in getattr(claims, part)} for part in ("test", "pool")]
    assert not pages[0] & pages[1]
    for name in ("amazon", "nyt"):  # pieces of one review or editorial are in one part
        document, data = {row["text"]: row["id"].split("_")[0] for row in zoo.vader(name)}, lesson.load()[name]
        own = [{document[data.texts[i]] for i in getattr(data, part)} for part in ("test", "val", "pool")]
        assert len(own[0]) > 10 and not own[0] & own[1] and not own[1] & own[2] and not own[0] & own[2]
    assert lesson.load()["intents"].targets.unique().tolist() == list(range(7))
    assert claims.targets.unique().tolist() == [0, 1, 2] and claims.outputs == 3


def test_the_sentence_of_an_answer(lesson):
    context = "It was cold. In 1999 Ada, aged 12.5, won? Nobody knew! The end"
    for answer, held in (("1999", "In 1999 Ada, aged 12.5, won?"), ("cold", "It was cold."), ("end", "The end")):
        row = {"context": context, "starts": [context.index(answer)], "answers": [answer]}
        found, first, last = lesson.sentence(row)
        assert found == held and found[first : last + 1] == answer


def test_span_targets_are_the_answers_tokens(lesson):
    data, tokenizer = lesson.load()["answers"], tasks.minilm()[1]
    for i in data.pool[:50]:
        ids = tokenizer(*data.texts[i])["input_ids"]
        first, last = data.targets[i].tolist()
        answer = tokenizer.decode(ids[first : last + 1]).replace(" ", "")
        question = len(tokenizer(data.texts[i][0])["input_ids"])
        assert first >= question and last < len(ids) - 1 and len(ids) <= lesson.LONGEST
        squeezed = tokenizer.decode(tokenizer(data.texts[i][1])["input_ids"], skip_special_tokens=True).replace(" ", "")
        assert answer in squeezed


# --- the model


def test_frozen_and_upper_layers_are_the_whole_model(lesson, tiny, monkeypatch):
    monkeypatch.setattr(lesson.fit.__globals__["train"], "autocast", lambda *a: torch.no_grad())
    data = lesson.load()["movie"]
    index = data.pool[:5]
    batch = lesson.encode([data.texts[i] for i in index])
    states, mask = lesson.batch_of("movie", index)
    assert torch.equal(mask.cpu().long(), batch["attention_mask"]) and len(set(mask.sum(1).tolist())) > 1
    with torch.no_grad():
        ours = lesson.through(lesson.build(["movie"]).eval().layers, states, mask).cpu()
        whole = tiny(**batch).last_hidden_state
        untouched = tiny(**batch, output_hidden_states=True).hidden_states[0]
    real = batch["attention_mask"] > 0
    torch.testing.assert_close(ours[real], whole[real], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(states.cpu()[real], untouched[real], atol=1e-2)  # a layer has been passed


def test_states_are_computed_once(lesson, tiny, monkeypatch):
    calls, frozen = [], lesson.frozen
    monkeypatch.setitem(lesson.batch_of.__globals__, "frozen", lambda texts: calls.append(texts) or frozen(texts))
    data = lesson.load()["intents"]
    first = lesson.batch_of("intents", data.pool[:3])
    again = lesson.batch_of("intents", data.pool[2:4])
    assert calls == [[data.texts[i] for i in data.pool[:3]], [data.texts[data.pool[3]]]]
    length = int(again[1][0].sum())
    assert torch.equal(first[0][2, :length], again[0][0, :length])


def test_heads_answer_each_kind_and_start_alike(lesson, tiny):
    model, alone = lesson.build(FEW), lesson.build(["answers"])
    assert torch.equal(model.heads["answers"].weight, alone.heads["answers"].weight)
    assert all(torch.equal(p, q) for p, q in zip(model.layers.parameters(), alone.layers.parameters(), strict=True))
    assert not torch.equal(model.heads["answers"].weight, lesson.build(FEW, seed=1).heads["answers"].weight)
    shapes = {}
    for name in FEW:
        states, mask = lesson.batch_of(name, lesson.load()[name].pool[:4])
        output = model.eval()(name, states, mask)
        shapes[name] = tuple(output.shape)
        longer = F.pad(states, (0, 0, 0, 3), value=9.0), F.pad(mask, (0, 3))
        torch.testing.assert_close(model(name, *longer)[:, : output.shape[1]] if output.dim() > 1 else
                                   model(name, *longer), output, rtol=1e-3, atol=1e-4)  # fmt: skip
        if name == "answers":
            assert (output[mask == 0] == -1e4).all() and (output[mask == 1] > -100).all()
    assert shapes["movie"] == (4,) and shapes["intents"] == (4, 7) and shapes["answers"][::2] == (4, 2)


@pytest.mark.parametrize("names", [("movie", "poems"), ()])
def test_unknown_tasks_are_refused(lesson, names):
    with pytest.raises(ValueError, match=r"^a task is one of movie, .*answers, got "):
        lesson.build(names)


def test_losses_by_hand(lesson):
    loss = lesson.loss_of("movie", torch.tensor([1.0, 2.0]), torch.tensor([0.0, 4.0], dtype=torch.float64))
    assert loss.item() == 2.5
    logits = torch.zeros(2, 5, 2)
    assert lesson.loss_of("answers", logits, torch.tensor([[0, 1], [2, 4]])).item() == pytest.approx(math.log(5))
    logits[:, 3] = 50.0
    assert lesson.loss_of("answers", logits, torch.tensor([[3, 3], [3, 3]])).item() == pytest.approx(0, abs=1e-6)
    assert lesson.loss_of("claims", torch.zeros(2, 3), torch.tensor([0, 2])).item() == pytest.approx(math.log(3))


def test_skill_is_zero_for_the_best_guess_and_one_for_right(lesson):
    rated = torch.tensor([1.0, -2.0, 3.0, 0.0])
    assert lesson.skill("rating", rated.mean().expand(4), rated) == pytest.approx(0)
    assert lesson.skill("rating", rated, rated) == 1 and lesson.skill("rating", -rated, rated) < -1
    classes = torch.tensor([2, 2, 2, 0, 1])
    assert lesson.skill("class", torch.full((5,), 2), classes) == pytest.approx(0)
    assert lesson.skill("class", classes, classes) == pytest.approx(1)
    assert lesson.skill("class", torch.tensor([2, 2, 2, 0, 0]), classes) == pytest.approx(0.5)
    spans = torch.tensor([[3, 5], [3, 5], [7, 9], [1, 1]])
    assert lesson.skill("span", torch.tensor([[3, 5]]).expand(4, 2), spans) == pytest.approx(0)
    assert lesson.skill("span", torch.tensor([[3, 5], [3, 4], [7, 9], [1, 1]]), spans) == pytest.approx(0.5)


def test_best_spans_are_those_of_a_search_over_all(lesson):
    g = torch.Generator().manual_seed(0)
    logits, first = torch.randn(6, 15, 2, generator=g), torch.tensor([0, 3, 5, 9, 13, 14])
    for most in (1, 4, 12):
        for row, begin, found in zip(logits, first, lesson.best_spans(logits, first, most).tolist(), strict=True):
            every = [(s, e) for s in range(int(begin), 15) for e in range(s, min(15, s + most))]
            assert tuple(found) == max(every, key=lambda at: row[at[0], 0] + row[at[1], 1])


# --- sampling


def test_shares_are_kept_exactly_in_the_mean_and_within_one(lesson):
    wanted, g = lesson.probabilities("square-root", lesson.SIZES), torch.Generator().manual_seed(3)
    draws, count = 4000, 28
    seen = dict.fromkeys(wanted, 0)
    for _ in range(draws):
        found = lesson.share_out(wanted, count, g)
        assert sum(found.values()) == count
        for name, n in found.items():
            assert abs(n - count * wanted[name]) < 1
            seen[name] += n
    for name, n in seen.items():  # a share's part of a place comes or not: at most 1/2 off, by chance
        assert n / draws == pytest.approx(count * wanted[name], abs=5 * 0.5 / math.sqrt(draws))


def test_equal_shares_are_equal_at_every_draw(lesson):
    g = torch.Generator().manual_seed(0)
    shares = lesson.probabilities("equal", lesson.SIZES)
    assert all(set(lesson.share_out(shares, 28, g).values()) == {4} for _ in range(500))


def test_annealing_goes_from_sizes_to_nearly_equal(lesson):
    sizes = {"a": 100, "b": 1000}
    first, middle, last = (lesson.probabilities("annealed", sizes, step, 11) for step in (0, 5, 10))
    assert first["b"] / first["a"] == pytest.approx(10)
    assert middle["b"] / middle["a"] == pytest.approx(10**0.6) and last["b"] / last["a"] == pytest.approx(10**0.2)
    assert lesson.probabilities("proportional", sizes)["a"] == pytest.approx(1 / 11)
    assert lesson.probabilities("square-root", {"a": 4, "b": 36})["b"] == pytest.approx(0.75)
    with pytest.raises(ValueError, match="^sampling is one of equal, .*annealed, got 'random'$"):
        lesson.probabilities("random", sizes)


def test_mixing_is_a_softmax_of_logarithms(lesson):
    sizes = [3, 50, 700, 50_000]
    for temperature in (0.5, 1.0, 3.0, 50.0):
        logs = torch.tensor([min(size, 900) for size in sizes], dtype=torch.float64).log() / temperature
        assert lesson.mixing(sizes, temperature, 900) == pytest.approx(torch.softmax(logs, 0).tolist())
    for bad in ([[1, 2], 0], [[1, 0]], [[1, 2], 1.0, 0], [[1, 2], 1.0, -5]):
        with pytest.raises(ValueError, match="^sizes, temperature and limit must be above 0, got"):
            lesson.mixing(*bad)


# --- weights


def toy(names=FEW, seed=0, depth=1):
    """A model of `depth` shared layers, its losses as functions of it, and no texts."""
    g = torch.Generator().manual_seed(seed)
    layers = [nn.Module() for _ in range(depth)]
    for layer in layers:
        layer.output = nn.Module()
        layer.output.dense = nn.Linear(4, 4)
    model = nn.Module()
    model.layers, model.heads = nn.ModuleList(layers), nn.ModuleDict({name: nn.Linear(4, 1) for name in names})
    x = {name: torch.randn(8, 4, generator=g) for name in names}
    y = {name: torch.randn(8, 1, generator=g) for name in names}

    def losses(factor=None):
        hidden = dict(x)
        for layer in layers:
            hidden = {name: torch.tanh(layer.output.dense(hidden[name])) for name in names}
        return {
            name: F.mse_loss(model.heads[name](hidden[name]), y[name]) * (factor or {}).get(name, 1.0) for name in names
        }

    return model, losses


def shared_grads(model, losses):
    """{task: its gradient on the shared parameters, flat}."""
    params = list(model.layers.parameters())
    return {
        name: torch.cat([g.flatten() for g in torch.autograd.grad(loss, params, retain_graph=True)])
        for name, loss in losses.items()
    }


def left_in(model):
    return torch.cat([p.grad.flatten() for p in model.layers.parameters()])


def test_fixed_weights_leave_the_weighted_sum(lesson):
    model, losses = toy()
    each = shared_grads(model, losses())
    lesson.Fixed(FEW, {"movie": 3.0, "answers": 0.25}).backward(losses(), model)
    torch.testing.assert_close(left_in(model), 3 * each["movie"] + each["intents"] + 0.25 * each["answers"])
    with pytest.raises(ValueError, match="^weights are for movie, intents, answers, got poems$"):
        lesson.Fixed(FEW, {"poems": 1.0})


@pytest.mark.parametrize("L", [0.05, 0.4, 3.7, 250.0])
def test_uncertaintys_optimum_is_the_closed_form(lesson, L):
    for kind, factor in (("rating", 1), ("class", 2), ("span", 2)):
        s = lesson.best_s(L, kind)
        assert math.exp(s) == pytest.approx(factor * L, rel=1e-3)
        least = lesson.uncertainty_loss([torch.tensor(L)], [torch.tensor(s)], [kind]).item()
        assert least == pytest.approx(0.5 * math.log(factor * L) + 0.5, abs=1e-3)


def test_uncertainty_learns_its_log_variances_and_weighs_by_them(lesson):
    model, losses = toy()
    weighting = lesson.Uncertainty(FEW, rate=0.1)
    for name, s in zip(FEW, (0.3, -0.5, 1.0), strict=True):
        weighting.s[name].data.fill_(s)
    given, each = weighting.weights, shared_grads(model, losses())
    assert given == pytest.approx({"movie": 0.5 * math.exp(-0.3), "intents": math.exp(0.5), "answers": math.exp(-1.0)})
    now = {name: loss.item() for name, loss in losses().items()}
    weighting.backward(losses(), model)
    torch.testing.assert_close(left_in(model), sum(given[name] * each[name] for name in FEW))
    for name, s in zip(FEW, (0.3, -0.5, 1.0), strict=True):  # Adam's first step is its rate, down the slope
        slope = 0.5 - given[name] * now[name]
        assert weighting.s[name].item() == pytest.approx(s - math.copysign(0.1, slope), abs=1e-4)


def test_uncertainty_finds_scales_that_are_apart_by_a_hundred(lesson):
    """Losses held still: the weights go to 1 / (2 L), whatever the scale."""
    weighting = lesson.Uncertainty(FEW, rate=0.1)
    fixed = {"movie": 370.0, "intents": 1.9, "answers": 3.4}
    for _ in range(4000):  # Adam forgets its first slopes slowly
        leaves = {name: torch.tensor(value, requires_grad=True) for name, value in fixed.items()}
        weighting.backward(leaves, None)
    assert weighting.weights == pytest.approx({name: 1 / (2 * value) for name, value in fixed.items()}, rel=0.02)


def test_uncertainty_may_start_at_its_optimum(lesson):
    weighting = lesson.Uncertainty(FEW, rate=0.0, start="loss")
    for scale in (1.0, 5.0):  # only the first losses count
        leaves = {"movie": 370.0 * scale, "intents": 1.9 * scale, "answers": 3.4 * scale}
        weighting.backward({name: torch.tensor(x, requires_grad=True) for name, x in leaves.items()}, None)
        assert weighting.weights == pytest.approx({"movie": 1 / 740, "intents": 1 / 3.8, "answers": 1 / 6.8})
    with pytest.raises(ValueError, match="^start is zero or loss, got 'best'$"):
        lesson.Uncertainty(FEW, start="best")


def test_gradnorm_steps_by_the_norms_at_the_last_shared_layer(lesson):
    model, losses = toy(depth=2)
    weighting = lesson.GradNorm(FEW, alpha=1.5, rate=0.1, wait=2)
    last = model.layers[-1].output.dense.weight
    seen, now, weights = [], 0.0, dict.fromkeys(FEW, 1.0)
    for step in range(5):
        current = losses()
        norms = [torch.autograd.grad(loss, last, retain_graph=True)[0].norm().item() for loss in current.values()]
        seen.append(torch.stack([*current.values()]).detach())
        first = sum(seen[:2]) / 2  # two steps in which no task lags, then a running mean from there
        now = first if step < 2 else 0.9 * now + 0.1 * seen[-1]
        each = shared_grads(model, current)
        model.zero_grad()
        weighting.backward(losses(), model)
        torch.testing.assert_close(left_in(model), sum(weights[name] * each[name] for name in FEW))
        wanted = lesson.gradnorm_step([*weights.values()], norms, now.tolist(), first.tolist(), 1.5, 0.1)
        assert [*weighting.weights.values()] == pytest.approx(wanted)
        weights = weighting.weights
        with torch.no_grad():
            for p in model.parameters():
                p -= 0.1 * p.grad


def test_gradnorm_draws_norms_together_where_scales_are_apart_by_a_hundred(lesson):
    model, losses = toy()
    weighting, last = lesson.GradNorm(FEW, alpha=0.0, rate=0.05), model.layers[-1].output.dense.weight
    loud = {"movie": 100.0}
    apart = []
    for _ in range(150):
        model.zero_grad()
        norms = {
            name: torch.autograd.grad(loss, last)[0].norm().item() * weighting.weights[name]
            for name, loss in losses(loud).items()
        }
        apart.append(max(norms.values()) / min(norms.values()))
        weighting.backward(losses(loud), model)
        assert sum(weighting.weights.values()) == pytest.approx(3) and min(weighting.weights.values()) > 0
    assert apart[0] > 30 and apart[-1] < 1.5


def test_gradnorms_step_is_the_slope_of_its_loss(lesson):
    """Central differences of the sum of |G - target| in the logarithms, with the targets held."""
    weights, norms, losses, first = [0.5, 1.7, 0.8], [2.0, 0.5, 1.1], [1.0, 0.2, 3.0], [2.0, 1.0, 3.5]
    mean = sum(w * n for w, n in zip(weights, norms, strict=True)) / 3
    left = [a / b for a, b in zip(losses, first, strict=True)]
    targets = [mean * (x / (sum(left) / 3)) ** 0.5 for x in left]

    def off(logs):
        return sum(abs(math.exp(x) * n - t) for x, n, t in zip(logs, norms, targets, strict=True)) / mean

    logs, moved = [math.log(w) for w in weights], []
    for i in range(3):
        up, down = ([x + d * (k == i) for k, x in enumerate(logs)] for d in (1e-5, -1e-5))
        moved.append(math.exp(logs[i] - 0.1 * (off(up) - off(down)) / 2e-5))
    wanted = [3 * w / sum(moved) for w in moved]
    assert lesson.gradnorm_step(weights, norms, losses, first, 0.5, 0.1) == pytest.approx(wanted, rel=1e-6)


def test_surgery_by_hand(lesson):
    grads = torch.tensor([[1.0, 0.0], [-1.0, 1.0]])
    assert lesson.pcgrad(grads, [[1], [0]]).tolist() == [0.5, 1.5]
    # three tasks: the order counts, and others are met as they were
    grads = torch.tensor([[1.0, 0.0], [-1.0, 1.0], [0.0, -1.0]])
    one = lesson.pcgrad(grads, [[1, 2], [0, 2], [0, 1]])
    # (1,0) off (-1,1) is (.5,.5), off (0,-1) is (.5,0);  (-1,1) off (1,0) is (0,1), off (0,-1) is (0,0);
    # (0,-1) meets (1,0) at a right angle, off (-1,1) is (-.5,-.5)
    assert one.tolist() == [0.0, -0.5]
    other = lesson.pcgrad(grads, [[2, 1], [0, 2], [0, 1]])  # (1,0) meets (0,-1) first: (.5,.5) remains
    assert other.tolist() == [0.0, 0.0]
    assert grads[0].tolist() == [1.0, 0.0]


def test_surgery_leaves_tasks_that_agree_alone_and_ends_conflicts_of_two(lesson):
    g = torch.Generator().manual_seed(0)
    agree = torch.rand(4, 9, generator=g)
    order = [[j for j in range(4) if j != i] for i in range(4)]
    torch.testing.assert_close(lesson.pcgrad(agree, order), agree.sum(0))
    for _ in range(20):
        pair = torch.randn(2, 9, generator=g)
        found = lesson.pcgrad(pair, [[1], [0]])
        assert (pair @ found >= -1e-5).all()


def test_surgery_meets_the_others_in_random_order(lesson, monkeypatch):
    model, losses = toy()
    seen, weighting = [], lesson.PCGrad(FEW, seed=0)
    given = lesson.PCGrad.backward.__globals__
    monkeypatch.setitem(given, "pcgrad", lambda grads, order: seen.append(order) or sum(grads))
    for _ in range(12):
        weighting.backward(losses(), model)
    assert all(sorted([*row, i]) == [0, 1, 2] for order in seen for i, row in enumerate(order))
    assert {tuple(order[0]) for order in seen} == {(1, 2), (2, 1)}


def test_surgery_is_on_shared_parameters_and_heads_keep_their_own(lesson):
    model, losses = toy()
    grads = torch.stack([*shared_grads(model, losses()).values()])
    grads[1] = -grads[0] + 0.1 * grads[2]  # only to have the order's effect below
    each = torch.stack([*shared_grads(model, losses()).values()])
    heads = {name: torch.autograd.grad(loss, model.heads[name].weight)[0] for name, loss in losses().items()}
    lesson.PCGrad(FEW, seed=4).backward(losses(), model)
    draw = random.Random(4)
    order = [draw.sample(row, 2) for row in ([1, 2], [0, 2], [0, 1])]
    torch.testing.assert_close(left_in(model), lesson.pcgrad(each, order))
    for name in FEW:
        torch.testing.assert_close(model.heads[name].weight.grad, heads[name])


# --- training


def test_training_sets_and_their_order(lesson):
    index, targets = lesson.draws("intents", 3)
    data = lesson.load()["intents"]
    assert len(index) == len(set(index)) == lesson.SIZES["intents"] and set(index) <= set(data.pool)
    assert torch.equal(targets, data.targets[index]) and index != lesson.draws("intents", 4)[0]
    permuted = lesson.draws("intents", 3, shuffled=True)
    assert permuted[0] == index and not torch.equal(permuted[1], targets)
    assert torch.equal(permuted[1].sort().values, targets.sort().values)
    passes = list(itertools.islice(lesson.stream("intents", 3), 2 * len(index)))
    for part in (passes[: len(index)], passes[len(index) :]):
        assert sorted(i for i, _ in part) == sorted(index)
        assert all(torch.equal(y, data.targets[i]) for i, y in part)
    assert passes[: len(index)] != passes[len(index) :]


def test_a_tasks_loss_counts_by_its_texts_and_its_factor(lesson, tiny):
    model = lesson.build(FEW).eval()
    rows = {name: list(itertools.islice(lesson.stream(name, 0), lesson.EACH)) for name in FEW}
    plain = lesson.losses_of(model, rows, {})
    loud = lesson.losses_of(model, rows, {"movie": 100.0})
    assert loud["movie"].item() == pytest.approx(100 * plain["movie"].item(), rel=1e-4)
    assert loud["intents"].item() == plain["intents"].item()
    twice = lesson.losses_of(model, {"movie": rows["movie"] * 2}, {})
    assert twice["movie"].item() == pytest.approx(2 * plain["movie"].item(), rel=2e-2)
    far = {"answers": [(i, torch.tensor([60, 61])) for i, _ in rows["answers"]]}
    assert lesson.losses_of(model, far, {})["answers"].item() < 100  # a permuted target is drawn into its text


def state(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def test_a_factor_and_its_inverse_as_weight_are_nothing(lesson, tiny):
    plain, _, history = lesson.fit("fixed", 1e-3, names=FEW, steps=4, **QUIET)
    both, _, _ = lesson.fit("fixed", 1e-3, names=FEW, steps=4, loud={"movie": 100.0}, weights={"movie": 0.01}, **QUIET)
    other, _, _ = lesson.fit("fixed", 1e-3, names=FEW, steps=4, loud={"movie": 100.0}, **QUIET)
    a, b, c = state(plain), state(both), state(other)
    gap = max((a[name] - b[name]).abs().max().item() for name in a)
    assert gap < 2e-4 < max((a[name] - c[name]).abs().max().item() for name in a)
    assert [row["counts"] for row in history] == [dict.fromkeys(FEW, lesson.EACH)] * 4
    assert set(history[0]["losses"]) == set(FEW) and history[0]["weights"] == dict.fromkeys(FEW, 1.0)


def test_a_task_sees_the_same_texts_alone_and_beside_others(lesson, tiny, monkeypatch):
    seen, losses_of = {}, lesson.losses_of

    def spy(model, examples, loud):
        seen.setdefault(names, []).append([i for i, _ in examples["movie"]])
        return losses_of(model, examples, loud)

    monkeypatch.setitem(lesson.fit.__globals__, "losses_of", spy)
    for names in (("movie",), ("movie", "intents"), ("tweets", "movie", "answers")):
        lesson.fit("fixed", 1e-3, names=names, steps=3, **QUIET)
    first, *others = seen.values()
    assert all(other == first for other in others) and len(first) == 3 and len(first[0]) == lesson.EACH


@pytest.mark.parametrize("method", ["fixed", "uncertainty", "gradnorm", "pcgrad"])
def test_each_method_trains_the_shared_layers_and_every_head(lesson, tiny, method):
    before = state(lesson.build(FEW))
    looked = []
    model, weighting, history = lesson.fit(
        method, 1e-2, names=FEW, steps=3, look=lambda step, model: looked.append(step), **QUIET
    )
    after = state(model)
    moved = {name.split(".")[1] if name.startswith("heads") else "layers"
             for name in after if not torch.equal(after[name], before[name])}  # fmt: skip
    assert moved == {"layers", *FEW} and looked == [0, 1, 2] and set(weighting.weights) == set(FEW)
    assert len(history) == 3


def test_training_has_dropout_whatever_was_looked_at(lesson, tiny, monkeypatch):
    given, seen = lesson.fit.__globals__, []
    real = given["losses_of"]
    monkeypatch.setitem(given, "losses_of", lambda model, *rest: (seen.append(model.training), real(model, *rest))[1])
    lesson.fit("fixed", 1e-3, names=FEW, steps=2, look=lambda step, model: model.eval(), **QUIET)
    assert seen == [True, True]


def test_each_step_begins_without_gradients_and_moves_the_schedule(lesson, tiny, monkeypatch):
    given, seen, schedules = lesson.fit.__globals__, [], []

    class Watched(lesson.Fixed):
        def backward(self, losses, model):
            seen.append(all(p.grad is None or not p.grad.any() for p in model.parameters()))
            super().backward(losses, model)

    real = given["get_linear_schedule_with_warmup"]
    monkeypatch.setitem(
        given, "get_linear_schedule_with_warmup", lambda *args: schedules.append(real(*args)) or schedules[0]
    )
    monkeypatch.setitem(given["METHODS"], "fixed", Watched)
    lesson.fit("fixed", 1e-3, names=FEW, steps=3, **QUIET)
    assert seen == [True, True, True] and schedules[0].last_epoch == 3


def test_sampled_training_skips_absent_tasks(lesson, tiny):
    _, _, history = lesson.fit("fixed", 1e-3, steps=2, sampling="proportional", **QUIET)
    for row in history:
        assert sum(row["counts"].values()) == lesson.EACH * 7
        assert set(row["losses"]) == {name for name, count in row["counts"].items() if count}


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"method": "magic"}, "^a method is one of fixed, uncertainty, gradnorm, pcgrad, got 'magic'$"),
        ({"method": "gradnorm", "sampling": "annealed"}, "^gradnorm works on each task's loss in .*'annealed'$"),
        ({"method": "uncertainty", "sampling": "proportional"}, "^uncertainty works on .*'proportional'$"),
        ({"method": "fixed", "loud": {"poems": 2.0}}, "^loud and shuffled name tasks of movie, .* got poems$"),
        ({"method": "fixed", "shuffled": ["poems"]}, "^loud and shuffled name tasks of movie, .* got poems$"),
    ],
)
def test_bad_input_gives_one_sentence(lesson, options, sentence):
    with pytest.raises(ValueError, match=sentence) as error:
        lesson.fit(lr=1e-3, names=FEW, **options, **QUIET)
    assert "\n" not in str(error.value)


def test_read_is_the_skill_of_all_answers(lesson, tiny, short):
    model = lesson.build(FEW).train()
    for name in FEW:
        data = lesson.load()[name]
        found = lesson.answers_of(model, name, data.test)
        assert not model.training and len(found) == 12
        assert lesson.read(model, name, "test") == lesson.skill(lesson.KINDS[name], found, data.targets[data.test])
    data, tokenizer = lesson.load()["answers"], tasks.minilm()[1]
    for i, (first, last) in zip(data.test, lesson.answers_of(model, "answers", data.test).tolist(), strict=True):
        assert first >= len(tokenizer(data.texts[i][0])["input_ids"]) and first <= last


# --- which helps which


def test_cosines_by_hand(lesson, tiny, short):
    names = ("movie", "intents")
    model = lesson.build(names)
    halves = []
    for part in (slice(0, 6), slice(6, 12)):
        for name in names:
            data = lesson.load()[name]
            index = data.val[part]
            loss = lesson.loss_of(name, model.eval()(name, *lesson.batch_of(name, index)), data.targets[index])
            halves.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.layers.parameters()))]))
    cos = F.cosine_similarity
    a, b, c, d = halves
    wanted = [[cos(a, c, 0), (cos(a, d, 0) + cos(b, c, 0)) / 2], [(cos(a, d, 0) + cos(b, c, 0)) / 2, cos(b, d, 0)]]
    torch.testing.assert_close(lesson.cosines(model, names), torch.tensor(wanted), atol=0.03, rtol=0)


def test_gradients_are_taken_without_dropout(lesson, tiny, short):
    model = lesson.build(("movie",)).train()
    dropouts = [module for module in model.modules() if isinstance(module, torch.nn.Dropout)]
    for module in dropouts:
        module.p = 0.5
    first, second = (lesson.gradient(model.train(), "movie", lesson.load()["movie"].val[:6]) for _ in "ab")
    assert dropouts and torch.equal(first, second)


def test_verdicts(lesson):
    assert [lesson.verdict(*x) for x in ((0.02, 0.01), (-0.02, 0.01), (0.01, 0.02), (-0.01, 0.02))] == [
        "above", "below", "cannot be told apart", "cannot be told apart"]  # fmt: skip


# --- the studies and the panel


@pytest.fixture
def spied(lesson, monkeypatch):
    """The studies on this lesson, with a spy in place of fit and of read: the calls of both."""
    calls, parts = [], []

    def fit(method, lr, seed=0, names=lesson.TASKS, **options):
        calls.append({"method": method, "lr": lr, "seed": seed, "names": names} | options)
        calls[-1].pop("tick")
        if "look" in options:
            for step in range(48):
                options["look"](step, None)
        return None, SimpleNamespace(weights=dict.fromkeys(names, 1.0)), []

    own = SimpleNamespace(**vars(lesson), STEPS=48)
    own.fit, own.read = fit, lambda model, name, part: parts.append(part) or 0.25
    own.cosines = lambda model: torch.eye(7)
    monkeypatch.setattr(studies_11, "_lesson11", lambda *names: own)
    return calls, parts


def test_the_main_study_runs_what_its_arms_say(lesson, spied):
    calls, parts = spied
    cell = {"lr": 1e-3, "seed": 2}
    found = studies_11.methods_run(cell | {"arm": "tuned", "phase": "tune", "kinds": {"span": 3.0}})
    assert found["score"] == 0.25 and set(parts) == {"val"}
    assert calls[0]["weights"] == dict.fromkeys(lesson.TASKS, 1.0) | {"answers": 3.0}
    row = studies_11.methods_run(cell | {"arm": "gradnorm", "phase": "report", "alpha": 0.5})
    assert row["skill"] == 0.25 == row["movie"] and "score" not in row and parts[-1] == "test"
    assert (calls[1]["method"], calls[1]["alpha"], calls[1]["sampling"]) == ("gradnorm", 0.5, "equal")
    studies_11.methods_run(cell | {"arm": "annealed", "phase": "report"})
    assert (calls[2]["method"], calls[2]["sampling"]) == ("fixed", "annealed")
    row = studies_11.methods_run(cell | {"arm": "alone nyt", "phase": "report"})
    assert calls[3]["names"] == ("nyt",) and row == {"skill": 0.25, "nyt": 0.25}
    studies_11.methods_run(cell | {"arm": "shuffled", "phase": "report"})
    assert calls[4]["shuffled"] == lesson.TASKS and calls[1]["shuffled"] == ()
    row = studies_11.methods_run(cell | {"arm": "ratings", "phase": "report"})
    assert calls[5]["names"] == ("movie", "tweets", "amazon", "nyt") == tuple(row)[1:] and row["skill"] == 0.25
    arms = studies_11.methods_arms(False)
    assert {"lr": 1e-3, "kinds": {}} in arms["tuned"] and {"lr": 3e-3, "alpha": 0.5} in arms["gradnorm"]
    assert {len(arms[arm]) for arm in arms if arm.startswith("alone")} == {4} == {len(arms["equal"])}
    more = set(studies_11.more_arms(False))
    assert more | {"equal"} == {*lesson.SAMPLING, "pcgrad", "ratings", "shuffled"} and not more & set(arms)
    assert studies_11.methods_run(cell | {"arm": "shuffled", "phase": "tune"}) == {"score": None} and len(calls) == 6


def test_the_other_studies_run_what_their_arms_say(lesson, spied):
    calls, parts = spied
    cell = {"lr": 1e-3, "seed": 2, "phase": "report"}
    studies_11.loud_run(cell | {"arm": "tuned", "loud": 0.01})
    studies_11.loud_run(cell | {"arm": "uncertainty", "rate": 0.3})
    assert all(call["loud"] == {"movie": 100.0} for call in calls)
    assert calls[0]["weights"] == {"movie": 0.01} and calls[1]["rate"] == 0.3 and calls[1]["method"] == "uncertainty"
    studies_11.loud_run(cell | {"arm": "uncertainty from loss", "rate": 0.1, "start": "loss"})
    assert (calls[2]["method"], calls[2]["start"], calls[2]["loud"]) == ("uncertainty", "loss", {"movie": 100.0})
    arms = studies_11.loud_arms(False)
    assert {"loud": 0.01, "lr": 3e-4} in arms["tuned"] and all(len(settings) >= 2 for settings in arms.values())
    assert studies_11.pairs_run(cell | {"arm": "movie+nyt"}) == {"movie": 0.25, "nyt": 0.25}
    assert calls[3]["names"] == ("movie", "nyt") and calls[3]["shuffled"] == ()
    assert studies_11.pairs_run(cell | {"arm": "movie~nyt"}) == {"nyt": 0.25}
    assert calls[4]["names"] == ("movie", "nyt") and calls[4]["shuffled"] == ("movie",)
    assert studies_11.pairs_run(cell | {"arm": "nyt"}) == {"nyt": 0.25} and set(parts) == {"test"}
    assert studies_11.pairs_run(cell | {"arm": "nyt", "phase": "tune"}) == {"score": None}
    row = studies_11.pairs_run(cell | {"arm": "all"})
    assert len(row) == 98 and row["early: nyt, nyt"] == 1 and row["late: movie, claims"] == 0
    arms = studies_11.pairs_arms(False)
    assert len(arms) == 1 + 7 + 21 + 7


def test_the_panel_reports_steps_and_weights(lesson, tiny, short):
    ticks = []
    found = lesson.experiment(lambda *a, **k: ticks.append(a), "uncertainty", "equal", 100, 1e-3, 2)
    assert ticks == [(0, 2), (1, 2)] and set(found) == {"skill", "movie_skill", "film_weight"}
    assert 0 < found["film_weight"] < 0.5
