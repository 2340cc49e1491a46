"""The two small tasks that several lessons train on: the side a film sentence takes, and brief answers to instructions.

Lesson 04 introduces both and shows this source.

Films (Hutto and Gilbert 2014): sentences with a clear rating, a MiniLM encoder under a linear head. `STEPS` says how
long to train for how many labelled sentences.
Answers: instructions of the Alpaca sample as chats of SmolLM2; only the answer and its end are learned from.
"""

import copy
from functools import cache
from types import SimpleNamespace

import torch
from torch import nn
from transformers import get_linear_schedule_with_warmup

from . import profiles, train, zoo

STEPS = {100: 40, 1000: 64}  # optimizer steps for each number of labelled sentences: 10 passes, 2 passes


@cache
def minilm():
    """(encoder, tokenizer), loaded once; `build` copies the encoder."""
    return zoo.minilm()


@cache
def films(seed=0):
    """Film sentences with a clear rating, shuffled once: 1,000 to test, 1,000 to tune on, the rest to train from.

    Returns texts (list of str), labels (int64, 1 for praise) and the slices test, val and pool.
    """
    rows = {row["text"]: row["rating"] for row in zoo.vader("movie") if abs(row["rating"]) >= 0.5}
    texts, labels = list(rows), torch.tensor([rating > 0 for rating in rows.values()]).long()
    order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(seed))
    parts = {"test": slice(0, 1000), "val": slice(1000, 2000), "pool": slice(2000, None)}
    return SimpleNamespace(texts=[texts[i] for i in order], labels=labels[order], **parts)


def draw(count, seed):
    """A training set of `count` film sentences: (texts, labels)."""
    data = films()
    index = torch.randperm(len(data.texts) - 2000, generator=torch.Generator().manual_seed(seed))[:count] + 2000
    return [data.texts[i] for i in index], data.labels[index]


def encode(texts):
    """Sentences -> {"input_ids", "attention_mask"}, both (B, T), padded to the longest."""
    batch = minilm()[1](texts, padding=True, truncation=True, max_length=64, return_tensors="pt")
    return {name: batch[name] for name in ("input_ids", "attention_mask")}


class Classifier(nn.Module):
    """An encoder, the mean over its tokens, and a linear head: {ids, mask} (B, T) -> logits (B, classes)."""

    def __init__(self, encoder, classes=2):
        super().__init__()
        self.encoder, self.head = encoder, nn.Linear(encoder.config.hidden_size, classes)

    def embed(self, batch):
        hidden = self.encoder(**batch).last_hidden_state  # (B, T, d)
        mask = batch["attention_mask"][..., None]  # (B, T, 1)
        return (hidden * mask).sum(1) / mask.sum(1)  # (B, T, d) -> (B, d)

    def forward(self, batch):
        return self.head(self.embed(batch))


def build(seed=0):
    """A fresh copy of the encoder under a new head, on the profile's device."""
    train.seed_everything(seed)
    return Classifier(copy.deepcopy(minilm()[0])).to(profiles.current().device)


def batches(texts, labels, g, size=32):
    """One pass in random order: yields ({ids, mask}, labels)."""
    for index in torch.randperm(len(texts), generator=g).split(size):
        yield encode([texts[i] for i in index]), labels[index]


def finetune(model, texts, labels, lr, steps, seed=0, tick=None):
    """Train what is open: AdamW, 32 sentences a step, a rate that rises and falls; returns the optimizer.

    lr is the rate of what is open beside the head, whose rate is then 1e-2; where the head trains alone, it is its own.
    """
    g = train.seed_everything(seed)
    head = list(model.head.parameters())
    body = [p for name, p in model.named_parameters() if p.requires_grad and not name.startswith("head")]
    groups = [{"params": head, "lr": 1e-2}, {"params": body, "lr": lr}] if body else [{"params": head, "lr": lr}]
    optimizer = torch.optim.AdamW(groups, weight_decay=0)
    schedule = get_linear_schedule_with_warmup(optimizer, steps // 10, steps)
    train.fit(model, lambda: batches(texts, labels, g), optimizer, steps, schedule=schedule, clip=1.0, tick=tick)
    return optimizer


@torch.no_grad()
def correct(model, part):
    """Which sentences of `part` of the films (a slice) the model puts on the right side: bool (N,)."""
    model.eval()
    data, device, right = films(), profiles.current().device, []
    texts, labels = data.texts[part], data.labels[part]
    with train.autocast():
        for i in range(0, len(texts), 100):
            logits = model(train.to_device(encode(texts[i : i + 100]), device))
            right.append(logits.argmax(1).cpu() == labels[i : i + 100])
    return torch.cat(right)


def short_answers(words=15):
    """Rows of the instruction sample whose answers have at most `words` words and whose inputs at most 30."""
    return [row for row in zoo.alpaca() if len(row["output"].split()) <= words and len(row["input"].split()) <= 30]


def prompt(tokenizer, row):
    """The chat up to where the model is to answer: str."""
    turn = [{"role": "user", "content": f"{row['instruction']} {row['input']}".strip()}]
    return tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)


def chats(tokenizer, rows):
    """Instructions with answers -> {"input_ids", "attention_mask", "labels"}; labels -100 are not learned from."""
    prompts = [prompt(tokenizer, row) for row in rows]
    texts = [asked + row["output"] + tokenizer.eos_token for asked, row in zip(prompts, rows, strict=True)]
    batch = tokenizer(texts, padding=True, padding_side="right", return_tensors="pt", add_special_tokens=False)
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    for i, asked in enumerate(prompts):
        labels[i, : len(tokenizer(asked, add_special_tokens=False)["input_ids"])] = -100
    return {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"], "labels": labels}


def count_labels(batch):
    """How many tokens of a batch of chats are learned from; position t predicts token t + 1."""
    return int((batch["labels"][:, 1:] != -100).sum())


def chat_loss_sum(model, batch):
    """Summed cross-entropy over the tokens of a batch of chats that are learned from, in nats."""
    return model(**batch).loss * count_labels(batch)
