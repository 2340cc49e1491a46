"""People's preferences between two snippets, and two small reward models learned from them.

Lesson 08 introduces the pairs and the model and shows this source; lessons 09 and 10 load the two models.

- A preference is sampled: one rater's score of each snippet is drawn, the higher one wins, ties are drawn again. The
  two scores are in general by two people: who rated what is known only within 30 lines of the film file.
- Snippets are split into train, val and test by blocks of 30 lines of their file. In the film file a column of scores
  is one person within such a block (its scores lie high or low together), so test snippets come from other pages.
- Raters are split into two halves by column, even and odd: within a page no person is in both.
- `reward` learned from films and half one, `judge` from the three other domains and half two. `make` trained them:
  LoRA over MiniLM (tasks.minilm), the pairwise loss of Bradley and Terry.
"""

import copy
import random
import sys
import tarfile
from functools import cache

import torch
import torch.nn.functional as F
from torch import nn
from transformers import get_linear_schedule_with_warmup

from . import assets, tasks, train, zoo
from .errors import NbtoolsError
from .profiles import current

DOMAINS = ("movie", "amazon", "nyt", "tweets")
PARTS = ("train", "val", "test")
HALVES = {"one": slice(0, None, 2), "two": slice(1, None, 2), "all": slice(None)}
BLOCK = 30  # lines of a file that stay in one part
SIZE = 16  # pairs in an optimizer step
FOLDER = assets.CARDS / "own"
OUTSIDE = ("amazon", "nyt", "tweets")
SHARED = {"pairs": 4000, "steps": 250, "lr": 1e-3}
RECIPES = {
    "reward": {"domains": ("movie",), "half": "one", "seed": 0, **SHARED},
    "judge": {"domains": OUTSIDE, "half": "two", "seed": 1, **SHARED},
}


