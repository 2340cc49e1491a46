"""Lesson 13: its formats, roundings, scaler and optimizers against torch, bitsandbytes and numbers done by hand."""

import inspect
import math
import sys
from types import ModuleType, SimpleNamespace

import bitsandbytes as bnb
import pytest
import small
import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoModelForCausalLM

from nbtools import meters, notebooks, profiles, studies_13, tasks, train, zoo

TAUGHT = (
    "FORMATS limits pattern round_to stuck stochastic_round split DATA batch_of gradients scaler_step Listen listen "
    "build precision saved to_codes from_codes library_codes adam8_step SIGNED UNSIGNED AdamW16 ARMS STEPS BATCH "
    "optimizer_of run_arm held_out moved one_step text_batch backward_seconds compare_smollm2 experiment "
    "fp8_runs in_fp8 step_peak step_bytes flowing first_updates products curves apart"
)
QUIET = {"tick": lambda *a, **k: None}


@pytest.fixture(scope="module")
def lesson():
    """What the notebook defines, as attributes."""
    return SimpleNamespace(**notebooks.definitions("13", *TAUGHT.split()))


@pytest.fixture
def tiny(monkeypatch):
    """A BERT of two small layers with MiniLM's tokenizer in place of MiniLM."""
    tokenizer, encoder = tasks.minilm()[1], small.bert()
    monkeypatch.setattr(tasks, "minilm", lambda: (encoder, tokenizer))


# --- bits


@pytest.mark.parametrize("name", ["float32", "bfloat16", "float16", "float8_e5m2", "float8_e4m3fn"])
def test_limits_are_torch_s(lesson, name):
    info, found = torch.finfo(getattr(torch, name)), lesson.limits(*lesson.FORMATS[name])
    assert (found["largest"], found["smallest normal"], found["step after 1"]) == (
        info.max,
        info.smallest_normal,
        info.eps,
    )
    assert torch.tensor(found["smallest"]).to(getattr(torch, name)).double().item() == found["smallest"]
    if name != "float32":  # half of the smallest number rounds to zero
        assert torch.tensor(found["smallest"] / 2, dtype=torch.float32).to(getattr(torch, name)).item() == 0


def test_tf32_has_the_reach_of_float32_and_the_digits_of_float16(lesson):
    wide, half, tf32 = (lesson.limits(*lesson.FORMATS[name]) for name in ("float32", "float16", "tf32"))
    assert tf32["smallest normal"] == wide["smallest normal"] and tf32["step after 1"] == half["step after 1"]


@pytest.mark.parametrize("name", ["float32", "bfloat16", "float16", "float8_e4m3fn"])
@pytest.mark.parametrize("value", [1.0, -0.1315825, 3.0, -96.0])
def test_a_pattern_read_back_is_the_number(lesson, name, value):
    sign, exponent, mantissa = lesson.pattern(value, name).split()
    bias, width = 2 ** (len(exponent) - 1) - 1, len(mantissa)
    assert (len(exponent), width) == lesson.FORMATS[name][:2]
    read = (-1) ** int(sign) * 2.0 ** (int(exponent, 2) - bias) * (1 + int(mantissa, 2) / 2**width)
    assert read == torch.tensor(value).to(getattr(torch, name)).item()


def test_every_float16_and_the_middles_between_them_round_as_torch_does(lesson):
    numbers = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(torch.float16).float()
    numbers = numbers[numbers.isfinite()].sort().values
    for x in (numbers, (numbers[1:] + numbers[:-1]) / 2):
        assert torch.equal(lesson.round_to(x, 5, 10), x.half().double())
    assert torch.equal(lesson.round_to(numbers, 8, 7), numbers.bfloat16().double())


def test_stuck_counts_weights_whose_update_is_lost(lesson):
    layer = nn.Linear(4, 1, bias=False)
    layer.weight.data = torch.tensor([[1.0, 0.5, 0.001, -1.0]])
    assert lesson.stuck(layer, 0.0015, torch.bfloat16) == 0.5  # half a step is 0.002 below 1, 0.001 below a half
    assert lesson.stuck(layer, 0.0015, torch.float32) == 0
    assert lesson.stuck(layer, 1e-6, torch.float16) == 0.75


