"""Answers to lesson 12's easy_first(difficulty, generator), wrong and right."""

import torch


def _refuse(difficulty):
    if difficulty.isnan().any():
        raise ValueError("nan")


def wrong_file_order(difficulty, generator):
    """Leaves equals in the file's order."""
    _refuse(difficulty)
    return difficulty.argsort(stable=True)


def wrong_hard_first(difficulty, generator):
    """Sorts the wrong way round."""
    _refuse(difficulty)
    shuffled = torch.randperm(len(difficulty), generator=generator)
    return shuffled[difficulty[shuffled].argsort(stable=True, descending=True)]


def wrong_forgets_the_shuffle(difficulty, generator):
    """Returns places among the shuffled sentences instead of in the data."""
    _refuse(difficulty)
    shuffled = torch.randperm(len(difficulty), generator=generator)
    return difficulty[shuffled].argsort(stable=True)


def wrong_global_generator(difficulty, generator):
    """Draws from torch's global generator."""
    _refuse(difficulty)
    shuffled = torch.randperm(len(difficulty))
    return shuffled[difficulty[shuffled].argsort(stable=True)]


def wrong_large_noise(difficulty, generator):
    """Breaks ties by noise that also overturns small differences."""
    _refuse(difficulty)
    return (difficulty + 0.01 * torch.rand(len(difficulty), generator=generator)).argsort()


def wrong_ranks(difficulty, generator):
    """Returns each sentence's rank instead of the sentences in order."""
    _refuse(difficulty)
    shuffled = torch.randperm(len(difficulty), generator=generator)
    return shuffled[difficulty[shuffled].argsort(stable=True)].argsort()


def wrong_turns_equals(difficulty, generator):
    """Turns the equals round by one random amount: some orders never come."""
    _refuse(difficulty)
    turn = int(torch.randint(max(1, len(difficulty)), (), generator=generator))
    shuffled = torch.arange(len(difficulty)).roll(turn)
    return shuffled[difficulty[shuffled].argsort(stable=True)]


def wrong_random(difficulty, generator):
    """Shuffles, and forgets to sort."""
    _refuse(difficulty)
    return torch.randperm(len(difficulty), generator=generator)


def wrong_sorts_nan(difficulty, generator):
    """Puts nan at the end without a word."""
    shuffled = torch.randperm(len(difficulty), generator=generator)
    return shuffled[difficulty[shuffled].argsort(stable=True)]


def right_group_by_group(difficulty, generator):
    """Collects the sentences of each difficulty and shuffles each group on its own."""
    if bool((difficulty != difficulty).any()):
        raise ValueError("a difficulty is not a number")
    order = []
    for value in difficulty.unique(sorted=True):
        group = (difficulty == value).nonzero().flatten()
        order.append(group[torch.rand(len(group), generator=generator, dtype=torch.float64).argsort()])
    return torch.cat(order) if order else torch.zeros(0, dtype=torch.int64)
