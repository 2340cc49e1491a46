"""Models of the lessons' architectures, small and random, and a batch for them."""

import torch
from transformers import BertConfig, BertModel, LlamaConfig


def bert(seed=0):
    """A BERT of 2 layers of width 12 with random weights; no dropout."""
    torch.manual_seed(seed)
    sizes = {"hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 24}
    dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return BertModel(BertConfig(**sizes, **dropout), add_pooling_layer=False)


def batch(count=4, length=7):
    """({ids, mask} (B, T) with rows of unequal length, labels of two classes (B,))."""
    g = torch.Generator().manual_seed(1)
    ids = torch.randint(1000, 2000, (count, length), generator=g)
    mask = (torch.arange(length) < torch.randint(3, length + 1, (count, 1), generator=g)).long()
    return {"input_ids": ids, "attention_mask": mask}, torch.randint(2, (count,), generator=g)


def llama(**options):
    """The configuration of a Llama of 2 layers of width 64."""
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    return LlamaConfig(**sizes | {"num_attention_heads": 4, "num_key_value_heads": 2} | options)
