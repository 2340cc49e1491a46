"""The planner's bytes against real small models, published counts, the traced modules, and a T4's measurements.

Exact here means to the byte. What only a GPU could tell is tested as far as others have published it; the tool says so.
"""

import contextlib
import dataclasses
import itertools
import json
import math
import subprocess
import sys
import weakref
from types import SimpleNamespace

import pytest
import torch
import transformers
from torch._subclasses.fake_tensor import FakeTensorMode

from nbtools import (
    cli,
    formulas,
    measuring,
    meters,
    notebooks,
    planner,
    profiles,
    records,
    studies_planner,
    tracing,
    zoo,
)
from nbtools.allocator import MIB, CachingAllocator
from nbtools.errors import NbtoolsError
from nbtools.ledger import Leaf, Ledger

COMMON = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
LLAMA = COMMON | {"model_type": "llama", "vocab_size": 500, "num_key_value_heads": 2, "max_position_embeddings": 256}
CAPS = {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0, "query_pre_attn_scalar": 16}
FAMILIES = {
    "llama": LLAMA | {"tie_word_embeddings": False},
    "mistral": LLAMA | {"model_type": "mistral", "tie_word_embeddings": True},
    "qwen2": LLAMA | {"model_type": "qwen2", "tie_word_embeddings": False},
    "gemma2": LLAMA | CAPS | {"model_type": "gemma2", "head_dim": 16, "sliding_window": 16},
    "bert": COMMON | {"model_type": "bert", "vocab_size": 500, "max_position_embeddings": 64, "type_vocab_size": 2},
    "vit": COMMON | {"model_type": "vit", "image_size": 32, "patch_size": 8, "num_channels": 3, "num_labels": 10},
}
SMALL = {"batch": 3, "seq": 20, "rank": 4}


def real(s):
    """A model of a Setup with numbers in it, and its step on real tensors."""
    torch.manual_seed(0)
    net = tracing.build(s).to_empty(device="cpu")
    net.tie_weights()
    with torch.no_grad():
        for p in itertools.chain(net.parameters(), net.buffers()):
            p.zero_() if not p.is_floating_point() else p.normal_(std=0.02)
    return net, tracing.Step(s, net)


def counted(model, **arguments):
    """The plan for storages alone, as a CPU and a trace can count them."""
    return planner.plan(model, device="cpu", **arguments)


def cast(s):
    return torch.autocast("cpu", torch.bfloat16) if s.precision == "mixed" else contextlib.nullcontext()


def held(tensors):
    """Bytes of tensors, a shared storage once."""
    return sum({t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors}.values())


# --- what is counted without a model


