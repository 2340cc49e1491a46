"""Lesson 06: its four-bit code against bitsandbytes, its loaders, counts and GPU path. Small models, stubs for GPUs."""

import contextlib
import json
import math
from types import SimpleNamespace

import bitsandbytes as bnb
import bitsandbytes.functional as bnb_functional
import peft
import pytest
import torch
from small import llama
from torch import nn
from transformers import AutoModelForCausalLM

from nbtools import notebooks, records, studies_06, tasks, train, zoo
from nbtools.errors import NbtoolsError

TAUGHT = (
    "nf4_levels quantise pack unpack dequantise table TABLES decibels noise_of settings four_bit_layers "
    "trainable_ready load_base stored bits linear_layers splits DATA with_adapter answer_loss perplexity finetune "
    "shuffled run_arm ARMS STEPS meta_model activations pieces fingerprint save_adapter load_adapter merged "
    "half_type load_stock load_unsloth token_batches clock engine_run ENGINES LENGTHS LINEAR show_engines random_llama "
    "UNSLOTH TOKENIZER"
)
QUIET = {"tick": lambda *a, **k: None}


@pytest.fixture(scope="module")
def lesson():
    """What the notebook defines, as attributes."""
    return SimpleNamespace(**notebooks.definitions("06", *TAUGHT.split()))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A random Llama of two layers of width 64 with SmolLM2's vocabulary, saved."""
    torch.manual_seed(0)
    config = llama(vocab_size=49152, tie_word_embeddings=True, pad_token_id=2, eos_token_id=2)
    place = tmp_path_factory.mktemp("small")
    AutoModelForCausalLM.from_config(config).save_pretrained(place)
    return place


@pytest.fixture
def small(folder, monkeypatch):
    """zoo.smollm2 loads the small model instead, with the options it is given."""
    tokenizer = zoo.smollm2()[1]
    load = AutoModelForCausalLM.from_pretrained
    monkeypatch.setattr(zoo, "smollm2", lambda **options: (load(folder, **options), tokenizer))


# --- four bits, against bitsandbytes


def test_levels_codes_bytes_and_absmax_are_those_of_bitsandbytes(lesson):
    levels = lesson.nf4_levels()
    assert torch.equal(levels, bnb_functional.get_4bit_type("nf4", device="cpu"))
    g = torch.Generator().manual_seed(3)
    for weight in (torch.randn(256, 192, generator=g), torch.rand(64, 64, generator=g) ** 9, torch.zeros(2, 64)):
        for block in (32, 64, 128):
            theirs, state = bnb_functional.quantize_4bit(weight, blocksize=block, quant_type="nf4")
            codes, absmax = lesson.quantise(weight, levels, block)
            assert torch.equal(lesson.pack(codes), theirs.flatten()) and torch.equal(absmax, state.absmax)
            if weight.shape[1] % block:
                continue  # there bitsandbytes 0.50's CPU kernel takes a wrong absmax for part of the weights
            back = lesson.dequantise(lesson.unpack(lesson.pack(codes)), absmax, levels, block)
            assert torch.equal(back, bnb_functional.dequantize_4bit(theirs, state).flatten())


def test_real_layers_are_those_of_bitsandbytes(lesson):
    levels = lesson.nf4_levels()
    layers = list(lesson.linear_layers(zoo.smollm2()[0]).values())
    assert len(layers) == 210
    for layer in layers[::30]:
        theirs, state = bnb_functional.quantize_4bit(layer.weight.detach(), quant_type="nf4")
        codes, absmax = lesson.quantise(layer.weight.detach(), levels)
        assert torch.equal(lesson.pack(codes), theirs.flatten()) and torch.equal(absmax, state.absmax)