# --- chance


def test_stochastic_rounding_has_the_mean_and_the_variance_of_the_formula(lesson):
    g, draws = torch.Generator().manual_seed(5), 200_000
    for value in (1.001, -0.3, 3e-6, 250.3):
        x = torch.full((draws,), value)
        drawn = lesson.stochastic_round(x, g).double()
        a, b = drawn.min().item(), drawn.max().item()
        value = x[0].item()
        variance = (value - a) * (b - value)
        assert 0 < b - a < abs(value) * 2**-7 * 1.01
        assert drawn.mean().item() == pytest.approx(value, abs=5 * math.sqrt(variance / draws))
        assert drawn.var().item() == pytest.approx(variance, rel=0.05)


# --- gradients, scaling


def test_splits_are_short_and_apart(lesson):
    data = lesson.DATA
    assert max(len(text.split()) for text in data.texts) == 12 and len(data.texts) == len(data.labels) > 2000
    parts = [set(range(*part.indices(len(data.texts)))) for part in (data.test, data.val, data.pool)]
    assert [len(part) for part in parts[:2]] == [600, 400]
    assert not parts[0] & parts[1] and not parts[1] & parts[2] and not parts[0] & parts[2]
    assert sum(map(len, parts)) == len(data.texts) == len(set(data.texts))
    x, y = lesson.batch_of(3, start=2)
    first = data.pool.start + 2
    wanted = tasks.encode(data.texts[first : first + 3])
    assert torch.equal(x["input_ids"].cpu(), wanted["input_ids"])
    assert torch.equal(y.cpu(), data.labels[first : first + 3])


def test_gradients_are_scaled_and_computed_in_the_asked_type(lesson, tiny):
    model, batch = tasks.build(), lesson.batch_of(4)
    plain = lesson.gradients(model, batch)
    F.cross_entropy(model.eval()(batch[0]), batch[1]).backward()  # on top of the first
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.grad, 2 * plain[name])
    scaled = lesson.gradients(model, batch, scale=8.0)
    assert all(torch.equal(scaled[name], 8 * plain[name]) for name in plain)
    half = lesson.gradients(model, batch, torch.bfloat16)
    apart = [((half[n] - g).norm() / g.norm()).item() for n, g in plain.items() if g.norm() > 1e-6]
    assert 1e-4 < max(apart) < 0.2


def test_what_flows_is_the_gradient_of_each_layer_s_output(lesson, tiny, monkeypatch):
    monkeypatch.setitem(lesson.flowing.__globals__, "MODEL", model := tasks.build())
    outputs, blocks = [], model.encoder.encoder.layer
    handles = [block.register_forward_hook(lambda block, into, out: outputs.append(out)) for block in blocks]
    x, y = lesson.batch_of(16)
    loss = F.cross_entropy(model.eval()(x), y)
    for handle in handles:
        handle.remove()
    wanted = torch.autograd.grad(loss, outputs)
    found = lesson.flowing(scale=8.0)
    torch.testing.assert_close(found["between layers"], 8 * torch.cat([g.flatten() for g in reversed(wanted)]))
    assert len(found["weights"]) == sum(p.numel() for p in model.parameters())
    for dtype in (torch.float16, torch.bfloat16):  # cells say so: between layers nothing is cast to 16 bits
        assert {values.dtype for values in lesson.flowing(dtype).values()} == {torch.float32}
    assert not any(block._backward_hooks for block in blocks)


