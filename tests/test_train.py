"""The training loop: a step's gradient against autograd on the whole batch, the order of clip, step and schedule."""

import copy
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from nbtools import profiles, train, widgets
from nbtools.train import fit, seed_everything

IGNORED = -100


def quiet(step, steps, **metrics):
    pass


def linear(seed=0, dtype=torch.float32):
    torch.manual_seed(seed)
    return torch.nn.Linear(5, 3).to(dtype)


def images(n=4, size=6, seed=1):
    g = torch.Generator().manual_seed(seed)
    return [(torch.randn(size, 5, generator=g), torch.randint(0, 3, (size,), generator=g)) for _ in range(n)]


class Bigram(torch.nn.Module):
    """The smallest language model: the logits of the next token from the present one."""

    def __init__(self, vocabulary=11):
        super().__init__()
        self.table = torch.nn.Embedding(vocabulary, vocabulary, dtype=torch.float64)

    def forward(self, tokens):
        return self.table(tokens)


def next_token_sum(model, batch):
    tokens, labels = batch
    logits, targets = model(tokens[:, :-1]).flatten(0, 1), labels[:, 1:].flatten()
    return F.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="sum")


def next_token_mean(model, batch):
    return next_token_sum(model, batch) / labelled(batch)


def labelled(batch):
    return (batch[1][:, 1:] != IGNORED).sum().item()


