"""The pocket model: a small Llama that writes film opinions, pretrained by this file; weights in datasets/own/pocket.

`python -m nbtools.pocket` makes it again: a byte-level BPE tokenizer and a Llama shape, trained on VADER's film
sentences (Hutto and Gilbert 2014), each a row with its own end token. One sentence in ten is held out; the epoch whose
loss on these is lowest is kept. It is small so that reinforcement learning moves within a minute on two cores: fluent
for some words, seldom for a sentence.
"""

import math

import torch

from . import assets, profiles, train, zoo

FOLDER = assets.CARDS / "own" / "pocket"
VOCABULARY, WIDTH, LAYERS, CONTEXT = 2048, 256, 4, 64
EPOCHS, BATCH, RATE = 12, 64, 2e-3


def sentences():
    """Film sentences as (training, held out): lists of str, split by one fixed shuffle, one in ten held out."""
    texts = list(dict.fromkeys(" ".join(row["text"].split()) for row in zoo.vader("movie")))
    order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(0)).tolist()
    cut = len(texts) // 10
    return [texts[i] for i in order[cut:]], [texts[i] for i in order[:cut]]


def make_tokenizer(texts):
    """A byte-level BPE tokenizer of `VOCABULARY` tokens; <s> begins a text, </s> ends it, <pad> fills."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=True), decoders.ByteLevel()
    options = {"vocab_size": VOCABULARY, "special_tokens": ["<pad>", "<s>", "</s>"], "show_progress": False}
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(texts, trainers.BpeTrainer(**options, initial_alphabet=alphabet))
    bpe.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    names = {"model_input_names": ["input_ids", "attention_mask"], "padding_side": "left"}
    names |= {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
    return PreTrainedTokenizerFast(tokenizer_object=bpe, clean_up_tokenization_spaces=False, **names)


def config():
    """The Llama shape."""
    from transformers import LlamaConfig

    sizes = {"vocab_size": VOCABULARY, "hidden_size": WIDTH, "intermediate_size": 704, "num_hidden_layers": LAYERS}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 4, "max_position_embeddings": CONTEXT}
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    return LlamaConfig(**sizes, **heads, **ids, tie_word_embeddings=True)


def rows(tokenizer, texts):
    """Texts -> (ids, labels), both (N, CONTEXT): <s> text </s>, padding on the right and not learned from."""
    ids = [(tokenizer(text)["input_ids"] + [tokenizer.eos_token_id])[:CONTEXT] for text in texts]
    padded = torch.tensor([row + [tokenizer.pad_token_id] * (CONTEXT - len(row)) for row in ids])
    return padded, padded.masked_fill(padded == tokenizer.pad_token_id, -100)


def make(folder=FOLDER):
    """Train tokenizer and model and save both under `folder`, weights in bfloat16. Returns the held-out loss, nats."""
    from transformers import LlamaForCausalLM, get_cosine_schedule_with_warmup

    own, held = sentences()
    tokenizer = make_tokenizer(own)
    (ids, labels), test = rows(tokenizer, own), rows(tokenizer, held)
    g, device = train.seed_everything(0), profiles.current().device
    model = LlamaForCausalLM(config()).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.1, betas=(0.9, 0.95))
    steps = EPOCHS * math.ceil(len(ids) / BATCH)
    schedule = get_cosine_schedule_with_warmup(optimizer, steps // 20, steps)
    best = math.inf
    for epoch in range(EPOCHS):
        model.train()
        for index in epoch_batches(ids, tokenizer.pad_token_id, g):
            batch = clip((ids[index], labels[index]), device)
            with train.autocast():
                loss = model(input_ids=batch[0], labels=batch[1]).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        loss = held_out(model, test, device)
        print(f"epoch {epoch + 1} of {EPOCHS}: held-out loss {loss:.4f} nats a token", flush=True)
        if loss < best:
            best = loss
            save(model, tokenizer, folder)
    return best


def epoch_batches(ids, pad, g):
    """Indices of one pass, `BATCH` rows of like length together, in random order."""
    lengths = (ids != pad).sum(1) + 3 * torch.rand(len(ids), generator=g)
    groups = lengths.argsort().split(BATCH)
    return [groups[i] for i in torch.randperm(len(groups), generator=g)]


def clip(batch, device):
    """Cut the columns that are padding in every row: (ids, labels) (B, T)."""
    longest = int((batch[1] != -100).sum(1).max())
    return tuple(part[:, :longest].to(device) for part in batch)


@torch.no_grad()
def held_out(model, test, device):
    """Mean loss in nats over all tokens of the held-out rows."""
    model.eval()
    total = count = 0
    for i in range(0, len(test[0]), 128):
        ids, labels = clip((test[0][i : i + 128], test[1][i : i + 128]), device)
        tokens = int((labels[:, 1:] != -100).sum())
        with train.autocast():
            total += float(model(input_ids=ids, labels=labels).loss) * tokens
        count += tokens
    return total / count


def save(model, tokenizer, folder):
    """Write weights (bfloat16, tied head left out), configuration and tokenizer."""
    import copy

    folder.mkdir(parents=True, exist_ok=True)
    copy.deepcopy(model).to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    print(f"kept: {make():.4f}")
