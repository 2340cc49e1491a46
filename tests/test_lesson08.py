"""Lesson 08: preferences out of ratings, the loss and the pooling against the libraries, the two shipped models."""

import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from transformers import LlamaConfig, LlamaForSequenceClassification

from nbtools import notebooks, raters, studies_08, tasks, train
from nbtools.errors import NbtoolsError

TAUGHT = (
    "column_ratio two_raters leave_one_out ceiling preference_loss last_token_reward STEPS WRONG VAL TEST CLEAR turned "
    "preferences run_arm calibration measure by_lexicon other_half beats correlation small_decoder decoder_batch "
    "decoder_rewards PAD END"
)
QUIET = {"tick": lambda *a, **k: None}


@pytest.fixture(scope="module")
def lesson():
    """What the notebook defines, as attributes."""
    return SimpleNamespace(**notebooks.definitions("08", *TAUGHT.split()))


@pytest.fixture(scope="module")
def models():
    return {name: raters.load(name) for name in raters.RECIPES}


class Words(torch.nn.Module):
    """A stand-in for an encoder model: the reward of a text is a trained weight for each token, averaged."""

    def __init__(self):
        super().__init__()
        self.body, self.head = torch.nn.Embedding(30522, 1), torch.nn.Linear(1, 1)
        torch.nn.init.zeros_(self.body.weight)

    def forward(self, batch):
        mask = batch["attention_mask"][..., None]
        return self.head((self.body(batch["input_ids"]) * mask).sum(1) / mask.sum(1))[:, 0]


# --- preferences


def test_parts_share_no_snippet_and_no_block():
    for domain in raters.DOMAINS:
        parts = [raters.snippets(domain, part) for part in raters.PARTS]
        for key in (lambda row: row["text"], lambda row: row["line"] // raters.BLOCK):
            seen = [{key(row) for row in part} for part in parts]
            assert len(set.union(*seen)) == sum(map(len, seen))
        sizes = [len(part) / sum(map(len, parts)) for part in parts]
        assert sizes == pytest.approx([0.7, 0.1, 0.2], abs=0.01)


def test_a_film_page_is_rated_by_the_same_number_of_people():
    """30 lines have one number of scores; so even and odd columns keep a page's people apart."""
    pages = {}
    for row in (row for part in raters.PARTS for row in raters.snippets("movie", part)):
        pages.setdefault(row["line"] // raters.BLOCK, set()).add(len(row["ratings"]))
    assert len(pages) == 354 and all(len(counts) == 1 for counts in pages.values())
    scores = list(range(9))
    assert scores[raters.HALVES["one"]] == [0, 2, 4, 6, 8] and scores[raters.HALVES["two"]] == [1, 3, 5, 7]


def test_a_preference_comes_from_the_half_and_label_asked_for(monkeypatch):
    rows = [{"text": "a", "ratings": [1, -4, 3, -4]}, {"text": "b", "ratings": [0, 4, 0, 3]}]
    monkeypatch.setattr(raters, "snippets", lambda domain, part: rows)
    one, two = (raters.pairs(count=30, half=half) for half in ("one", "two"))
    assert all(chosen["text"] == "a" for chosen, _ in one) and all(chosen["text"] == "b" for chosen, _ in two)
    rows[1]["ratings"] = [1, 0, 1, 0]  # half one: 1 or 3 against 1, so some draws tie and are left out
    assert len(raters.pairs(count=30)) == 30 and {c["text"] for c, _ in raters.pairs(count=30)} == {"a"}
    rows[1]["ratings"] = [-3, 0, 4, 0]
    drawn = [chosen["text"] for chosen, _ in raters.pairs(count=200)]
    assert 60 < drawn.count("a") < 140
    assert {chosen["text"] for chosen, _ in raters.pairs(count=200, label="mean")} == {"a"}


def test_pairs_repeat_themselves_and_stay_in_a_domain():
    found = raters.pairs(["amazon", "nyt"], 40, seed=3, part="val")
    assert found == raters.pairs(["amazon", "nyt"], 40, seed=3, part="val") != raters.pairs(["amazon", "nyt"], 40, 4)
    inside = [{row["text"] for row in raters.snippets(name, "val")} for name in ("amazon", "nyt")]
    assert all({a["text"], b["text"]} <= inside[i % 2] for i, (a, b) in enumerate(found))


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda m: raters.snippets("movie", "dev"), "no part 'dev': choose one of train, val, test"),
        (lambda m: raters.pairs("books", 1), "no snippets of 'books'"),
        (lambda m: raters.pairs(count=0), "count must be at least 1 pair, got 0"),
        (lambda m: raters.pairs(half="three"), "half must be one, two or all"),
        (lambda m: raters.encode(["good", " "]), "a text with at least one word, got ' '"),
        (lambda m: raters.encode([]), "no texts to score"),
        (lambda m: raters.finetune(Words(), [], 1e-3, 1), "no preferences to learn from"),
        (
            lambda m: raters.finetune(Words(), [({"text": "a"}, {"text": "a"})], 1e-3, 1),
            "two different texts, got 'a' twi",
        ),
        (lambda m: raters.load("critic"), "no model of raters 'critic': choose one of reward, judge"),
        (lambda m: m.preferences("best", 10, 0), "an arm is rater, mean, flipped, shuffled, got 'best'"),
        (lambda m: m.turned([], 20, 0), "a share of wrong preferences lies between 0 and 1, got 20"),
        (lambda m: m.last_token_reward(torch.zeros(2, 2), torch.tensor([[1, 0], [0, 0]])), "row 1 has no real token"),
    ],
)
def test_bad_input_gives_a_sentence(lesson, call, sentence):
    with pytest.raises((ValueError, NbtoolsError), match=sentence):
        call(lesson)


