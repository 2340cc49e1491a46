"""Lesson 07: labels, loss and packing against transformers and trl; the arms; the rules; the kept checkpoint."""

import copy
import math
from types import SimpleNamespace

import pytest
import torch
from small import llama
from transformers import LlamaForCausalLM

from nbtools import notebooks, sft, studies_07, tasks, zoo
from nbtools.errors import NbtoolsError

NAMES = "answer_labels token_loss block_mask STEPS MANY FEW ASKED ARMS choose examples collate loss_sum run_arm"
TAUGHT = f"{NAMES} measure pack"
QUIET = {"tick": lambda *a, **k: None}
ROW = {"instruction": "Name a colour.", "input": "", "output": "Blue."}


@pytest.fixture(scope="module")
def lesson():
    """What the notebook defines, as attributes."""
    return SimpleNamespace(**notebooks.definitions("07", *TAUGHT.split()))


@pytest.fixture(scope="module")
def tokenizer():
    return zoo.smollm2()[1]


@pytest.fixture
def model(tokenizer):
    return small_model(tokenizer)


def small_model(tokenizer, layers=3):
    torch.manual_seed(0)
    ids = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    return LlamaForCausalLM(llama(vocab_size=len(tokenizer), **ids, num_hidden_layers=layers)).eval()


@pytest.fixture
def folder(tokenizer, tmp_path):
    """A chat model in a folder, as save_pretrained leaves it."""
    small_model(tokenizer).save_pretrained(tmp_path / "chat")
    tokenizer.save_pretrained(tmp_path / "chat")
    return str(tmp_path / "chat")


# --- labels and loss


def test_labels_are_those_of_lesson_04(lesson, tokenizer):
    rows = sft.split()["pool"][:12]
    batch = sft.encode(tokenizer, rows)
    theirs = tasks.chats(tokenizer, rows)
    assert torch.equal(lesson.answer_labels(**batch), theirs["labels"])
    assert torch.equal(batch["input_ids"], theirs["input_ids"])
    for row, ids, labels in zip(rows, batch["input_ids"], lesson.answer_labels(**batch), strict=True):
        assert tokenizer.decode(labels[labels != -100]) == row["output"] + "<|im_end|>"
        assert tokenizer.decode(ids).startswith(tasks.prompt(tokenizer, row))


def test_the_loss_and_its_gradient_are_those_of_transformers(lesson, tokenizer, model):
    batch = lesson.collate("answers", tokenizer, sft.split()["pool"][:6])
    twin = copy.deepcopy(model)
    theirs = twin(**batch).loss
    mine = lesson.loss_sum(model, batch) / tasks.count_labels(batch)
    assert mine.item() == pytest.approx(theirs.item(), rel=1e-6)
    assert tasks.chat_loss_sum(twin, batch).item() == pytest.approx(lesson.loss_sum(model, batch).item(), rel=1e-5)
    theirs.backward()
    mine.backward()
    for (name, p), q in zip(model.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, msg=name)


def test_what_stands_behind_the_end_token_does_not_matter(lesson, tokenizer, model):
    rows = [ROW, max(sft.split()["pool"], key=lambda row: len(row["output"]))]
    batch = lesson.collate("answers", tokenizer, rows)
    changed = batch | {"input_ids": torch.where(batch["attention_mask"] == 1, batch["input_ids"], 77)}
    assert not torch.equal(changed["input_ids"], batch["input_ids"])
    with torch.no_grad():
        whole = lesson.loss_sum(model, batch).item()
        assert lesson.loss_sum(model, changed).item() == pytest.approx(whole, rel=1e-6)
        alone = [lesson.loss_sum(model, lesson.collate("answers", tokenizer, [row])).item() for row in rows]
        assert sum(alone) == pytest.approx(whole, rel=1e-5)


