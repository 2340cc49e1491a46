"""Lesson 05: what its notebook defines, against peft, hand-made attention and sums multiplied out. Small models."""

import copy
import subprocess
import sys
from types import SimpleNamespace

import peft
import pytest
import torch
import torch.nn.functional as F
from small import batch, bert
from torch import nn

from nbtools import notebooks, studies, studies_05, tasks

TAUGHT = (
    "Adapter add_adapters prepend add_prefix prefix_attention Prompted METHODS prepare count dead_parameters "
    "add_unattached add_updates in_turns open_biases add_ia3 lora with_peft merged"
)


@pytest.fixture(scope="module")
def lesson():
    """The functions of the notebook as attributes."""
    return SimpleNamespace(**notebooks.definitions("05", *TAUGHT.split()))


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Lessons build a BERT of 2 layers of width 12 with random weights instead of MiniLM."""
    encoder = bert()
    monkeypatch.setattr(tasks, "minilm", lambda: (encoder, None))
    return encoder


def learn(model, steps=3):
    """A few steps on one batch; returns the losses."""
    x, y = batch()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(steps):
        loss = F.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


# --- each method


def test_what_trains_in_each_method(lesson):
    d, layers, head = 12, 2, 2 * 12 + 2
    both = 2 * layers  # adapters
    biases = d + layers * (7 * d + 24)  # q, k, v, two outputs, two norms; the inner layer is 24 wide; the first norm
    sizes = {
        "head": 0,
        "IA3": layers * (2 * d + d),
        "prompt": 20 * d,
        "prefix": layers * 2 * 10 * d,
        "LoRA": layers * 2 * 8 * 2 * d,
        "rsLoRA": layers * 2 * 8 * 2 * d,
        "PiSSA": layers * 2 * 8 * 2 * d,
        "DoRA": layers * 2 * (8 * 2 * d + d),
        "adapter 16": both * (2 * 16 * d + 16 + d),
        "adapter 64": both * (2 * 64 * d + 64 + d),
        "BitFit": biases,
        "full": sum(p.numel() for p in tasks.minilm()[0].parameters()),
    }
    assert {arm: lesson.count(lesson.prepare(arm)) - head for arm in lesson.METHODS} == sizes


def test_what_is_open_moves_and_what_is_frozen_stays(lesson):
    for arm in lesson.METHODS:
        model = lesson.prepare(arm).train()
        before = copy.deepcopy(dict(model.named_parameters()))
        learn(model)
        for name, p in model.named_parameters():
            moved = not torch.equal(p, before[name])
            excused = name.endswith("key.bias")  # softmax does not see it: its gradient is rounding
            assert moved == p.requires_grad or excused, (arm, name)


def test_only_a_prefix_and_a_prompt_change_the_answers_at_the_start(lesson):
    x, _ = batch()
    plain = tasks.build().eval()(x)
    changed = {arm for arm in lesson.METHODS if not torch.allclose(lesson.prepare(arm).eval()(x), plain, atol=1e-5)}
    assert changed == {"prefix", "prompt"}


def test_an_unknown_method_is_refused_in_one_sentence(lesson):
    with pytest.raises(ValueError, match=r"^there is no method 'lora': choose one of head, IA3, prompt, .*, full$"):
        lesson.prepare("lora")


def test_an_adapter_by_hand(lesson):
    adapter = lesson.Adapter(3, 2)
    nn.init.normal_(adapter.up.weight)
    nn.init.normal_(adapter.up.bias)
    x = torch.randn(5, 3)
    low = x @ adapter.down.weight.T + adapter.down.bias
    low = low * 0.5 * (1 + torch.erf(low / 2**0.5))  # gelu
    torch.testing.assert_close(adapter(x), x + low @ adapter.up.weight.T + adapter.up.bias)


def test_adapters_sit_before_the_residual(lesson):
    """Behind both output layers, inside what is added and normalised."""
    model = tasks.build()
    lesson.add_adapters(model, 4)
    block = model.encoder.encoder.layer[1].output
    nn.init.normal_(block.dense[1].up.weight)
    hidden, given = torch.randn(1, 2, 24), torch.randn(1, 2, 12)
    wanted = block.LayerNorm(block.dense[1](block.dense[0](hidden)) + given)
    torch.testing.assert_close(block(hidden, given), wanted)


# --- twins of peft


def virtual(config, tokens):
    return config("FEATURE_EXTRACTION", num_virtual_tokens=tokens)


def test_a_prompt_is_peft_s_in_outputs_and_gradients(lesson):
    x, _ = batch()
    ours, theirs = lesson.prepare("prompt").eval(), tasks.build().eval()
    theirs.encoder = peft.get_peft_model(
        theirs.encoder, peft.PromptTuningConfig("FEATURE_EXTRACTION", num_virtual_tokens=20)
    )
    rows = theirs.encoder.prompt_encoder["default"].embedding.weight
    rows.data.copy_(ours.encoder.prompt)
    ours_out, theirs_out = ours.encoder(**x).last_hidden_state, theirs.encoder(**x).last_hidden_state[:, 20:]
    torch.testing.assert_close(ours_out, theirs_out)
    for out in (ours_out, theirs_out):
        out.square().sum().backward()
    torch.testing.assert_close(ours.encoder.prompt.grad, rows.grad)
    assert rows.grad.abs().max() > 0


def test_a_prefix_is_peft_s_in_outputs_and_gradients(lesson):
    x, _ = batch()
    ours, theirs = lesson.prepare("prefix").eval(), tasks.build().eval()
    theirs.encoder = peft.get_peft_model(
        theirs.encoder, peft.PrefixTuningConfig("FEATURE_EXTRACTION", num_virtual_tokens=10)
    )
    rows = theirs.encoder.prompt_encoder["default"].embedding.weight  # (P, layers * 2 * d)
    prefixes = [layer.attention.self.prefix for layer in ours.encoder.encoder.layer]
    rows.data.copy_(torch.stack([p.detach() for p in prefixes]).flatten(0, 1).transpose(0, 1).flatten(1))
    positions = torch.arange(10, 17)[None]
    ours_out = ours.encoder(**x, position_ids=positions).last_hidden_state
    theirs_out = theirs.encoder(**x).last_hidden_state
    torch.testing.assert_close(ours_out, theirs_out)
    for out in (ours_out, theirs_out):
        out.square().sum().backward()
    grads = torch.stack([p.grad for p in prefixes]).flatten(0, 1).transpose(0, 1).flatten(1)
    torch.testing.assert_close(grads, rows.grad)
    assert grads.abs().max() > 0


def test_a_prefix_by_hand(lesson):
    """One head, one query: softmax over prefix and words, written out; without a mask and with one."""
    q, k, v = torch.randn(3, 1, 1, 2, 4)
    pk, pv = torch.randn(2, 3, 4)
    module = SimpleNamespace(prefix=(pk, pv), is_causal=False)
    for mask, seen in ((None, 5), (torch.tensor([[[[True, False]] * 2]]), 4)):
        out, _ = lesson.prefix_attention(module, q, k, v, mask, scaling=0.5)
        keys, values = torch.cat([pk, k[0, 0]])[:seen], torch.cat([pv, v[0, 0]])[:seen]
        wanted = (0.5 * q[0, 0] @ keys.T).softmax(-1) @ values
        torch.testing.assert_close(out[0, :, 0], wanted)


def test_a_prefix_in_one_model_leaves_another_alone(lesson):
    x, _ = batch()
    plain = tasks.build().eval()
    before = plain(x)
    lesson.prepare("prefix")
    assert torch.equal(plain(x), before) and torch.equal(tasks.build().eval()(x), before)


@pytest.mark.parametrize("arm", ["LoRA", "DoRA"])
def test_merged_models_answer_alike(lesson, arm):
    model = lesson.prepare(arm)
    learn(model)
    x, _ = batch()
    apart = model.eval()(x)
    model.encoder = model.encoder.merge_and_unload()
    torch.testing.assert_close(model(x), apart, atol=1e-5, rtol=1e-4)
    assert not [m for m in lesson.merged(arm).modules() if isinstance(m, peft.tuners.lora.LoraLayer)]


def test_the_course_quiets_what_a_library_says_when_it_starts():
    """One line on an optional kernel would stand in each reader's first output."""
    done = subprocess.run([sys.executable, "-c", "import nbtools, peft"], capture_output=True, text=True, check=True)
    assert "gemm_4bit" not in done.stdout + done.stderr


