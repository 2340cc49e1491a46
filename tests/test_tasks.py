"""The tasks that lessons share: the films' parts, what head and body learn at, what a chat is learned from."""

import pytest
import torch
from small import bert
from torch import nn

from nbtools import tasks, zoo


def small():
    """A BERT of 2 layers of width 12 with random weights, under a head."""
    return tasks.Classifier(bert())


def quiet(*_, **__):
    """A tick that prints nothing."""


def test_the_films_parts_are_disjoint_and_a_draw_comes_from_the_pool():
    data = tasks.films()
    assert len(set(data.texts)) == len(data.texts) == 10070
    x, y = tasks.draw(100, 3)
    assert len(x) == 100 and not set(x) & set(data.texts[:2000])
    assert [data.labels[data.texts.index(text)] for text in x] == list(y)
    assert tasks.draw(100, 3)[0] == x != tasks.draw(100, 4)[0]


def test_padding_does_not_move_an_embedding():
    model = small().eval()
    alone = model.embed(tasks.encode(["a good film"]))
    padded = model.embed(tasks.encode(["a good film", "a film that is long, too long, and says little at all"]))[:1]
    torch.testing.assert_close(alone, padded, atol=1e-5, rtol=1e-4)


def test_a_built_model_is_a_copy():
    model = tasks.build()
    nn.init.zeros_(model.encoder.embeddings.word_embeddings.weight)
    assert tasks.minilm()[0].embeddings.word_embeddings.weight.abs().sum() > 0


def test_the_rate_goes_to_the_body_or_to_a_head_that_trains_alone():
    texts, labels = ["good film", "bad film"], torch.tensor([1, 0])
    both = tasks.finetune(small(), texts, labels, 3e-4, 2, tick=quiet).param_groups
    assert [group["initial_lr"] for group in both] == [1e-2, 3e-4]
    assert len(both[0]["params"]) == 2 and len(both[1]["params"]) == len([*small().encoder.parameters()])
    model = small()
    model.encoder.requires_grad_(False)
    (alone,) = tasks.finetune(model, texts, labels, 3e-4, 2, tick=quiet).param_groups
    assert alone["initial_lr"] == 3e-4 and len(alone["params"]) == 2


def test_correct_looks_at_the_part_it_is_given():
    class Knowing(nn.Module):
        def forward(self, batch):
            return torch.nn.functional.one_hot(labels[:100], 2).float()

    labels = tasks.films().labels[1000:1100]
    assert tasks.correct(Knowing(), slice(1000, 1100)).all()
    assert not tasks.correct(Knowing(), slice(0, 100)).all()


def test_only_the_answer_and_its_end_are_learned_from():
    tokenizer = zoo.smollm2()[1]
    tokenizer.padding_side = "left"  # as for generating: training pads right whatever it says
    rows = [
        {"instruction": "Name a colour.", "input": "", "output": "Red."},
        {
            "instruction": "Name two animals that live in the sea.",
            "input": "Be brief.",
            "output": "A whale and a seal.",
        },
    ]
    made = tasks.chats(tokenizer, rows)
    for i, row in enumerate(rows):
        learned = made["labels"][i] != -100
        assert tokenizer.decode(made["input_ids"][i][learned]) == row["output"] + "<|im_end|>"
        assert torch.equal(made["labels"][i][learned], made["input_ids"][i][learned])
        assert not learned[made["attention_mask"][i] == 0].any()
    assert tasks.count_labels(made) == (made["labels"] != -100).sum()
    first = {"labels": torch.tensor([[5, 6, -100], [7, -100, 8]])}  # nothing predicts a row's first token
    assert tasks.count_labels(first) == 2


def test_the_tokenizer_s_end_is_the_chat_s_end():
    model, tokenizer = zoo.smollm2()
    assert tokenizer.eos_token == tokenizer.pad_token == "<|im_end|>"
    assert tokenizer.eos_token_id == tokenizer.pad_token_id == model.config.eos_token_id == 2


def test_the_loss_of_chats_is_a_sum_over_what_is_learned_from():
    model, tokenizer = zoo.smollm2()
    batch = tasks.chats(tokenizer, tasks.short_answers()[:2])
    with torch.no_grad():
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
        labels = batch["labels"][:, 1:]
        wanted = -logits.log_softmax(-1)[labels != -100].gather(1, labels[labels != -100][:, None]).sum()
        assert tasks.chat_loss_sum(model, batch).item() == pytest.approx(wanted.item(), rel=1e-4)


def test_short_answers_are_short():
    rows = tasks.short_answers()
    assert 100 < len(rows) < 999 and max(len(row["output"].split()) for row in rows) == 15
    assert max(len(row["input"].split()) for row in rows) <= 30