def test_the_lexicon_is_read():
    known = raters.lexicon()
    assert (known["good"], known["horrible"], known[":("]) == (1.9, -2.5, -1.9) and len(known) == 7491


# --- what the raters allow


def test_columns_are_people_in_films_alone(lesson):
    assert lesson.column_ratio("movie") > 5
    assert all(0.85 < lesson.column_ratio(name) < 1.15 for name in raters.OUTSIDE)


def test_the_ceiling_of_raters_who_flip_coins_and_who_agree(lesson, monkeypatch):
    g = torch.Generator().manual_seed(0)
    coins = [
        {"text": str(i), "line": i, "ratings": torch.randint(-2, 3, (15,), generator=g).tolist()} for i in range(400)
    ]
    sure = [{"text": str(i), "line": i, "ratings": [i % 7] * 15} for i in range(400)]
    for rows, expected in ((coins, 0.5), (sure, 1.0)):
        monkeypatch.setattr(raters, "snippets", lambda domain, part, rows=rows: rows)
        assert lesson.ceiling("movie", 400) == pytest.approx(expected, abs=0.02)
        assert lesson.two_raters("movie", count=2000) == pytest.approx(expected, abs=0.04)


def test_two_raters_of_one_person_share_a_column(lesson, monkeypatch):
    """Person i adds i to everything: the same person agrees always, two people often not."""
    rows = [{"text": str(i), "line": i, "ratings": [i % 3 + 3 * k for k in range(9)]} for i in range(30)]
    monkeypatch.setattr(raters, "snippets", lambda domain, part: rows)
    assert lesson.two_raters("movie", True, True, 500) == 1.0
    assert lesson.two_raters("movie", True, False, 500) < 0.8


# --- loss, mask and model


def test_the_loss_and_its_gradient_are_those_of_a_logistic_regression(lesson):
    g = torch.Generator().manual_seed(0)
    a, b = (torch.randn(64, generator=g).requires_grad_() for _ in range(2))
    wanted = F.binary_cross_entropy_with_logits(a - b, torch.ones(64), reduction="none")
    for loss in (lesson.preference_loss, raters.pairwise_loss):
        torch.testing.assert_close(loss(a, b), wanted)
        mine, theirs = (torch.autograd.grad(x.sum(), (a, b), retain_graph=True) for x in (loss(a, b), wanted))
        torch.testing.assert_close(mine, theirs)
        far = torch.tensor(-200.0, requires_grad=True)
        loss(far, torch.zeros(())).backward()
        assert far.grad == -1


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_last_token_is_the_one_transformers_reads(lesson, side):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        num_labels=1,
        pad_token_id=0,
    )
    model = LlamaForSequenceClassification(config).eval()
    ids = torch.randint(1, 50, (6, 8))
    mask = (torch.arange(8) < torch.tensor([8, 1, 3, 5, 7, 2])[:, None]).long()
    mask = mask.flip(1) if side == "left" else mask
    batch = {"input_ids": ids * mask, "attention_mask": mask}
    with torch.no_grad():
        torch.testing.assert_close(lesson.decoder_rewards(model, batch), model(**batch).logits[:, 0])