def test_trl_gives_the_same_losses(lesson, tokenizer, model, tmp_path):
    from trl import SFTConfig, SFTTrainer

    from datasets import Dataset

    rows, losses, twin = sft.split()["pool"][:12], [], copy.deepcopy(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0)
    for i in range(0, 12, 4):
        batch = lesson.collate("answers", tokenizer, rows[i : i + 4])
        loss = lesson.loss_sum(model, batch) / tasks.count_labels(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    config = SFTConfig(
        tmp_path,
        per_device_train_batch_size=4,
        max_steps=3,
        learning_rate=1e-3,
        weight_decay=0,
        lr_scheduler_type="constant",
        max_grad_norm=0,
        bf16=False,
        gradient_checkpointing=False,
        train_sampling_strategy="sequential",
        logging_steps=1,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
    )
    pairs = [{"prompt": tasks.prompt(tokenizer, row), "completion": row["output"] + "<|im_end|>"} for row in rows]
    trainer = SFTTrainer(twin, config, train_dataset=Dataset.from_list(pairs), processing_class=tokenizer)
    trainer.train()
    theirs = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert theirs[0] == pytest.approx(losses[0], rel=1e-6) and theirs == pytest.approx(losses, rel=1e-5)


# --- bad input


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda m, t: sft.encode(t, []), "no chats to encode: give at least one"),
        (lambda m, t: sft.encode(t, [ROW, ROW | {"output": " "}]), "answer to 'Name a colour.' is empty"),
        (lambda m, t: sft.encode(t, [ROW], context=20), r"a prompt has \d\d tokens, the context 20: shorten"),
        (lambda m, t: sft.checked(bare(t)), "has no chat template: take a model that was tuned on chats"),
        (lambda m, t: sft.encode(bare(t), [ROW]), "has no chat template"),
        (lambda m, t: sft.checked(bare(t, chat_template="x", eos_token=None)), "no end token: set tokenizer.eos_token"),
        (lambda m, t: sft.load("no/such/folder/here"), "'no/such/folder/here' is no model folder and no hub name"),
        (lambda m, t: m.token_loss(torch.zeros(1, 3, 9), torch.full((1, 3), -100)), "every label is -100, so there is"),
        (lambda m, t: m.examples("best", 0), "an arm is answers, whole chat, .*got 'best'"),
        (lambda m, t: m.pack([3, 300], 256), "document 1 has 300 tokens, a row 256: shorten it or make rows longer"),
    ],
)
def test_bad_input_gives_a_sentence(lesson, tokenizer, call, sentence):
    with pytest.raises((ValueError, NbtoolsError), match=sentence):
        call(lesson, tokenizer)


def bare(tokenizer, **changes):
    tokenizer = copy.deepcopy(tokenizer)
    for name, value in ({"chat_template": None} | changes).items():
        setattr(tokenizer, name, value)
    return tokenizer


def test_a_tokenizer_without_padding_pads_with_its_end(tokenizer):
    assert sft.checked(bare(tokenizer, chat_template="x", pad_token=None)).pad_token == tokenizer.eos_token


def test_all_labels_masked_stops_the_training(lesson, tokenizer, model):
    batch = lesson.collate("answers", tokenizer, [ROW])
    batch["labels"] = torch.full_like(batch["labels"], -100)
    with pytest.raises(ValueError, match="step 0 has nothing to learn from: 0 loss terms"):
        sft.finetune(model, [batch], 1e-3, 1, lesson.loss_sum, **QUIET)


# --- data and arms


def test_no_instruction_is_in_two_parts_and_answers_are_brief():
    parts = sft.split()
    keys = [{(row["instruction"], row["input"]) for row in rows} for rows in parts.values()]
    assert len(set.union(*keys)) == sum(map(len, parts.values())) == 247
    assert all(0 < len(row["output"].split()) <= 20 for rows in parts.values() for row in rows)


def test_what_each_arm_learns_from(lesson, tokenizer):
    rows = sft.split()["pool"][:4]
    made = {arm: lesson.collate(arm, tokenizer, rows) for arm in ("answers", "whole chat", "no end", "double start")}
    plain = made["answers"]
    learned = {arm: (batch["labels"] != -100).sum().item() for arm, batch in made.items()}
    assert learned["whole chat"] == plain["attention_mask"].sum() and learned["no end"] == learned["answers"] - 4
    assert not (made["no end"]["labels"] == tokenizer.eos_token_id).any()
    assert (plain["labels"] == tokenizer.eos_token_id).sum() == 4
    double = made["double start"]
    assert (double["input_ids"][:, :2] == tokenizer.bos_token_id).all()
    assert all(torch.equal(double[key][:, 1:], plain[key]) for key in plain)
    assert (double["labels"][:, 0] == -100).all() and (double["attention_mask"][:, 0] == 1).all()


def test_without_the_shared_id_no_end_is_harmless(lesson, tokenizer):
    other = bare(tokenizer, chat_template=tokenizer.chat_template, pad_token="<|endoftext|>")
    rows = sft.split()["pool"][:4]
    ends, plain = (lesson.collate(arm, other, rows) for arm in ("no end", "answers"))
    assert torch.equal(ends["labels"], plain["labels"]) and (ends["input_ids"] == other.pad_token_id).any()


