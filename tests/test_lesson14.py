"""Lesson 14: its timeline against what autograd says it saved, its tricks against the plain run. Small models."""

import gc
import math
from collections import Counter
from functools import partial
from types import SimpleNamespace

import peft
import pytest
import small
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaForCausalLM

from nbtools import checks, meters, notebooks, planner, tasks, train

TAUGHT = (
    "Timeline living curve traced_step peak highest PARTS snapshot chain run_all plain in_segments random_state "
    "replayed Checkpoint gradients chain_peak Operations flops in_turns spread blocks keep_products stock_loss Arm "
    "forward_backward measure table film_model few_steps without_gradient accumulate factors gradient bytes_a_logit "
    "chunked_loss stock away to_disk to_bfloat16 hidden_and_labels loss_in_chunks loss_at_labels fit_it "
    "read_plan VOCABULARY MIB allocator_curves draw_allocator step_on_gpu shares off in_64_bits T4 DEVICE"
)
BLOCK = {"use_reentrant": False}


@pytest.fixture(scope="module")
def lesson():
    """What the notebook defines, as attributes."""
    return SimpleNamespace(**notebooks.definitions("14", *TAUGHT.split()))


def tiny(lora=True, vocab=61, layers=3):
    """A small random Llama, with LoRA that has learned something, and a batch of two rows, the second padded."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(small.llama(vocab_size=vocab, num_hidden_layers=layers, use_cache=False))
    if lora:
        model = peft.get_peft_model(
            model, peft.LoraConfig(r=2, target_modules="all-linear", exclude_modules=["lm_head"])
        )
        for name, p in model.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(p, std=0.05)
    ids = torch.randint(3, vocab, (2, 9))
    mask = torch.ones_like(ids)
    mask[1, 6:] = 0
    labels = ids.masked_fill(mask == 0, -100)
    labels[:, :3] = -100
    return model.train(), {"input_ids": ids, "attention_mask": mask, "labels": labels}


# --- the timeline


def test_sizes_views_and_deaths(lesson):
    with lesson.Timeline() as line:
        a = torch.ones(100)
        view = a[:10].view(2, 5)
        del a
        b = torch.zeros(50)
        del view
        c = b + 1
        del b, c
    assert sorted(row["bytes"] for row in line.rows) == [200, 200, 400]
    assert lesson.curve(line).max() == 600 and lesson.living(line) == 0
    assert [row["died"] is not None for row in line.rows] == [True] * 3


def test_what_is_there_before_is_known_by_its_part_and_counts_apart(lesson):
    weight = torch.ones(10)
    with lesson.Timeline(parameters=[weight, weight[:5]]) as line:
        kept = weight * 2
    assert [(row["part"], row["bytes"]) for row in line.rows] == [("parameters", 40), ("other", 40)]
    assert lesson.living(line) == kept.nbytes
    assert lesson.curve(line).tolist() == [40, 80] and lesson.curve(line, known=False).tolist() == [0, 40]
    assert lesson.curve(line, "parameters").tolist() == [40, 40]


def test_an_input_that_dies_with_an_operation_counts_beside_its_result(lesson):
    """While an operation runs, what it reads is there: the peak of x = f(x) is two tensors, not one."""
    with lesson.Timeline() as line:
        x = torch.ones(25)
        for _ in range(3):
            x = x + 1
    assert lesson.curve(line).max() == 200


def test_after_the_block_nothing_changes(lesson):
    with lesson.Timeline() as line:
        kept = torch.ones(10)
    before = lesson.curve(line).tolist()
    del kept
    gc.collect()
    torch.ones(5)
    assert lesson.curve(line).tolist() == before and line.rows[0]["died"] is None and len(line.rows) == 1


@pytest.mark.parametrize("settings", [{}, BLOCK, {"use_reentrant": True}])
@pytest.mark.parametrize("lora", [True, False])
def test_alive_at_the_end_of_forward_is_what_autograd_saved(lesson, lora, settings):
    model, batch = tiny(lora)
    if settings:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=settings)
    with lesson.Timeline(there=[*model.parameters(), *model.buffers(), *batch.values()]) as line:
        loss = model(**batch).loss
    saved = meters.saved_bytes(model, batch, lambda model, batch: model(**batch).loss)
    assert lesson.living(line) - loss.nbytes == saved or settings and abs(lesson.living(line) - saved) < 2048


@pytest.mark.parametrize("lora", [True, False])
def test_the_parts_of_a_step(lesson, lora, monkeypatch):
    model, batch = tiny(lora)
    monkeypatch.setitem(lesson.traced_step.__globals__, "VOCABULARY", 61)
    opened = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(opened)
    model(**batch).loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    line = lesson.traced_step(model, batch, optimizer)
    there = sum(t.nbytes for t in [*model.parameters(), *model.buffers()])
    states, slopes = meters.optimizer_bytes(optimizer), sum(p.nbytes for p in opened)
    assert lesson.curve(line, "parameters").tolist() == [there] * (line.clock + 1)
    assert lesson.curve(line, "optimizer").tolist() == [states] * (line.clock + 1)
    when = line.ends
    assert list(when) == ["forward", "backward", "optimizer"] and when["optimizer"] == line.clock
    assert lesson.curve(line, "gradients")[when["backward"]] == slopes == lesson.curve(line, "gradients").max()
    assert lesson.curve(line, "gradients")[when["forward"]] == 0
    kept = lesson.curve(line, "kept for backward") + lesson.curve(line, "logits and loss")
    saved = meters.saved_bytes(model, batch, lambda model, batch: model(**batch).loss)
    logits = batch["input_ids"].numel() * 61 * 4
    assert kept[when["forward"]] == saved + 4 + logits  # the loss, and logits that the last operation reads
    assert lesson.curve(line, "kept for backward")[when["backward"] + 1] <= 4
    assert lesson.curve(line, "logits and loss").max() == 3 * logits
    assert sum(lesson.curve(line, part) for part in lesson.PARTS).tolist() == lesson.curve(line).tolist()
    top, phase, parts = lesson.peak(line)
    assert top == lesson.curve(line).max() == sum(parts.values()) and phase == ("backward" if lora else "optimizer")
    thinned = lesson.highest(line, 20)
    assert len(thinned) == 20 and lesson.curve(line)[thinned].max() == top and thinned == sorted(thinned)


def test_bytes_are_counted_on_the_cpu_whatever_the_machine_has(lesson):
    assert lesson.DEVICE == "cpu" and all(p.device.type == "cpu" for p in lesson.film_model().parameters())


EVENTS = [  # as torch.cuda.memory._snapshot()["device_traces"][0] has them
    {"action": "segment_alloc", "addr": 0, "size": 20, "stream": 0, "time_us": 1, "frames": []},
    {"action": "alloc", "addr": 0, "size": 6, "stream": 0, "time_us": 2, "frames": []},
    {"action": "alloc", "addr": 6, "size": 8, "stream": 0, "time_us": 3, "frames": []},
    {"action": "free_requested", "addr": 0, "size": 6, "stream": 0, "time_us": 4, "frames": []},
    {"action": "free_completed", "addr": 0, "size": 6, "stream": 0, "time_us": 4, "frames": []},
    {"action": "snapshot"},
    {"action": "segment_free", "addr": 0, "size": 20, "stream": 0, "time_us": 5, "frames": []},
]


@pytest.mark.parametrize("fails", [False, True])
def test_the_snapshot_gives_the_events_and_stops_recording(lesson, monkeypatch, fails):
    seen = []
    fake = SimpleNamespace(
        _record_memory_history=lambda **options: seen.append(options),
        _snapshot=lambda: seen.append("snapshot") or {"device_traces": [EVENTS, []]},
    )
    monkeypatch.setattr(torch.cuda, "memory", fake)

    def run():
        seen.append("run")
        if fails:
            raise RuntimeError("no")

    if fails:
        with pytest.raises(RuntimeError, match="no"):
            lesson.snapshot(run)
    else:
        assert lesson.snapshot(run) is EVENTS
    recording = {"max_entries": 200_000, "stacks": "python"}
    assert seen == [recording, "run", *["snapshot"] * (not fails), {"enabled": None}]


def test_the_figure_of_a_snapshot(lesson):
    found = lesson.allocator_curves(EVENTS, (1, 40))
    assert found[:, 0].tolist() == [1, 7, 15, 15, 9, 9, 9] and found[:, 1].tolist() == [60] * 6 + [40]
    lines = lesson.draw_allocator(EVENTS, (lesson.MIB, 0)).axes[0].get_lines()
    assert [line.get_label() for line in lines] == ["allocated", "reserved"]
    assert lines[0].get_ydata()[0] == 1 and lines[1].get_ydata()[0] == 20 / 2**20


# --- checkpointing


def ours(lesson):
    return {
        "ours": lesson.Checkpoint.apply,
        "reentrant": partial(checkpoint, use_reentrant=True),
        "not": partial(checkpoint, **BLOCK),
    }


@pytest.mark.parametrize("name", ["ours", "reentrant", "not"])
@pytest.mark.parametrize("k", [1, 3, 10])
def test_gradients_and_random_numbers_are_those_of_the_plain_run(lesson, name, k):
    layers, x = lesson.chain(10, dropout=0.3), torch.randn(12, 16, requires_grad=True)
    wanted = lesson.gradients(layers, x, k, lesson.plain)
    found = lesson.gradients(layers, x, k, ours(lesson)[name])
    assert len(wanted) == 22 and all(torch.equal(a, b) for a, b in zip(wanted, found, strict=True))
    lost = lesson.gradients(layers, x, k, partial(checkpoint, preserve_rng_state=False, **BLOCK))
    assert not torch.equal(wanted[0], lost[0])


def test_a_checkpoint_in_a_checkpoint(lesson):
    layers, x = lesson.chain(6, dropout=0.2), torch.randn(4, 16, requires_grad=True)
    one = lesson.Checkpoint.apply

    def nested(run, x):
        return one(lambda x: one(run, x) * 2, x) / 2

    wanted = lesson.gradients(layers, x, 2, lesson.plain)
    found = lesson.gradients(layers, x, 2, nested)
    assert all(torch.allclose(a, b, atol=1e-7) for a, b in zip(wanted[:-1], found[:-1], strict=True))


def test_replayed_numbers(lesson):
    torch.manual_seed(5)
    state, first = lesson.random_state(), torch.rand(3)
    second = torch.rand(3)
    torch.manual_seed(5)
    torch.rand(3)
    with lesson.replayed(state):
        assert torch.equal(torch.rand(3), first)
    assert torch.equal(torch.rand(3), second)


@pytest.mark.parametrize("n", [1, 7, 16])
def test_segments_cover_each_layer_once_in_order(lesson, n):
    for k in range(1, n + 1):
        seen, calls = [], []
        layers = [lambda x, i=i, seen=seen: seen.append(i) or x for i in range(n)]

        def counted(run, x, calls=calls):
            calls.append(1)
            return run(x)

        assert lesson.in_segments(layers, 5, k, counted) == 5
        assert seen == list(range(n)) and len(calls) == k


@pytest.mark.parametrize("n", [9, 16, 25])
def test_the_peak_of_a_chain(lesson, n):
    layers, x = lesson.chain(n), torch.randn(2048, 16, requires_grad=True)
    found = {k: lesson.chain_peak(layers, x, k, lesson.Checkpoint.apply) for k in range(1, n + 1)}
    for k in (k for k in found if n % k == 0 and k < n):
        assert found[k] == pytest.approx(k + n / k + 2, abs=0.1)
    assert found[math.isqrt(n)] <= min(found.values()) + 0.05
    assert lesson.chain_peak(layers, x, 1, lesson.plain) == pytest.approx(n + 4, abs=0.1)


def test_operations_are_pytorch_s_count_and_a_second_forward_is_a_third(lesson):
    model, batch = tiny()
    with FlopCounterMode(display=False) as counter:
        model(**batch).loss.backward()
    assert lesson.flops(lambda: model(**batch).loss.backward()) == counter.get_total_flops() > 0
    layers, x = lesson.chain(6), torch.randn(8, 16, requires_grad=True)
    whole = lesson.flops(lambda: lesson.in_segments(layers, x, 2).sum().backward())
    again = lesson.flops(lambda: lesson.in_segments(layers, x, 2, lesson.Checkpoint.apply).sum().backward())
    assert whole == 3 * 6 * 2 * 8 * 16 * 16 and again / whole == pytest.approx(4 / 3)


def test_arms_are_timed_in_turns(lesson):
    order = []
    found = lesson.in_turns({name: partial(order.append, name) for name in "abc"}, rounds=3)
    assert order == list("abcabcabc")
    assert found["a"] == [1, 1, 1] and all(len(v) == 3 and min(v) > 0 for v in found.values())
    assert lesson.spread([1.0, 3.0, 2.0]) == "2.00 (1.00 to 3.00)"


# --- a transformer


def test_the_blocks_in_a_row_are_the_model(lesson):
    model, batch = tiny()
    layers, x = lesson.blocks(model, batch)
    inner = model.get_base_model().model
    assert len(layers) == 3 and x.requires_grad and x.shape == (2, 9, 64)
    assert torch.equal(inner.norm(lesson.run_all(layers, x)), inner(batch["input_ids"]).last_hidden_state)


@pytest.mark.parametrize("lora", [True, False])
def test_selective_checkpoints_trade_bytes_for_operations_and_keep_the_gradients(lesson, lora):
    model, batch = tiny(lora)
    arms = {"plain": lesson.Arm(), "block": lesson.Arm(BLOCK)}
    arms |= {inner: lesson.Arm(lesson.keep_products(inner)) for inner in (128, 64, 0)}
    found = {name: lesson.measure(model, batch, arm) for name, arm in arms.items()}
    assert all(torch.equal(row["gradients"], found["plain"]["gradients"]) for row in found.values())
    assert found["block"]["kept"] < found[128]["kept"] < found[64]["kept"] <= found[0]["kept"]
    assert found["block"]["flops"] >= found[128]["flops"] > found[64]["flops"] >= found[0]["flops"]
    assert found["plain"]["flops"] <= found[0]["flops"] < found["block"]["flops"]
    saved = meters.saved_bytes(model, batch, lambda model, batch: model(**batch).loss)
    assert found["plain"]["kept"] == saved + 4
    if lora:
        assert found[0]["kept"] > found["plain"]["kept"] * 0.95  # LoRA's second products fill what was saved


def test_checkpointing_is_off_after_an_arm_even_one_that_fails(lesson):
    model, batch = tiny()

    def fails(model, batch):
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        lesson.forward_backward(model, batch, lesson.Arm(BLOCK, loss=fails))
    assert not model.get_base_model().is_gradient_checkpointing
    assert not model.get_base_model().get_input_embeddings()(torch.zeros(1).long()).requires_grad


def test_the_table_says_what_is_equal_and_how(lesson, capsys):
    row = {"kept": 2**20, "peak": 2**21, "flops": 10, "gradients": torch.ones(4)}
    rows = {"plain": row, "b": row, "c": row | {"gradients": torch.ones(4) * (1 + 1e-6)}}
    lesson.table(rows | {"d": row | {"gradients": torch.ones(4) * 1.5, "flops": 14}})
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[1] == ["plain", "1.0", "2.0", "1.00", "bit", "for", "bit"] and lines[2][4:] == ["bit", "for", "bit"]
    assert lines[3][4:] == ["to", "rounding"] and lines[4] == ["d", "1.0", "2.0", "1.40", "off", "by", "0.50"]
    lesson.table({"plain": row, "b": row}, other_order=["b"])  # equal by luck of this machine
    assert capsys.readouterr().out.splitlines()[2].endswith("to rounding")


# --- the trap


@pytest.fixture
def small_films(monkeypatch):
    """A small encoder in place of MiniLM, and eight sentences of four tokens."""
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    sizes = {"hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 24}
    encoder = BertModel(BertConfig(**sizes), add_pooling_layer=False)
    ids = torch.arange(32).view(8, 4)
    monkeypatch.setattr(tasks, "minilm", lambda: (encoder, None))
    monkeypatch.setattr(tasks, "draw", lambda count, seed: ([""] * count, torch.arange(8) % 2))
    monkeypatch.setattr(tasks, "encode", lambda texts: {"input_ids": ids, "attention_mask": torch.ones_like(ids)})


@pytest.mark.filterwarnings("ignore:None of the inputs")
@pytest.mark.parametrize(
    ("arguments", "dead"),
    [((), 0), ((True, False), 8), ((True, True), 0), ((False, False), 0), ((False, True), 0)],
)
def test_the_trap_is_seen_and_cured(lesson, small_films, arguments, dead):
    first, last, moved, of, found = lesson.few_steps(lesson.film_model(*arguments))
    assert last < first and of == 4 and found == dead and moved == (0 if dead else 4)


def test_names_without_gradient(lesson):
    model = nn.ModuleDict({"used": nn.Linear(2, 2), "unused": nn.Linear(2, 2), "frozen": nn.Linear(2, 2)})
    model["frozen"].requires_grad_(False)
    model["used"](torch.ones(1, 2)).sum().backward()
    assert lesson.without_gradient(model) == ["unused.weight", "unused.bias"]


# --- accumulation


def test_accumulating_chats_is_the_full_batch_and_what_train_fit_does(lesson, monkeypatch):
    model, batch = tiny()
    micro = [{key: value[i : i + 1] for key, value in batch.items()} for i in range(2)]
    assert [tasks.count_labels(one) for one in micro] == [6, 3]
    whole, _ = lesson.gradient(model, model(**batch).loss.backward)
    parts, _ = lesson.gradient(model, lambda: lesson.accumulate(model, micro))
    means = lesson.gradient(model, lambda: lesson.accumulate(model, micro, lambda m, b: m(**b).loss, lambda b: 1))[0]
    assert torch.allclose(whole, parts, atol=1e-6) and not torch.allclose(whole, means, atol=1e-3)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0)
    count = {"loss_fn": tasks.chat_loss_sum, "count": tasks.count_labels}
    train.fit(model, micro, optimizer, 1, accumulate=2, mixed=False, tick=lambda *a, **k: None, **count)
    fitted = torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad])
    assert torch.allclose(whole, fitted, atol=1e-6)


def test_factors(lesson):
    found, tokens = lesson.factors([10, 190], 2, 1)
    assert found.tolist() == pytest.approx([10, 200 / 380]) and tokens.tolist() == [10, 190]
    assert lesson.factors([5] * 16, 4, 2)[0].tolist() == [1] * 8
    counts = torch.randint(1, 99, (50,), generator=torch.Generator().manual_seed(0)).tolist()
    found, tokens = (column.view(-1, 4) for column in lesson.factors(counts, 4, 3))
    assert found.shape == (4, 4) and torch.allclose((1 / found).mean(1), torch.ones(4).double())
    assert torch.allclose(found * tokens, (tokens.sum(1, keepdim=True) / 4).expand(4, 4))


def test_shares_are_quantiles_of_tokens_and_not_of_micro_batches(lesson):
    values, weights = torch.tensor([5.0, 0.5, 2.0]), torch.tensor([10, 80, 10])
    assert lesson.shares(values, weights, (0.25, 0.75, 0.85, 1)) == [0.5, 0.5, 2, 5]
    repeated = torch.repeat_interleave(values, weights)
    assert lesson.shares(values, weights, (0.3, 0.95)) == [repeated.quantile(q).item() for q in (0.3, 0.95)]


# --- the loss


def test_bytes_of_a_logit(lesson, monkeypatch):
    monkeypatch.setitem(lesson.bytes_a_logit.__globals__, "VOCABULARY", 4099)
    wanted = {(torch.float32, True): 16, (torch.float32, False): 12, (torch.bfloat16, True): 14}
    for (dtype, held), size in (wanted | {(torch.bfloat16, False): 12}).items():
        assert lesson.bytes_a_logit(dtype, held) == pytest.approx(size, abs=0.01)


def test_losses_of_the_arms_are_one_loss(lesson):
    model, batch = tiny()
    found = [lesson.measure(model, batch, lesson.Arm(loss=loss))["gradients"] for loss in
             (lesson.stock_loss, lesson.loss_in_chunks, lesson.loss_at_labels)]  # fmt: skip
    losses = [loss(model, batch).item() for loss in (lesson.stock_loss, lesson.loss_in_chunks, lesson.loss_at_labels)]
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-5)
    assert all(torch.allclose(found[0], other, atol=1e-6) for other in found[1:])


@pytest.mark.skipif(not hasattr(nn.functional, "linear_cross_entropy"), reason="torch 2.13 has it")
def test_the_chunked_loss_is_the_library_s(lesson):
    torch.manual_seed(0)
    labels = torch.randint(300, (40,))
    labels[::7] = -100
    slopes = []
    twin = partial(nn.functional.linear_cross_entropy, options=nn.LinearCrossEntropyOptions())
    for loss in (partial(lesson.chunked_loss, chunk=7), lesson.stock, twin):
        torch.manual_seed(1)
        hidden, weight = torch.randn(40, 16, requires_grad=True), torch.randn(300, 16, requires_grad=True)
        loss(hidden, weight, labels).backward()
        slopes.append((hidden.grad, weight.grad))
    for other in slopes[1:]:
        assert all(torch.allclose(a, b, atol=1e-3) for a, b in zip(slopes[0], other, strict=True))


def test_the_loss_that_judges_is_in_64_bits(lesson):
    hidden, weight, labels = torch.randn(5, 16), torch.randn(61, 16), torch.randint(61, (5,))
    loss = lesson.in_64_bits(hidden, weight, labels)
    logits = hidden.double() @ weight.double().T
    assert loss.dtype == torch.float64 and loss.item() == pytest.approx(
        (logits.logsumexp(-1) - logits[range(5), labels]).mean().item(), rel=1e-13
    )
    assert lesson.stock(hidden, weight, labels).item() != loss.item()


# --- elsewhere


def test_files_give_back_every_bit_and_hold_no_weights(lesson, tmp_path):
    model, batch = tiny(vocab=601)
    plain = lesson.measure(model, batch, lesson.Arm())
    found = lesson.measure(model, batch, lesson.Arm(hooks=partial(lesson.to_disk, model, tmp_path)))
    assert torch.equal(plain["gradients"], found["gradients"]) and found["kept"] < plain["kept"]
    files = [torch.load(file) for file in tmp_path.iterdir()]
    assert files and all(x.numel() >= 4096 and x.is_floating_point() for x in files)
    shapes = {tuple(sorted(p.shape)) for p in model.parameters()}
    assert not any(tuple(sorted(x.shape)) in shapes for x in files)


def test_half_the_bits_round_the_gradient(lesson):
    model, batch = tiny(vocab=601)
    plain, half = (lesson.measure(model, batch, arm) for arm in (
        lesson.Arm(), lesson.Arm(hooks=partial(lesson.to_bfloat16, model))))  # fmt: skip
    off = (half["gradients"] - plain["gradients"]).norm() / plain["gradients"].norm()
    log_softmax = 2 * 9 * 601 * 4  # kept by two operations, and the only large tensor
    assert 0 < off < 0.05 and half["kept"] == plain["kept"] - log_softmax / 2


# --- the planner


@pytest.mark.parametrize(("held", "size"), [(False, 12), (True, 14)])
def test_the_planner_counts_the_logits_as_the_lesson_does(lesson, monkeypatch, held, size):
    monkeypatch.setitem(lesson.bytes_a_logit.__globals__, "VOCABULARY", 4099)
    plan = planner.plan("smollm2-135m", precision="bf16", seq=256, held=held, device="cpu")
    assert plan.phases["backward"]["logits"] / (256 * 49152) == pytest.approx(size, abs=0.01)
    assert lesson.bytes_a_logit(torch.bfloat16, held) == pytest.approx(size, abs=0.01)


def test_errors_against_a_card(lesson):
    assert lesson.off([{"e": 1.0}, {"e": -5.0}, {"e": 1.0}], "e") == (-1, -5)
    roles = Counter(row["role"] for row in lesson.T4)
    assert roles == {"calibration": 49, "holdout": 12, "verdict": 12}
    models = {role: {row["arm"].split()[0] for row in lesson.T4 if row["role"] == role} for role in roles}
    assert not models["calibration"] & models["holdout"]  # other models, as the text says
    wrong = {(True, "does not fit"), (False, "fits")}
    verdicts = Counter((row["completed"], row["verdict"]) for row in lesson.T4 if row["role"] == "verdict")
    assert not wrong & {*verdicts}
    assert sum(n for (_, verdict), n in verdicts.items() if verdict == "too close to call") > 6


# --- the panel


SETTING = {"model": "llama-3-8b", "method": "qlora", "card": "t4", "precision": "fp16", "batch": 1, "seq": 2048}


def test_the_panel_plans(lesson):
    ticks = []
    out = lesson.fit_it(lambda i, n, **more: ticks.append((i, n, more)), **SETTING, checkpointing="off", loss="stock")
    plan = planner.plan(**SETTING, checkpointing="off", loss="stock")
    assert out["verdict"] == plan.verdict("t4") == "does not fit" and out["peak in"] == plan.peak
    assert [i for i, _, _ in ticks] == list(range(len(plan.phases)))
    assert max(n["GiB"] for _, _, n in ticks) == plan.allocated / 2**30
    fits = lesson.fit_it(lambda *a, **k: None, **SETTING, checkpointing="every block", loss="chunked")
    turned = planner.plan(**SETTING, checkpointing="block", loss="chunked")
    assert fits["verdict"] == "fits" and fits["GiB on the card"] == round(turned.process / 2**30, 1)
    stock = planner.plan(**SETTING, checkpointing="block", loss="stock")
    assert turned.process < stock.process


def test_the_panel_takes_the_precision(lesson):
    setting = {"model": "llama-3.2-1b", "method": "full", "card": "a100-40", "batch": 1, "seq": 512, "loss": "stock"}
    found = [
        lesson.fit_it(lambda *a, **k: None, **setting, precision=precision, checkpointing="off")["GiB on the card"]
        for precision in ("bf16", "mixed")
    ]
    assert found[1] > 1.5 * found[0]


def test_the_panel_s_words_fold_the_advice(lesson):
    lesson.fit_it(lambda *a, **k: None, **SETTING, checkpointing="off", loss="stock")
    plan, _, rest = lesson.read_plan([]).partition("<details>")
    advice, _, below = rest.partition("</details>")
    assert "&lt;-" in plan and "llama-3-8b" in plan and "cheapest" not in plan
    assert "cheapest changes" in advice and "checkpointing" in advice
    assert below == f"<p>{planner.CHECKED}</p>" and "Not validated" not in plan + advice, "said unfolded, once"
    lesson.fit_it(lambda *a, **k: None, **SETTING, checkpointing="every block", loss="chunked")
    assert "<details>" not in lesson.read_plan([]) and planner.CHECKED in lesson.read_plan([])


def test_the_exercises_are_those_of_the_lesson():
    known = {name for name, task in checks.exercises().items() if task.lesson == "14"}
    assert known == {"Checkpoint", "accumulate", "chunked_loss"}
