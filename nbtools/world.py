"""A small world whose best policy is known: every answer can be listed, so every algorithm is held to a distance.

Lesson 09 introduces it and shows this source; lesson 10 learns in it from preferences. It is a toy: that is its use.

- Three prompts; an answer is four letters out of `abcd`, 256 answers in all. Each has a true reward, drawn once.
- A policy is a table of logits, one row for each prompt and each beginning of an answer. It can be any distribution
  over answers, so what an algorithm misses is the algorithm's fault and not the network's.
- Maximising E[r] - beta KL(pi || pi_ref) has one solution, pi* = pi_ref exp(r / beta) / Z, and Z is a sum of 256 terms.
"""

import itertools
import math
from functools import cache

import torch
from torch import nn

from .errors import NbtoolsError

PROMPTS, LETTERS, LENGTH = 3, "abcd", 4
ANSWERS = torch.tensor(list(itertools.product(range(len(LETTERS)), repeat=LENGTH)))  # (256, 4)
NODES = sum(len(LETTERS) ** t for t in range(LENGTH))  # beginnings of 0 to 3 letters: 85


def nodes(answers):
    """Which row of a table each letter of an answer is drawn from: (B, 4) -> (B, 4); shorter beginnings first."""
    size, place, found = len(LETTERS), torch.zeros(len(answers), dtype=torch.long), []
    for t in range(LENGTH):
        found.append(place + (size**t - 1) // (size - 1))
        place = place * size + answers[:, t]
    return torch.stack(found, 1)


class Policy(nn.Module):
    """A table of logits (3 prompts, 85 beginnings, 4 letters), and one of values (3, 85) for critics."""

    def __init__(self, seed=None, scale=1.0):
        super().__init__()
        g = torch.Generator().manual_seed(seed or 0)
        start = torch.randn(PROMPTS, NODES, len(LETTERS), generator=g) * scale
        self.logits = nn.Parameter(start if seed is not None else torch.zeros_like(start))
        self.values = nn.Parameter(torch.zeros(PROMPTS, NODES))

    def token_logprobs(self, prompts, answers):
        """log p of each letter of each answer: (B,), (B, 4) -> (B, 4), in nats."""
        rows = self.logits.log_softmax(-1)[prompts[:, None], nodes(answers)]  # (3, 85, 4) -> (B, 4, 4)
        return rows.gather(-1, answers[..., None])[..., 0]  # (B, 4, 4) -> (B, 4)

    def token_values(self, prompts, answers):
        """The critic's value before each letter: (B,), (B, 4) -> (B, 4)."""
        return self.values[prompts[:, None], nodes(answers)]

    def logprobs(self):
        """log p of every answer: (3, 256); row p lists ANSWERS in their order."""
        every = torch.arange(PROMPTS).repeat_interleave(len(ANSWERS))
        return self.token_logprobs(every, ANSWERS.repeat(PROMPTS, 1)).sum(1).view(PROMPTS, -1)

    @torch.no_grad()
    def sample(self, prompts, g):
        """One answer to each prompt, letter by letter: (B,) -> (B, 4); g: a torch.Generator."""
        answers = torch.zeros(len(prompts), LENGTH, dtype=torch.long)
        for t in range(LENGTH):
            probs = self.logits[prompts, nodes(answers)[:, t]].softmax(-1)  # (B, 4)
            answers[:, t] = torch.multinomial(probs, 1, generator=g)[:, 0]
        return answers

    def copy(self):
        """A policy of its own with the same tables."""
        twin = Policy()
        twin.load_state_dict(self.state_dict())
        return twin


@cache
def rewards():
    """The true reward of every answer to every prompt: (3, 256), standard normal, drawn once; the same in each call."""
    return torch.randn(PROMPTS, len(ANSWERS), generator=torch.Generator().manual_seed(7))


def reference():
    """The policy that alignment starts from, and from which the KL is counted: fixed logits of size one half."""
    return Policy(seed=11, scale=0.5)


def index(answers):
    """The place of each answer in ANSWERS: (B, 4) -> (B,)."""
    return (answers * len(LETTERS) ** torch.arange(LENGTH - 1, -1, -1)).sum(1)


def reward(prompts, answers):
    """The true reward of answers: (B,), (B, 4) -> (B,)."""
    return rewards()[prompts, index(answers)]


def optimum(beta, r=None):
    """log pi* = log pi_ref + r / beta - log Z for every answer: (3, 256). r: another reward (3, 256) than the true one.

    beta is the price of one nat of KL, above 0. Raises NbtoolsError.
    """
    if not (beta > 0 and math.isfinite(beta)):
        raise NbtoolsError(f"beta must be a number above 0, the price of one nat of KL; got {beta}")
    r = rewards() if r is None else r
    if not torch.isfinite(r).all():
        raise NbtoolsError("every reward must be a number; at least one is nan or infinite")
    with torch.no_grad():
        return (reference().logprobs() + r / beta).log_softmax(-1)


def kl(logp, logq):
    """KL(p || q) in nats for each prompt: log-probabilities (3, 256), (3, 256) -> (3,)."""
    return (logp.exp() * (logp - logq)).sum(-1)


def distance(logp, logq):
    """Total variation distance of each prompt, from 0 to 1: half the sum of |p - q|: (3, 256), (3, 256) -> (3,)."""
    return (logp.exp() - logq.exp()).abs().sum(-1) / 2


@torch.no_grad()
def measure(logp, beta):
    """What is known of a policy, log-probabilities (3, 256), means over the prompts: a dict of floats.

    tv: distance to pi*; kl: to the reference, in nats; reward: expected; gap: what is missing to the best objective.
    """
    ref, best = reference().logprobs(), optimum(beta)
    worth = [((p.exp() * rewards()).sum(-1) - beta * kl(p, ref)).mean() for p in (best, logp)]
    numbers = {"tv": distance(logp, best), "kl": kl(logp, ref), "reward": (logp.exp() * rewards()).sum(-1)}
    return {name: v.mean().item() for name, v in numbers.items()} | {"gap": (worth[0] - worth[1]).item()}


def spell(answers):
    """Answers as words: (B, 4) -> list of str."""
    return ["".join(LETTERS[i] for i in row) for row in answers.tolist()]