def test_examples_come_from_the_pool(lesson):
    pool = {(row["instruction"], row["input"]): row["output"] for row in sft.split()["pool"]}
    for arm in lesson.ARMS:
        rows = lesson.examples(arm, 3)
        assert len(rows) == (lesson.FEW if arm.startswith("few") else lesson.MANY)
        keys = [(row["instruction"], row["input"]) for row in rows]
        assert len({*keys}) == len(rows) and {*keys} <= {*pool}
        same = sum(pool[key] == row["output"] for key, row in zip(keys, rows, strict=True))
        assert same < 5 if arm == "shuffled" else same == len(rows)
    assert lesson.examples("answers", 3) != lesson.examples("answers", 4)
    assert lesson.examples("few chosen", 3) != lesson.examples("few chosen", 4)
    shuffled, plain = lesson.examples("shuffled", 3), lesson.examples("answers", 3)
    assert sorted(row["output"] for row in shuffled) == sorted(row["output"] for row in plain)


def test_the_rule_of_choice(lesson):
    rows = [
        {"instruction": text, "input": "", "output": output}
        for text, output in [
            ("name a red fruit", "Cherry."),
            ("name a red berry", "Currant."),
            ("name a red flower", "no capital."),
            ("name a red bird", "No full stop"),
            ("translate this", "So."),
            ("name one blue fruit", "Plum."),
        ]
    ]
    assert [row["output"] for row in lesson.choose(rows, 3)] == ["Cherry.", "So.", "Plum."]
    assert [row["output"] for row in lesson.choose(rows, 2, first=1)] == ["Currant.", "So."]