def test_with_pad_equal_to_eos_transformers_reads_one_token_early(lesson):
    model, batch = lesson.small_decoder().eval(), lesson.decoder_batch(["Good.", "Not good at all."], lesson.END)
    model.config.pad_token_id = batch["input_ids"][1, -1].item()
    with torch.no_grad():
        every = model.score(model.model(**batch).last_hidden_state)[..., 0]
        last = batch["attention_mask"].sum(1) - 1
        torch.testing.assert_close(model(**batch).logits[:, 0], every.gather(1, last[:, None] - 1)[:, 0])
        torch.testing.assert_close(lesson.decoder_rewards(model, batch), every.gather(1, last[:, None])[:, 0])


def test_a_reward_does_not_depend_on_padding_or_on_what_stands_there():
    model = raters.build().eval()
    texts = ["Good.", "A long and winding film about nothing in particular, in the best sense."]
    batch = raters.encode(texts)
    with torch.no_grad():
        both, alone = model(batch), model(raters.encode(texts[:1]))
        torch.testing.assert_close(both[:1], alone, atol=1e-5, rtol=0)
        batch["input_ids"][0, -1] = 1996
        torch.testing.assert_close(model(batch), both, atol=1e-5, rtol=0)
        hidden = tasks.minilm()[0].eval()(**raters.encode(texts[:1])).last_hidden_state  # the adapter adds nothing yet
        torch.testing.assert_close(model.head(hidden.mean(1))[:, 0], alone, atol=1e-5, rtol=0)


def test_training_learns_an_order_leaves_the_base_and_uses_the_loss_given():
    found = [({"text": "good film"}, {"text": "bad film"})] * 40
    model = Words()
    history = raters.finetune(model, found, 0.3, 12, **QUIET)
    assert history[-1]["loss"] < history[0]["loss"] == pytest.approx(math.log(2), abs=1e-3)
    assert raters.accuracy(lambda texts: raters.rewards(model, texts), found) == 1
    turned = Words()
    raters.finetune(turned, found, 0.3, 12, loss=lambda a, b: raters.pairwise_loss(b, a), **QUIET)
    assert raters.accuracy(lambda texts: raters.rewards(turned, texts), found) == 0
    model = raters.build()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    raters.finetune(model, found[:16], 1e-2, 2, **QUIET)
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved and all("lora" in name or name.startswith("head") for name in moved)
    assert any("lora_A" in name for name in moved) and any("lora_B" in name for name in moved)


def test_accuracy_and_margins():
    a, b, c = ({"text": text} for text in ("aaa", "bb", "c"))
    score = lambda texts: torch.tensor([float(len(text)) for text in texts])  # noqa: E731
    assert raters.margins(score, [(a, b), (c, a)]).tolist() == [1, -2]
    assert raters.accuracy(score, [(a, b), (c, a), (b, c), (a, c)]) == 0.75
    assert raters.accuracy(lambda texts: torch.zeros(len(texts)), [(a, b), (c, a)]) == 0.5


def test_rewards_keep_the_order_of_the_texts(models):
    texts = [row["text"] for row in raters.snippets("movie", "val")[:70]]
    together, model = raters.rewards(models["judge"].model, texts, size=16), models["judge"].model
    alone = torch.cat([raters.rewards(model, [text]) for text in texts[::10]])
    torch.testing.assert_close(together[::10], alone, atol=0.1, rtol=0)  # bfloat16


# --- the experiment


def test_turned_preferences(lesson):
    found = [(i, -i) for i in range(1, 101)]
    for share in (0, 0.2, 0.5, 1):
        out = lesson.turned(found, share, seed=1)
        assert sum(a < 0 for a, _ in out) == 100 * share and [{*pair} for pair in out] == [{*pair} for pair in found]
    assert lesson.turned(found, 0.5, 1) != lesson.turned(found, 0.5, 2)


def test_wrong_preferences_come_all_through_the_training(lesson):
    """The order of the batches comes from the same seed: the wrong ones must not be the first ones."""
    found = [(i, -i) for i in range(1, 1001)]
    for seed in range(5):
        order = torch.randperm(1000, generator=train.seed_everything(seed))
        wrong = torch.tensor([a < 0 for a, _ in lesson.turned(found, 0.2, seed)])[order]
        assert all(20 <= part.sum() <= 60 for part in wrong.split(200))


