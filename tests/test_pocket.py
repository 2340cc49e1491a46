"""The pocket model: its rows, its held-out sentences, what is shipped, and that the command makes such a one."""

import pytest
import torch

from nbtools import pocket, zoo


@pytest.fixture(scope="module")
def shipped():
    return zoo.pocket()


def test_held_out_sentences_are_not_trained_on():
    own, held = pocket.sentences()
    assert len(held) == len(own + held) // 10 and not set(own) & set(held)


def test_a_row_begins_ends_and_learns_its_end_but_no_padding(shipped):
    tokenizer = shipped[1]
    ids, labels = pocket.rows(tokenizer, ["a film", "a film with more words than the other one"])
    short = ids[0][ids[0] != 0].tolist()
    assert short[0] == 1 and short[-1] == 2 and tokenizer.decode(short[1:-1]).strip() == "a film"
    assert (labels[ids != 0] == ids[ids != 0]).all() and (labels[ids == 0] == -100).all()


def test_the_tokenizer_gives_back_every_text(shipped):
    texts = pocket.sentences()[1][:300]
    decoded = [shipped[1].decode(shipped[1](text)["input_ids"], skip_special_tokens=True) for text in texts]
    assert [text.strip() for text in decoded] == texts


def test_what_is_shipped_is_small_and_has_learned(shipped):
    """Held-out loss far below a uniform guess (7.6 nats) and below that of the tokens' frequencies."""
    model, tokenizer = shipped
    weights = pocket.FOLDER / "model.safetensors"
    assert weights.stat().st_size < 12e6 and model.dtype == torch.float32
    own, held = pocket.sentences()
    ids = pocket.rows(tokenizer, own)[0].flatten()
    counts = torch.bincount(ids[ids > 1], minlength=pocket.VOCABULARY) + 1.0
    test = pocket.rows(tokenizer, held[:200])
    labels = test[1][test[1] > 1]
    unigram = -(counts / counts.sum()).log()[labels].mean().item()
    assert pocket.held_out(model, test, "cpu") < unigram - 1


def test_the_command_makes_one(tmp_path, monkeypatch):
    own, held = pocket.sentences()
    monkeypatch.setattr(pocket, "sentences", lambda: (own[:200], held[:50]))
    monkeypatch.setattr(pocket, "EPOCHS", 2)
    loss = pocket.make(tmp_path)
    assert loss < 7.7 and {"model.safetensors", "tokenizer.json", "config.json"} <= {p.name for p in tmp_path.iterdir()}