def sentences():
    """Four micro-batches with 2 to 22 labelled tokens each, and the same rows as one batch padded to the longest."""
    g, rows = torch.Generator().manual_seed(3), []
    for length in (3, 5, 9, 12):
        tokens = torch.randint(0, 11, (2, length), generator=g)
        labels = tokens.clone()
        labels[0, : length // 2] = IGNORED  # a prompt
        rows.append((tokens, labels))
    pad = [(F.pad(t, (0, 12 - t.shape[1])), F.pad(y, (0, 12 - y.shape[1]), value=IGNORED)) for t, y in rows]
    return rows, tuple(torch.cat(part) for part in zip(*pad, strict=True))


def gradient_of_step(loss_fn, count, batches, accumulate, clip=None):
    """The gradient that the optimizer saw in one step, with the weights it left (plain SGD, rate 1)."""
    torch.manual_seed(0)
    model = Bigram()
    before = copy.deepcopy(model.state_dict())
    fit(
        model,
        batches,
        torch.optim.SGD(model.parameters(), lr=1.0),
        1,
        loss_fn,
        count,
        accumulate=accumulate,
        clip=clip,
        mixed=False,
        tick=quiet,
    )
    return before["table.weight"] - model.table.weight.detach()


def large_batch_gradient():
    torch.manual_seed(0)
    model = Bigram()
    next_token_mean(model, sentences()[1]).backward()
    return model.table.weight.grad


# --- accumulation


def test_accumulated_micro_batches_of_unequal_length_give_the_gradient_of_the_large_batch():
    micro, whole = sentences()
    assert sorted(labelled(b) for b in micro) == [4, 7, 13, 17], "unequal, or this shows nothing"
    step = gradient_of_step(next_token_sum, labelled, micro, accumulate=4)
    torch.testing.assert_close(step, large_batch_gradient(), rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(gradient_of_step(next_token_sum, labelled, [whole], 1), step, rtol=1e-12, atol=1e-14)


def test_the_mean_of_means_is_another_gradient():
    """What the sum is there to avoid: each micro-batch's own mean, averaged, weighs tokens of short rows more."""
    step = gradient_of_step(next_token_mean, lambda batch: 1, sentences()[0], accumulate=4)
    assert (step - large_batch_gradient()).norm() > 0.1 * large_batch_gradient().norm()


def test_the_loss_in_the_history_is_the_mean_over_all_tokens_of_the_step():
    torch.manual_seed(0)
    model, (micro, whole) = Bigram(), sentences()
    expected = next_token_mean(model, whole).item()
    history = fit(
        model, micro, torch.optim.SGD(model.parameters(), lr=0.1), 1, next_token_sum, labelled, accumulate=4, tick=quiet
    )
    assert history[0]["loss"] == pytest.approx(expected, rel=1e-12)


def test_accumulation_goes_on_where_the_pass_ended():
    """Three batches, two a step: the second step takes the third and, of the next pass, the first."""
    seen, model = [], linear()

    def loss(model, batch):
        seen.append(int(batch[1][0]))
        return train.cross_entropy_sum(model, batch)

    batches = [(torch.zeros(1, 5), torch.tensor([i])) for i in range(3)]
    fit(model, batches, torch.optim.SGD(model.parameters(), lr=0.0), 3, loss, accumulate=2, tick=quiet)
    assert seen == [0, 1, 2, 0, 1, 2]


# --- clipping and schedule


def test_clipping_sees_the_whole_step_and_comes_before_the_update():
    full = large_batch_gradient()
    clip = full.norm().item() / 3
    step = gradient_of_step(next_token_sum, labelled, sentences()[0], accumulate=4, clip=clip)
    torch.testing.assert_close(step, full / 3, rtol=1e-4, atol=1e-12)  # clipping each micro-batch would bend it


def test_a_small_gradient_is_not_clipped():
    full = large_batch_gradient()
    step = gradient_of_step(next_token_sum, labelled, sentences()[0], accumulate=4, clip=10 * full.norm().item())
    torch.testing.assert_close(step, full, rtol=1e-12, atol=1e-14)


def test_clipping_takes_all_groups_together():
    model = linear()
    optimizer = torch.optim.SGD([{"params": [model.weight], "lr": 1.0}, {"params": [model.bias], "lr": 1.0}])
    before = copy.deepcopy(model)
    fit(model, images(1), optimizer, 1, clip=0.01, mixed=False, tick=quiet)
    moved = [(a - b).detach() for a, b in zip(model.parameters(), before.parameters(), strict=True)]
    assert torch.cat([m.flatten() for m in moved]).norm().item() == pytest.approx(0.01, rel=1e-3)


def test_the_schedule_moves_once_per_optimizer_step_and_the_history_has_the_rate_of_each_step():
    model = linear()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    history = fit(model, images(), optimizer, 4, accumulate=3, schedule=schedule, tick=quiet)
    assert [row["lr"] for row in history] == [1, 1 / 2, 1 / 3, 1 / 4]
    assert schedule.last_epoch == 4


def test_a_schedule_of_transformers_works():
    from transformers import get_linear_schedule_with_warmup

    model = linear()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.8)
    schedule = get_linear_schedule_with_warmup(optimizer, 2, 4)
    history = fit(model, images(), optimizer, 4, schedule=schedule, tick=quiet)
    assert [row["lr"] for row in history] == pytest.approx([0, 0.4, 0.8, 0.4])


def test_the_rate_of_the_last_group_is_the_one_reported():
    model = linear()
    optimizer = torch.optim.SGD([{"params": [model.weight], "lr": 0.1}, {"params": [model.bias], "lr": 0.5}])
    assert fit(model, images(), optimizer, 1, tick=quiet)[0]["lr"] == 0.5


# --- early stopping


def scored(scores, patience, eval_every=1, steps=10):
    """Run `fit` with an evaluation that answers `scores` in turn; the weight of each step, the history, the ticks."""
    model, ticks, weights, answers = linear(), [], [], iter(scores)

    def evaluate():
        assert not model.training, "evaluated in train mode"
        weights.append(copy.deepcopy(model.state_dict()))
        return next(answers)

    history = fit(
        model,
        images(),
        torch.optim.SGD(model.parameters(), lr=0.1),
        steps,
        evaluate=evaluate,
        eval_every=eval_every,
        patience=patience,
        tick=lambda step, steps, **m: ticks.append((step, m)),
    )
    return model.state_dict(), weights, history, ticks


def same(a, b):
    return all(torch.equal(a[k], b[k]) for k in a)


def test_early_stopping_gives_the_best_weights_back():
    final, weights, history, _ = scored([0.1, 0.5, 0.9, 0.8, 0.9, 1.0], patience=2)
    assert len(history) == 5, "0.9 again is no new best: two scores without one after the third"
    assert same(final, weights[2]) and not same(final, weights[-1])


def test_a_run_that_never_stops_early_gives_the_best_weights_back_too():
    final, weights, history, _ = scored([0.1, 0.9, 0.5], patience=5, eval_every=3, steps=9)
    assert len(history) == 9 and same(final, weights[1])


def test_without_patience_the_last_weights_stay():
    final, weights, history, _ = scored([0.9, 0.1, 0.2], patience=0, steps=3)
    assert len(history) == 3 and same(final, weights[-1])


def test_ticks_carry_the_loss_of_each_step_and_the_score_where_one_was_asked_also_of_the_step_that_stops():
    *_, history, ticks = scored([0.5, 0.4], patience=1, eval_every=2)
    assert [step for step, _ in ticks] == [0, 1, 2, 3]
    assert [m.get("score") for _, m in ticks] == [None, 0.5, None, 0.4] == [row.get("score") for row in history]
    assert [m["loss"] for _, m in ticks] == [row["loss"] for row in history]


def test_a_score_that_is_not_a_number_is_no_best():
    final, weights, history, _ = scored([0.5, float("nan"), float("nan")], patience=2)
    assert len(history) == 3 and same(final, weights[0])


# --- modes, precision, data


def test_train_mode_is_given_back_after_each_evaluation():
    model, modes, calls = torch.nn.Sequential(torch.nn.Linear(5, 3), torch.nn.Dropout(0.5)), [], []

    def frozen_first(m):
        calls.append(m)
        m.train()
        m[0].eval()

    def loss(m, batch):
        modes.append((m[0].training, m[1].training))
        return train.cross_entropy_sum(m, batch)

    fit(
        model,
        images(),
        torch.optim.SGD(model.parameters(), lr=0.1),
        4,
        loss,
        train_mode=frozen_first,
        evaluate=lambda: 0.0,
        eval_every=1,
        tick=quiet,
    )
    assert modes == [(False, True)] * 4
    assert len(calls) == 5 and all(m is model for m in calls)


def profile(dtype):
    return profiles.Profile("cpu", "cpu", dtype, 2, 8.0, None, "toy", ())


@pytest.mark.parametrize(
    ("dtype", "mixed", "seen"),
    [
        ("bfloat16", True, torch.bfloat16),
        ("bfloat16", False, torch.float32),
        ("float32", True, torch.float32),
        ("float16", True, torch.float32),  # without a loss scaler its gradients would underflow
    ],
)
def test_the_compute_type_is_the_profile_s(monkeypatch, dtype, mixed, seen):
    monkeypatch.setattr(train, "current", lambda: profile(dtype))
    types, model = [], linear()

    def loss(m, batch):
        types.append(m(batch[0]).dtype)
        return train.cross_entropy_sum(m, batch)

    fit(model, images(), torch.optim.SGD(model.parameters(), lr=0.1), 1, loss, mixed=mixed, tick=quiet)
    assert types == [seen]
    assert not torch.is_autocast_enabled("cpu"), "left on"
    assert model.weight.dtype == model.weight.grad.dtype == torch.float32, "weights and gradients stay in float32"


def test_a_spent_iterator_names_the_way_out():
    model, once = linear(), iter(images(2))
    with pytest.raises(ValueError, match="spent iterator; pass a list, a DataLoader, or a function") as caught:
        fit(model, once, torch.optim.SGD(model.parameters(), lr=0.1), 3, tick=quiet)
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="empty"):
        fit(model, [], torch.optim.SGD(model.parameters(), lr=0.1), 1, tick=quiet)


