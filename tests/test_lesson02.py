"""Lesson 02: its metrics, labels, spans and losses against seqeval, scikit-learn, transformers and brute force."""

import inspect
import itertools
import os
import random
import shutil
import string
from types import SimpleNamespace

import pytest
import small
import torch
import torch.nn.functional as F
from seqeval.metrics import f1_score as seqeval_f1
from seqeval.metrics.sequence_labeling import get_entities
from sklearn.metrics import accuracy_score, f1_score
from torch import nn
from transformers import AutoModelForCausalLM, BatchEncoding, get_linear_schedule_with_warmup

from nbtools import notebooks, studies_02, tasks, train, zoo
from nbtools.errors import NbtoolsError

TAUGHT = (
    "FILMS STEPS split draw logits_of calibration_error scores LADDER depth_of rate_of lowest_open build finetune TAGS "
    "PATTERNS UNSEEN stems sentences align_labels spread_labels continue_labels ALIGN encode_words TokenHead tag_loss "
    "labelled fit_head tag_batches predict_tags spans span_f1 tag_arm QA questions windows answer_span match_span "
    "label_window pad span_loss qa_batches best_span answer normalise exact_match token_f1 qa_scores qa_arm "
    "compare_labels others_spans READERS library_loss trainer_losses twin_setup corpus mask_tokens MaskedLM mlm_loss "
    "adapt adapted STOP OPERATIONS eda apertium marian translator round_trip augmented back_translated mixup_loss "
    "FEW few_arm back_arm examples prompted nearest rival experiment HEADER WORDS"
)
QUIET = {"tick": lambda *a, **k: None}


@pytest.fixture(scope="module")
def lesson():
    """What the notebook defines, as attributes."""
    return SimpleNamespace(**notebooks.definitions("02", *TAUGHT.split()))


@pytest.fixture
def tiny(monkeypatch):
    """A BERT of two small layers with MiniLM's tokenizer in place of MiniLM."""
    tokenizer, encoder = tasks.minilm()[1], small.bert()
    monkeypatch.setattr(tasks, "minilm", lambda: (encoder, tokenizer))


def patch(monkeypatch, fn, **names):
    """Replace globals that a function of the lesson uses."""
    for name, value in names.items():
        monkeypatch.setitem(inspect.unwrap(fn).__globals__, name, value)


# --- a class for a sentence


def test_splits_are_short_and_apart_and_draws_come_from_the_pool(lesson):
    data = lesson.FILMS
    assert max(len(text.split()) for text in data.texts) <= 12 and len(set(data.texts)) == len(data.texts) > 2000
    held = set(data.texts[data.test]) | set(data.texts[data.val])
    assert len(data.texts[data.test]) == 400 and len(data.texts[data.val]) == 300 and len(held) == 700
    texts, labels = lesson.draw(100, 3)
    assert len(set(texts)) == 100 and not held & set(texts)
    truth = dict(zip(data.texts, data.labels.tolist(), strict=True))
    assert labels.tolist() == [truth[text] for text in texts]
    same, mixed = lesson.draw(100, 3, shuffled=True)
    assert same == texts and not torch.equal(mixed, labels) and mixed.sum() == labels.sum()
    assert lesson.draw(100, 4)[0] != texts


def test_logits_do_not_depend_on_neighbours_unless_the_mask_is_forgotten(lesson, tiny):
    model, texts = lesson.build(), [lesson.FILMS.texts[i] for i in range(3)] + ["fine", "a " * 30]
    together = lesson.logits_of(model.train(), texts)
    alone = torch.cat([lesson.logits_of(model, [text]) for text in texts])
    torch.testing.assert_close(together, alone, atol=2e-2, rtol=0)
    assert not model.training and together.dtype == torch.float32
    assert (lesson.logits_of(model, texts, mask=False) - alone)[:4].abs().max() > 0.05
    assert len(lesson.logits_of(model, lesson.FILMS.texts[:73])) == 73


def test_calibration_error_by_hand_and_by_loops(lesson):
    assert lesson.calibration_error(torch.tensor([0.8] * 5), torch.tensor([True] * 4 + [False])) == pytest.approx(
        0, abs=1e-6
    )
    assert lesson.calibration_error(torch.ones(4), torch.tensor([True, False] * 2)) == pytest.approx(0.5)
    g = torch.Generator().manual_seed(0)
    confidence, right = torch.rand(500, generator=g), torch.rand(500, generator=g) < 0.6
    total = 0.0
    for b in range(10):
        inside = [i for i in range(500) if b / 10 <= confidence[i].item() < (b + 1) / 10]
        if inside:
            gap = sum(confidence[i].item() for i in inside) - sum(right[i].item() for i in inside)
            total += len(inside) / 500 * abs(gap / len(inside))
    assert lesson.calibration_error(confidence, right) == pytest.approx(total, abs=1e-5)


def test_scores_are_scikit_learns(lesson):
    g = torch.Generator().manual_seed(1)
    logits, labels = torch.randn(200, 2, generator=g), torch.randint(2, (200,), generator=g)
    found, guess = lesson.scores(logits, labels), logits.argmax(1)
    assert found["f1"] == pytest.approx(f1_score(labels, guess))
    assert found["accuracy"] == pytest.approx(accuracy_score(labels, guess))
    assert found["loss"] == pytest.approx(F.cross_entropy(logits, labels).item())
    top = logits.softmax(1).amax(1)
    assert found["ece"] == pytest.approx(lesson.calibration_error(top, guess == labels))
    assert lesson.scores(torch.tensor([[1.0, 0.0]]), torch.tensor([0]))["f1"] == 0