def test_order_is_a_permutation_of_like_lengths():
    rows = sft.split()["pool"][:60]
    groups = sft.order(rows, 1)
    assert sorted(map(str, rows)) == sorted(str(row) for group in groups for row in group)
    assert sorted(map(len, groups)) == [4] + [8] * 7 and sft.order(rows, 1) == groups != sft.order(rows, 2)
    sizes = [[len(row["instruction"] + row["input"] + row["output"]) for row in group] for group in groups]
    apart = [max(a) - min(a) for a in sizes]
    assert sorted(apart)[len(apart) // 2] <= 40 < max(map(max, sizes)) - min(map(min, sizes))
    batches = sft.passes(rows, 1, lambda part: [row["output"] for row in part])
    one, two = list(batches()), list(batches())
    assert one != two and sorted(sum(one, [])) == sorted(sum(two, []))


# --- packing


def test_packed_documents_get_what_they_get_alone(lesson, tokenizer, model):
    chats = [sft.encode(tokenizer, [row])["input_ids"] for row in sft.split()["pool"][:3]]
    pad = torch.full((1, 5), tokenizer.pad_token_id)
    ids = torch.cat([*chats, pad], 1)
    documents = torch.cat([torch.full_like(part, i) for i, part in enumerate([*chats, pad])], 1)
    places = torch.cat([torch.arange(part.shape[1])[None] for part in [*chats, pad]], 1)
    with torch.no_grad():
        packed = model(ids, attention_mask=lesson.block_mask(documents), position_ids=places).logits
        naive, start = model(ids).logits, 0
        assert packed.isfinite().all()
        for i, chat in enumerate(chats):
            here = slice(start, start := start + chat.shape[1])
            alone = model(chat).logits
            torch.testing.assert_close(packed[:, here], alone, atol=1e-5, rtol=0)
            assert torch.allclose(naive[:, here], alone, atol=1e-5) == (i == 0)


def test_pack_puts_every_document_into_one_row(lesson):
    lengths = torch.randint(1, 200, (80,), generator=torch.Generator().manual_seed(0)).tolist()
    rows = lesson.pack(lengths, 256)
    assert sorted(sum(rows, [])) == list(range(80)) and all(sum(lengths[i] for i in row) <= 256 for row in rows)
    assert len(rows) <= 1.25 * sum(lengths) / 256 + 1
    assert lesson.pack([100, 60, 90, 40], 150) == [[0, 3], [2, 1]]


# --- the model and what is measured


def test_the_adapter_sits_in_the_last_third_and_moves_alone(lesson, tokenizer):
    model = sft.adapt(small_model(tokenizer, layers=6))
    open_ = {name for name, p in model.named_parameters() if p.requires_grad}
    assert {name.split(".layers.")[1][0] for name in open_} == {"4", "5"} and len(open_) == 2 * 7 * 2
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    rows = sft.split()["pool"][:16]
    batches = sft.passes(rows, 0, lambda part: lesson.collate("answers", tokenizer, part))
    history = sft.finetune(model, batches, 1e-2, 6, lesson.loss_sum, **QUIET)
    assert history[-1]["loss"] < history[0]["loss"]
    assert {name for name, p in model.named_parameters() if not torch.equal(p, before[name])} == open_


def test_the_held_out_loss_is_the_mean_over_all_answer_tokens(lesson, tokenizer, model):
    rows = sft.split()["val"][:5]
    batch = lesson.collate("answers", tokenizer, rows)
    with torch.no_grad():
        whole = lesson.loss_sum(model, batch).item()
        no_end = lesson.loss_sum(model, lesson.collate("no end", tokenizer, rows)).item()
    count = tasks.count_labels(batch)
    for subject in (model, sft.adapt(copy.deepcopy(model))):
        found = sft.held_out(subject, tokenizer, rows, size=2)
        assert found["loss"] == pytest.approx(whole / count, rel=1e-4)
        assert found["words"] == pytest.approx(no_end / (count - 5), rel=1e-4)
        assert found["end"] == pytest.approx((whole - no_end) / 5, rel=1e-3)


def test_answers_end_at_the_end_token(tokenizer, model, monkeypatch):
    said = [tokenizer(text)["input_ids"] for text in ("Blue<|im_end|><|im_end|>", "A b c d e f", " Red <|im_end|>")]
    rows = [ROW, ROW | {"instruction": "Name a much longer thing."}, ROW]

    def generate(input_ids, attention_mask, max_new_tokens, **options):
        assert (attention_mask[:, -1] == 1).all() and options["do_sample"] is False  # padded on the left, greedy
        assert tokenizer.decode(input_ids[0]).endswith("<|im_start|>assistant\n")
        new = [(ids + [2] * 4)[:4] for ids in said]
        return torch.cat([input_ids, torch.tensor(new)], 1)

    monkeypatch.setattr(model, "generate", generate)
    found = sft.answers(model, tokenizer, rows, limit=4)
    assert [answer["ended"] for answer in found] == [True, False, True]
    assert [answer["tokens"] for answer in found] == [2, 4, said[2].index(2) + 1]
    assert [answer["text"] for answer in found] == ["Blue", "A b c d", "Red"]


def test_a_batch_of_answers_is_what_each_prompt_gets_alone(tokenizer, model):
    rows = sft.split()["val"][:3]
    together = sft.answers(model, tokenizer, rows, limit=6)
    assert together == [sft.answers(model, tokenizer, [row], limit=6)[0] for row in rows]


def test_the_rules():
    def said(text, ended=True):
        return sft.rules({"text": text, "ended": ended, "tokens": 5}, ROW | {"output": "It's blue."})

    assert said("It's blue!") == {"ends": True, "brief": True, "fresh": True, "f1": 1.0}
    assert said("Red", False) == {"ends": False, "brief": True, "fresh": True, "f1": 0.0}
    assert said("blue and green")["f1"] == pytest.approx(2 * 1 / 5)
    assert said("a b c d e f g")["brief"] and not said("a b c d e f g h")["brief"]
    assert said("a b a b")["fresh"] and not said("a b c a b c")["fresh"] and not said("...")["fresh"]
    answers = [{"text": "It's blue.", "ended": True, "tokens": 4}, {"text": "Red", "ended": False, "tokens": 8}]
    row = ROW | {"output": "It's blue."}
    assert sft.scores(answers, [row, row]) == {
        "ends": 0.5,
        "brief": 1.0,
        "fresh": 1.0,
        "f1": 0.5,
        "all": 0.5,
        "tokens": 6.0,
    }


# --- a bigger model, the study


def test_another_model_by_its_folder(lesson, folder):
    model, tokenizer = lesson.run_arm("few chosen", 1e-3, 0, source=folder, **QUIET)
    assert model.config.num_hidden_layers == 3 and any("lora_B" in name for name, _ in model.named_parameters())
    base, _ = lesson.run_arm("base", 0, 0, source=folder)
    assert not hasattr(base, "peft_config")
    row = lesson.measure(base, tokenizer)
    assert row["loss"] == pytest.approx(math.log(len(tokenizer)), rel=0.05) and 0 <= row["ends"] <= 1


def test_a_cell_of_the_study_tunes_on_validation_and_reports_on_test(monkeypatch):
    seen = []
    stub = SimpleNamespace(
        run_arm=lambda arm, lr, seed, tick: ("model", "tokenizer"), measure=lambda model, tokenizer: {"loss": 1.234567}
    )
    monkeypatch.setattr(studies_07, "_lesson07", lambda: stub)
    monkeypatch.setattr(sft, "held_out", lambda model, tokenizer, rows: (seen.append(rows), {"loss": 2.0})[1])
    cell = {"phase": "tune", "arm": "answers", "lr": 1e-3, "seed": 1}
    assert studies_07.sft_run(cell) == {"score": -2.0} and seen == [sft.split()["val"]]
    assert studies_07.sft_run(cell | {"arm": "no end"}) == {"score": 0.0} and len(seen) == 1
    assert studies_07.sft_run(cell | {"phase": "report"}) == {"loss": 1.23457} and len(seen) == 1


def test_the_studys_arms_are_the_lessons(lesson):
    arms = studies_07.STUDIES["sft"].arms(False)
    assert set(arms) == set(lesson.ARMS) and {arm for arm in arms if len(arms[arm]) > 1} == {*studies_07.TUNED}


def test_the_studys_fingerprint_holds_what_it_runs(monkeypatch):
    study, read = studies_07.STUDIES["sft"], studies_07.Path.read_text
    before = study.code()

    def with_change(old, new):
        changed = lambda path, **k: read(path, **k).replace(old, new)  # noqa: E731
        monkeypatch.setattr(studies_07.Path, "read_text", changed)
        return study.code()

    assert with_change("SIZE = 8", "SIZE = 4") != before != with_change("lora_alpha=2 *", "lora_alpha=3 *")
    assert with_change("safetensors", "safesensors") == before == with_change("RECIPE", "WAY")
    every = {name for name in studies_07.SHARED if not hasattr(sft, name)}
    assert not every


# --- the checkpoint


@pytest.fixture
def kept(monkeypatch, tmp_path, tokenizer):
    """Makes the checkpoint over a small model in a cache of its own; returns (checkpoint, file, count of trainings)."""
    monkeypatch.setenv("NBTOOLS_CACHE", str(tmp_path))
    monkeypatch.setattr(sft, "load", lambda: (small_model(tokenizer), tokenizer))
    monkeypatch.setattr(sft, "RECIPE", sft.RECIPE | {"rows": 8, "steps": 2})
    trained, finetune = [], sft.finetune
    monkeypatch.setattr(sft, "fingerprint", lambda: str(sorted(sft.RECIPE.items())))
    monkeypatch.setattr(sft, "finetune", lambda *a, **k: (trained.append(1), finetune(*a, **k))[1])
    return lambda: sft.checkpoint(**QUIET)[0], tmp_path / "lessons" / "sft-adapter.safetensors", trained


def test_the_checkpoint_is_made_once_and_again_by_another_recipe(kept, monkeypatch):
    make, file, trained = kept
    one, two = sft.adapter(make()), sft.adapter(make())
    assert len(trained) == 1 and one and all(torch.equal(one[name], two[name]) for name in one)
    assert any(value.abs().sum() > 0 for name, value in one.items() if "lora_B" in name)
    assert [path.name for path in file.parent.iterdir()] == [file.name] and file.stat().st_mode & 0o777 == 0o644
    monkeypatch.setitem(sft.RECIPE, "lr", 1e-2)
    make()
    make()
    assert len(trained) == 2


@pytest.mark.parametrize("content", [b"", b"\x08\0\0\0\0\0\0\0{}      ", b"nonsense"])
def test_a_broken_checkpoint_is_made_anew(kept, content):
    make, file, trained = kept
    file.parent.mkdir()
    file.write_bytes(content)
    make()
    make()
    assert len(trained) == 1


def test_an_adapter_of_another_shape_is_made_anew(kept, tokenizer):
    from safetensors.torch import save_file

    make, file, trained = kept
    file.parent.mkdir()
    save_file({"x": torch.zeros(2)}, file, {"recipe": sft.fingerprint()})
    make()
    assert len(trained) == 1


def test_a_cache_that_cannot_be_written_still_gives_a_model(kept, monkeypatch, tmp_path):
    make, _, trained = kept
    (tmp_path / "lessons").write_text("in the way")
    make()
    assert len(trained) == 1


def test_the_checkpoints_fingerprint(monkeypatch):
    before = sft.fingerprint()
    assert before == sft.fingerprint() and len(before) == 12
    monkeypatch.setitem(sft.RECIPE, "steps", 17)
    assert sft.fingerprint() != before


def test_the_panel_asks_for_the_memory_of_the_model_that_is_loaded(model):
    need = notebooks.definitions("07", "need")["need"]
    need.__globals__["config"] = model.config.to_dict()
    small = need(seed=3)
    need.__globals__["config"] = zoo.shape("llama-3.2-1b").to_dict()
    assert sum(p.numel() * 4 for p in model.parameters()) < small < 2**30 < 4 * 1.2e9 < need()