PUBLISHED = {  # parameters, as the model cards give them
    "smollm2-135m": 134_515_008,
    "smollm2-360m": 361_821_120,
    "smollm2-1.7b": 1_711_376_384,
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-1.5b": 1_543_714_304,
    "qwen2.5-7b": 7_615_616_512,
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
    "llama-3-8b": 8_030_261_248,
    "llama-3-70b": 70_553_706_496,
    "mistral-7b": 7_241_732_096,
    "gemma-2-2b": 2_614_341_888,
    "bert-base": 109_482_240 + 768 * 2 + 2,
    "minilm": 22_713_216 + 384 * 2 + 2,
    "vit-base": 86_567_656,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_shape_has_its_published_number_of_parameters_and_a_source(name):
    facts = planner.plan(name, method="full", checkpointing="block").facts
    assert facts["parameters"] == facts["trained"] == PUBLISHED[name]
    assert len(json.loads((planner.assets.CARDS / "shapes.json").read_text())[name]["source"]) > 20
    assert zoo.shape(name).hidden_size == planner.configuration(name)[1]["hidden_size"]


def test_adapters_of_llama_8b_are_counted_as_the_field_counts_them():
    assert planner.plan("llama-3-8b", targets="qv").facts["trained"] == 6_815_744
    four = planner.plan("llama-3-8b", method="qlora").facts
    assert four["trained"] == 41_943_040 and four["parameters"] == PUBLISHED["llama-3-8b"]


@pytest.mark.parametrize(("precision", "each"), [("fp32", 8), ("bf16", 10), ("mixed", 10)])
def test_the_loss_holds_the_logits_in_every_form_at_once(precision, each):
    """16-bit logits 2, a 32-bit copy 4, log-softmax 4: bytes a token and word; backward adds a gradient, 4."""
    found = counted("llama-3.2-1b", precision=precision, seq=1000, batch=2).phases
    words = 2000 * 128256
    assert abs(found["loss"]["logits"] - each * words) < 1024 and found["backward"]["logits"] >= 12 * words


def test_a_plan_takes_under_two_seconds_and_no_torch():
    code = "import sys, time; from nbtools import planner; "
    code += "planner.plan('llama-3-70b', method='qlora', seq=2048, checkpointing='block', card='h100'); "
    code += "print(time.process_time(), 'torch' in sys.modules, 'transformers' in sys.modules)"
    seconds, *heavy = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.split()
    assert float(seconds) < 2 and heavy == ["False", "False"]


# --- exact: what is there before and after a step of a real model


CASES = [(f, m, p) for f in FAMILIES for m in ("full", "lora") for p in ("fp32", "bf16")]
CASES += [("llama", "head", "fp32"), ("qwen2", "head", "bf16"), ("bert", "head", "fp32"), ("vit", "head", "bf16")]


@pytest.mark.parametrize(("family", "method", "precision"), CASES)
def test_parameters_adapters_gradients_and_optimizer_states_are_exact(family, method, precision):
    arguments = {"method": method, "precision": precision, **SMALL}
    s, facts = planner.setup(FAMILIES[family], **arguments), planner.plan(FAMILIES[family], **arguments).facts
    net, step = real(s)
    own = [p for p in net.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(own)
    step.loss(step.forward()).backward()
    optimizer.step()
    adapters = [p for name, p in net.named_parameters() if "lora_" in name or "modules_to_save" in name]
    assert facts["adapters"] == held(adapters) and facts["trained"] == sum(p.numel() for p in own)
    assert facts["weights"] == held(net.parameters()) - held(adapters)
    assert facts["gradients"] == held(p.grad for p in own)
    assert facts["optimizer"] == meters.optimizer_bytes(optimizer)


@pytest.mark.parametrize("name", ["adamw-8bit", "lion"])
def test_states_of_bitsandbytes_optimizers_are_exact(name):
    import bitsandbytes as bnb

    arguments = {"method": "full", "optimizer": name, "precision": "fp32", **SMALL}
    net, step = real(planner.setup(FAMILIES["qwen2"], **arguments))
    optimizer = {"adamw-8bit": bnb.optim.AdamW8bit, "lion": bnb.optim.Lion}[name](net.parameters(), lr=1e-4)
    step.loss(step.forward()).backward()
    optimizer.step()
    states = [t for state in optimizer.state.values() for t in state.values() if torch.is_tensor(t)]
    assert planner.plan(FAMILIES["qwen2"], **arguments).facts["optimizer"] == held(states)


def test_pages_are_not_on_the_device():
    """bitsandbytes pages states of at least 1e5 numbers; their scales stay."""
    whole = planner.plan("smollm2-135m", method="full", optimizer="adamw-8bit").facts["optimizer"]
    paged = planner.plan("smollm2-135m", method="full", optimizer="adamw-paged").facts["optimizer"]
    assert whole / 80 < paged < whole / 50
    adapter = {o: planner.plan("smollm2-135m", optimizer=o).facts["optimizer"] for o in ("adamw-8bit", "adamw-paged")}
    assert len({*adapter.values()}) == 1, "no tensor of such an adapter is large enough"


def test_nf4_is_stored_as_bitsandbytes_stores_it():
    import bitsandbytes as bnb

    layer = bnb.nn.Linear4bit(320, 192, bias=False, compress_statistics=True, quant_type="nf4")
    layer.load_state_dict({"weight": torch.randn(192, 320)})
    state = layer.to("cpu").weight.quant_state
    stored = [layer.weight, state.absmax, state.state2.absmax, state.code, state.state2.code, state.offset]
    assert held(stored) == 320 * 192 // 2 + sum(formulas.nf4_statistics(320 * 192))
    layer = bnb.nn.Linear4bit(320, 192, bias=False, compress_statistics=False, quant_type="nf4")
    layer.load_state_dict({"weight": torch.randn(192, 320)})
    state = layer.to("cpu").weight.quant_state
    assert held([layer.weight, state.absmax, state.code]) == 320 * 192 // 2 + sum(
        formulas.nf4_statistics(320 * 192, False)
    )


# --- exact: what is kept for backward


KEPT = [*itertools.product(FAMILIES, ("full", "lora"), ("fp32", "mixed", "bf16"), ("off", "block"))]


@pytest.mark.parametrize(("family", "method", "precision", "checkpointing"), KEPT)
def test_bytes_kept_for_backward_are_exact(family, method, precision, checkpointing):
    for attention, batch in ("sdpa", 1), ("eager", 3):
        arguments = {"method": method, "precision": precision, "checkpointing": checkpointing, "attention": attention}
        arguments |= SMALL | {"batch": batch, "seq": 12}
        s = planner.setup(FAMILIES[family], **arguments)
        net, step = real(s)

        def forward(net, batch, s=s, step=step):
            with cast(s):
                return step.loss(step.forward())

        kept = counted(FAMILIES[family], **arguments).facts["kept for backward"]
        assert kept == meters.saved_bytes(net, step.batch, forward), f"{attention} {batch}"


# --- formulas against the traced modules


def test_gradients_that_meet_are_three_storages_for_a_moment():
    """Two readers of one tensor: while their gradients are added up, both are there and the sum."""
    with FakeTensorMode(), tracing.LiveBytes() as live:
        x, weights = torch.empty(64, 1024).requires_grad_(), torch.empty(2, 1, 1024)
        h = x * 2
        loss = sum(torch.nn.functional.linear(h, weight).sum() for weight in weights)
        live.peak()
        loss.backward()
    own = Ledger()
    given, frozen = own.parameter(64 * 1024, 4, True), [own.parameter(1024, 4, False) for _ in range(2)]
    inner = own.op(own.new(64 * 1024, 4), given)
    total = own.op(own.new(1, 4), own.add(*(own.linear(inner, weight, 1) for weight in frozen)))
    own.peak()
    own.backward(total)
    assert sum(own.peak().values()) == pytest.approx(sum(live.peak().values()), rel=0.02)


def test_many_chunks_weigh_what_all_of_them_would(monkeypatch):
    peaks = []
    for followed in (formulas.MANY, 10**6):
        monkeypatch.setattr(formulas, "MANY", followed)
        net = formulas.Decoder(planner.setup(WIDE, loss="chunked", seq=250, batch=60))
        hidden = net.ledger.new(net.tokens * net.d, 2)
        hidden.node = Leaf(hidden)
        loss = formulas.in_chunks(net, hidden, lambda x, net=net: net.ledger.unary(net.logits(x), "out"))
        net.ledger.peak()
        net.ledger.backward(loss)
        peaks.append(sum(net.ledger.peak().values()))
    assert peaks[0] == pytest.approx(peaks[1], rel=0.01)


TRACED = [
    ("llama", {"method": "full"}),
    ("llama", {"checkpointing": "block", "precision": "mixed"}),
    ("llama", {"method": "qlora", "checkpointing": "selective"}),
    ("llama", {"loss": "chunked", "seq": 100, "accumulation": 4}),
    ("llama", {"method": "head", "precision": "fp32"}),
    ("mistral", {"task": "dpo", "attention": "eager", "optimizer": "adamw-fused"}),
    ("qwen2", {"task": "reward", "targets": "qv"}),
    ("qwen2", {"task": "ppo", "method": "full", "precision": "mixed"}),
    ("gemma2", {"method": "full", "attention": "eager"}),
    ("bert", {"method": "full", "checkpointing": "block", "precision": "fp32", "optimizer": "sgd"}),
    ("vit", {"precision": "mixed"}),
    ("llama", {"method": "qlora", "precision": "mixed", "seq": 64, "batch": 8}),
    ("llama", {"method": "qlora", "batch": 1, "seq": 4}),  # weights made whole weigh more than what is kept
    ("llama", {"method": "qlora", "targets": "mlp", "rank": 1, "checkpointing": "block", "seq": 64}),
    ("qwen2", {"task": "dpo", "checkpointing": "block", "seq": 64, "batch": 8}),  # the reference makes forward's peak
    ("mistral", {"method": "full", "batch": 1, "seq": 4}),  # backward ends with three gradients of the tied matrix
    ("wide", {"method": "qlora", "batch": 1, "seq": 4}),  # whole weights make backward's peak
    ("llama", {"precision": "fp16", "attention": "eager", "seq": 64}),
    ("llama", {"held": True, "seq": 64, "batch": 8, "checkpointing": "block"}),
    ("qwen2", {"method": "qlora", "precision": "fp16", "double_quant": False, "upcast": True, "seq": 64}),
    ("llama", {"method": "qlora", "upcast": True, "attention": "eager", "seq": 64, "checkpointing": "block"}),
    ("llama", {"precision": "amp", "seq": 64}),
    ("llama", {"precision": "amp", "method": "qlora", "seq": 64, "checkpointing": "block"}),
    ("llama", {"loss": "trl", "seq": 250}),
    ("llama", {"method": "head", "task": "reward", "checkpointing": "block", "seq": 64}),
    ("bert", {"method": "head", "checkpointing": "selective"}),
    ("gemma2", {"loss": "trl", "method": "full", "seq": 100, "batch": 3}),
    ("llama", {"loss": "chunked", "method": "full", "seq": 250, "batch": 20}),  # more chunks than are followed
    ("llama", {"precision": "fp32", "attention": "math", "seq": 128}),
    ("qwen2", {"attention": "math", "seq": 128, "checkpointing": "block"}),
    ("llama", {"method": "qlora", "upcast": True, "attention": "math", "seq": 128}),
    ("llama", {"attention": "efficient", "seq": 128}),
    ("llama", {"task": "ppo", "method": "qlora", "reward_model": "minilm"}),
    ("llama", {"task": "ppo", "precision": "mixed", "reward_model": FAMILIES["qwen2"]}),
]
WIDE = LLAMA | {"vocab_size": 20, "intermediate_size": 4096, "tie_word_embeddings": False}


@pytest.mark.parametrize(("family", "options"), TRACED)
def test_every_phase_is_within_one_per_cent_of_the_traced_model(family, options):
    arguments, config = SMALL | {"batch": 4} | options, (FAMILIES | {"wide": WIDE})[family]
    plan, traced = counted(config, **arguments), tracing.trace(config, **arguments)
    errors = {phase: plan.total(phase) / sum(parts.values()) - 1 for phase, parts in traced.items()}
    assert set(traced) >= {"load", "forward", "loss", "backward", "step"}
    assert max(map(abs, errors.values())) < 0.01, errors
    for part in ("weights", "adapters", "gradients", "optimizer"):
        assert plan.phases["step"][part] == pytest.approx(traced["step"][part], rel=0.02), part


def test_the_table_has_every_row_and_formulas_stay_within_two_per_cent():
    rows = records.select(records.load("14/planner-cpu")["rows"], phase="report")
    assert {row["arm"] for row in rows} == {*studies_planner.ARMS} and len(rows) >= 40
    assert max(abs(row["worst"]) for row in rows) < 2
    assert sum(row["layers"] > studies_planner.DEPTH for row in rows) >= 4, "some at full depth"


# --- what a GPU adds


def blocks(*sizes, allocator=None):
    allocator = allocator or CachingAllocator()
    return allocator, [allocator.take(size) for size in sizes]


@pytest.mark.parametrize(
    ("size", "block", "segment"),
    [
        (1, 512, 2 * MIB),
        (513, 1024, 2 * MIB),
        (MIB, MIB, 2 * MIB),
        (MIB + 1, MIB + 512, 20 * MIB),
        (10 * MIB - 512, 10 * MIB - 512, 20 * MIB),
        (10 * MIB, 10 * MIB, 10 * MIB),  # a segment of its own, in steps of 2 MiB
        (11 * MIB, 12 * MIB, 12 * MIB),  # what is left over is not more than 1 MiB, so it is not split off
        (int(12.5 * MIB), int(12.5 * MIB), 14 * MIB),
    ],
)
def test_a_request_takes_a_segment_by_its_size(size, block, segment):
    allocator, (made,) = blocks(size)
    assert (made.size, allocator.allocated, allocator.reserved) == (block, block, segment)


def test_the_smallest_free_block_that_is_large_enough_is_taken():
    allocator, (large, wall, small, other) = blocks(60 * MIB, 30 * MIB, 40 * MIB, 30 * MIB)
    allocator.give(large)
    allocator.give(small)
    again = allocator.take(38 * MIB)
    assert again.start == small.start and again.size == 38 * MIB, "2 MiB are split off"
    assert allocator.take(2 * MIB).start == again.start + again.size, "and are the smallest now"
    assert allocator.take(50 * MIB).start == large.start and allocator.reserved == 160 * MIB
    allocator.give(wall)
    allocator.give(other)
    assert allocator.take(30 * MIB).start == min(wall.start, other.start), "of equal ones the lowest"


def test_free_neighbours_are_merged_and_segments_never():
    allocator, parts = blocks(*[5 * MIB] * 4)
    assert allocator.reserved == 20 * MIB
    for block in parts[0], parts[2], parts[1], parts[3]:
        allocator.give(block)
    assert allocator.take(20 * MIB).start == 0 and allocator.reserved == 20 * MIB
    allocator, pair = blocks(12 * MIB, 12 * MIB)
    for block in pair:
        allocator.give(block)
    allocator.take(24 * MIB)
    assert (allocator.allocated, allocator.reserved) == (24 * MIB, 48 * MIB)


def test_small_and_large_requests_have_pools_of_their_own():
    allocator, (large,) = blocks(20 * MIB)
    allocator.give(large)
    allocator.take(1000)
    assert allocator.reserved == 22 * MIB


def test_the_formulas_ask_the_allocator_for_what_the_traced_model_asks():
    """Reserved by the ledger's requests against those of the real modules, in their own order."""

    class Replay(tracing.LiveBytes):
        def _born(self, tensor):
            storage = tensor.untyped_storage()
            block = allocator.take(storage.nbytes())
            super()._born(tensor)
            weakref.finalize(storage, allocator.give, block)

    config = LLAMA | {"hidden_size": 1024, "intermediate_size": 2816, "vocab_size": 8000, "num_hidden_layers": 3}
    for options in {"attention": "eager"}, {"method": "full"}, {"method": "qlora"}:
        arguments = {"batch": 2, "seq": 256, "checkpointing": "block"} | options
        allocator = CachingAllocator()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(tracing, "LiveBytes", Replay)
            tracing.trace(config, **arguments)
            own = CachingAllocator()
            patch.setattr(formulas, "Ledger", lambda mixed, allocator, own=own: Ledger(mixed, own))
            counted(config, **arguments)
        assert own.reserved == pytest.approx(allocator.reserved, rel=0.02), options


def test_cuda_s_softmax_reads_halves_and_needs_one_product_more():
    """Eager attention, one row: fp16 has no 32-bit copy of the scores in forward; backward makes grad x output."""
    setting = {"attention": "eager", "seq": 2048, "checkpointing": "block", "loss": "chunked"}
    scores = 32 * 2048**2  # numbers
    peaks = {}
    for precision, device in itertools.product(("bf16", "fp16"), ("cuda", "cpu")):
        found = planner.plan("llama-3.2-1b", precision=precision, device=device, **setting)
        peaks[precision, device] = {phase: found.total(phase) / scores for phase in ("forward", "backward")}
    assert peaks["bf16", "cpu"] == peaks["fp16", "cpu"]
    assert peaks["bf16", "cuda"]["forward"] - peaks["fp16", "cuda"]["forward"] == pytest.approx(2, abs=0.1)
    assert peaks["bf16", "cuda"]["backward"] - peaks["bf16", "cpu"]["backward"] == pytest.approx(4, abs=0.3)


def test_two_threads_keep_a_workspace_each_for_products():
    def more(card):
        on, off = planner.plan("smollm2-135m", card=card), counted("smollm2-135m")
        return {phase: (on.total(phase) - off.total(phase)) / MIB for phase in on.phases}

    assert more("t4")["load"] < 1 and more("t4")["step"] == pytest.approx(2 * 8.125, abs=8)
    assert more("h100")["step"] - more("t4")["step"] == pytest.approx(2 * (32 - 8.125), abs=1)


def test_an_output_that_is_held_weighs_its_logits():
    setting = {"seq": 1000, "checkpointing": "block"}
    free, held = (counted("llama-3.2-1b", held=held, **setting) for held in (False, True))
    logits = 2 * 1000 * 128256
    first = 2 * 1000 * 2048  # its graph keeps the first block's input too, and that one's gradient
    assert held.total("step") - free.total("step") == pytest.approx(logits + 2 * first, abs=1024)
    assert held.total("backward") - free.total("backward") == pytest.approx(logits, rel=0.02)


def measured_on_t4(*roles):
    rows = records.select(records.load("14/planner-t4")["rows"], phase="report")
    return [row for row in rows if row["role"] in roles]


def test_a_t4_s_measurements_are_met_as_the_tool_says():
    for role, count, mean in ("calibration", 49, 0.2), ("holdout", 12, 0.5):
        errors = [abs(row["error"]) for row in measured_on_t4(role)]
        assert len(errors) == count and sum(errors) / count < mean
    rows = measured_on_t4("calibration", "holdout")
    least, most = min(row["reserved error"] for row in rows), max(row["reserved error"] for row in rows)
    worst = max(abs(row["error"]) for row in rows)
    low, high = math.ceil(-10 * least) / 10, math.ceil(10 * most) / 10
    said = f"within {math.ceil(10 * worst) / 10} %, reserved from {low} % too low to {high} % too high"
    assert said in planner.CHECKED and f"{len(rows)} published" in planner.CHECKED
    assert {"qlora" in row["arm"] for row in measured_on_t4("holdout")} == {True} and "12 of QLoRA" in planner.CHECKED
    assert 1 / (1 + least / 100) < planner.MARGIN, "which covers the worst"


def test_no_verdict_at_a_t4_s_limit_was_wrong():
    rows = measured_on_t4("verdict")
    assert len(rows) == 12 and {row["completed"] for row in rows} == {True, False}
    assert not [row for row in rows if row["verdict"] == ("does not fit" if row["completed"] else "fits")]
    assert all(row["verdict"] != "does not fit" for row in measured_on_t4("calibration", "holdout"))


@pytest.mark.parametrize(
    ("measured", "options"),
    [(22_273_851_392, {"rank": 32, "targets": "qv"}), (37_241_225_216, {"method": "full"})],
)
def test_peft_s_published_peaks_are_met_from_above(measured, options):
    """peft's MetaMathQA benchmark: cuda_memory_max on an L40S, bf16, 4 rows of at most 768 tokens, outputs held.

    Source: method_comparison/MetaMathQA/results, lora and full-finetuning of Llama-3.2-3B, June 2025. How long the rows
    of its largest batch were is not told, so the plan for 768 is a bound.
    """
    reserved = planner.plan("llama-3.2-3b", batch=4, seq=768, held=True, **options).reserved
    assert 1 < reserved / measured < 1.08


def test_the_t4_s_rows_are_what_the_formulas_give_today():
    for row in measured_on_t4("calibration", "holdout")[::6] + measured_on_t4("verdict")[::4]:
        again = studies_planner.on_t4({"phase": "report", "arm": row["arm"]})
        assert again.items() <= row.items()


REAL = [
    ("llama", {"method": "full", "precision": "fp32", "optimizer": "adamw-8bit"}),
    ("llama", {"method": "qlora", "double_quant": False, "upcast": True, "held": True, "seq": 64, "batch": 8}),
    ("llama", {"method": "qlora", "seq": 64, "batch": 8}),
    ("qwen2", {"task": "ppo", "method": "full", "precision": "mixed"}),
    ("mistral", {"task": "dpo", "accumulation": 2}),
    ("gemma2", {"checkpointing": "block"}),
    ("bert", {"method": "full", "precision": "fp32", "optimizer": "lion"}),
    ("vit", {"precision": "mixed"}),
]


@pytest.mark.parametrize(("family", "options"), REAL)
def test_a_real_step_on_the_cpu_takes_what_the_formulas_say(family, options, monkeypatch):
    """Real numbers, real NF4 layers, real optimizers. A CPU's blocks are not rounded up as a GPU's are."""
    monkeypatch.setattr(profiles, "current", lambda: SimpleNamespace(device="cpu"))
    arguments = SMALL | {"batch": 4} | options
    plan, found = counted(FAMILIES[family], **arguments), measuring.measure(FAMILIES[family], **arguments)
    errors = {phase: plan.total(phase) / total - 1 for phase, total in found["phases"].items()}
    assert list(found["phases"]) == ["load", "forward", "loss", "backward", "step"]
    assert max(map(abs, errors.values())) < 0.015, errors
    assert found["allocated"] == max(found["phases"].values())


def test_the_gpu_s_table_is_wide_and_its_rows_can_be_planned(monkeypatch):
    arms = studies_planner.GPU_ARMS
    families = {planner.configuration(model)[1].get("model_type", "llama") for model, _ in arms.values()}
    assert len(arms) == len(studies_planner.GPU_CASES) >= 60 and len(families) >= 5
    largest = max(planner.plan(model, **options).process for model, options in arms.values())
    assert largest < planner.memory("h100")
    monkeypatch.setattr(profiles, "current", lambda: SimpleNamespace(device="cpu"))
    with pytest.raises(NbtoolsError, match="run planner-cpu"):
        studies_planner.on_gpu({"phase": "report", "arm": next(iter(arms))})


def test_a_gpu_s_row_tells_errors_and_false_fits():
    plan = planner.plan("smollm2-135m")
    found = {"phases": {phase: plan.total(phase) for phase in plan.phases}, "reserved": plan.reserved}
    found |= {"allocated": plan.allocated, "process": plan.process}
    row = studies_planner.against(plan, found)
    assert {row[key] for key in ("error", "worst", "reserved error", "process error")} == {0.0}
    assert row["false fits"] == ""
    found["phases"]["loss"] *= 2
    row = studies_planner.against(plan, found | {"allocated": 2 * plan.allocated, "process": planner.memory("3090")})
    assert (row["error"], row["worst"], row["at"]) == (-50.0, -50.0, "loss") and row["process error"] < -90
    assert row["false fits"] == "t4 a10g 4090", "as much as a 3090 has was used: the 4090 has a little less"


def test_a_row_that_fails_says_why_and_a_broken_context_ends_the_study(monkeypatch):
    monkeypatch.setattr(profiles, "current", lambda: SimpleNamespace(device="cuda"))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H100 80GB HBM3")
    cell = {"phase": "report", "arm": next(iter(studies_planner.GPU_ARMS))}
    errors = iter(
        [torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), RuntimeError("no kernel")]
    )

    def failing(model, **options):
        raise next(errors, RuntimeError("CUDA error: an illegal memory access was encountered"))

    monkeypatch.setattr(measuring, "measure", failing)
    monkeypatch.setattr(meters, "let_go", lambda error: None)
    assert "2 GiB more were asked for" in studies_planner.on_gpu(cell)["failed"]
    assert studies_planner.on_gpu(cell) == {"failed": "no kernel"}
    with pytest.raises(RuntimeError, match="illegal"):
        studies_planner.on_gpu(cell)