def test_clipping_first_shrinks_the_first_update(lesson, monkeypatch):
    monkeypatch.setitem(lesson.first_updates.__globals__, "TRUE", {"weights": torch.tensor([0.0, 3e-3, -4e-3])})
    for lr in (1e-3, 0.1):
        assert lesson.first_updates(False, lr=lr) == pytest.approx((3.5e-3, 1.0), rel=1e-3)
    scale = 2.0**16  # the norm, 327.68, becomes 1; divided by the scale the gradients are 0.6 and 0.8 of 1 / scale
    sgd, adam = lesson.first_updates(True, scale)
    assert sgd == pytest.approx(0.7 / scale, rel=1e-3)
    sizes = (0.6 / scale, 0.8 / scale)
    assert adam == pytest.approx(sum(g / (g + 1e-8) for g in sizes) / 2, rel=1e-3)


def test_training_in_float16_with_the_scaler_learns_what_float32_learns(lesson):
    """Gradients of 1e-9 vanish in float16 without it."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(64, 8, generator=g)
    y = (x[:, 0] > 0).long()
    ends = {}
    for kind in ("float32", "float16", "scaled"):
        torch.manual_seed(0)
        model, scale, good = nn.Linear(8, 2), 2.0**16, 0
        optimizer = torch.optim.SGD(model.parameters(), lr=1e5)
        for _ in range(20):
            optimizer.zero_grad()
            with torch.autocast("cpu", dtype=torch.float16, enabled=kind != "float32"):
                loss = F.cross_entropy(model(x).float(), y) * 1e-6
            (loss * (scale if kind == "scaled" else 1)).backward()
            if kind == "scaled":
                scale, good = lesson.scaler_step(optimizer, scale, good)
            else:
                optimizer.step()
        ends[kind] = model.weight.detach()
    way = ends["float32"].norm()
    assert (ends["scaled"] - ends["float32"]).norm() / way < 0.05
    assert (ends["float16"] - ends["float32"]).norm() / way > 0.3


# --- autocast and memory


def test_listening_tells_who_computes_in_what(lesson):
    model = nn.Sequential(nn.Linear(6, 5), nn.LayerNorm(5), nn.Linear(5, 2))
    seen = lesson.listen(model, torch.randn(3, 6), torch.tensor([0, 1, 0]))
    assert seen["addmm", "bfloat16", "bfloat16"] == 2
    assert seen["_to_copy", "float32", "bfloat16"] >= 5  # two weights, two biases, the first input
    assert seen["nll_loss_forward", "float32", "float32"] == 1
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    flags = lesson.listen(lambda x: x * (x > 0), torch.ones(3, 2), torch.tensor([0, 1, 0]))
    assert flags["mul", "float32", "float32"] == 1 and not any(name == "gt" for name, _, _ in flags)


def test_arms_start_alike_with_frozen_embeddings(lesson, tiny):
    full, half = lesson.build("autocast", seed=3), lesson.build("bfloat16 master", seed=3)
    for (name, p), q in zip(full.named_parameters(), half.parameters(), strict=True):
        assert torch.equal(p.bfloat16(), q) and (p.dtype, q.dtype) == (torch.float32, torch.bfloat16)
        assert p.requires_grad == q.requires_grad == (name != "encoder.embeddings.word_embeddings.weight")
    assert not torch.equal(lesson.build(seed=4).head.weight, full.head.weight)


def test_autocast_keeps_copies_of_the_weights(lesson, tiny):
    one, four = ({arm: lesson.saved(arm, n) for arm in ("float32", "autocast", "bfloat16")} for n in (1, 4))
    layers = [m for m in lesson.build().modules() if isinstance(m, nn.Linear)]
    copies = 2 * sum(m.weight.numel() for m in layers)
    assert one["autocast"] > copies and four["autocast"] < four["float32"] + copies
    assert four["autocast"] - one["autocast"] < 0.95 * (four["float32"] - one["float32"])
    assert four["bfloat16"] < 0.7 * four["float32"]


@pytest.mark.skipif(profiles.current().device != "cpu", reason="other devices have other kernels")
def test_attention_with_dropout_keeps_float32_on_a_cpu(lesson):
    batch = lesson.batch_of(16)[:1]
    calm, training = (
        [meters.saved_bytes(lesson.build(arm).train(mode), batch) for arm in ("bfloat16", "float32")]
        for mode in (False, True)
    )
    assert calm[0] / calm[1] == pytest.approx(0.5, abs=0.01) and training[0] / training[1] > 0.6


# --- eight bits


def test_codes_are_the_nearest_levels_by_block(lesson):
    x = torch.randn(4 * 256, generator=torch.Generator().manual_seed(0)) * torch.logspace(-3, 2, 1024)
    codes, absmax = lesson.to_codes(x, lesson.SIGNED)
    assert torch.equal(absmax, x.reshape(4, 256).abs().amax(1)) and codes.dtype == torch.uint8
    scaled = x.reshape(4, 256) / absmax[:, None]
    best = (scaled[..., None] - lesson.SIGNED).abs().amin(-1)
    back = lesson.from_codes(codes, absmax, lesson.SIGNED)
    torch.testing.assert_close((back.reshape(4, 256) / absmax[:, None] - scaled).abs(), best, atol=1e-6, rtol=0)
    assert lesson.to_codes(torch.zeros(256), lesson.SIGNED)[0].unique().tolist() == [
        lesson.SIGNED.abs().argmin().item()
    ]


def test_the_eight_bit_step_is_that_of_bitsandbytes_up_to_its_rounding(lesson):
    g = torch.Generator().manual_seed(0)
    start = torch.randn(64, 128, generator=g)
    library = nn.Parameter(start.clone())
    optimizer = bnb.optim.AdamW8bit([library], lr=1e-2, weight_decay=0)
    zeros = torch.zeros(start.numel())
    ours = {}
    for store in (lesson.library_codes, lesson.to_codes):
        state = [lesson.to_codes(zeros, table) for table in (lesson.SIGNED, lesson.UNSIGNED)]
        ours[store] = [start.flatten().clone(), state]
    for t in range(1, 5):
        grad = torch.randn(64, 128, generator=g)
        library.grad = grad.clone()
        optimizer.step()
        for store, kept in ours.items():
            kept[1] = lesson.adam8_step(kept[0], grad.flatten(), kept[1], t, store, lr=1e-2)
    way = (library - start).norm()
    apart = [((kept[0].reshape(64, 128) - library).norm() / way).item() for kept in ours.values()]
    assert apart[0] < 2e-3 and apart[1] < 0.1
    assert meters.optimizer_bytes(optimizer) >= 2 * start.numel() + 2 * 4 * start.numel() / 256


# --- AdamW for 16-bit weights


def test_on_float32_weights_every_rounding_is_adamw(lesson):
    for how in ("nearest", "stochastic", "master"):
        torch.manual_seed(1)
        mine, theirs = (nn.Parameter(x) for x in torch.randn(50).expand(2, 50).clone())
        groups = [{"params": [mine], "lr": 0.03}]
        ours, reference = lesson.AdamW16(groups, how), torch.optim.AdamW([theirs], lr=0.03, weight_decay=0)
        for step in range(6):
            mine.grad = theirs.grad = torch.randn(50) * 10.0**-step
            ours.step()
            reference.step()
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)


def trained(lesson, how, steps=400, lr=1e-4, count=5000, seed=0):
    """`count` bfloat16 weights of 1 after steps under a constant gradient: each step is to take lr off."""
    p, unused = nn.Parameter(torch.ones(count, dtype=torch.bfloat16)), nn.Parameter(torch.ones(1))
    optimizer = lesson.AdamW16([{"params": [p, unused], "lr": lr}], how, seed)
    for _ in range(steps):
        p.grad = torch.ones_like(p)
        optimizer.step()
    assert unused.item() == 1 and unused not in optimizer.state
    return p.detach().double(), optimizer


def test_what_becomes_of_small_updates(lesson):
    assert trained(lesson, "nearest")[0].unique().tolist() == [1.0]
    found, optimizer = trained(lesson, "master")
    assert found.unique().tolist() == [torch.tensor(1 - 0.04).bfloat16().item()]
    kept = next(iter(optimizer.state.values()))
    assert {kept[name].dtype for name in ("m", "v", "master")} == {torch.float32}
    assert meters.optimizer_bytes(optimizer) == 12 * 5000
    found, optimizer = trained(lesson, "stochastic")
    assert found.mean().item() == pytest.approx(0.96, abs=1e-3) and found.std() > 0.005
    kept = next(iter(optimizer.state.values()))
    assert {kept[name].dtype for name in ("m", "v")} == {torch.bfloat16} and "master" not in kept
    assert meters.optimizer_bytes(optimizer) == 4 * 5000
    assert torch.equal(found, trained(lesson, "stochastic")[0])
    assert not torch.equal(found, trained(lesson, "stochastic", seed=1)[0])


def test_a_rounding_that_is_not_known_is_refused(lesson):
    with pytest.raises(ValueError, match="^how must be nearest, stochastic or master, got 'up'$"):
        lesson.AdamW16([nn.Parameter(torch.ones(1))], "up")


# --- the experiment


def test_each_arm_has_its_optimizer_and_the_head_its_rate(lesson, tiny):
    for arm, how in lesson.ARMS.items():
        model = lesson.build(arm)
        optimizer = lesson.optimizer_of(model, arm, 3e-4, seed=7)
        head, body = optimizer.param_groups
        assert (head["lr"], body["lr"]) == (1e-2, 3e-4)
        assert {id(p) for p in head["params"]} == {id(p) for p in model.head.parameters()}
        wanted = {id(p) for n, p in model.named_parameters() if p.requires_grad and not n.startswith("head")}
        assert {id(p) for p in body["params"]} == wanted
        assert how is None or optimizer.generator.initial_seed() == 7
        assert getattr(optimizer, "how", None) == how and (how or optimizer.param_groups[0]["weight_decay"] == 0)


def test_arms_see_the_same_sentences_and_only_the_control_other_labels(lesson, tiny, monkeypatch):
    seen, mixed = {}, {}
    monkeypatch.setattr(train, "cross_entropy_sum", lambda *a: torch.tensor(torch.is_autocast_enabled("cpu")))

    def fit(model, batches, optimizer, steps, loss_sum, **options):
        seen[arm] = list(batches())
        assert options["mixed"] is False and options["clip"] == 1.0
        mixed[arm] = loss_sum(model, seen[arm][0]).item()
        return []

    monkeypatch.setattr(train, "fit", fit)
    for arm in ("float32", "bfloat16 stochastic", "autocast_shuffled"):
        lesson.run_arm(arm, 1e-4, seed=2, **QUIET)
    assert list(mixed.values()) == [False, False, True]
    plain, half, control = seen.values()
    arm = "float32"
    lesson.run_arm(arm, 1e-4, seed=3, **QUIET)
    assert not torch.equal(seen[arm][0][0]["input_ids"], plain[0][0]["input_ids"])
    assert len(plain) == math.ceil((len(lesson.DATA.texts) - 1000) / lesson.BATCH)
    for other in (half, control):
        pairs = zip(plain, other, strict=True)
        assert all(torch.equal(a[0]["input_ids"], b[0]["input_ids"]) for a, b in pairs)
    assert all(torch.equal(a[1], b[1]) for a, b in zip(plain, half, strict=True))
    mine, others = (torch.cat([y for _, y in side]) for side in (plain, control))
    assert not torch.equal(mine, others) and mine.sum() == others.sum()
    agree = (mine == others).double().mean().item()
    assert 0.4 < agree < 0.6


def test_the_context_of_an_arm(lesson):
    x = torch.randn(2, 2)
    for arm in lesson.ARMS:
        with lesson.precision(arm):
            dtype = (x @ x).dtype
        assert dtype == (torch.bfloat16 if arm.startswith("autocast") else torch.float32)


class Spy(nn.Module):
    """Notes whether autocast is on where it is called."""

    def __init__(self):
        super().__init__()
        self.head, self.seen = nn.Linear(1, 2), []

    def forward(self, x=None, **batch):
        self.seen.append(torch.is_autocast_enabled("cpu"))
        rows = len((x or batch)["input_ids"])
        return SimpleNamespace(loss=self.head.weight.sum()) if batch else torch.zeros(rows, 2)


def test_reading_and_clocking_are_done_in_the_arm_s_precision(lesson):
    for arm in ("float32", "autocast", "bfloat16"):
        spy = Spy()
        lesson.held_out(spy, arm, slice(0, 4))
        lesson.backward_seconds(spy, {"input_ids": torch.zeros(2)}, arm)
        assert spy.seen == [arm == "autocast"] * 2


def test_an_arm_that_is_not_there_is_refused(lesson):
    with pytest.raises(ValueError, match="^an arm is one of float32, autocast, .*, got 'float8'$"):
        lesson.run_arm("float8", 1e-4)


def test_held_out_numbers_are_those_of_all_sentences_at_once(lesson, tiny):
    for arm in ("float32", "bfloat16"):
        model, part = lesson.build(arm).train(), slice(600, 730)
        found = lesson.held_out(model, arm, part)
        assert not model.training
        with torch.no_grad():
            logits = model.eval()(tasks.encode(lesson.DATA.texts[part])).float()
        labels = lesson.DATA.labels[part]
        assert found["loss"] == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-2)
        assert found["accuracy"] == pytest.approx((logits.argmax(1) == labels).double().mean().item(), abs=0.02)


def test_moved_counts_trained_weights_below_the_head(lesson, tiny):
    model = lesson.build("bfloat16", seed=1)
    assert lesson.moved(model, "bfloat16") == 0
    with torch.no_grad():
        model.head.weight += 1
        block = model.encoder.encoder.layer[0].output.dense.weight
        block += 1
    body = [p for n, p in model.named_parameters() if p.requires_grad and not n.startswith("head")]
    assert lesson.moved(model, "bfloat16") == block.numel() / sum(p.numel() for p in body)


def test_the_study_trains_scores_and_reads(lesson, tiny, monkeypatch):
    run_arm, calls = lesson.run_arm, []
    monkeypatch.setattr(lesson, "BATCH", 4)
    monkeypatch.setattr(studies_13, "_lesson13", lambda: lesson)
    monkeypatch.setattr(lesson, "run_arm", lambda *a, **k: (calls.append(a), run_arm(*a, steps=2, **k))[1])
    parts = []
    held_out = lesson.held_out
    monkeypatch.setattr(lesson, "held_out", lambda m, a, part: (parts.append(part), held_out(m, a, slice(0, 8)))[1])
    cell = {"arm": "bfloat16 stochastic", "lr": 1e-3, "seed": 3}
    tuned = studies_13.precision_run(cell | {"phase": "tune"})
    assert tuned["score"] < 0 and 0 <= tuned["accuracy"] <= 1 and 0 < tuned["moved"] <= 1
    row = studies_13.precision_run(cell | {"phase": "report"})
    assert row["loss"] > 0 and row["saved_bytes"] > 0 and row["optimizer_bytes"] > 0 and "score" not in row
    assert [float(x) > 0 for x in row["curve"].split()] == [True, True], "two steps, two losses"
    assert calls == [("bfloat16 stochastic", 1e-3, 3)] * 2 and parts == [lesson.DATA.val, lesson.DATA.test]
    arms = studies_13.precision_arms(False)
    assert list(arms) == list(lesson.ARMS) and len(arms["autocast_shuffled"]) == 1
    assert {len(settings) for arm, settings in arms.items() if not arm.endswith("shuffled")} == {4}
    assert len(studies_13.precision_arms(True)["float32"]) == 6


def test_the_curve_is_the_means_of_eighths():
    assert studies_13._curve([*range(16)]) == " ".join(f"{2 * i + 0.5:.4f}" for i in range(8))


def test_the_peak_of_a_step_counts_weights_gradients_and_states(lesson, tiny):
    for arm in ("float32", "autocast", "bfloat16", "bfloat16 master"):
        peak = lesson.step_peak(arm)
        frozen = lesson.build(arm).encoder.embeddings.word_embeddings.weight.nbytes
        there = sum(lesson.step_bytes(lesson.build(arm), arm.endswith("master")))
        most = there + lesson.saved(arm, lesson.BATCH) + 0.2 * frozen  # nothing else, above all no second model
        assert there < peak < most, arm
    assert lesson.step_peak("bfloat16") < lesson.step_peak("bfloat16 master") < lesson.step_peak("float32")


def test_paired_differences_and_curves_are_read_off_the_rows(lesson, monkeypatch):
    rows = [
        {"phase": phase, "arm": arm, "seed": seed, "accuracy": 0.8 + high + seed / 100, "loss": seed / 10 - high,
         "curve": f"{seed} {high}"}
        for phase in ("tune", "report") for arm, high in (("autocast", 0.05), ("float32", 0.0)) for seed in (1, 2, 3)
    ]  # fmt: skip
    for name in ("apart", "curves"):
        monkeypatch.setitem(getattr(lesson, name).__globals__, "STUDY", rows)
    for found, mean in zip(lesson.apart("autocast", "float32"), (0.05, -0.05), strict=True):
        assert found == pytest.approx((mean, 0), abs=1e-9)
    assert lesson.curves("autocast") == {seed: [seed, 0.05] for seed in (1, 2, 3)}


def test_the_panel_reports_steps_and_what_moved(lesson, tiny):
    ticks = []
    found = lesson.experiment(lambda *a, **k: ticks.append(a), "bfloat16 stochastic", 1e-3, 2)
    assert ticks == [(0, 2), (1, 2)] and set(found) == {"moved", "loss_held_out", "accuracy"} and 0 < found["moved"] < 1


# --- time, and the larger model


@pytest.mark.parametrize("arm", ["float32", "autocast", "bfloat16 master", "tf32", "float16"])
def test_a_clocked_step_trains(lesson, tiny, arm):
    model, batch = lesson.build(arm).train(), lesson.batch_of(4)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0) if arm == "float16" else None
    before = [p.detach().clone() for p in model.parameters() if p.requires_grad]
    seconds = lesson.one_step(arm, model, lesson.optimizer_of(model, arm, 1e-2), batch, scaler)
    torch.set_float32_matmul_precision("highest")
    after = [p for p in model.parameters() if p.requires_grad]
    assert seconds > 0 and sum(not torch.equal(a, b) for a, b in zip(after, before, strict=True)) > len(after) / 2
    assert all(p.grad is None for p in after)


def test_a_bare_product_is_clocked_in_both_types(lesson):
    found = lesson.products(16, rounds=1)
    assert set(found) == {torch.float32, torch.bfloat16} and min(found.values()) > 0
    size = inspect.signature(lesson.products).parameters["size"].default
    assert size == (8192 if profiles.current().device == "cuda" else 1024), "as in lesson 00"


def test_smollm2_s_numbers_are_counted_by_the_byte(lesson, monkeypatch):
    tokenizer = zoo.smollm2()[1]
    config = small.llama(vocab_size=49152, tie_word_embeddings=True, pad_token_id=2)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    monkeypatch.setattr(zoo, "smollm2", lambda: (model, tokenizer))
    found = lesson.compare_smollm2(rounds=1)
    weights = sum(p.numel() for p in model.parameters())
    assert [found[arm][0] for arm in ("float32", "autocast", "bfloat16")] == [8 * weights, 8 * weights, 4 * weights]
    assert found["autocast"][1] > found["bfloat16"][1] and all(values[2] > 0 for values in found.values())
    assert all(p.grad is None for p in model.parameters())
    batch = lesson.text_batch(tokenizer, 3)
    assert torch.equal(batch["labels"] == -100, batch["attention_mask"] == 0)
    assert tokenizer.decode(batch["input_ids"][0], skip_special_tokens=True) == lesson.DATA.texts[0]


def test_the_study_of_smollm2_trains_all_weights_and_reads_held_out_tokens(lesson, monkeypatch):
    tokenizer = zoo.smollm2()[1]

    def model():
        torch.manual_seed(0)
        config = small.llama(vocab_size=49152, tie_word_embeddings=True, initializer_range=0.1)
        return AutoModelForCausalLM.from_config(config)

    monkeypatch.setattr(zoo, "smollm2", lambda: (model(), tokenizer))
    given, precision = studies_13._smollm2(), []
    asked = {"precision": lambda arm: (precision.append(arm), given.precision(arm))[1]}
    monkeypatch.setattr(studies_13, "_smollm2", lambda: SimpleNamespace(**vars(given) | asked))
    studies_13._untrained.cache_clear()
    texts = lesson.DATA.texts[lesson.DATA.test][:33]  # more than a batch
    logits = [model().eval()(**tokenizer(text, return_tensors="pt")).logits[0] for text in texts]
    ids = [tokenizer(text, return_tensors="pt")["input_ids"][0] for text in texts]
    losses = torch.cat([F.cross_entropy(z[:-1], y[1:], reduction="none") for z, y in zip(logits, ids, strict=True)])
    rows, small_run = {}, {"steps": 2, "size": 2, "held_out": 33}
    for arm in ("float32", "autocast", "bfloat16", "bfloat16 stochastic", "bfloat16 master"):
        cell = {"arm": arm, "lr": 1e-3, "seed": 1, "phase": "report"}
        precision.clear()
        rows[arm] = studies_13.smollm2_run(cell, **small_run)
        assert precision == [arm] * 3, "two steps and the reading"
        assert rows[arm]["before"] == pytest.approx(losses.mean().item(), rel=1e-4)
        assert rows[arm]["loss"] == pytest.approx(rows["float32"]["loss"], abs=0.2) and 0 < rows[arm]["moved"] <= 1
    assert rows["float32"]["loss"] < rows["float32"]["before"] - 0.01
    assert rows["bfloat16"]["moved"] < rows["float32"]["moved"] and len({row["loss"] for row in rows.values()}) == 5
    tuned = studies_13.smollm2_run(cell | {"phase": "tune"}, **small_run)
    assert set(tuned) == {"moved", "score"} and tuned["score"] < 0 and -tuned["score"] != rows[cell["arm"]]["loss"]
    other = studies_13.smollm2_run(cell | {"seed": 2}, **small_run)
    assert other["loss"] != rows[cell["arm"]]["loss"], "a seed has sentences of its own"
    studies_13._untrained.cache_clear()
    assert {len(rates) for rates in studies_13.smollm2_arms(False).values()} == {2}
    assert len(studies_13.smollm2_arms(False)) == 5 and len(studies_13.smollm2_arms(True)["float32"]) == 3


def test_fp8_is_asked_of_torchao_for_the_encoder_alone(lesson, tiny, monkeypatch):
    asked = []
    toy = ModuleType("torchao.float8")
    toy.Float8LinearConfig = lambda emulate: f"emulate={emulate}"
    toy.convert_to_float8_training = lambda module, config: asked.append((module, config))
    monkeypatch.setitem(sys.modules, "torchao.float8", toy)
    monkeypatch.setitem(sys.modules, "torchao", ModuleType("torchao"))
    model = lesson.build("autocast fp8")
    assert lesson.in_fp8(model) is model and asked == [(model.encoder, "emulate=False")]
    assert {p.dtype for p in model.parameters()} == {torch.float32}, "the weights stay"
    with lesson.precision("autocast fp8"):
        assert torch.is_autocast_enabled("cpu"), "the rest computes in bfloat16"


@pytest.mark.parametrize(
    ("device", "capability", "there", "runs"),
    [("cuda", (9, 0), True, True), ("cuda", (8, 9), True, True), ("cuda", (8, 6), True, False),
     ("cuda", (9, 0), False, False), ("cpu", (9, 0), True, False)],
)  # fmt: skip
def test_fp8_runs_where_the_gpu_has_units_for_it(lesson, monkeypatch, device, capability, there, runs):
    found = lesson.fp8_runs.__globals__
    monkeypatch.setitem(found, "DEVICE", device)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(found["importlib"].util, "find_spec", lambda name: there or None)
    assert lesson.fp8_runs() is runs
