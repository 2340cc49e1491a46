"""Lesson 04: what its notebook defines, against peft, hand-made matrices and enumeration. Small models throughout."""

import copy
from types import SimpleNamespace

import peft
import pytest
import torch
import torch.nn.functional as F
from small import batch, bert
from torch import nn

from nbtools import meters, notebooks, studies_04, tasks, zoo
from nbtools.errors import NbtoolsError

TAUGHT = (
    "LoRALinear inject with_lora lora_layers adapter rank_for_energy overlap lora_parameters PLACES lora_forward "
    "wiki_pairs retrieval updates prepare"
)


@pytest.fixture(scope="module")
def lesson():
    """The functions of the notebook as attributes."""
    return SimpleNamespace(**notebooks.definitions("04", *TAUGHT.split()))


def small(lesson, seed=0):
    """A BERT of 2 layers of width 12 with random weights, under the lesson's head; no dropout."""
    encoder = bert(seed)
    return tasks.Classifier(encoder)


def twins(lesson, targets=("query", "value"), r=3, alpha=5):
    """The same small model under the lesson's LoRA and under peft's, with the same A and B, B not zero."""
    ours, theirs = small(lesson), small(lesson)
    lesson.inject(ours, targets, lambda layer: lesson.LoRALinear(layer, r, alpha))
    config = peft.LoraConfig(r=r, lora_alpha=alpha, target_modules=list(targets), lora_dropout=0.0)
    theirs.encoder = peft.get_peft_model(theirs.encoder, config)
    layers = [m for m in theirs.modules() if isinstance(m, peft.tuners.lora.Linear)]
    for a, b in zip(lesson.lora_layers(ours), layers, strict=True):
        nn.init.normal_(a.B)
        b.lora_A["default"].weight.data.copy_(a.A)
        b.lora_B["default"].weight.data.copy_(a.B)
    return ours, theirs, layers


# --- LoRALinear against peft


@pytest.mark.parametrize("targets", [("query", "value"), ("query", "key", "value", "intermediate.dense")])
def test_outputs_and_gradients_are_those_of_peft(lesson, targets):
    ours, theirs, layers = twins(lesson, targets)
    x, y = batch()
    logits = [model(x) for model in (ours, theirs)]
    torch.testing.assert_close(*logits)
    for each in logits:
        F.cross_entropy(each, y).backward()
    for a, b in zip(lesson.lora_layers(ours), layers, strict=True):
        torch.testing.assert_close(a.A.grad, b.lora_A["default"].weight.grad)
        torch.testing.assert_close(a.B.grad, b.lora_B["default"].weight.grad)
        assert a.base.weight.grad is None and a.A.grad.abs().max() > 0


def test_merged_weights_are_those_of_peft_and_unmerging_gives_the_old_ones(lesson):
    ours, theirs, layers = twins(lesson)
    x, _ = batch()
    apart, old = ours(x), [layer.base.weight.clone() for layer in lesson.lora_layers(ours)]
    for layer in lesson.lora_layers(ours):
        layer.merge()
        layer.merge()  # merging twice is merging once
    theirs.encoder.merge_adapter()
    for a, b in zip(lesson.lora_layers(ours), layers, strict=True):
        torch.testing.assert_close(a.base.weight, b.base_layer.weight)
    torch.testing.assert_close(ours(x), apart, atol=1e-5, rtol=0)
    for layer, weight in zip(lesson.lora_layers(ours), old, strict=True):
        layer.merge(False)
        torch.testing.assert_close(layer.base.weight, weight)
    torch.testing.assert_close(ours(x), apart)


def test_a_starts_as_in_peft_and_b_at_zero(lesson):
    torch.manual_seed(0)
    layer = lesson.LoRALinear(nn.Linear(400, 50), r=16)
    bound = 1 / 400**0.5  # kaiming_uniform with a = sqrt(5)
    assert 0.95 * bound < layer.A.abs().max() <= bound and layer.B.abs().max() == 0
    assert {name for name, p in layer.named_parameters() if p.requires_grad} == {"A", "B"}


@pytest.mark.parametrize("r", [0, -1, 7])
def test_a_rank_that_no_update_can_have_is_refused_in_one_sentence(lesson, r):
    with pytest.raises(ValueError, match=rf"^rank must be between 1 and 6 \(the smaller side of the layer\), got {r}$"):
        lesson.LoRALinear(nn.Linear(9, 6), r)