@pytest.mark.parametrize(
    ("name", "card"),
    [
        ("Tesla T4", "t4"),
        ("NVIDIA GeForce RTX 4090", "4090"),
        ("NVIDIA A100-SXM4-80GB", "a100-80"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA L4", None),
    ],
)
def test_a_card_is_known_by_torch_s_name_for_it(monkeypatch, name, card):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: name)
    assert studies_planner.own_card() == card


class ToyAllocator:
    """torch.cuda's counters over a script of moments."""

    def __init__(self, moments):
        self.moments, self.top = iter(moments), 0

    def memory_allocated(self):
        return 100

    def max_memory_allocated(self):
        return next(self.moments)

    def reset_peak_memory_stats(self):
        self.top += 1

    def __getattr__(self, name):
        reserved = {"max_memory_reserved": lambda: 9 - self.top, "memory_reserved": lambda: 5}
        return ({"mem_get_info": lambda: (30, 50)} | reserved).get(name, lambda: None)


def test_the_allocator_s_peak_is_what_came_on_top(monkeypatch):
    cleared = []
    monkeypatch.setattr(torch._C, "_cuda_clearCublasWorkspaces", lambda: cleared.append(1), raising=False)
    monkeypatch.setattr(torch, "cuda", toy := ToyAllocator([150, 130]))
    with measuring.Allocator() as gauge:
        assert (gauge.peak(), gauge.peak(), toy.top) == ({"all": 50}, {"all": 30}, 3), "each reading starts anew"
        assert gauge.outside() == {"reserved": 8, "process": 23, "context": 15, "total": 50}, "the highest of all"
    assert cleared == [1], "no workspace of an earlier run is left out"


