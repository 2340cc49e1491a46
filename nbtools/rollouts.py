"""What a language model says to a batch of prompts, and how likely it was: sampling and log-probabilities.

Lesson 09 introduces them and shows this source; lesson 10 uses the same layout for pairs of answers.

- One layout: prompts padded on the left, answers on the right, so that all answers begin in the same column and the
  last T columns are theirs. `answer` marks an answer's real tokens, its end token included; behind it is padding.
- Positions are counted from the first real token. Sampling is batched and keeps keys and values (`generate`).
- Log-probabilities are in nats, of the distribution that was sampled from: logits divided by the temperature.
"""

from dataclasses import dataclass, fields

import torch

from . import pocket, train
from .errors import NbtoolsError


@dataclass
class Rollouts:
    """Prompts and answers as tokens: ids and mask (B, P + T), answer (B, T), long; and both as texts."""

    ids: torch.Tensor
    mask: torch.Tensor
    answer: torch.Tensor
    prompts: list
    answers: list

    def __len__(self):
        return len(self.ids)

    @property
    def texts(self):
        """Prompt and answer as one text, list of str."""
        return [" ".join(f"{a} {b}".split()) for a, b in zip(self.prompts, self.answers, strict=True)]

    def pick(self, index):
        """The rows of `index`, a list or tensor of places."""
        index = torch.as_tensor(index)
        values = ((f.name, getattr(self, f.name)) for f in fields(self))
        return Rollouts(
            **{n: v[index.to(v.device)] if torch.is_tensor(v) else [v[i] for i in index] for n, v in values}
        )

    def to(self, device):
        """The same rows with their tensors on `device`."""
        return Rollouts(self.ids.to(device), self.mask.to(device), self.answer.to(device), self.prompts, self.answers)


def openings(part="train", words=3):
    """The first words of film sentences, each once: of those the pocket model learned from, or ("test") held out."""
    if part not in ("train", "test"):
        raise NbtoolsError(f"part must be train or test, got {part!r}")
    texts = (text.split() for text in pocket.sentences()[part == "test"])
    return list(dict.fromkeys(" ".join(text[:words]) for text in texts if len(text) >= 2 * words))


def until_end(tokens, eos):
    """1 for the tokens of an answer up to its first end token, that included, then 0: (B, T) -> (B, T), long."""
    ended = (tokens == eos).long().cumsum(1)
    return (ended - (tokens == eos).long() == 0).long()


def encode(tokenizer, prompts, context):
    """Prompts padded on the left: {"input_ids", "attention_mask"} (B, P). context: the room there is, in tokens."""
    if not prompts:
        raise NbtoolsError("there are no prompts to answer: give at least one")
    for prompt in prompts:
        if not isinstance(prompt, str) or not prompt.strip():
            raise NbtoolsError(f"a prompt must be a text with at least one word, got {prompt!r}")
    special = tokenizer.chat_template is None  # a chat template brings its own
    batch = tokenizer(prompts, padding=True, padding_side="left", return_tensors="pt", add_special_tokens=special)
    longest = batch["input_ids"].shape[1]
    if longest > context:
        text = prompts[int(batch["attention_mask"].sum(1).argmax())]
        raise NbtoolsError(
            f"the prompt {text[:40]!r} has {longest} tokens, and there is room for {context}: shorten it"
        )
    return batch


@torch.no_grad()
def sample(model, tokenizer, prompts, new_tokens=24, temperature=1.0, greedy=False):
    """One answer of at most `new_tokens` tokens to each prompt, drawn with torch's global random numbers."""
    if not temperature > 0:
        raise NbtoolsError(f"temperature must be above 0, got {temperature}; for the likeliest answer, greedy=True")
    batch = encode(tokenizer, prompts, model.config.max_position_embeddings - new_tokens).to(model.device)
    model.eval()
    draw = {"do_sample": False} if greedy else {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
    ends = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    with train.autocast():
        ids = model.generate(**batch, max_new_tokens=new_tokens, **draw, **ends)
    return layout(tokenizer, batch, ids[:, batch["input_ids"].shape[1] :], prompts)


def layout(tokenizer, batch, tokens, prompts):
    """Rollouts out of encoded prompts and answers' tokens (B, T), whatever stands behind an end token."""
    answer = until_end(tokens, tokenizer.eos_token_id)
    tokens = tokens.masked_fill(answer == 0, tokenizer.pad_token_id)
    words = tokenizer.batch_decode(tokens, skip_special_tokens=True)
    ids, mask = torch.cat([batch["input_ids"], tokens], 1), torch.cat([batch["attention_mask"], answer], 1)
    return Rollouts(ids, mask, answer, list(prompts), words)


def pair_up(tokenizer, prompts, answers, context):
    """Rollouts out of given texts, an end token after each answer; answers are cut to the room that is left."""
    batch = encode(tokenizer, prompts, context - 1)
    room, end, pad = context - batch["input_ids"].shape[1], tokenizer.eos_token_id, tokenizer.pad_token_id
    rows = [(tokenizer(text, add_special_tokens=False)["input_ids"] + [end])[:room] for text in answers]
    for row, text in zip(rows, answers, strict=True):
        if len(row) < 2:
            raise NbtoolsError(f"an answer must hold at least one token, got {text!r}")
    longest = max(map(len, rows))
    tokens = torch.tensor([row + [pad] * (longest - len(row)) for row in rows])
    answer = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    ids, mask = torch.cat([batch["input_ids"], tokens], 1), torch.cat([batch["attention_mask"], answer], 1)
    return Rollouts(ids, mask, answer, list(prompts), list(answers))


def inputs(rollouts):
    """What a model's forward pass wants: ids, mask, and positions counted from the first real token."""
    positions = (rollouts.mask.cumsum(1) - 1).clamp(min=0)
    return {"input_ids": rollouts.ids, "attention_mask": rollouts.mask, "position_ids": positions}


def token_logprobs(model, rollouts, temperature=1.0):
    """log p of each answer's tokens: (B, T), in nats, 0 behind the end. Position t - 1 predicts token t."""
    count = rollouts.answer.shape[1]
    with train.autocast():
        logits = model(**inputs(rollouts), logits_to_keep=count + 1, use_cache=False).logits[:, :-1]  # (B, T, V)
    logp = (logits.float() / temperature).log_softmax(-1)
    return logp.gather(-1, rollouts.ids[:, -count:, None])[..., 0] * rollouts.answer  # (B, T, V) -> (B, T)


def sequence_logprobs(model, rollouts):
    """log p of each whole answer, the sum over its tokens: (B,), in nats. Rafailov 2023 uses the sum, not the mean."""
    return token_logprobs(model, rollouts).sum(1)