def test_arms_learn_from_half_one_and_are_tested_on_half_two(lesson, monkeypatch):
    plain = lesson.preferences("rater", 200, 5)
    assert plain == raters.pairs("movie", 200, 5, "train", "one", "rater")
    changed = {arm: sum(a is not b for (a, _), (b, _) in zip(lesson.preferences(arm, 200, 5), plain, strict=True))
               for arm in ("flipped", "shuffled")}  # fmt: skip
    assert changed == {"flipped": 40, "shuffled": 100}
    assert lesson.preferences("mean", 200, 5) == raters.pairs("movie", 200, 5, "train", "one", "mean")
    assert raters.pairs("movie", 2000, 2, "test", "two") == lesson.TEST and len(lesson.VAL) == 1000
    train_texts = {row["text"] for row in raters.snippets("movie", "train")}
    tested = {
        row["text"] for found in (lesson.TEST, lesson.VAL, lesson.CLEAR["movie"]) for pair in found for row in pair
    }
    assert not train_texts & tested
    means = [[sum(row["ratings"][1::2]) / len(row["ratings"][1::2]) for row in pair] for pair in lesson.CLEAR["nyt"]]
    assert all(a > b for a, b in means)


def test_calibration_against_a_slow_count(lesson):
    g = torch.Generator().manual_seed(0)
    apart = 2 * torch.randn(500, generator=g)
    rows = lesson.calibration(apart)
    sure = [1 / (1 + math.exp(-abs(d))) for d in apart.tolist()]
    for i, (mean, right, count) in enumerate(rows):
        low = 0.5 + i / 10
        inside = [(s, d > 0) for s, d in zip(sure, apart.tolist(), strict=True) if low < s <= low + 0.1]
        assert count == len(inside) and mean == pytest.approx(sum(s for s, _ in inside) / count, abs=1e-5)
        assert right == pytest.approx(sum(r for _, r in inside) / count, abs=1e-5)
    assert math.isnan(lesson.calibration(torch.full((5,), 9.0))[0][0])


def test_measure_of_a_model_that_knows_the_ratings(lesson, monkeypatch):
    known = {row["text"]: 9 * sum(row["ratings"][1::2]) / len(row["ratings"][1::2])
             for found in lesson.CLEAR.values() for pair in found for row in pair}  # fmt: skip
    monkeypatch.setattr(raters, "rewards", lambda model, texts: torch.tensor([known.get(text, 0.0) for text in texts]))
    row, apart = lesson.measure(None)
    assert all(row[name] == 1 for name in raters.DOMAINS) and row["accuracy"] < 1
    assert row["loss"] > 0 and 0 <= row["gap"] <= 1 and len(apart["films"]) == 2000


def test_small_helpers_of_the_text(lesson):
    assert lesson.beats(torch.tensor([2.0, 3]), torch.tensor([1.0, 2])) == 0.875
    assert lesson.correlation([1, 2, 3], [2, 4, 6.0]) == pytest.approx(1)
    assert lesson.by_lexicon(["Good, good!", "horrible", "table"]).tolist() == pytest.approx([3.8, -2.5, 0])
    rows = [{"ratings": [1, 9, 1]}, {"ratings": [0, 9, 2]}, {"ratings": [3, 0, 3]}]
    found = [(rows[0], rows[1]), (rows[2], rows[0]), (rows[0], rows[2])]
    assert lesson.other_half(found).mean() == 0.5


# --- the study