def test_a_function_that_returns_a_fresh_iterator_is_asked_for_each_pass():
    passes, model = [], linear()

    def batches():
        passes.append(len(passes))
        yield from images(2)

    assert len(fit(model, batches, torch.optim.SGD(model.parameters(), lr=0.1), 5, tick=quiet)) == 5
    assert passes == [0, 1, 2]


def test_batches_move_as_tuples_lists_and_dicts():
    x = torch.ones(2)
    moved = train.to_device({"a": x, "b": (x, [x])}, torch.device("meta"))
    assert moved["a"].is_meta and moved["b"][0].is_meta and moved["b"][1][0].is_meta
    assert isinstance(moved["b"], tuple) and isinstance(moved["b"][1], list)


def test_soft_labels_are_the_mixture_of_hard_ones():
    """Cross-entropy is linear in the label: 0.3 a + 0.7 b costs 0.3 of a's loss and 0.7 of b's."""
    model, (x, a) = linear(), images(1)[0]
    b = a.roll(1)
    soft = 0.3 * F.one_hot(a, 3).float() + 0.7 * F.one_hot(b, 3).float()
    losses = [train.cross_entropy_sum(model, (x, y)).item() for y in (soft, a, b)]
    assert losses[0] == pytest.approx(0.3 * losses[1] + 0.7 * losses[2], rel=1e-5)
    assert losses[1] == pytest.approx(-F.log_softmax(model(x), 1)[torch.arange(len(a)), a].sum().item(), rel=1e-5)
    history = fit(model, [(x, soft)], torch.optim.SGD(model.parameters(), lr=0.1), 1, mixed=False, tick=quiet)
    assert history[0]["loss"] == pytest.approx(losses[0] / len(x), rel=1e-5)