@pytest.mark.parametrize("name", ["fp4", "nf4"])
def test_tables_are_the_library_s(lesson, name):
    mine = lesson.TABLES[{"fp4": "FP4 bitsandbytes", "nf4": "NF4"}[name]]
    theirs = bnb_functional.get_4bit_type(name, device="cpu")
    torch.testing.assert_close(mine, torch.unique(theirs + 0.0))
    g = torch.Generator().manual_seed(0)
    weight = torch.randn(64, 640, generator=g)
    round_trip = bnb_functional.dequantize_4bit(*bnb_functional.quantize_4bit(weight, quant_type=name))
    assert lesson.noise_of(weight, mine) == pytest.approx(lesson.decibels(weight, round_trip), abs=1e-3)


def test_signal_to_noise_on_normal_weights(lesson):
    normal = torch.randn(2**19, generator=torch.Generator().manual_seed(0))
    found = [round(lesson.noise_of(normal, levels), 1) for levels in lesson.TABLES.values()]
    assert found == pytest.approx([20.7, 19.5, 18.3, 19.35], abs=0.06)
    assert lesson.decibels(torch.tensor([3.0, 4.0]), torch.tensor([3.0, 3.5])) == pytest.approx(20)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda m: m.pack(torch.zeros(3, dtype=torch.uint8)), "codes are packed in pairs, but there are 3: add one"),
        (lambda m: m.quantise(torch.ones(10), m.nf4_levels(), 4), "blocks of 4 do not divide 10 weights"),
        (lambda m: m.load_base("int8"), "a base is float or nf4, got 'int8'"),
        (lambda m: m.engine_run("jax", 512, "x"), "an engine is stock or unsloth, got 'jax'"),
    ],
)
def test_bad_input_gives_a_sentence(lesson, call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call(lesson)


# --- the four-bit model


def test_bits_are_counted_from_real_buffers(lesson, small):
    """Small layers: 192 blocks fill less than one block of 256, so its constants cost a little more than 4.127."""
    model = lesson.load_base("nf4")
    layers = lesson.four_bit_layers(model)
    assert len(layers) == 14
    weights = sum(math.prod(layer.weight.quant_state.shape) for layer in layers)
    blocks = weights // 64
    held = lesson.stored(model)
    assert held["codes"] == weights // 2 and held["absmax"] == blocks + 14 * (4 + 4)
    assert held["rest"] == 4 * (49152 * 64 + 5 * 64)  # tied head counted once
    assert lesson.bits(model) == pytest.approx(4 + 8 * held["absmax"] / weights)
    single = lesson.load_base("nf4", quantization_config=lesson.settings(double=False))
    assert lesson.bits(single) == 4.5


def test_a_layer_of_fitting_size_costs_4_127_bits(lesson):
    layer = bnb.nn.Linear4bit(576, 1536, bias=False, quant_type="nf4")
    layer.load_state_dict({"weight": torch.randn(1536, 576)})
    assert lesson.bits(layer.to("cpu")) == pytest.approx(4 + 8 / 64 + 32 / (64 * 256), abs=1e-4)


def test_every_adapter_gets_a_gradient_after_an_evaluation(lesson, small):
    model = lesson.with_adapter(lesson.load_base("nf4"), r=2)
    batch = {"input_ids": torch.arange(3, 20)[None], "labels": torch.arange(3, 20)[None]}
    before = [layer.weight.clone() for layer in lesson.four_bit_layers(model)]
    with torch.no_grad():
        model.eval()(**batch)
    model.train()
    for p in model.parameters():
        if p.requires_grad:
            nn.init.normal_(p)
    model(**batch).loss.backward()
    grads = [p.grad for p in model.parameters() if p.requires_grad]
    assert len(grads) == 28 and all(g is not None and g.abs().max() > 0 for g in grads)
    after = lesson.four_bit_layers(model)
    assert all(torch.equal(a.weight, b) for a, b in zip(after, before, strict=True))


def test_an_adapter_changes_nothing_at_first_and_starts_alike_on_both_bases(lesson, small):
    ids = {"input_ids": torch.arange(3, 20)[None]}
    states = []
    for kind in ("float", "nf4"):
        plain, model = lesson.load_base(kind).eval(), lesson.with_adapter(lesson.load_base(kind), r=3, seed=5).eval()
        with torch.no_grad():
            assert torch.equal(plain(**ids).logits, model(**ids).logits)
        states.append({name: p.detach() for name, p in model.named_parameters() if p.requires_grad})
        assert len(states[-1]) == 28 and not any("lm_head" in name for name in states[-1])
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@pytest.mark.parametrize("r", [0, -1, 33])
def test_a_rank_that_no_layer_can_have_is_refused(lesson, small, r):
    with pytest.raises(ValueError, match=rf"^rank must be between 1 and 32 \(the smallest side of a layer\), got {r}$"):
        lesson.with_adapter(lesson.load_base("float"), r)


# --- the experiment


def test_parts_of_the_data_are_disjoint(lesson):
    parts = [{json.dumps(row) for row in part} for part in (lesson.DATA.test, lesson.DATA.val, lesson.DATA.pool)]
    assert [len(part) for part in parts] == [64, 32, 120]
    assert not (parts[0] & parts[1] or parts[0] & parts[2] or parts[1] & parts[2])


def test_shuffled_answers_are_the_same_ones_elsewhere(lesson):
    pool, mixed = lesson.DATA.pool, lesson.shuffled(lesson.DATA.pool, 0)
    assert [row["instruction"] for row in pool] == [row["instruction"] for row in mixed]
    assert sorted(row["output"] for row in pool) == sorted(row["output"] for row in mixed)
    assert sum(a["output"] == b["output"] for a, b in zip(pool, mixed, strict=True)) < 10


def test_answer_loss_weighs_tokens_not_batches(lesson, small, monkeypatch):
    model = lesson.load_base("float")
    monkeypatch.setattr(train, "autocast", lambda enabled=True: contextlib.nullcontext())
    rows = lesson.DATA.val[:11]
    total = terms = 0
    for row in rows:
        batch = tasks.chats(lesson.TOKENIZER, [row])
        logits = model(input_ids=batch["input_ids"]).logits[0, :-1]
        labels = batch["labels"][0, 1:]
        total += nn.functional.cross_entropy(logits, labels, ignore_index=-100, reduction="sum").item()
        terms += (labels != -100).sum().item()
    assert lesson.answer_loss(model, rows) == pytest.approx(total / terms, rel=1e-4)


def test_training_moves_the_adapter_alone_and_repeats_itself(lesson, small):
    ends = []
    for _ in range(2):
        model = lesson.with_adapter(lesson.load_base("nf4"), r=2, seed=1)
        history, optimizer = lesson.finetune(model, lesson.DATA.pool[:12], 1e-2, 4, seed=3, **QUIET)
        assert len(history) == 4 and history[-1]["loss"] < history[0]["loss"]
        assert len(optimizer.param_groups[0]["params"]) == 28
        ends.append([p.detach().clone() for p in model.parameters() if p.requires_grad])
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


def test_arms(lesson, small, monkeypatch):
    seen = []
    monkeypatch.setitem(lesson.run_arm.__globals__, "finetune", lambda *a, **k: seen.append(a) or (None, "optimizer"))
    for arm, four in (("base", 0), ("base nf4", 14), ("lora", 0), ("qlora", 14), ("qlora_shuffled", 14)):
        model, optimizer = lesson.run_arm(arm, 1e-3, 7, seed=2)
        assert len(lesson.four_bit_layers(model)) == four
        assert isinstance(model, peft.PeftModel) == (optimizer is not None) == ("lora" in arm)
    assert [a[2:5] for a in seen] == [(1e-3, 7, 2)] * 3
    assert seen[0][1] == seen[1][1] == lesson.DATA.pool != seen[2][1]


def test_a_cell_of_the_study_tunes_on_validation_and_reports_on_test(monkeypatch):
    model, asked = nn.Linear(2, 3), []
    stub = SimpleNamespace(
        DATA=SimpleNamespace(val="val", test="test"),
        run_arm=lambda arm, lr, steps, seed, tick: (model, torch.optim.SGD(model.parameters(), lr)),
        answer_loss=lambda model, rows: asked.append(rows) or 1.25,
        perplexity=lambda model: 20.0,
        stored=lambda model: {"codes": 3, "rest": 4},
    )
    monkeypatch.setattr(studies_06, "_lesson06", lambda *names: stub)
    cell = {"phase": "tune", "arm": "qlora", "seed": 1, "lr": 1e-3, "steps": 4}
    assert studies_06.qlora_run(cell) == {"score": -1.25}
    row = studies_06.qlora_run(cell | {"phase": "report"})
    assert asked == ["val", "test"]
    wanted = {"loss": 1.25, "perplexity": 20.0, "trainable": 9, "optimizer_bytes": 0, "model_bytes": 7}
    assert row == wanted


def test_the_study_s_grid(lesson):
    study = studies_06.STUDIES["qlora"]
    arms = study.arms(False)
    assert set(arms) == set(lesson.ARMS) and arms["lora"] == arms["qlora"] and len(arms["lora"]) == 3
    assert tuple(c["steps"] for c in study.conditions(False)) == lesson.STEPS
    assert tuple(c["length"] for c in studies_06.STUDIES["qlora-engines"].conditions(False)) == lesson.LENGTHS
    assert set(studies_06.STUDIES["qlora-engines"].arms(False)) == set(lesson.ENGINES)


# --- memory


def test_pieces_of_real_shapes(lesson):
    linear, rest, model = lesson.meta_model("llama-3.2-1b")
    assert linear + rest == 1_235_814_400 and rest == 128256 * 2048 + 33 * 2048  # the head is the embedding
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 11_272_192
    linear, rest, _ = lesson.meta_model("llama-3-8b")
    four = linear * (4 + 8 / 64 + 32 / (64 * 256)) / 8
    assert (four + 2 * rest) / 1e9 == pytest.approx(5.70, abs=0.005)
    assert (four + 4 * rest) / 1e9 == pytest.approx(7.80, abs=0.005)


def test_activations_grow_with_tokens_and_shrink_with_checkpointing(lesson, monkeypatch):
    config = llama(vocab_size=500, num_hidden_layers=3)
    monkeypatch.setattr(zoo, "shape", lambda name: config)
    one, two = (lesson.activations(lesson.meta_model("x", 4)[2], tokens) for tokens in (64, 128))
    assert 1.9 < two / one < 2.1
    few = lesson.activations(lesson.meta_model("x", 4)[2], 128, checkpointing=True)
    inputs = 3 * 128 * 64 * 2  # each layer's input, bfloat16
    assert inputs <= few < 3 * inputs < two
    found = lesson.pieces("x", tokens=128, r=4)
    assert found["loss chain"] == 14 * 128 * 500 and found["AdamW"] == 2 * found["adapters"]


# --- export


def test_an_adapter_comes_back_and_over_another_base_it_is_refused(lesson, small, tmp_path):
    model = lesson.with_adapter(lesson.load_base("nf4"), r=2)
    for p in model.parameters():
        if p.requires_grad:
            nn.init.normal_(p, std=0.1)
    lesson.save_adapter(model, tmp_path)
    ids = {"input_ids": torch.arange(3, 20)[None]}
    with torch.no_grad():
        again = lesson.load_adapter(lesson.load_base("nf4"), tmp_path)
        torch.testing.assert_close(again.eval()(**ids).logits, model.eval()(**ids).logits)
    assert lesson.fingerprint(lesson.load_base("float")) == lesson.fingerprint(model)
    other = lesson.load_base("float")
    with torch.no_grad():
        other.get_input_embeddings().weight[5, 5] += 0.01
    with pytest.raises(ValueError, match="this adapter was trained over base [0-9a-f]{12}, but this model is base"):
        lesson.load_adapter(other, tmp_path)
    (tmp_path / "base.txt").unlink()
    with pytest.raises(ValueError, match="trained over base unknown"):
        lesson.load_adapter(lesson.load_base("nf4"), tmp_path)


def test_a_merged_model_answers_as_the_adapter_does(lesson, small):
    model = lesson.with_adapter(lesson.load_base("nf4"), r=2)
    for p in model.parameters():
        if p.requires_grad:
            nn.init.normal_(p, std=0.1)
    for layer in lesson.four_bit_layers(model):
        layer.compute_dtype = torch.float32
    plain, ids = lesson.merged(model), {"input_ids": torch.arange(3, 20)[None]}
    assert not lesson.four_bit_layers(plain) and not isinstance(plain, peft.PeftModel)
    with torch.no_grad():
        base = lesson.load_base("nf4").eval()(**ids).logits
        torch.testing.assert_close(plain.eval()(**ids).logits, model.eval()(**ids).logits, atol=1e-4, rtol=1e-4)
        assert (plain(**ids).logits - base).abs().max() > 1e-2


# --- the GPU path, with stubs


@pytest.fixture
def fake_unsloth(lesson, monkeypatch):
    """An `unsloth` that notes its calls and hands out a stock model."""
    calls = []

    class FastLanguageModel:
        @staticmethod
        def from_pretrained(**options):
            calls.append(("from_pretrained", options))
            return "model", "tokenizer"

        @staticmethod
        def get_peft_model(model, **options):
            calls.append(("get_peft_model", model, options))
            return "adapted"

    module = SimpleNamespace(FastLanguageModel=FastLanguageModel)
    for function in (lesson.load_unsloth, lesson.engine_run):
        monkeypatch.setitem(function.__globals__, "UNSLOTH", module)
    return calls


def test_unsloth_is_loaded_then_adapted_with_the_stock_engine_s_settings(lesson, fake_unsloth, monkeypatch):
    monkeypatch.delenv("UNSLOTH_DISABLE_STATISTICS", raising=False)
    assert lesson.load_unsloth("somewhere", 512, r=4) == "adapted"
    (first, loaded), (second, model, adapted) = fake_unsloth
    assert (first, second, model) == ("from_pretrained", "get_peft_model", "model")
    assert loaded["load_in_4bit"] and loaded["max_seq_length"] == 512 and loaded["model_name"] == "somewhere"
    assert loaded["dtype"] == lesson.half_type() and loaded["use_exact_model_name"]
    assert adapted["r"] == 4 and adapted["lora_alpha"] == 16 and adapted["target_modules"] == list(lesson.LINEAR)
    assert loaded["use_gradient_checkpointing"] is adapted["use_gradient_checkpointing"] is True
    assert lesson.load_unsloth.__globals__["os"].environ["UNSLOTH_DISABLE_STATISTICS"] == "1"


def test_unsloth_is_imported_before_what_it_rewrites():
    nb = notebooks.read(notebooks.find("06"))
    text = [cell.source for _, cell, _ in notebooks.code_cells(nb)][1]
    places = [text.index(word) for word in ("UNSLOTH = ", "import bitsandbytes", "import peft", "from transformers")]
    assert places == sorted(places) and "from nbtools" in text[places[1] :] and "nbtools" not in text[: places[0]]


def test_without_unsloth_the_engine_says_what_it_needs(lesson):
    assert lesson.UNSLOTH is None
    with pytest.raises(ValueError, match="unsloth needs a CUDA device and the package of that name"):
        lesson.engine_run("unsloth", 512, "x")


def test_the_stock_engine_is_not_measured_once_unsloth_has_rewritten_llama(lesson, monkeypatch):
    rewritten = type("LlamaModel", (), {"forward": SimpleNamespace(__module__="unsloth.models.llama")})
    monkeypatch.setitem(lesson.engine_run.__globals__, "LlamaModel", rewritten)
    with pytest.raises(ValueError, match="unsloth has rewritten Llama in this process"):
        lesson.engine_run("stock", 512, "x")


def test_an_engine_runs_from_a_clean_allocator(lesson, monkeypatch):
    order, scope = [], lesson.engine_run.__globals__
    fake = SimpleNamespace(cuda=SimpleNamespace(empty_cache=lambda: order.append("empty")))
    monkeypatch.setitem(scope, "gc", SimpleNamespace(collect=lambda: order.append("collect")))
    monkeypatch.setitem(scope, "torch", fake)
    load = lambda folder, length: order.append(("load", folder, length)) or "model"  # noqa: E731
    monkeypatch.setitem(scope, "ENGINES", {"stock": load})
    monkeypatch.setitem(scope, "token_batches", lambda length, count: order.append(("tokens", length, count)) or "ids")
    monkeypatch.setitem(scope, "clock", lambda model, batches, warmup: order.append(("clock", warmup)) or "row")
    assert lesson.engine_run("stock", 512, "folder", steps=5, warmup=2) == "row"
    assert order == ["collect", "empty", ("load", "folder", 512), ("tokens", 512, 7), ("clock", 2)]


def test_the_clock_starts_after_the_warm_up_and_counts_the_rest(lesson, monkeypatch):
    order = []

    class Meter:
        seconds, peak_allocated, peak_reserved = 2.0, 11, 13

        def __enter__(self):
            order.append("start")
            return self

        def __exit__(self, *error):
            order.append("stop")

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(50, 4)
            self.frozen = nn.Parameter(torch.ones(4), requires_grad=False)

        def forward(self, input_ids, labels):
            order.append("step" if self.training else "eval")
            return SimpleNamespace(loss=self.table(input_ids).square().mean())

    monkeypatch.setitem(lesson.clock.__globals__, "meters", SimpleNamespace(Meter=Meter))
    model = Model().eval()
    batches = torch.randint(50, (1, 2, 8), generator=torch.Generator().manual_seed(0)).expand(5, 2, 8)
    row = lesson.clock(model, batches, warmup=2, lr=1e-1)
    assert order == ["step"] * 2 + ["start"] + ["step"] * 3 + ["stop"]
    assert row["tokens_per_second"] == 3 * 2 * 8 / 2.0 and (row["allocated"], row["reserved"]) == (11, 13)
    assert len(row["losses"]) == 5 and row["losses"][-1] < row["losses"][0]  # one batch, five times
    assert torch.equal(model.frozen, torch.ones(4))


@pytest.mark.parametrize(("dtype", "scaled"), [("float16", True), ("bfloat16", False)])
def test_float16_is_scaled_and_bfloat16_is_not(lesson, monkeypatch, dtype, scaled):
    seen, scope = [], lesson.clock.__globals__
    real = torch.amp.GradScaler
    profile = SimpleNamespace(device="cpu", dtype=dtype)
    monkeypatch.setitem(scope, "profiles", SimpleNamespace(current=lambda: profile))
    make = lambda device, enabled: seen.append(enabled) or real(device, enabled=enabled)  # noqa: E731
    monkeypatch.setattr(torch.amp, "GradScaler", make)

    class Model(nn.Linear):
        def forward(self, input_ids, labels):
            return SimpleNamespace(loss=super().forward(input_ids.float()).float().square().mean())

    lesson.clock(Model(8, 2), torch.ones(2, 1, 8, dtype=torch.long), warmup=1)
    assert seen == [scaled] and lesson.half_type() == getattr(torch, dtype)
    assert lesson.settings().bnb_4bit_compute_dtype == (torch.float32 if scaled else torch.bfloat16)  # the CPU loop


def test_the_stock_engine_trains_through_four_bits_and_checkpoints(lesson, folder):
    model = lesson.load_stock(folder, 32, r=2)
    assert len(lesson.four_bit_layers(lesson.trainable_ready(model))) == 14
    ids = torch.arange(3, 35)[None]
    model.train()
    model(input_ids=ids, labels=ids).loss.backward()
    grads = [p.grad for name, p in model.named_parameters() if p.requires_grad and "lora_B" in name]
    assert len(grads) == 14 and all(g is not None and g.abs().max() > 0 for g in grads)
    assert model.is_gradient_checkpointing


def test_batches_are_the_same_real_text_for_both(lesson):
    batches = lesson.token_batches(128, 5)
    assert batches.shape == (5, 2, 128) and torch.equal(batches, lesson.token_batches(128, 5))
    assert zoo.wikipedia()[0].startswith(lesson.TOKENIZER.decode(batches[0, 0])[:40])
    assert lesson.token_batches(2048, 60).shape == (60, 2, 2048)  # longer than the text: it goes round


def test_recorded_gpu_results_are_shown_with_whose_they_are(lesson, tmp_path, monkeypatch):
    monkeypatch.setattr(records, "RESULTS", tmp_path)
    assert lesson.show_engines().endswith("this path has not been run by us.")
    place = tmp_path / "gpu-some-card"
    place.mkdir()
    peaks = {"phase": "report", "allocated": 2e9, "reserved": 3e9}
    rows = [
        {"arm": arm, "length": n, "seed": s, "tokens_per_second": 100 + s} | peaks
        for arm in ("stock", "unsloth")
        for n in lesson.LENGTHS
        for s in range(3)
    ]
    made = {"machine": {"processor": "Some Card"}, "versions": {"torch": "2.11"}, "date": "2026-01-01", "rows": rows}
    (place / "06-qlora-engines.json").write_text(json.dumps(made))
    shown = lesson.show_engines()
    assert shown.startswith("Measured on Some Card, 2026-01-01, torch 2.11") and len(shown.splitlines()) == 7
    assert "   512 stock          101 ± 2 tokens/s, 2.00 GB allocated, 3.00 GB reserved" in shown


def test_the_engine_study_wants_a_gpu(monkeypatch):
    cell = {"phase": "tune", "arm": "stock", "length": 512, "seed": 0}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(NbtoolsError, match="qlora-engines compares engines on a GPU, but torch finds no CUDA device"):
        studies_06.engine_row(cell)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert studies_06.engine_row(cell) == {"score": 0.0}
    real, seen = studies_06.subprocess.run, []

    def run(command, env, **options):
        seen.append(env["NBTOOLS_ENGINE"])
        code = "from nbtools import studies_06; studies_06.engine = lambda *a: {'got': a}; import sys; "
        return real(
            [
                command[0],
                "-c",
                code + command[2].replace("from nbtools.studies_06 import engine", "engine = studies_06.engine"),
                *command[3:],
            ],
            env=env,
            **options,
        )

    monkeypatch.setattr(studies_06.subprocess, "run", run)
    assert studies_06.engine_row(cell | {"phase": "report"}) == {"got": ["stock", 512]} and seen == ["stock"]
    monkeypatch.setattr(
        studies_06.subprocess, "run", lambda *a, **k: SimpleNamespace(returncode=1, stderr="a\nno memory")
    )
    with pytest.raises(NbtoolsError, match="stock at 512 tokens failed: no memory"):
        studies_06.engine_row(cell | {"phase": "report"})
    lesson = SimpleNamespace(engine_run=lambda *a: a, random_llama=lambda folder: folder.name)
    monkeypatch.setattr(studies_06, "_lesson06", lambda *names: lesson)
    assert studies_06.engine("stock", 512) == ("stock", 512, "llama")


# --- loading


def test_smollm2_takes_options(monkeypatch):
    model = zoo.smollm2(dtype=torch.bfloat16)[0]
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert (zoo.smollm2_folder() / "config.json").is_file()


def test_the_panel_asks_for_less_memory_over_four_bits_and_at_a_smaller_rank():
    need = notebooks.definitions("06", "need")["need"]
    assert need("nf4", 8) < need("float", 8) < need("float", 64, steps=32) < 4 * 2**30