def test_a_target_that_matches_nothing_and_a_second_wrapping_are_refused(lesson):
    model = small(lesson)
    with pytest.raises(ValueError, match="no layer is called quary; look at model.named_modules"):
        lesson.with_lora(model, 2, targets=("quary",))
    lesson.with_lora(model, 2)
    with pytest.raises(TypeError, match="query is a LoRALinear, not an nn.Linear: it may be wrapped already"):
        lesson.with_lora(model, 2)


def test_what_trains_and_what_is_saved(lesson):
    model = lesson.with_lora(small(lesson), r=2)
    names = set(lesson.adapter(model))
    assert {name.rpartition(".")[2] for name in names} == {"A", "B", "weight", "bias"}
    assert {name for name in names if not name.endswith((".A", ".B"))} == {"head.weight", "head.bias"}
    assert len(names) == 2 * 2 * 2 + 2
    other = lesson.with_lora(small(lesson), r=2)
    for p in model.parameters():
        if p.requires_grad:
            nn.init.normal_(p)
    other.load_state_dict(lesson.adapter(model), strict=False)
    x, _ = batch()
    assert torch.equal(model(x), other(x))


@pytest.mark.parametrize("place", ["query, value", "attention", "feed-forward"])
def test_places_name_the_layers_they_say(lesson, place):
    model = tasks.Classifier(zoo.minilm()[0])
    lesson.inject(model, lesson.PLACES[place], lambda layer: lesson.LoRALinear(layer, 2))
    wrapped = [n for n, m in model.named_modules() if isinstance(m, lesson.LoRALinear)]
    kinds = {"query, value": 2, "attention": 4, "feed-forward": 2}
    assert len(wrapped) == 6 * kinds[place]
    assert all((".attention." in name) == (place != "feed-forward") for name in wrapped)


# --- counts


def test_counts_of_real_shapes(lesson):
    assert lesson.lora_parameters("llama-3-8b", 16, ("q_proj", "v_proj")) == 32 * 16 * (4096 + 4096 + 4096 + 1024)
    assert lesson.lora_parameters("llama-13b", 8, ("q_proj", "v_proj")) == 40 * 8 * 4 * 5120
    with torch.device("meta"):
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_config(zoo.shape("llama-3-8b"))
    assert sum(p.numel() for p in model.parameters()) == 8_030_261_248
    with pytest.raises(NbtoolsError, match="no shape 'llama-9': choose one of llama-3-8b, llama-13b"):
        zoo.shape("llama-9")


# --- the study


@pytest.fixture
def stub(monkeypatch):
    """A lesson whose pieces note what they were given."""
    seen = SimpleNamespace()
    data = SimpleNamespace(
        texts=[str(i) for i in range(60)], labels=torch.arange(60) % 2, val=slice(0, 5), test=slice(5, 9)
    )

    def finetune(model, x, y, lr, steps, seed, tick):
        seen.y, seen.lr, seen.steps, seen.seed = y, lr, steps, seed
        return "optimizer"

    def prepare(arm, seed, **options):
        seen.arm, seen.options = arm, options
        return nn.Linear(2, 3)

    def correct(model, part):
        seen.texts = data.texts[part]
        return torch.tensor([True, False])

    made = SimpleNamespace(
        prepare=prepare,
        retrieval=lambda model, pairs: 0.25,
        PAIRS=None,
        PLACES={"attention": ("query",)},
        saved=lambda model, texts: 11,
    )
    for name, stand_in in {
        "films": lambda: data,
        "draw": lambda labels, seed: (data.texts[:labels], data.labels[:labels]),
        "finetune": finetune,
        "correct": correct,
        "STEPS": {100: 9, 1000: 7},
    }.items():
        monkeypatch.setattr(tasks, name, stand_in)
    monkeypatch.setattr(meters, "optimizer_bytes", lambda optimizer: 5)
    monkeypatch.setattr(studies_04, "_lesson04", lambda: made)
    return seen