# --- reproduction


def test_fit_has_exactly_the_losses_of_a_bare_loop():
    batches, a = images(3), linear()
    b = copy.deepcopy(a)
    history = fit(a, batches, torch.optim.AdamW(a.parameters(), lr=0.01), 7, mixed=False, tick=quiet)
    optimizer, losses = torch.optim.AdamW(b.parameters(), lr=0.01), []
    for step in range(7):
        x, y = batches[step % 3]
        optimizer.zero_grad()
        loss = F.cross_entropy(b(x), y, reduction="sum") / len(y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert [row["loss"] for row in history] == losses
    assert same(a.state_dict(), b.state_dict())
    assert [row["step"] for row in history] == list(range(7))
    assert all(x["seconds"] < y["seconds"] for x, y in zip(history, history[1:], strict=False))


def test_seeding_repeats_python_numpy_and_torch():
    def draw(seed):
        g = seed_everything(seed)
        return (random.random(), np.random.rand(), torch.rand(1).item(), torch.rand(1, generator=g).item())  # noqa: NPY002

    first, again, other = draw(5), draw(5), draw(6)
    assert first == again
    assert all(a != b for a, b in zip(first, other, strict=True))
    assert first[2] == first[3], "the generator starts at the same seed"


# --- progress and stopping


def test_a_tick_that_raises_stops_the_run_and_the_model_can_go_on():
    model, steps_seen = linear(), []

    def tick(step, steps, **metrics):
        steps_seen.append(step)
        if step == 2:
            raise widgets.Stopped

    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(widgets.Stopped):
        fit(model, images(), optimizer, 100, tick=tick)
    assert steps_seen == [0, 1, 2]
    assert not torch.is_autocast_enabled("cpu") and torch.is_grad_enabled()
    history = fit(model, images(), optimizer, 30, tick=quiet)
    assert history[-1]["loss"] < history[0]["loss"]


def test_progress_says_loss_and_time_left_now_and_then_and_at_the_end(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr(train.time, "perf_counter", lambda: now[0])
    tick = train.print_progress(every=5)
    for step in range(4):
        now[0] += 3
        tick(step, 4, loss=1 / (step + 1))
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["step 2/4  loss 0.500  6 s left", "step 4/4  loss 0.250  0 s left"]


def test_a_step_without_any_label_says_so():
    batches = [(torch.ones(2, 3), torch.empty(0, dtype=torch.long))]
    model = torch.nn.Linear(3, 2)
    with pytest.raises(ValueError, match="step 0 has nothing to learn from: 0 loss terms"):
        train.fit(model, batches, torch.optim.SGD(model.parameters(), lr=0.1), steps=1, tick=lambda *a, **k: None)