# --- the negative control


def test_an_unattached_adapter_trains_the_head_and_nothing_else(lesson):
    model = tasks.build()
    model.encoder.requires_grad_(False)
    lesson.add_unattached(model)
    x, y = batch()
    dead = lesson.dead_parameters(model, F.cross_entropy(model(x), y))
    assert len(dead) == 2 * 4 and all(".adapter." in name for name in dead)
    losses = learn(model, 10)
    assert losses[-1] < losses[0]
    for arm in lesson.METHODS:
        model = lesson.prepare(arm)
        assert lesson.dead_parameters(model, F.cross_entropy(model(x), y)) == [], arm


# --- adding, timing, the study


def test_the_sum_of_adapters_is_peft_s_cat_and_not_its_linear(lesson):
    model = lesson.prepare("LoRA")
    model.encoder.add_adapter("second", lesson.lora())
    layers = [m for m in model.modules() if isinstance(m, peft.tuners.lora.Linear)]
    for layer in layers:
        for name in ("default", "second"):
            nn.init.normal_(layer.lora_B[name].weight)
    for kind in ("cat", "linear"):
        model.encoder.add_weighted_adapter(["default", "second"], [0.3, 0.6], kind, combination_type=kind)
    for layer in layers:
        parts = [(layer.lora_A[n].weight, layer.lora_B[n].weight, layer.scaling[n]) for n in ("default", "second")]
        low, high = lesson.add_updates(parts, [0.3, 0.6])
        found = {n: layer.scaling[n] * layer.lora_B[n].weight @ layer.lora_A[n].weight for n in ("cat", "linear")}
        torch.testing.assert_close(high @ low, found["cat"])
        assert not torch.allclose(high @ low, found["linear"], atol=0.1)