def test_a_cell_tunes_on_validation_and_reports_on_test(stub):
    cell = {"phase": "tune", "arm": "r4", "seed": 1, "labels": 100, "lr": 3e-3}
    assert studies_04.lora_run(cell) == {"score": 0.5} and stub.texts == list("01234")
    row = studies_04.lora_run(cell | {"phase": "report"})
    assert stub.texts == list("5678") and (stub.arm, stub.lr, stub.steps, stub.seed) == ("r4", 3e-3, 9, 1)
    assert row == {"accuracy": 0.5, "retrieval": 0.25, "trainable": 9, "optimizer_bytes": 5, "saved_bytes": 11}
    assert stub.y.tolist() == [0, 1] * 30 and stub.options == {}


def test_shuffled_wrong_and_placed_cells(stub):
    cell = {"phase": "tune", "seed": 1, "labels": 1000, "lr": 1}
    studies_04.lora_run(cell | {"arm": "r8_shuffled"})
    assert stub.arm == "r8" and stub.y.tolist() != [0, 1] * 30 and stub.y.sum() == 30 and stub.steps == 7
    studies_04.lora_run(cell | {"arm": "full", "wrong": 0.3})
    assert (stub.y != torch.arange(60) % 2).sum() == 18
    studies_04.lora_run(cell | {"arm": "attention r10", "place": "attention"})
    assert stub.arm == "r10" and stub.options == {"targets": ("query",)} and stub.y.tolist() == [0, 1] * 30
    studies_04.lora_run(cell | {"arm": "r1", "labels": 50})
    assert stub.steps == 9


# --- data


def test_retrieval_on_a_known_world(lesson):
    class Known(nn.Module):
        def embed(self, batch):
            return F.one_hot(batch["input_ids"][:, 1] % 7, 7).float() + 0.1

    words = "film actor music story light".split()
    assert len({tasks.encode([w])["input_ids"][0, 1].item() % 7 for w in words}) == 5
    assert lesson.retrieval(Known(), (words, words)) == 1.0
    assert lesson.retrieval(Known(), (words, words[1:] + words[:1])) == 0.0


def test_wiki_pairs_are_neighbours(lesson):
    first, second = lesson.wiki_pairs(50, words=10)
    text = " ".join(" ".join(article.split()) for article in zoo.wikipedia())
    assert len(first) == len(second) == 50 and len(set(first)) == 50
    assert all(f"{a} {b}" in text for a, b in zip(first, second, strict=True))


# --- updates


def test_overlap_by_hand(lesson):
    axes = torch.eye(6)
    assert lesson.overlap(axes[:2], axes[:4], 2) == pytest.approx(1)
    assert lesson.overlap(axes[4:], axes[:4], 2) == pytest.approx(0, abs=1e-6)
    first = torch.diag(torch.tensor([3.0, 2.0, 1.0, 0.5, 0.2, 0.1]))[:3]
    assert lesson.overlap(first, axes[1:4], 1) == pytest.approx(0, abs=1e-6)
    assert lesson.overlap(first, axes[1:4], 3) == pytest.approx(2 / 3)
    g = torch.Generator().manual_seed(0)
    luck = [lesson.overlap(torch.randn(8, 384, generator=g), torch.randn(64, 384, generator=g), 8) for _ in range(20)]
    assert sum(luck) / 20 == pytest.approx(64 / 384, abs=0.01)


def test_vader_snippets():
    """10,605 film sentences, 198,810 single ratings whose means are the ratings; other domains; a wrong name."""
    movie = zoo.vader()
    assert len(movie) == 10_605 and sum(len(row["ratings"]) for row in movie) == 198_810
    assert all(abs(sum(row["ratings"]) / len(row["ratings"]) - row["rating"]) < 1e-6 for row in movie)
    assert [len(zoo.vader(d)) for d in ("amazon", "nyt", "tweets")] == [3_708, 5_190, 4_200]
    with pytest.raises(NbtoolsError, match="no snippets of 'films': choose one of movie, amazon, nyt, tweets"):
        zoo.vader("films")


def test_updates_are_what_training_added(lesson):
    encoder, _ = zoo.minilm()
    moved = tasks.Classifier(copy.deepcopy(encoder))
    with torch.no_grad():
        for p in moved.encoder.parameters():
            p += 0.5
    found = lesson.updates(moved)
    assert len(found) == 12 and {name.rpartition(".")[0][-5:] for name in found} == {"query", "value"}
    for update in found.values():
        torch.testing.assert_close(update, torch.full((384, 384), 0.5))
        assert not update.requires_grad