def test_a_cell_of_the_study_tunes_on_validation_and_reports_on_test(monkeypatch):
    found = [({"text": "good"}, {"text": "no"})]
    apart = {"films": torch.tensor([1.0, -0.123]), "nyt": torch.tensor([2.0])}
    stub = SimpleNamespace(
        VAL=found,
        STEPS={100: 1, 3000: 2},
        run_arm=lambda arm, labels, lr, seed, tick: "model",
        measure=lambda model: ({"accuracy": 0.50001, "loss": 0.7}, apart),
        preference_loss=raters.pairwise_loss,
    )
    monkeypatch.setattr(studies_08, "_lesson08", lambda: stub)
    monkeypatch.setattr(raters, "rewards", lambda model, texts: torch.tensor([float(len(text)) for text in texts]))
    cell = {"phase": "tune", "arm": "rater", "labels": 3000, "lr": 1e-3, "seed": 1}
    assert studies_08.reward_run(cell) == {"score": pytest.approx(-math.log1p(math.exp(-2)))}
    row = studies_08.reward_run(cell | {"phase": "report"})
    assert row == {"accuracy": 0.5, "loss": 0.7, "apart films": "1.00 -0.12", "apart nyt": "2.00"}
    assert "apart films" not in studies_08.reward_run(cell | {"phase": "report", "labels": 100})
    assert "apart films" not in studies_08.reward_run(cell | {"phase": "report", "arm": "flipped"})


def test_the_studies_grids_and_fingerprint(lesson):
    sizes, noise = studies_08.STUDIES["reward"], studies_08.STUDIES["reward-noise"]
    assert tuple(c["labels"] for c in sizes.conditions(False)) == tuple(lesson.STEPS)
    assert {*sizes.arms(False), *noise.arms(False)} == set(lesson.WRONG) and noise.conditions(False) == [
        {"labels": 1000}
    ]


def test_what_raters_does_is_in_the_fingerprint(monkeypatch):
    from nbtools import studies

    before = studies_08.STUDIES["reward"].code()
    read = studies.Path.read_text
    monkeypatch.setattr(studies.Path, "read_text", lambda path, **k: read(path, **k).replace("SIZE = 16", "SIZE = 8"))
    assert studies_08.STUDIES["reward"].code() != before


# --- the shipped models


def test_the_shipped_models_are_small_normalised_and_say_what_they_are(models):
    for name, scorer in models.items():
        assert (raters.FOLDER / f"{name}.safetensors").stat().st_size < 2e6
        assert scorer.about["half"] == raters.RECIPES[name]["half"]
        assert scorer.about["domains"] == str(raters.RECIPES[name]["domains"])
        good, bad = scorer.score(["A wonderful, moving film.", "A dull and stupid mess."]).tolist()
        assert good > 1 and bad < -1
        films = scorer.score([row["text"] for row in raters.snippets("movie", "train")[::16]])
        assert films.mean().abs() < 0.15 and abs(films.std() - 1) < 0.1 and not films.requires_grad
    assert raters.RECIPES["reward"]["half"] != raters.RECIPES["judge"]["half"]
    assert "movie" not in raters.RECIPES["judge"]["domains"]


def test_the_shipped_models_know_films(models):
    found = raters.pairs("movie", 200, 9, "test", "two")
    right = {name: raters.accuracy(scorer.score, found) for name, scorer in models.items()}
    assert all(0.65 < value < 0.87 for value in right.values()) and right["reward"] > 0.7


def test_a_file_of_other_tensors_is_refused(monkeypatch, tmp_path):
    from safetensors.torch import save_file

    monkeypatch.setattr(raters, "FOLDER", tmp_path)
    with pytest.raises(NbtoolsError, match="reward.safetensors is missing: restore it from git, or run `python -m"):
        raters.load("reward")
    save_file(
        {"mean": torch.zeros(()), "std": torch.ones(()), "x": torch.ones(2)},
        tmp_path / "reward.safetensors",
        {"a": "b"},
    )
    with pytest.raises(NbtoolsError, match="holds 1 tensors, not the 74 of this adapter"):
        raters.load("reward")


def test_make_writes_what_load_reads(monkeypatch, tmp_path):
    monkeypatch.setattr(raters, "FOLDER", tmp_path)
    monkeypatch.setitem(raters.RECIPES, "judge", raters.RECIPES["judge"] | {"pairs": 16, "steps": 1})
    pairs, rows = raters.pairs, raters.snippets("movie", "train")[:40]
    monkeypatch.setattr(raters, "pairs", lambda domain, count, *rest: pairs(domain, min(count, 20), *rest))
    monkeypatch.setattr(raters, "snippets", lambda domain, part: rows)
    raters.make("judge", **QUIET)
    scorer = raters.load("judge")
    films = scorer.score([row["text"] for row in rows[::4]])
    assert films.mean().abs() < 0.05 and abs(films.std() - 1) < 0.05 and scorer.about["steps"] == "1"
    assert 0 <= float(scorer.about["film_accuracy"]) <= 1