@cache
def snippets(domain="movie", part="train"):
    """The snippets of a domain in one part, in the file's order: dicts with text, rating, ratings and line."""
    if part not in PARTS:
        raise NbtoolsError(f"There is no part {part!r}: choose one of {', '.join(PARTS)}.")
    seen, rows = set(), []
    for line, row in enumerate(zoo.vader(domain)):
        if row["text"] not in seen:  # a few sentences come twice
            seen.add(row["text"])
            rows.append({**row, "line": line})
    blocks = list(range(rows[-1]["line"] // BLOCK + 1))
    random.Random(0).shuffle(blocks)
    ends = {"test": (0, 0.2), "val": (0.2, 0.3), "train": (0.3, 1)}[part]
    first, last = (round(end * len(blocks)) for end in ends)
    kept = set(blocks[first:last])
    return [row for row in rows if row["line"] // BLOCK in kept]


def pairs(domain="movie", count=1000, seed=0, part="train", half="one", label="rater"):
    """`count` preferences as (chosen, rejected), two snippets of `snippets`.

    domain: one, or a list of them; both snippets are of the same.
    label: "rater" draws one score of each snippet out of the raters of `half`, "mean" takes their mean; ties are left
    out and drawn again. Raises NbtoolsError.
    """
    if half not in HALVES or label not in ("rater", "mean"):
        raise NbtoolsError(f"half must be one, two or all, and label rater or mean; got {half!r} and {label!r}.")
    if count < 1:
        raise NbtoolsError(f"count must be at least 1 pair, got {count}")
    domains, draw, found = [domain] if isinstance(domain, str) else list(domain), random.Random(seed), []
    while len(found) < count:
        rows = snippets(domains[len(found) % len(domains)], part)
        a, b = draw.sample(rows, 2)
        x, y = (row["ratings"][HALVES[half]] for row in (a, b))
        x, y = (draw.choice(x), draw.choice(y)) if label == "rater" else (sum(x) / len(x), sum(y) / len(y))
        if x != y:
            found.append((a, b) if x > y else (b, a))
    return found


@cache
def lexicon():
    """VADER's lexicon: {word: mean of ten raters' scores from -4 to 4}. Hutto and Gilbert 2014."""
    with tarfile.open(assets.file("vader-snippets")) as box:
        text = box.extractfile("hutto_ICWSM_2014/vader_sentiment_lexicon.txt").read().decode("latin-1")
    rows = (line.split("\t") for line in text.splitlines() if line.count("\t") >= 2)
    return {row[0].strip().lower(): float(row[1]) for row in rows}


def encode(texts):
    """Snippets -> {"input_ids", "attention_mask"}, both (B, T), padded to the longest, cut at 48 tokens."""
    if not len(texts):
        raise NbtoolsError("there are no texts to score: give at least one")
    for text in texts:
        if not isinstance(text, str) or not text.strip():
            raise NbtoolsError(f"a snippet must be a text with at least one word, got {text!r}")
    batch = tasks.minilm()[1](list(texts), padding=True, truncation=True, max_length=48, return_tensors="pt")
    return {name: batch[name] for name in ("input_ids", "attention_mask")}


class RewardModel(nn.Module):
    """An encoder, the mean over its real tokens, one linear unit: {ids, mask} (B, T) -> rewards (B,)."""

    def __init__(self, encoder):
        super().__init__()
        self.encoder, self.head = encoder, nn.Linear(encoder.config.hidden_size, 1)

    def forward(self, batch):
        hidden = self.encoder(**batch).last_hidden_state  # (B, T, d)
        mask = batch["attention_mask"][..., None]  # (B, T, 1)
        pooled = (hidden * mask).sum(1) / mask.sum(1)  # (B, T, d) -> (B, d)
        return self.head(pooled)[:, 0]  # (B, 1) -> (B,)


def build(seed=0, rank=8):
    """A RewardModel over a copy of MiniLM with peft's LoRA in every linear layer, on the profile's device."""
    import peft

    train.seed_everything(seed)
    settings = peft.LoraConfig(
        r=rank, lora_alpha=16, lora_dropout=0.0, target_modules=["query", "key", "value", "dense"]
    )
    return RewardModel(peft.get_peft_model(copy.deepcopy(tasks.minilm()[0]), settings)).to(current().device)


def pairwise_loss(chosen, rejected):
    """-log sigmoid(chosen - rejected) for each pair: two (B,) -> (B,), in nats. Bradley and Terry 1952."""
    return -F.logsigmoid(chosen - rejected)


def finetune(model, found, lr, steps, seed=0, loss=pairwise_loss, tick=None):
    """Train what is open on preferences: AdamW, SIZE pairs a step, a rate that rises and falls; returns the history.

    found: (chosen, rejected) snippets as `pairs` gives them; lr: of the adapter, the head's is 1e-2.
    """
    if not found:
        raise NbtoolsError("there are no preferences to learn from: give at least one")
    for chosen, rejected in found:
        if chosen["text"] == rejected["text"]:
            raise NbtoolsError(f"a preference is between two different texts, got {chosen['text']!r} twice")
    g = train.seed_everything(seed)

    def batches():
        for index in torch.randperm(len(found), generator=g).split(SIZE):
            yield encode([found[i][side]["text"] for side in (0, 1) for i in index])  # chosen first, then rejected

    def loss_sum(model, batch):
        return loss(*model(batch).float().chunk(2)).sum()

    head = list(model.head.parameters())
    body = [p for name, p in model.named_parameters() if p.requires_grad and not name.startswith("head")]
    optimizer = torch.optim.AdamW([{"params": head, "lr": 1e-2}, {"params": body, "lr": lr}], weight_decay=0)
    schedule = get_linear_schedule_with_warmup(optimizer, steps // 10, steps)
    count = {"loss_fn": loss_sum, "count": lambda batch: len(batch["input_ids"]) // 2}
    return train.fit(model, batches, optimizer, steps, schedule=schedule, clip=1.0, tick=tick, **count)


@torch.no_grad()
def rewards(model, texts, size=64):
    """The reward of each text: list of str -> float32 (B,), on the CPU."""
    model.eval()
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))  # texts of like length share a batch
    out = torch.empty(len(texts))
    with train.autocast():
        for i in range(0, len(texts), size):
            index = order[i : i + size]
            batch = train.to_device(encode([texts[j] for j in index]), current().device)
            out[index] = model(batch).float().cpu()
    return out


def margins(score, found):
    """Reward of the chosen snippet minus that of the rejected one, float32 (B,); score: texts -> (B,)."""
    rows = list(dict.fromkeys(row["text"] for pair in found for row in pair))
    given = dict(zip(rows, score(rows).tolist(), strict=True))
    return torch.tensor([given[a["text"]] - given[b["text"]] for a, b in found])


def accuracy(score, found):
    """The share of preferences that `score` (texts -> (B,)) puts in the raters' order; a tie of scores counts half."""
    apart = margins(score, found)
    return ((apart > 0).float() + 0.5 * (apart == 0).float()).mean().item()


class Scorer:
    """A trained reward model: `score(texts)` is normalised to mean 0 and standard deviation 1 over film snippets."""

    def __init__(self, model, mean=0.0, std=1.0, about=None):
        self.model, self.mean, self.std, self.about = model.eval(), mean, std, about or {}

    def score(self, texts):
        """Texts -> normalised rewards, float32 (B,) on the CPU; no gradient."""
        return (rewards(self.model, list(texts)) - self.mean) / self.std


def load(name):
    """The Scorer `reward` or `judge`, on the profile's device. Raises NbtoolsError."""
    from safetensors import safe_open

    if name not in RECIPES:
        raise NbtoolsError(f"There is no model of raters {name!r}: choose one of {', '.join(RECIPES)}.")
    file = FOLDER / f"{name}.safetensors"
    if not file.exists():
        raise NbtoolsError(
            f"{file.name} is missing: restore it from git, or run `python -m nbtools.raters make {name}`."
        )
    with safe_open(file, framework="pt") as box:
        state, about = {key: box.get_tensor(key) for key in box.keys()}, dict(box.metadata())  # noqa: SIM118
    mean, std = state.pop("mean").item(), state.pop("std").item()
    model = build()
    wanted = {key for key, p in model.named_parameters() if p.requires_grad}
    if wanted != set(state):
        raise NbtoolsError(
            f"{file.name} holds {len(state)} tensors, not the {len(wanted)} of this adapter: make it anew."
        )
    model.load_state_dict({key: value.float() for key, value in state.items()}, strict=False)
    model.encoder = model.encoder.merge_and_unload()
    return Scorer(model, mean, std, about)


def make(name, tick=None):
    """Train `reward` or `judge` by its recipe, save it in FOLDER and return the path; a few minutes on two cores."""
    from safetensors.torch import save_file

    recipe = RECIPES[name]
    model = build(recipe["seed"])
    found = pairs(list(recipe["domains"]), recipe["pairs"], recipe["seed"], "train", recipe["half"])
    finetune(model, found, recipe["lr"], recipe["steps"], recipe["seed"], tick=tick)
    state = {key: p.detach().cpu().half() for key, p in model.named_parameters() if p.requires_grad}
    model.load_state_dict({key: value.float() for key, value in state.items()}, strict=False)  # as it will be loaded
    films = rewards(model, [row["text"] for row in snippets("movie", "train")[::4]])
    state |= {"mean": films.mean(), "std": films.std()}
    unseen = pairs("movie", 2000, 0, "test", "two")
    right = accuracy(lambda texts: rewards(model, texts), unseen)
    about = {key: str(value) for key, value in recipe.items()} | {"film_accuracy": f"{right:.4f}"}
    FOLDER.mkdir(exist_ok=True)
    file = FOLDER / f"{name}.safetensors"
    save_file({key: value.contiguous() for key, value in state.items()}, file, about)
    file.chmod(0o644)
    print(f"{name}: right on {right:.3f} of 2,000 film preferences of the test part, raters of half two")
    return file


if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[1] != "make" or sys.argv[2] not in RECIPES:
        sys.exit(f"usage: python -m nbtools.raters make {'|'.join(RECIPES)}")
    make(sys.argv[2])