def test_rates_and_depths(lesson):
    names = [name for name, _ in tasks.build().named_parameters()]
    depths = {name: lesson.depth_of(name) for name in names}
    assert set(depths.values()) == set(range(8))
    assert {d for n, d in depths.items() if "embeddings" in n} == {0} and depths["head.bias"] == 7
    assert depths["encoder.encoder.layer.5.output.dense.weight"] == 6
    assert [lesson.rate_of("full", d, 1e-4) for d in range(8)] == [1e-4] * 7 + [1e-2]
    for arm, factor in (("discriminative", 2.6), ("ulmfit", 2.6), ("layer-wise decay", 1.25)):
        rates = [lesson.rate_of(arm, d, 1e-4) for d in range(7)]
        assert rates[6] == 1e-4 and all(b / a == pytest.approx(factor) for a, b in itertools.pairwise(rates))
    assert lesson.rate_of("head", 7, 3e-3) == 3e-3 and lesson.rate_of("ulmfit", 7, 3e-3) == 1e-2
    for arm in lesson.LADDER:
        way = [lesson.lowest_open(arm, step, 40) for step in range(40)]
        slow = arm in ("gradual unfreezing", "ulmfit")
        assert way == ([max(0, 7 - step // 4) for step in range(40)] if slow else [7 if arm == "head" else 0] * 40)


@pytest.mark.parametrize("arm", ["head", "full", "discriminative", "gradual unfreezing", "ulmfit"])
def test_a_rung_gives_its_rates_to_the_optimizer_and_trains_what_is_open(lesson, tiny, monkeypatch, arm):
    seen, fit = {}, train.fit

    def spy(model, batches, optimizer, steps, **options):
        seen["rates"] = [group["initial_lr"] for group in optimizer.param_groups]
        groups = optimizer.param_groups
        seen["depths"] = [{lesson.depth_of(names[id(p)]) for p in group["params"]} for group in groups]
        seen["sizes"] = [len(y) for _, y in batches()]
        return fit(model, batches, optimizer, steps, **options)

    real, names = lesson.build, {}

    def build(*args):
        model = real(*args)
        names.update({id(p): name for name, p in model.named_parameters()})
        return model

    patch(monkeypatch, lesson.finetune, build=build)
    monkeypatch.setattr(train, "fit", spy)
    model, history = lesson.finetune(arm, *lesson.draw(20, 0), 1e-3, 6, seed=1, **QUIET)
    assert seen["rates"] == pytest.approx([lesson.rate_of(arm, depth, 1e-3) for depth in range(8)])
    assert all(depths <= {i} for i, depths in enumerate(seen["depths"])) and seen["sizes"] == [16, 4]
    assert len(history) == 6
    start = dict(real(1).named_parameters())
    moved = {lesson.depth_of(name) for name, p in model.named_parameters() if not torch.equal(p, start[name])}
    # of 6 steps the last begins with depths from 7 - 50 // 6 = 0 on open, but it has nearly no rate
    assert moved == ({7} if arm == "head" else {0, 1, 2, 7})


def test_gradual_unfreezing_leaves_what_is_not_open_yet(lesson, tiny):
    model, _ = lesson.finetune("gradual unfreezing", *lesson.draw(20, 0), 1e-3, 1, seed=1, **QUIET)
    start = dict(lesson.build(1).named_parameters())
    assert {n for n, p in model.named_parameters() if not torch.equal(p, start[n])} == {"head.weight", "head.bias"}


def test_an_arm_that_is_not_there_is_refused(lesson):
    with pytest.raises(ValueError, match="^an arm is one of head, full, .*, got 'half'$"):
        lesson.finetune("half", ["a"], torch.tensor([0]), 1e-4, 1)
    with pytest.raises(ValueError, match="^an arm is one of none, eda, .*, got 'half'$"):
        lesson.few_arm("half", 20, 1e-4)
    with pytest.raises(ValueError, match="^how must be one of first, every, inside, got 'last'$"):
        lesson.tag_arm("last", 1e-4)
    with pytest.raises(ValueError, match="^part must be train, val or test, got 'dev'$"):
        lesson.sentences(1, 0, "dev")
    with pytest.raises(ValueError, match="^how must be one of untrained, offsets, match, permuted, got 'luck'$"):
        lesson.qa_arm("luck", 1e-4)


# --- a tag for each word


def test_sentences_by_rule(lesson):
    parts = {part: lesson.sentences(300, 0, part) for part in ("train", "val", "test")}
    stems = set(lesson.stems())
    assert len(stems) == len(lesson.stems()) == 1680
    used = {part: {w for words, _ in rows for w in words if w in stems} for part, rows in parts.items()}
    assert not used["train"] & used["val"] and not used["train"] & used["test"] and not used["val"] & used["test"]
    assert lesson.sentences(3, 0) == parts["train"][:3] != lesson.sentences(3, 1)
    assert not set(lesson.PATTERNS) & set(lesson.UNSEEN)
    for part, rows in parts.items():
        frames = {" ".join("*" if word.startswith("{") else word for word in pattern.split())
                  for pattern in (lesson.UNSEEN if part == "test" else lesson.PATTERNS)}  # fmt: skip
        for words, tags in rows:
            assert len(words) == len(tags)
            frame = [word if tag == "O" else "*" for word, tag in zip(words, tags, strict=True) if tag[0] != "I"]
            assert " ".join(frame) in frames
            assert all(tag == "O" for word, tag in zip(words, tags, strict=True) if word in (".", "in", "has"))
            for before, tag in itertools.pairwise(["O", *tags]):
                assert tag[0] != "I" or before[2:] == tag[2:]


NASTY = [
    (["I", "🙂", "love", "Rome"], 16),
    (["", "Rome", "", "Paris"], 16),
    (["x" * 300, "Rome"], 16),
    (["Rome", "antidisestablishmentarianism" * 3, "Oslo"], 12),
    (["naïve", "co-operate", "e.g.", "1990s", "東京", "\u200b", "a\tb"], 32),
    (["\U0001f468\u200d\U0001f469\u200d\U0001f467", "ok"], 16),
]


@pytest.mark.parametrize(("words", "length"), NASTY)
def test_labels_stand_on_the_first_token_of_each_word_that_has_one(lesson, words, length):
    rows = [(words, [lesson.TAGS[1 + 2 * (i % 3)] for i in range(len(words))])]
    x, y, (places,) = lesson.encode_words(rows, length=length)
    batch = tasks.minilm()[1](words, is_split_into_words=True, truncation=True, max_length=length)
    wanted = [-100] * x["input_ids"].shape[1]
    for i in range(len(words)):
        span = batch.word_to_tokens(i)
        if span is not None:
            wanted[span.start] = 1 + 2 * (i % 3)
    assert y[0].tolist() == wanted and places == batch.word_ids()
    every = lesson.encode_words(rows, "every", length)[1][0].tolist()
    assert every == [-100 if word is None else 1 + 2 * (word % 3) for word in places]
    inside = lesson.encode_words(rows, "inside", length)[1][0].tolist()
    assert inside == [b if a != -100 or b == -100 else b + 1 for a, b in zip(wanted, every, strict=True)]


def test_outside_stays_outside_on_every_token(lesson):
    assert lesson.continue_labels([None, 0, 0, 1, 1, 2, None], [0, 2, 5]) == [-100, 0, 0, 2, 2, 5, -100]


def test_a_sentence_without_words_is_refused(lesson):
    with pytest.raises(ValueError, match="^a sentence has no words; leave it out$"):
        lesson.encode_words([(["a"], ["O"]), ([], [])])


class Told(nn.Module):
    """Answers each token with what `tell` says, as logits."""

    def __init__(self, tell):
        super().__init__()
        self.tell = tell

    def forward(self, x):
        return F.one_hot(self.tell(x), 7).float()


@pytest.mark.parametrize("how", ["first", "every", "inside"])
def test_predicted_tags_are_read_at_the_first_token(lesson, how):
    rows = lesson.sentences(60, 5) + [(["Rome", *["very"] * 60, "Oslo"], ["B-LOC", *["O"] * 60, "B-LOC"])]
    rows += [(["", "Oslo"], ["O", "B-LOC"])]
    first = iter([lesson.encode_words(rows[i : i + 50])[1] for i in (0, 50)])
    model = Told(lambda x: torch.where((y := next(first)) < 0, 4, y))  # other tokens say I-LOC
    by_word, by_token, truth = lesson.predict_tags(model, rows, how)
    wanted = [tags for _, tags in rows]
    assert by_word[:-2] == wanted[:-2] and by_word[-1] == ["O", "B-LOC"]
    assert by_word[-2] == ["B-LOC", *["O"] * 61]  # the last word was cut off
    assert all(len(a) == len(b) for a, b in zip(by_token, truth, strict=True))
    if how == "first":
        assert truth[:-2] == by_token[:-2] == wanted[:-2]
    if how == "every":
        assert sum(map(len, truth)) > sum(map(len, wanted))


def test_spans_and_their_f1_are_seqevals(lesson):
    rng = random.Random(0)
    truth, guess = ([[rng.choice(lesson.TAGS) for _ in range(rng.randrange(1, 9))] for _ in range(400)] for _ in "ab")
    guess = [[rng.choice((a, rng.choice(lesson.TAGS))) for a in tags] for tags in truth]
    for tags in truth + guess:
        assert lesson.spans(tags) == {(kind, a, b + 1) for kind, a, b in get_entities(tags)}
    assert lesson.span_f1(truth, guess) == pytest.approx(seqeval_f1(truth, guess))
    assert lesson.span_f1([["O"]], [["O"]]) == 0.0


def test_the_losses_are_those_of_transformers(lesson, tiny):
    model, (x, y, _) = lesson.TokenHead(7, seed=3).eval(), lesson.encode_words(lesson.sentences(5, 0))
    ours = lesson.tag_loss(model, (x, y)).item() / lesson.labelled((x, y))
    assert lesson.labelled((x, y)) == sum(len(words) for words, _ in lesson.sentences(5, 0))
    theirs = lesson.library_loss(model, "BertForTokenClassification", "classifier", **x, labels=y)
    assert ours == pytest.approx(theirs, rel=1e-5)
    # transformers leaves padding in the softmax of an answer, so the twin is a batch without padding
    model, (x, y) = (
        lesson.TokenHead(2, seed=3).eval(),
        next(lesson.qa_batches(lesson.questions()["val"][:3], "offsets", 0, size=1)()),
    )
    theirs = lesson.library_loss(
        model, "BertForQuestionAnswering", "qa_outputs", **x, start_positions=y[:, 0], end_positions=y[:, 1]
    )
    assert lesson.span_loss(model, (x, y)).item() / len(y) == pytest.approx(theirs, rel=1e-5)


def test_the_loss_of_a_window_does_not_depend_on_its_neighbours(lesson, tiny):
    model, rows = lesson.TokenHead(2, seed=3).eval(), lesson.questions()["val"][:6]
    pairs = [(w, lesson.label_window(w, row)) for row in rows for w in lesson.windows(row)]
    assert len({len(window.ids) for window, _ in pairs}) > 1
    with torch.no_grad():
        alone = [lesson.span_loss(model, (lesson.pad([window]), torch.tensor([span]))) for window, span in pairs]
        batch = lesson.pad([window for window, _ in pairs]), torch.tensor([span for _, span in pairs])
        together = lesson.span_loss(model, batch)
    assert together.item() == pytest.approx(sum(alone).item(), rel=1e-4)


def test_a_tagger_is_trained_and_read_on_the_part_asked_for(lesson, tiny):
    for part, shuffled in (("val", False), ("test", True)):
        model, found = lesson.tag_arm("first", 1e-3, 0, shuffled, part, count=60, steps=3, **QUIET)
        gold = [tags for _, tags in lesson.sentences(60, 0, part)]
        guess = lesson.predict_tags(model, lesson.sentences(60, 0, part))[0]
        assert found["f1"] == pytest.approx(seqeval_f1(gold, guess)) and 0 <= found["reported"] <= 1
        flat = [[tag for tags in side for tag in tags] for side in (gold, guess)]
        assert found["accuracy"] == pytest.approx(accuracy_score(*flat))


# --- an answer in a text


def test_questions_are_split_by_article_and_answers_stand_at_their_starts(lesson):
    parts = lesson.questions()
    titles = {part: {row["title"] for row in rows} for part, rows in parts.items()}
    assert not titles["train"] & titles["test"] and not titles["train"] & titles["val"]
    assert not titles["val"] & titles["test"] and sum(map(len, titles.values())) == 48
    rows = [row for part in parts.values() for row in part]
    assert all(row["context"][row["starts"][0] :].startswith(row["answers"][0]) for row in rows)
    assert {part: len(rows) for part, rows in parts.items()} == {"test": 968, "val": 513, "train": 2441}
    assert max(len(row["context"].split()) for row in rows) == 100


def test_windows_cover_the_context_and_overlap_by_the_stride(lesson):
    for row in lesson.questions()["val"][:60]:
        cut = lesson.windows(row, 80, 24)
        own = [[pair for pair, part in zip(w.offsets, w.sequence_ids, strict=True) if part == 1] for w in cut]
        whole = tasks.minilm()[1](row["context"], add_special_tokens=False, return_offsets_mapping=True)
        wanted = whole["offset_mapping"]
        assert own[0][0] == wanted[0] and own[-1][-1] == wanted[-1]
        for a, b in itertools.pairwise(own):
            assert a[-24:] == b[:24]
        joined = own[0] + [pair for part in own[1:] for pair in part[24:]]
        assert joined == wanted and max(len(w.ids) for w in cut) <= 80


def test_windows_refuse_what_cannot_be_cut(lesson):
    row = dict(lesson.questions()["val"][0])
    with pytest.raises(
        ValueError, match="^the question leaves 17 of 120 tokens to the context, no more than the stride"
    ):
        lesson.windows(row | {"question": "why " * 100}, 120, 32)
    with pytest.raises(ValueError, match="^question and context need words, got ' ' and "):
        lesson.windows(row | {"question": " "})


def test_every_answer_that_can_be_is_recovered(lesson, capsys):
    """An answer no longer than the overlap is whole in some window; prints the share of all that is recovered."""
    rows = [row for part in lesson.questions().values() for row in part][::5]
    found = exact = 0
    for row in rows:
        start, text = row["starts"][0], row["answers"][0]
        spans = [
            (w, lesson.answer_span(w.offsets, w.sequence_ids, start, start + len(text))) for w in lesson.windows(row)
        ]
        spans = [(w, span) for w, span in spans if span is not None]
        size = len(tasks.minilm()[1](text, add_special_tokens=False)["input_ids"])
        assert spans or size > lesson.QA["stride"] - 1, row["question"]
        found += bool(spans)
        for window, (a, b) in spans:
            assert window.sequence_ids[a] == window.sequence_ids[b] == 1
            said = row["context"][window.offsets[a][0] : window.offsets[b][1]]
            assert text.strip() in said and len(said) < len(text) + 25
        exact += bool(spans) and said == text
    with capsys.disabled():
        print(f"\nof {len(rows)} answers {found / len(rows):.2%} recovered, {exact / len(rows):.2%} to the character")
    assert found / len(rows) > 0.99 and exact / len(rows) > 0.98


def test_spans_are_those_of_the_tokenizers_own_map(lesson):
    checked = 0
    for row in lesson.questions()["test"][:150]:
        start, text = row["starts"][0], row["answers"][0]
        for window in lesson.windows(row, 90, 30):
            pair = [window.char_to_token(at, 1) for at in (start, start + len(text) - 1)]
            wanted = tuple(pair) if None not in pair else None
            assert lesson.answer_span(window.offsets, window.sequence_ids, start, start + len(text)) == wanted
            assert lesson.label_window(window, row) == (wanted or (0, 0))
            checked += wanted is not None
    assert checked >= 150


def test_what_matching_gets_wrong_is_counted(lesson):
    row = {"context": "Ann met Bob . Then Bob left . Later the rain fell and the sun came out again over all of it .",
           "question": "Who left ?", "answers": ["Bob"], "starts": [19]}  # fmt: skip
    (window,) = lesson.windows(row, 64, 8)
    assert lesson.label_window(window, row) == (10, 10) and lesson.label_window(window, row, "match") == (7, 7)
    asked = row | {"question": "Did Bob leave ?"}
    assert lesson.label_window(lesson.windows(asked, 64, 8)[0], asked, "match") == (2, 2)
    lost = row | {"answers": ["Bo"], "starts": [19]}
    assert lesson.label_window(lesson.windows(lost, 64, 8)[0], lost, "match") == (0, 0)
    count = lesson.compare_labels([row, asked, lost], 64, 8)
    places = [count[f"answer here, {kind}"] for kind in ("another place", "called not here")]
    assert (*places, count["windows with the answer"], count["windows without it"]) == (2, 1, 3, 0)
    cut = lesson.compare_labels([row], 10, 1)  # windows of four tokens of context; the first holds the wrong Bob
    assert cut["no answer here, called an answer"] == 1 and cut["answers whole in the first window"] == 0
    assert cut["answers whole in some window"] == cut["windows with the answer"] == 1 < cut["windows without it"]
    other = "  of these, what another annotator chose"
    assert count[other] == cut[other] == 0
    both = row | {"answers": ["Bob", "Bob"], "starts": [19, 8]}  # the second annotator means the first Bob
    assert lesson.compare_labels([both, row], 64, 8)[other] == 1
    assert lesson.others_spans(window, both) == {(7, 7)} and lesson.others_spans(window, row) == set()
    longer = row | {"answers": ["Bob", "met Bob"], "starts": [19, 4]}
    assert lesson.others_spans(window, longer) == {(6, 7)}
    with pytest.raises(ValueError, match="^how must be offsets or match, got 'luck'$"):
        lesson.label_window(window, row, "luck")


def test_the_best_span_is_the_best_of_all(lesson):
    g = torch.Generator().manual_seed(0)
    parts = [None, 0, 0, None, *[1] * 12, None]
    for longest in (1, 3, 30):
        first, last = torch.randn(2, len(parts) + 4, generator=g)  # four tokens of padding
        every = [
            (first[i] + last[j] - first[0] - last[0], i, j)
            for i in range(4, 16) for j in range(i, 16) if j - i < longest
        ]  # fmt: skip
        score, i, j = lesson.best_span(first, last, parts, longest)
        assert score == pytest.approx(max(every)[0].item(), abs=1e-5) and (i, j) == max(every)[1:]


def test_a_model_that_knows_the_labels_answers_all_that_was_recovered(lesson):
    rows = lesson.questions()["val"][:40]
    cut = [lesson.label_window(window, row) for row in rows for window in lesson.windows(row)]
    at = iter(range(0, len(cut), 32))

    class Knows(nn.Module):
        def forward(self, x):
            i = next(at)
            logits = torch.zeros(*x["input_ids"].shape, 2)
            for k, (a, b) in enumerate(cut[i : i + 32]):
                logits[k, a, 0] = logits[k, b, 1] = 9.0
            return logits

    found = lesson.qa_scores(Knows(), rows)
    assert found["em"] >= 0.97 and found["f1"] >= 0.98


CASES = [
    ("The Denver Broncos!", ["denver broncos"], 1, 1),
    ("Broncos", ["Denver Broncos", "the Broncos"], 1, 1),
    ("a Denver team", ["Denver Broncos"], 0, 0.5),
    ("1,000", ["1000"], 1, 1),
    ("anthem", ["them"], 0, 0),
    ("", ["Denver"], 0, 0),
    ("New York City", ["York"], 0, 0.5),
    ("to be or not to be", ["to be"], 0, 4 / 8),
    ("café – bar", ["Café bar"], 0, 4 / 5),  # the dash is not ASCII punctuation: a word of its own
]


@pytest.mark.parametrize(("said", "answers", "em", "f1"), CASES)
def test_exact_match_and_f1_by_the_official_rules(lesson, said, answers, em, f1):
    assert lesson.exact_match(said, answers) == em
    assert lesson.token_f1(said, answers) == pytest.approx(f1)


def test_normalising_removes_articles_after_punctuation(lesson):
    assert lesson.normalise("A  man, an_arm; The-end\n the a") == "man anarm theend"
    assert lesson.normalise(string.punctuation) == ""


def test_an_answer_arm_trains_on_training_articles_and_reads_the_part(lesson, tiny, monkeypatch):
    seen = []
    patch(monkeypatch, lesson.qa_arm, QA=lesson.QA | {"train": 8, "val": 3, "test": 3})
    real = lesson.qa_batches
    patch(
        monkeypatch,
        lesson.qa_arm,
        qa_batches=lambda rows, how, seed: (seen.append((rows, how)), real(rows, how, seed))[1],
    )
    for how in ("offsets", "match", "permuted", "untrained"):
        model, found = lesson.qa_arm(how, 1e-3, 2, "val", steps=2, **QUIET)
        assert set(found) == {"em", "f1"} and 0 <= found["em"] <= found["f1"] <= 1
        start = lesson.TokenHead(2, 2)
        assert torch.equal(model.head.weight, start.head.weight) == (how == "untrained")
    assert [how for _, how in seen] == ["offsets", "match", "offsets"] and seen[0][0] == seen[1][0]
    plain, mixed = seen[0][0], seen[2][0]
    assert [row | {"question": ""} for row in mixed] == [row | {"question": ""} for row in plain]
    asked = [[row["question"] for row in rows] for rows in (plain, mixed)]
    assert sorted(asked[0]) == sorted(asked[1]) and sum(a == b for a, b in zip(*asked, strict=True)) <= 4
    titles = {row["title"] for row in lesson.questions()["train"]}
    assert {row["title"] for row in seen[0][0]} <= titles


# --- the Trainer


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.SGD])
def test_the_trainer_gives_the_losses_of_our_loop(lesson, tiny, monkeypatch, kind):
    """AdamW does not feel the size of gradients; SGD tells whether both clip them alike."""
    real = lesson.twin_setup

    def setup(steps=6):
        model, optimizer, _ = real(steps)
        if kind is torch.optim.SGD:
            optimizer = kind(model.parameters(), lr=0.3)
        return model, optimizer, get_linear_schedule_with_warmup(optimizer, 1, steps)

    patch(monkeypatch, lesson.trainer_losses, twin_setup=setup)
    ready = list(tasks.batches(*lesson.draw(24, 0), torch.Generator().manual_seed(0), 4))
    model, optimizer, schedule = setup()
    ours = train.fit(model, ready, optimizer, 6, schedule=schedule, clip=1.0, mixed=False, **QUIET)
    theirs = lesson.trainer_losses(ready)
    assert [row["loss"] for row in ours] == pytest.approx(theirs, abs=2e-4) and len(set(theirs)) == 6


# --- few labels, much text


def test_masking_follows_the_recipe(lesson):
    tokenizer = tasks.minilm()[1]
    ids = tokenizer(["a b c d e f g h i j"] * 2000 + ["a"], padding=True, return_tensors="pt")["input_ids"]
    masked, labels = lesson.mask_tokens(ids, torch.Generator().manual_seed(0))
    chosen, real = labels != -100, ~torch.isin(ids, torch.tensor([0, 101, 102]))
    assert torch.equal(labels[chosen], ids[chosen]) and not (chosen & ~real).any()
    assert torch.equal(masked[~chosen], ids[~chosen])
    assert (chosen.sum() / real.sum()).item() == pytest.approx(0.15, abs=0.01)
    gone, same = masked[chosen] == tokenizer.mask_token_id, masked[chosen] == ids[chosen]
    assert gone.float().mean().item() == pytest.approx(0.8, abs=0.03)
    assert same.float().mean().item() == pytest.approx(0.1, abs=0.03)
    assert torch.equal(lesson.mask_tokens(ids, torch.Generator().manual_seed(0))[0], masked)


def test_the_masked_language_head_reads_the_word_embeddings_backwards(lesson, tiny):
    model = lesson.MaskedLM(tasks.minilm()[0]).eval()
    x = tasks.encode(["a fine film", "no"])
    at = torch.zeros_like(x["input_ids"], dtype=torch.bool)
    at[0, 2] = at[1, 1] = True
    found = model(x, at)
    hidden = model.change(model.encoder(**x).last_hidden_state)
    words = model.encoder.embeddings.word_embeddings.weight
    wanted = torch.stack([hidden[0, 2], hidden[1, 1]]) @ words.T + model.bias
    torch.testing.assert_close(found, wanted)
    labels = torch.full_like(x["input_ids"], -100)
    labels[0, 2], labels[1, 1] = 7, 9
    both = F.cross_entropy(wanted, torch.tensor([7, 9]), reduction="sum")
    torch.testing.assert_close(lesson.mlm_loss(model, (x, labels)), both)


def test_adapting_learns_the_corpus_and_leaves_the_original_alone(lesson, tiny, monkeypatch):
    patch(monkeypatch, lesson.adapt, corpus=lambda kind: ["a fine film", "a dull film"] * 16)
    before = {name: p.clone() for name, p in tasks.minilm()[0].named_parameters()}
    encoder, history = lesson.adapt("film", steps=30, lr=1e-2, **QUIET)
    assert history[-1]["loss"] < 0.8 * history[0]["loss"]
    assert all(torch.equal(p, before[name]) for name, p in tasks.minilm()[0].named_parameters())
    assert not torch.equal(next(encoder.parameters()), next(tasks.minilm()[0].parameters()))


def test_corpora_hold_no_sentence_that_is_tested(lesson):
    held = set(lesson.FILMS.texts[: lesson.FILMS.pool.start])
    for kind, least in (("film", 5000), ("news", 3000)):
        texts = lesson.corpus(kind)
        assert len(texts) == len(set(texts)) > least and not held & set(texts)
        assert max(len(text.split()) for text in texts) <= 20


def test_synonyms_are_wordnets():
    found = zoo.synonyms()
    assert "movie" in found["film"] and "film" in found["movie"] and "automobile" in found["car"]
    assert all(word in found[other] for word in ("film", "dull", "quickly") for other in found[word])
    assert all(word.isalpha() and word == word.lower() for word in itertools.islice(found, 2000))
    assert 40_000 < len(found) < 60_000 and not any(word in others for word, others in found.items())


def test_the_four_operations(lesson):
    text = "The film is a dull and very long story about the sea"
    words, known = text.split(), zoo.synonyms()
    for seed in range(40):
        done = {op: lesson.eda(text, random.Random(seed), op).split() for op in lesson.OPERATIONS}
        assert sorted(done["swap"]) == sorted(words) and done["swap"] != words
        assert len(done["delete"]) == len(words) - 1 and len(done["insert"]) == len(words) + 1
        (at,) = [i for i, (a, b) in enumerate(zip(words, done["synonyms"], strict=True)) if a != b]
        assert done["synonyms"][at] in known[words[at].lower()] and words[at].lower() not in lesson.STOP
        left = list(done["insert"])
        for word in words:
            left.remove(word)
        assert any(left[0] in known[w.lower()] for w in words if w.lower() in known and w.lower() not in lesson.STOP)
    long = " ".join(["story"] * 40)
    assert len(lesson.eda(long, random.Random(0), "delete").split()) == 36
    assert lesson.eda("film", random.Random(0), "delete") == "film" == lesson.eda("film", random.Random(0), "swap")
    with pytest.raises(ValueError, match="^operation must be one of synonyms, .*, got 'shuffle'$"):
        lesson.eda(text, random.Random(0), "shuffle")


def test_augmented_sets_keep_the_originals_and_the_labels(lesson):
    texts, labels = lesson.draw(10, 0)
    more, y = lesson.augmented(texts, labels, seed=1)
    assert len(more) == 50 and more[:10] == texts and y.tolist() == labels.tolist() * 5
    near = [len(set(a.split()) & set(b.split())) / len(b.split()) for a, b in zip(more, texts * 5, strict=True)]
    assert min(near) > 0.3 and sum(a != b for a, b in zip(more, texts * 5, strict=True)) >= 35


SPANISH = {"dull": "aburrido", "a fine film": "una gran película", "so so": "regular"}
BACK = {"aburrido": "Dull", "una gran película": "a great film", "regular": "so so"}


def told(texts, pair):
    """A translator that knows three sentences."""
    return [{"eng-spa": SPANISH, "spa-eng": BACK}[pair][text] for text in texts]


def test_a_round_trip_adds_what_it_changed_with_its_label(lesson, monkeypatch):
    patch(monkeypatch, lesson.round_trip, translator=lambda: told)
    assert lesson.round_trip([*SPANISH]) == ([*BACK], ["Dull", "a great film", "so so"])
    texts, labels = lesson.back_translated([*SPANISH], torch.tensor([0, 1, 0]))
    assert texts == [*SPANISH, "a great film"] and labels.tolist() == [0, 1, 0, 1]
    patch(monkeypatch, lesson.round_trip, translator=lambda: lambda texts, pair: texts[1:])
    with pytest.raises(ValueError, match="^3 texts went to the translator, 2 came back$"):
        lesson.round_trip([*SPANISH])
    for bad in ("two\nlines", "  "):
        with pytest.raises(ValueError, match="^a text to translate is one line with words, got "):
            lesson.round_trip(["fine", bad])


def test_without_a_translator_one_sentence_says_how_to_get_one(lesson, monkeypatch, tmp_path):
    monkeypatch.delenv("NBTOOLS_TRANSLATOR", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NbtoolsError, match="^Back-translation needs a translator: `sudo apt-get install apertium-eng-"):
        lesson.translator()
    program = tmp_path / "apertium"  # Apertium without this pair of languages, then with it
    for modes, found in (("  eng-cat", None), ("  eng-spa\n  spa-eng", lesson.apertium)):
        program.write_text(f"#!/bin/sh\necho '{modes}'\n")
        program.chmod(0o755)
        if found:
            assert lesson.translator() is found
        else:
            with pytest.raises(NbtoolsError, match="needs a translator"):
                lesson.translator()
    monkeypatch.setenv("NBTOOLS_TRANSLATOR", "hub")
    assert lesson.translator() is lesson.marian


def test_apertium_is_asked_for_the_pair_and_gets_one_paragraph_a_text(lesson, monkeypatch, tmp_path):
    program = tmp_path / "apertium"
    program.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/asked\ntr a-z A-Z\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert lesson.apertium(["one film", "two", "three"], "eng-spa") == ["ONE FILM", "TWO", "THREE"]
    assert (tmp_path / "asked").read_text() == "-u eng-spa\n"


@pytest.mark.skipif(shutil.which("apertium") is None, reason="apertium-eng-spa is not installed")
def test_apertium_translates_a_batch_as_it_does_one_by_one(lesson):
    texts = [*lesson.draw(30, 0)[0], "No end mark", "[sic] a/b ^c$ {d} @e \\ <f>"]
    together = lesson.round_trip(texts)
    assert together == lesson.round_trip(texts) and len(together[1]) == 32
    some = [0, 7, 30, 31]
    alone = [lesson.round_trip([texts[i]]) for i in some]
    assert [[part[i] for i in some] for part in together] == [[a for (a,), _ in alone], [b for _, (b,) in alone]]
    assert lesson.round_trip(["A good film."])[0] == ["Una película buena."]


def test_marian_translates_sixteen_at_a_time_and_greedily(lesson, monkeypatch):
    loaded, asked = [], []

    class Stub:
        def from_pretrained(self, name):
            loaded.append(name)
            return self

        def __call__(self, texts, padding, return_tensors):
            asked.append(len(texts))
            ids = torch.tensor([[ord(c) for c in text.ljust(9)] for text in texts])
            return BatchEncoding({"input_ids": ids, "attention_mask": torch.ones_like(ids)})

        def to(self, device):
            return self

        def eval(self):
            return self

        def generate(self, input_ids, attention_mask, **options):
            assert options == {"num_beams": 1, "do_sample": False, "max_new_tokens": 100}
            return input_ids

        def batch_decode(self, tokens, skip_special_tokens):
            assert skip_special_tokens
            return ["".join(map(chr, row)).strip().upper() for row in tokens.tolist()]

    stub = Stub()
    library = SimpleNamespace(AutoTokenizer=stub, AutoModelForSeq2SeqLM=stub)
    patch(monkeypatch, lesson.marian, transformers=library)
    texts = [f"film {i}" for i in range(35)]
    assert lesson.marian(texts, "spa-eng") == [text.upper() for text in texts]
    assert loaded == ["Helsinki-NLP/opus-mt-es-en"] * 2 and asked == [16, 16, 3]
    lesson.marian(texts[:1], "eng-spa")
    assert loaded[2:] == ["Helsinki-NLP/opus-mt-en-es"] * 2


def test_back_translated_copies_stand_beside_the_labels_of_a_draw(lesson, monkeypatch):
    def finetune(rung, texts, labels, lr, steps, seed, tick):
        calls.append((rung, texts, labels.tolist(), lr, steps, seed))
        return "model", []

    calls = []
    patch(monkeypatch, lesson.back_arm, finetune=finetune)
    patch(monkeypatch, lesson.back_translated, round_trip=lambda texts: (texts, [f"{text} indeed" for text in texts]))
    assert lesson.back_arm(20, 1e-4, 3) == "model"
    texts, labels = lesson.draw(20, 3)
    more = texts + [f"{text} indeed" for text in texts]
    assert calls == [("full", more, labels.tolist() * 2, 1e-4, 24, 3)]


def test_mixup_at_its_ends_is_plain_cross_entropy(lesson, tiny, monkeypatch):
    model, texts, labels = lesson.build().eval(), *lesson.draw(6, 0)
    batch = (tasks.encode(texts), labels)
    plain = train.cross_entropy_sum(model, batch).item()
    for share in (0.0, 1.0):
        monkeypatch.setattr(torch.distributions.Beta, "sample", lambda self, s=share: torch.tensor(s))
        assert lesson.mixup_loss(model, batch).item() == pytest.approx(plain, rel=1e-4)
    monkeypatch.setattr(torch.distributions.Beta, "sample", lambda self: torch.tensor(0.3))
    torch.manual_seed(0)
    found = lesson.mixup_loss(model, batch).item()
    torch.manual_seed(0)
    other, h = torch.randperm(6), model.embed(batch[0])
    logits = model.head(0.3 * h + 0.7 * h[other])
    soft = 0.3 * F.one_hot(labels, 2) + 0.7 * F.one_hot(labels[other], 2)
    assert found == pytest.approx(-(soft * logits.log_softmax(1)).sum().item(), rel=1e-4)


def test_arms_of_few_labels_differ_in_what_they_should(lesson, monkeypatch):
    calls = {}

    def finetune(rung, texts, labels, lr, steps, seed, encoder, loss_fn, tick):
        calls[arm] = SimpleNamespace(**locals())
        return None, []

    patch(monkeypatch, lesson.few_arm, finetune=finetune, adapted=lambda kind: f"encoder of {kind}")
    for arm in lesson.FEW:
        lesson.few_arm(arm, 20, 1e-4, 3)
    assert {call.rung for call in calls.values()} == {"full"} and {call.steps for call in calls.values()} == {24}
    assert [arm for arm in calls if len(calls[arm].texts) != 20] == ["eda"]
    assert {arm: call.encoder for arm, call in calls.items() if call.encoder} == {
        "mlm film": "encoder of film",
        "mlm news": "encoder of news",
    }
    assert [arm for arm, call in calls.items() if call.loss_fn is not train.cross_entropy_sum] == ["mixup"]


# --- the rivals


def test_examples_alternate_and_come_from_the_pool(lesson):
    found = lesson.examples(8, 1)
    assert [label for _, label in found] == [1, 0] * 4 and lesson.examples(0, 1) == []
    held = set(lesson.FILMS.texts[: lesson.FILMS.pool.start])
    truth = dict(zip(lesson.FILMS.texts, lesson.FILMS.labels.tolist(), strict=True))
    assert all(text not in held and truth[text] == label for text, label in found)
    assert lesson.examples(4, 1) == found[:4] and len(lesson.examples(100, 1)) == 100


def test_prompts_with_kept_examples_give_what_whole_prompts_give(lesson, monkeypatch):
    tokenizer = zoo.smollm2()[1]
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(small.llama(vocab_size=len(tokenizer))).eval()
    patch(monkeypatch, lesson.prompted, smollm2=lambda: (model, tokenizer))
    texts = lesson.FILMS.texts[:5]
    for shots in ([], lesson.examples(4, 0)):
        found = lesson.prompted(texts, shots, size=3)
        start = lesson.HEADER + "".join(f"Review: {t}\nSentiment:{lesson.WORDS[y]}\n\n" for t, y in shots)
        ids = [tokenizer(word)["input_ids"] for word in lesson.WORDS]
        assert [len(i) for i in ids] == [1, 1]
        for odds, text in zip(found.tolist(), texts, strict=True):
            whole = tokenizer(start)["input_ids"] + tokenizer(f"Review: {text}\nSentiment:")["input_ids"]
            with torch.no_grad():
                logits = model(torch.tensor([whole])).logits[0, -1]
            assert odds == pytest.approx((logits[ids[1][0]] - logits[ids[0][0]]).item(), abs=1e-4)


def test_the_nearest_example_decides(lesson, tiny):
    texts, shots = lesson.FILMS.texts[:30], lesson.examples(8, 0)
    model = lesson.build().eval()
    with torch.no_grad():
        a, b = (torch.cat([model.embed(tasks.encode([t])) for t in part]) for part in (texts, [t for t, _ in shots]))
    near = F.cosine_similarity(a[:, None], b[None], dim=-1).argmax(1)
    agree = (lesson.nearest(texts, shots) == torch.tensor([shots[i][1] == 1 for i in near])).float().mean()
    assert agree > 0.95
    found = lesson.rival("nearest 8", seed=2, count=40)
    assert set(found) == {"accuracy", "praised"} and 0 < found["accuracy"] < 1


# --- studies and panel


def test_the_studies_tune_on_validation_and_report_on_test(lesson, tiny, monkeypatch):
    parts, texts = [], []
    for labels in lesson.STEPS:
        monkeypatch.setitem(lesson.STEPS, labels, 1)
    monkeypatch.setattr(studies_02, "_lesson02", lambda *names: lesson)
    real = lesson.logits_of
    monkeypatch.setattr(lesson, "logits_of", lambda m, t, **k: (texts.append(t), real(m, t, **k))[1])
    for phase in ("tune", "report"):
        cell = {"phase": phase, "arm": "full_shuffled", "labels": 100, "lr": 1e-4, "seed": 0}
        parts.append(studies_02.ladder_run(dict(cell)))
        parts.append(studies_02.few_run(cell | {"arm": "none", "labels": 20}))
    assert [sorted(part) for part in parts[:2]] == [["accuracy", "score"]] * 2
    assert all(sorted(part) == ["accuracy", "ece", "f1", "loss"] for part in parts[2:])
    val, test = (lesson.FILMS.texts[part] for part in (lesson.FILMS.val, lesson.FILMS.test))
    assert texts == [val, val, test, test]
    row = studies_02.ladder_run({"phase": "report", "arm": "full", "labels": 100, "lr": 1e-4, "seed": 0})
    assert "accuracy without mask" in row
    asked = []
    monkeypatch.setattr(lesson, "back_arm", lambda *a, **k: (asked.append(a), lesson.build())[1])
    tuned = studies_02.back_run({"phase": "tune", "arm": "back-translated", "labels": 20, "lr": 1e-5, "seed": 4})
    assert sorted(tuned) == ["accuracy", "score"] and asked == [(20, 1e-5, 4)]
    arms = studies_02.ladder_arms(False)
    assert set(arms) == {*lesson.LADDER, "full_shuffled"} and all(len(arms[arm]) >= 3 for arm in lesson.LADDER)
    calls = []
    monkeypatch.setattr(lesson, "tag_arm", lambda *a, **k: (calls.append(a), (None, {"f1": 0.5}))[1])
    for phase, arm in (("tune", "every"), ("report", "first_shuffled")):
        studies_02.tags_run({"phase": phase, "arm": arm, "lr": 1e-4, "seed": 7})
    assert calls == [("every", 1e-4, 7, False, "val"), ("first", 1e-4, 7, True, "test")]


def test_the_panel_reads_validation_sentences(lesson, tiny):
    steps = []
    found = lesson.experiment(lambda *a, **k: steps.append(a), "ulmfit", 20, 1e-4)
    assert set(found) == {"accuracy", "f1", "ece", "loss"} and len(steps) == 24


def test_readers_take_one_of_two_rates_and_controls_none(lesson):
    arms = studies_02.answers_arms(False)
    assert set(arms) <= set(lesson.READERS) and {len(arms["offsets"]), len(arms["match"])} == {2}
    assert arms["offsets"] == arms["match"] and len(arms["untrained"]) == 1
    calls = []
    with pytest.MonkeyPatch.context() as patch:
        fake = SimpleNamespace(qa_arm=lambda *a, **k: (calls.append(a), (None, {"em": 0.1, "f1": 0.2}))[1])
        patch.setattr(studies_02, "_lesson02", lambda *names: fake)
        tuned = studies_02.answers_run({"phase": "tune", "arm": "match", "lr": 1e-3, "seed": 7})
        assert tuned == {"em": 0.1, "f1": 0.2, "score": 0.2}
        assert studies_02.answers_run({"phase": "report", "arm": "match", "lr": 1e-3, "seed": 7}) == {
            "em": 0.1,
            "f1": 0.2,
        }
    assert calls == [("match", 1e-3, 7, "val"), ("match", 1e-3, 7, "test")]