def test_a_preference_is_two_rows():
    rows = {
        task: planner.setup(FAMILIES["llama"], task=task, batch=3, seq=8).rows
        for task in ("sft", "ppo", "reward", "dpo")
    }
    assert rows == {"sft": 3, "ppo": 3, "reward": 6, "dpo": 6}


def test_generation_holds_the_cache_and_no_gradients():
    found = planner.plan("llama-3.2-1b", task="ppo", batch=8, seq=1024)
    assert list(found.phases) == list(planner.PHASES) and found.phases["generation"]["gradients"] == 0
    cache = 2 * 8 * 1024 * 8 * 64 * 16 * 2  # keys and values, rows, length, heads, their width, layers, bytes
    assert cache < found.phases["generation"]["workspace"] < 1.1 * cache


def test_a_reward_model_is_frozen_weights_beside_the_policy():
    """As many bytes as the real one has, in the policy's width, in every phase; nothing else changes."""
    for precision, width in ("bf16", 2), ("fp32", 4):
        alone, judged = (
            counted(FAMILIES["llama"], task="ppo", precision=precision, seq=64, reward_model=reward)
            for reward in (None, FAMILIES["qwen2"])
        )
        judge = transformers.AutoConfig.for_model(**FAMILIES["qwen2"], num_labels=1)
        with torch.device("meta"):
            real = transformers.AutoModelForSequenceClassification.from_config(judge)
        bytes_ = sum(-(-p.numel() * width // 512) * 512 for p in real.parameters())
        for phase in alone.phases:
            more = {part: judged.phases[phase][part] - n for part, n in alone.phases[phase].items()}
            assert more.pop("weights") == bytes_ and not any(more.values()), phase
        assert judged.facts == alone.facts
    assert (
        planner.plan(FAMILIES["llama"], task="ppo", reward_model="minilm", seq=64).json()["setup"]["judge"]["name"]
        == "minilm"
    )


# --- what it says


def test_the_peak_is_the_highest_phase_and_the_parts_add_up():
    found = planner.plan("smollm2-360m", method="full", seq=256)
    assert found.allocated == max(found.total(phase) for phase in found.phases) == found.total(found.peak)
    assert {part for row in found.phases.values() for part in row} == {*planner.PARTS}
    assert found.allocated < found.reserved < found.process


def test_verdicts_have_a_margin_on_either_side():
    def verdicts(seq):
        return planner.plan("llama-3-8b", seq=seq).verdict("3090")

    said = [verdicts(seq) for seq in range(128, 2048, 64)]
    order = ["fits", "too close to call", "does not fit"]
    assert [*dict.fromkeys(said)] == order and said == sorted(said, key=order.index)


def test_advice_goes_from_cheap_to_dear_and_names_nothing_needless():
    found = planner.plan("llama-3-8b", method="full", seq=2048, held=True, card="t4")
    changes = found.advice()
    sizes = [found.process, *(change.process for change in changes)]
    assert found.verdict() == "does not fit" and changes[-1].verdict == "fits"
    assert sizes == sorted(sizes, reverse=True)
    assert [change.what for change in changes] == ["LoRA", "QLoRA", "checkpointing of every block"]
    last = planner.plan(**changes[-1].arguments, card="t4")
    assert (last.allocated, last.process) == (changes[-1].peak, changes[-1].process)
    assert planner.plan("smollm2-135m", card="h100").advice() == []
    near = planner.plan(
        "llama-3.2-1b", seq=1024, batch=7, precision="fp16", checkpointing="block", held=True, card="t4"
    )
    assert [change.what for change in near.advice()] == ["the model's output let go before backward", "chunked loss"]
    again = planner.plan("llama-3-8b", method="full", card="t4").advice()
    assert [change.what for change in again] == ["LoRA", "QLoRA", "grouped heads repeated before sdpa"], "tried again"
    many = planner.plan("minilm", method="full", precision="fp32", batch=512, card="t4").advice()
    assert [change.what for change in many] == ["batch 128 with 4 accumulated"], "not one row at a time"
    halved = planner.plan("llama-3.2-1b", precision="mixed", seq=4096, card="t4").advice()
    assert {change.arguments["precision"] for change in halved} <= {"mixed", "fp16"}, "a T4 has no bf16"
    text = str(planner.plan("llama-3-70b", method="qlora", checkpointing="block", seq=128, card="t4"))
    assert "none of these makes it fit on a t4; the smallest card here that holds it so: " in text


def test_a_plan_for_all_cards_says_of_each_what_its_own_plan_says():
    asked = {"method": "qlora", "batch": 2, "seq": 2048, "precision": "fp16"}
    everywhere = planner.plan("smollm2-135m", **asked)
    for card in planner.CARDS:
        assert everywhere.verdict(card) == planner.plan("smollm2-135m", **asked, card=card).verdict()
    assert everywhere.verdict("t4") == "does not fit" and everywhere.verdict("4090") == "fits"


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("checkpointing", ["selective", "block"])
def test_checkpointing_costs_a_head_alone_more_than_it_saves(family, checkpointing):
    task = {"task": "reward"} if family not in ("bert", "vit") else {}
    asked = SMALL | {"method": "head"} | task
    plain, saved = counted(FAMILIES[family], **asked), counted(FAMILIES[family], **asked, checkpointing=checkpointing)
    assert saved.total("backward") > plain.total("backward"), "the gradient goes through all blocks, for nothing"


def test_advice_cuts_rows_and_halves_weights_only_where_nothing_else_helps():
    setting = {"method": "qlora", "precision": "fp16", "card": "t4"}
    long = planner.plan("llama-3-8b", checkpointing="block", loss="chunked", attention="eager", seq=8192, **setting)
    assert [change.what for change in long.advice()] == ["grouped heads repeated before sdpa", "8-bit AdamW"]
    wider = planner.plan("llama-3-8b", checkpointing="block", loss="chunked", seq=8192, **setting | {"card": "9"})
    assert [change.what for change in wider.advice()][-2:] == ["rows of 4096 tokens", "rows of 2048 tokens"]
    short = planner.plan("llama-3-70b", seq=200, **setting).advice()
    assert {change.arguments["seq"] for change in short} == {200}, "100 tokens are too few"
    eager = {"attention": "eager", "seq": 8192, "precision": "fp16"}
    told = {card: planner.plan("llama-3.2-1b", **eager, card=card).advice() for card in ("t4", "4090")}
    turned = {card: {change.arguments["attention"] for change in changes} for card, changes in told.items()}
    assert turned == {"t4": {"efficient"}, "4090": {"sdpa"}}, "a T4 would fall back to keeping all weights in 32 bits"
    wide = planner.plan("llama-3.2-3b", method="full", precision="mixed", card="a100-40").advice()
    assert [change.arguments["precision"] for change in wide] == ["bf16"] and "small updates can be lost" in str(
        wide[0]
    )
    frozen = planner.plan("llama-3-8b", precision="mixed", card="a100-40").advice()
    assert "adapters stay in 32 bits" in str(frozen[0]) and "lost" not in str(frozen[0])


def test_advice_repeats_heads_before_it_cuts_texts():
    setting = {"seq": 8192, "checkpointing": "block", "precision": "fp16", "loss": "chunked", "card": "t4"}
    found = planner.plan("llama-3.2-1b", **setting)
    assert found.setup.attention == "math" and found.verdict() == "does not fit"
    assert [change.arguments["attention"] for change in found.advice()] == ["efficient"]
    assert [change.arguments["seq"] for change in found.advice()] == [8192]


def test_advice_makes_weights_lighter_however_large_the_batch():
    """The activations hide what QLoRA saves, and still the weights alone are too many without it."""
    found = planner.plan("llama-3-8b", task="dpo", batch=64, seq=1024, card="t4").advice()
    assert found[0].what == "QLoRA" and found[-1].verdict == "fits"


@pytest.mark.parametrize(
    ("model", "asked"),
    [
        ("llama-3-8b", "--method full --batch 8 --card t4"),
        ("llama-3.2-1b", "--method qlora --no-double-quant --upcast --held --batch 32 --card t4"),
        ("llama-3.2-1b", "--attention eager --seq 8192 --method full --card 10"),
    ],
)
def test_the_flags_of_an_advice_give_what_it_says(model, asked):
    def plan(words):
        args = vars(cli.parser().parse_args(["plan", model, *words.split()]))
        return planner.plan(model, **{key: args[key] for key in (*planner.DEFAULTS,)})

    found, flags = plan(asked).advice(), asked
    assert len(found) >= 2
    for change in found:
        flags += f" {change.flags}"
        assert plan(flags).process == change.process and change.flags in str(change)


def test_halvings_are_the_fewest_that_fit():
    told = planner.plan("smollm2-1.7b", batch=64, loss="chunked", card="t4").advice()
    assert [change.what for change in told] == [
        f"batch {told[0].arguments['batch']} with {64 // told[0].arguments['batch']} accumulated"
    ]
    double = told[0].arguments | {"batch": 2 * told[0].arguments["batch"]}
    assert told[0].verdict == "fits" and planner.plan(**double, card="t4").verdict() != "fits"


def test_names_of_targets_and_what_a_configuration_may_leave_out():
    named = {name: planner.setup("smollm2-135m", targets=name).targets for name in planner.TARGETS}
    assert named["qv"] == ("q_proj", "v_proj") and named["all-linear"] == formulas.LINEAR["llama"]
    assert named["attention"] == ("q_proj", "k_proj", "v_proj", "o_proj")
    assert named["mlp"] == ("gate_proj", "up_proj", "down_proj")
    assert planner.setup("smollm2-135m", targets="mlp, attention").targets == formulas.LINEAR["llama"]
    assert planner.setup("smollm2-135m", rank=192).rank == 192, "as many as the smaller side"
    labelled = FAMILIES["bert"] | {"id2label": {"0": "a", "1": "b", "2": "c"}}
    labels = [planner.setup(config, seq=8).labels for config in (labelled, labelled | {"num_labels": 4})]
    assert labels == [3, 4]
    assert planner.setup(FAMILIES["bert"] | {"num_key_value_heads": 2}, seq=8).config["num_key_value_heads"] == 4
    for family, more in {"qwen2": {"sliding_window": 8}, "mistral": {"attention_bias": True}}.items():
        config = FAMILIES[family]
        assert planner.plan(config | more, seq=20, rank=4).phases == planner.plan(config, seq=20, rank=4).phases
    windowed = planner.plan(FAMILIES["mistral"] | {"sliding_window": 8}, seq=20, rank=4)
    assert windowed.allocated > planner.plan(FAMILIES["mistral"], seq=20, rank=4).allocated


def test_cards_hold_a_little_less_than_is_printed_on_them():
    printed = {"t4": 15, "3090": 24, "4090": 24, "a100-40": 40, "a100-80": 80, "h100": 80, "h200": 141}
    printed |= {"a10g": 24, "l40s": 48}
    assert printed.keys() == planner.CARDS.keys()
    for card, gib in printed.items():
        assert 0.91 * gib < planner.memory(card) / 2**30 < gib, card


@pytest.mark.parametrize(
    ("said", "meant"),
    [("RTX 4090", "4090"), ("NVIDIA A100-80GB", "a100-80"), ("H100-80GB", "h100"), ("Tesla T4", "t4"), (24, "24")],
)
def test_a_card_has_several_names_or_a_size(said, meant):
    assert planner.plan("smollm2-135m", card=said).card == meant
    assert planner.memory("22.5") == 22.5 * 2**30


def test_the_line_of_a_card_says_what_is_otherwise_there():
    def line(**asked):
        return next(line for line in str(planner.plan("llama-3.2-1b", **asked)).splitlines() if line.startswith("t4 "))

    fallen = planner.plan("llama-3.2-1b", seq=2048, precision="fp16", card="t4")
    assert line(seq=2048, precision="fp16").endswith(
        f"({meters.size(fallen.process)} with its math kernel for attention)"
    )
    assert line(attention="flash", precision="fp16").endswith("cannot run (no flash attention)")
    assert line(attention="efficient").endswith("fits (no bf16 units)")
    assert line(attention="efficient", precision="fp16").endswith("fits")
    assert line(attention="efficient", card="t4").endswith("fits"), "said in a sentence of its own"


def test_where_nothing_helps_larger_cards_are_named():
    setting = {"method": "qlora", "optimizer": "adamw-8bit", "checkpointing": "block", "seq": 128}
    text = str(planner.plan("llama-3-70b", **setting, card="4090"))
    assert "no change known here makes it fit on a 4090; the smallest card here that holds it: h100 or a100-80" in text
    wide = planner.configuration("llama-3-70b")[1] | {"intermediate_size": 8 * 28672}
    none = str(planner.plan(wide, **setting, card="h200"))
    assert "no single card here holds it, and what several share (FSDP, ZeRO) is not planned" in none


def test_all_cards_are_told_where_none_is_named():
    plan = planner.plan("smollm2-135m")
    lines = str(plan).splitlines()
    assert [*plan.json()["verdicts"]] == [*planner.CARDS]
    assert all(any(line.startswith(f"{card} (") for line in lines) for card in planner.CARDS)
    assert [line.split()[0] for line in lines if "<- the peak" in line] == [plan.peak]
    one = planner.plan("smollm2-135m", card="H100")
    assert one.json()["verdicts"] == {"h100": "fits"} and one.json()["card"] == "h100"
    assert one.json()["arguments"] == plan.arguments


def test_a_verdict_is_about_what_is_reserved_and_what_is_allocated():
    plan = planner.plan("smollm2-135m", card="t4")
    room = planner.memory("t4") - 141 * MIB

    def said(reserved, allocated):
        phases = {"load": plan.phases["load"] | dict.fromkeys(plan.phases["load"], 0) | {"weights": allocated}}
        return dataclasses.replace(plan, facts=plan.facts | {"reserved": reserved}, phases=phases).verdict()

    fifth = int(room / 1.2)
    assert (said(fifth, 1), said(fifth + MIB, 1)) == ("fits", "too close to call")
    assert (said(2 * room, room), said(2 * room, room + 1)) == ("too close to call", "does not fit")
    assert plan.process == plan.reserved + 141 * MIB
    elsewhere = planner.plan("smollm2-135m", card="a100-40")
    assert elsewhere.process == elsewhere.reserved + 500 * MIB


def test_what_is_beside_the_figures_is_said():
    def said(*words, **asked):
        return all(word in str(planner.plan("llama-3.2-1b", **asked)) for word in words)

    assert said("a value model of its own", "no reward model", task="ppo") and not said("value model", task="sft")
    judged = planner.plan("llama-3.2-1b", task="ppo", reward_model="minilm")
    assert "adamw, reward model minilm\n" in str(judged) and "no reward model" not in str(judged)
    assert said(
        "rank and targets: without a part in llama-3.2-1b with method full", method="full", rank=8, targets="qv"
    )
    assert said("double_quant: without a part", double_quant=False) and not said("double_quant", method="qlora")
    assert not said("without a part", method="qlora", double_quant=False, rank=8, seq=64)
    assert "seq: without a part in vit-base" in str(planner.plan("vit-base", seq=64))
    assert said("keeps the embeddings' states in 32 bits, 1.47 GiB more", method="full", optimizer="adamw-8bit")
    assert not said("embeddings' states", method="full", optimizer="adamw-paged"), "those are paged too"
    assert said("plan precision fp16", card="t4") and said("mixed stands for fp16", card="t4", precision="mixed")
    for method, precision in (("full", "bf16"), ("full", "amp")):
        assert said("plan precision mixed", card="t4", method=method, precision=precision)
        assert said("small updates can be lost", method=method, precision=precision)
    assert not said("lost", method="full", precision="mixed", card="h200") and not said("can be lost", card="h200")
    assert said("name a card", method="full", precision="mixed") and not said("name a card", card="t4")
    assert not said("no bf16 units", card="h100") and not said("no bf16 units", card="t4", precision="fp16")
    assert "holes" in str(planner.plan("qwen2.5-1.5b", method="full", batch=4, precision="fp32"))
    assert not said("holes")


def test_sdpa_falls_back_where_no_fast_kernel_takes_grouped_heads():
    def attention(model, card=None, **options):
        return planner.plan(model, card=card, **options).setup.attention

    assert attention("llama-3.2-1b", "a100-40") == "sdpa" and attention("llama-3.2-1b", "t4") == "math"
    assert attention("llama-3.2-1b", "h100", precision="fp32") == "math"
    assert attention("llama-3.2-1b", "h100", precision="mixed") == "sdpa"
    assert attention("llama-3.2-1b", "h100", method="qlora", upcast=True) == "math"
    assert attention("smollm2-1.7b", "t4") == "sdpa", "a key for each query"
    assert attention("llama-3.2-1b", "t4", attention="efficient") == "efficient"
    assert attention("minilm", "t4") == "sdpa"
    assert attention("llama-3.2-1b", device="cpu", precision="fp32") == "sdpa"
    text = str(planner.plan("llama-3.2-1b", card="t4"))
    assert "math attention" in text and "torch takes its math kernel" in text


def test_the_answer_says_that_no_gpu_has_checked_it(capsys):
    command = "plan llama-3-8b --method qlora --rank 16 --batch 1 --seq 2048 --card t4"
    assert cli.main(command.split()) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert planner.CHECKED in text and "does not fit" in text and "<- the peak" in text
    assert cli.main([*command.split(), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["validated_on_gpu"] is False and found["verdicts"] == {"t4": "does not fit"}
    assert found["peak"] == "backward" and found["advice"][-1]["verdict"] == "fits"


def test_readme_shows_today_s_answer(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "120")
    _, command, rest = notebooks.ROOT.joinpath("README.md").read_text().partition("## Will it fit?\n\n```\nnbtools ")
    asked, _, rest = rest.partition("\n```\n")
    assert cli.main(asked.split()) == 0 and f"\n```\n{capsys.readouterr().out}```\n" in rest


def test_the_answer_is_as_wide_as_the_terminal(monkeypatch, capsys):
    for columns in (80, 140):
        monkeypatch.setenv("COLUMNS", str(columns))
        assert cli.main("plan llama-3-8b --method full --card t4".split()) == 0
        lines = capsys.readouterr().out.splitlines()
        assert columns - 20 < max(map(len, lines)) <= columns
        assert not any(line.strip().startswith(("GiB", "MiB", "%")) for line in lines), "a number stays with its unit"


def test_a_figure_is_drawn_on_demand(tmp_path, capsys):
    file = tmp_path / "phases.png"
    assert cli.main(["plan", "smollm2-135m", "--card", "22", "--figure", str(file)]) == 0
    assert file.read_bytes().startswith(b"\x89PNG") and "fits" in capsys.readouterr().out
    for wrong in (tmp_path / "none" / "phases.png", tmp_path / "phases.docx"):
        assert cli.main(["plan", "smollm2-135m", "--figure", str(wrong)]) == 2
        said = capsys.readouterr()
        assert "cannot be written" in said.err and said.err.count("\n") == 1 and not said.out


def test_a_trace_stands_beside_the_formulas(tmp_path, capsys):
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    command = ["plan", str(tmp_path), "--seq", "16", "--rank", "4", "--trace"]
    assert cli.main(command) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = [line.split() for line in lines[lines.index("phase         formulas      traced") + 1 :]]
    assert [row[0] for row in rows] == ["load", "forward", "loss", "backward", "step"]
    assert all(row[2] == row[4] == "KiB" and float(row[1]) == pytest.approx(float(row[3]), rel=0.02) for row in rows)
    assert cli.main([*command, "--json"]) == 0
    assert list(json.loads(capsys.readouterr().out)["traced"]) == [row[0] for row in rows]


def test_the_figure_has_a_bar_a_phase_and_the_card():
    axes = planner.plan("smollm2-135m", card="t4").figure().axes[0]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["load", "forward", "loss", "backward", "step"]
    lines = {line.get_label(): line.get_ydata()[0] for line in axes.get_lines()}
    plan = planner.plan("smollm2-135m", card="t4")
    assert axes.get_ylabel() == "GiB" and lines["t4"] == pytest.approx(14.5625)
    assert lines["process"] == pytest.approx(plan.process / 2**30)
    tops = {}
    for bar in axes.patches:
        tops[round(bar.get_x(), 2)] = max(tops.get(round(bar.get_x(), 2), 0), bar.get_y() + bar.get_height())
    wanted = [(plan.total(phase) + plan.phases[phase]["context"]) / 2**30 for phase in plan.phases]
    assert [*tops.values()] == pytest.approx(wanted), "parts stand on each other"


def test_a_saved_folder_and_its_file_give_what_the_model_gives(tmp_path):
    zoo.shape("smollm2-135m").save_pretrained(tmp_path)
    for place in tmp_path, tmp_path / "config.json":
        assert planner.plan(str(place)).phases == planner.plan("smollm2-135m").phases


WRONG = [
    (("gpt-9",), {}, "no model 'gpt-9'.*smollm2-135m"),
    (("someone/model",), {}, "as a hub name it cannot be read"),
    (("smollm2-135m",), {"card": "gtx"}, "no card 'gtx'.*t4"),
    (("smollm2-135m",), {"rank": 193}, r"between 1 and 192 \(the smaller side of k_proj\), got 193"),
    (("smollm2-135m",), {"rank": 0}, "rank must be a whole number of at least 1"),
    (("smollm2-135m",), {"rank": True}, "rank must be a whole number of at least 1, got True"),
    (("smollm2-135m",), {"accumulation": 0}, "accumulation must be a whole number of at least 1, got 0"),
    (("smollm2-135m",), {"loss": "chunked", "task": "dpo"}, "loss 'chunked' is for task 'sft', not for 'dpo'"),
    (("smollm2-135m",), {"loss": "trl", "task": "ppo"}, "loss 'trl' is for task 'sft', not for 'ppo'"),
    (("smollm2-135m",), {"reward_model": "minilm"}, "reward_model is for task 'ppo', not for 'sft'"),
    (("smollm2-135m",), {"reward_model": "vit-base", "task": "ppo"}, "reads images and cannot be a reward_model"),
    (("smollm2-135m",), {"reward_model": "gpt-9", "task": "ppo"}, "no model 'gpt-9'"),
    (("smollm2-135m",), {"task": "classify"}, "its classifier is planned as task 'reward'"),
    (("smollm2-135m",), {"held": True, "task": "dpo"}, "held is for task 'sft'"),
    (("smollm2-135m",), {"method": "qlora", "upcast": True, "precision": "mixed"}, "'qlora' in 'mixed': leave it out"),
    (("smollm2-135m",), {"method": "head", "task": "reward", "precision": "fp16"}, "'head' in 'fp16' has 16-bit"),
    (
        ({key: value for key, value in FAMILIES["mistral"].items() if key != "num_key_value_heads"},),
        {},
        "lacks num_key",
    ),
    ((LLAMA | {"hidden_size": 0},), {}, "hidden_size .* at least 1, got 0"),
    (("smollm2-135m",), {"seq": 8193}, "at most 8192.*got 8193"),
    (("smollm2-135m",), {"targets": "q_proj,x"}, "no target 'x'"),
    (("smollm2-135m",), {"method": "lorra"}, "no method 'lorra'"),
    (("smollm2-135m",), {"method": "head"}, "tied"),
    (("smollm2-135m",), {"held": 1}, "held must be True or False, got 1"),
    (("smollm2-135m",), {"held": True, "loss": "chunked"}, "held is for .*'stock', not for 'sft' with 'chunked'"),
    (("smollm2-135m",), {"upcast": True}, "upcast is for method 'qlora'.*not for 'lora' in 'bf16'"),
    (("smollm2-135m",), {"device": "cpu", "card": "t4"}, "'cpu' has no card, got 't4'"),
    (("smollm2-135m",), {"device": "tpu"}, "no device 'tpu'"),
    (("minilm",), {"task": "dpo"}, "encoder.*'dpo'"),
    (("minilm",), {"method": "qlora"}, "encoder.*'qlora'"),
    (("minilm",), {"loss": "chunked"}, "encoder.*'chunked'"),
    (({"model_type": "llama", "hidden_size": 64},), {}, "lacks intermediate_size, num_hidden_layers"),
    (({"model_type": "t5"},), {}, "'t5'.*not known"),
    (({key: value for key, value in LLAMA.items() if key != "model_type"},), {}, "has no model_type"),
    (("smollm2-135m",), {"card": "A100"}, "no card 'a100': choose a100-40 or a100-80"),
    (("smollm2-135m",), {"card": "24GB"}, "no card '24GB'.*its memory in GiB"),
    (("smollm2-135m",), {"card": "0.5"}, "no card '0.5'"),
    (("smollm2-135m",), {"rank": 600}, r"between 1 and 192 \(the smaller side of k_proj\), got 600"),
    ((LLAMA | {"hidden_size": "64"},), {}, "hidden_size in .* must be a whole number of at least 1, got '64'"),
    ((LLAMA | {"hidden_size": True},), {}, "must be a whole number of at least 1, got True"),
    ((LLAMA | {"num_key_value_heads": -2},), {}, "num_key_value_heads .* got -2"),
    ((LLAMA | {"num_key_value_heads": 3},), {}, "do not divide"),
    ((LLAMA | {"hidden_size": 66},), {}, "do not divide"),
    ((LLAMA | {"tie_word_embeddings": "false"},), {}, "tie_word_embeddings .* true or false, got 'false'"),
    ((LLAMA | {"mlp_bias": True},), {}, "sets mlp_bias, which the planner does not know"),
    ((LLAMA | {"quantization_config": {}},), {}, "sets quantization_config"),
    ((FAMILIES["gemma2"] | {"sliding_window": None},), {}, "lacks sliding_window"),
    (("smollm2-135m",), {"attention": "flash", "precision": "fp32"}, "'flash' wants 16 bits, not precision 'fp32'"),
    (("smollm2-135m",), {"attention": "flash", "card": "t4"}, "'flash' wants a newer card than 't4'"),
    (("smollm2-135m",), {"method": "full", "precision": "fp16"}, "a GradScaler refuses: plan 'mixed'"),
    (("./adap",), {}, "no model './adap'.*or a folder with a config.json.$"),
]


@pytest.mark.parametrize(("model", "options", "sentence"), WRONG)
def test_bad_input_gives_one_clear_sentence(model, options, sentence, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(NbtoolsError, match=sentence) as error:
        planner.plan(*model, **options)
    assert "\n" not in str(error.value)


def test_a_hub_name_is_read_by_the_hub_s_own_client(tmp_path, monkeypatch):
    zoo.shape("smollm2-135m").save_pretrained(tmp_path)
    asked = []
    import huggingface_hub as hub

    def download(*name, local_files_only=False):
        asked.append(local_files_only)
        if local_files_only:
            raise hub.errors.LocalEntryNotFoundError("not in the cache")
        return tmp_path / "config.json"

    monkeypatch.setattr(hub, "hf_hub_download", download)
    monkeypatch.setattr(hub, "get_hf_file_metadata", lambda url, timeout: asked.append(url.split("/")[-4:]))
    assert planner.plan("someone/small").phases == planner.plan("smollm2-135m").phases
    assert asked == [True, ["small", "resolve", "main", "config.json"], False], "the cache, one try, the file"


def test_a_folder_without_a_configuration_and_other_cases_of_names(tmp_path):
    with pytest.raises(NbtoolsError, match="has no config.json"):
        planner.plan(str(tmp_path))
    assert planner.plan("SmolLM2-135M", card="T4", targets="q_proj, v_proj").setup.targets == ("q_proj", "v_proj")


@pytest.mark.parametrize("text", ["{", "[]", '{"hidden_size": 64}'])
def test_half_a_config_gives_one_clear_sentence(tmp_path, text, capsys):
    (tmp_path / "config.json").write_text(text)
    assert cli.main(["plan", str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("options", [{"attention": "flash"}, {"optimizer": "adamw-8bit"}])
def test_a_trace_says_what_it_cannot_run(options):
    with pytest.raises(NbtoolsError, match="trace"):
        tracing.trace("smollm2-135m", **options)