def test_functions_take_turns_and_the_first_round_is_left_out(lesson, monkeypatch):
    order, now = [], [0.0]
    cost = {"a": iter([100, 1, 2, 3]), "b": iter([100, 10, 20, 30])}

    def work(name):
        order.append(name)
        now[0] += next(cost[name])

    clock = SimpleNamespace(perf_counter=lambda: now[0])
    monkeypatch.setitem(lesson.in_turns.__globals__, "time", clock)
    found = lesson.in_turns({name: lambda name=name: work(name) for name in "ab"}, 3)
    assert order == list("abababab") and found == {"a": 2, "b": 20}


def test_a_cell_of_the_study_prepares_its_method_and_scores_the_right_part(monkeypatch):
    data = SimpleNamespace(labels=torch.arange(60) % 2, val="val", test="test")
    seen = SimpleNamespace()

    def finetune(model, x, y, lr, steps, seed, tick):
        seen.given = (model.arm, model.seed, y.tolist(), lr, steps, seed)
        return torch.optim.AdamW([torch.ones(1)])

    def prepare(arm, seed):
        model = nn.Linear(2, 3)
        model.arm, model.seed = arm, seed
        return model

    monkeypatch.setattr(studies_05, "_prepare", lambda: prepare)
    monkeypatch.setattr(tasks, "films", lambda: data)
    monkeypatch.setattr(tasks, "draw", lambda count, seed: (list(range(60)), data.labels))
    monkeypatch.setattr(tasks, "finetune", finetune)
    monkeypatch.setattr(tasks, "correct", lambda model, part: torch.tensor([True, part == "test"]))
    cell = {"phase": "tune", "arm": "DoRA", "seed": 3, "labels": 1000, "lr": 1e-3}
    assert studies_05.peft_run(cell) == {"score": 0.5}
    assert seen.given == ("DoRA", 3, data.labels.tolist(), 1e-3, 64, 3)
    row = studies_05.peft_run(cell | {"phase": "report", "arm": "LoRA_shuffled"})
    assert row == {"accuracy": 1.0, "trainable": 9, "optimizer_bytes": 0}
    assert seen.given[0] == "LoRA" and seen.given[2] != data.labels.tolist()


def test_the_study_s_arms_are_the_lesson_s_methods(lesson):
    arms = studies.known()["peft"].arms(False)
    assert {arm.removesuffix("_shuffled") for arm in arms} == set(lesson.METHODS)
    assert all(len(settings) == 4 for arm, settings in arms.items() if not arm.endswith("_shuffled"))
