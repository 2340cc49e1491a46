"""Supervised fine-tuning on brief answers: data, adapter, training, answers and their rules, and a kept checkpoint.

Lesson 07 introduces these pieces and shows their source; lesson 10 starts from `checkpoint()`.

- The data are the instruction sample's brief answers (tasks.short_answers), split once: test, val and pool.
- LoRA sits in the last third of the layers alone: the backward pass ends there, which saves computing.
- `load` takes SmolLM2, or any chat model of transformers by its folder or hub name.
- The checkpoint is an adapter of a few MB in the cache beside the assets. It is never shipped: the data's licence
  forbids that. It carries a fingerprint of how it was made; one that was made otherwise is made anew.
"""

import inspect
import json
import os
import tempfile
from collections import Counter
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F

from . import assets, notebooks, tasks, train, zoo
from .errors import NbtoolsError
from .profiles import current

LIMIT = 32  # tokens that an answer may take, its end included
SIZE = 8  # chats in an optimizer step
LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
RECIPE = {"rows": 128, "steps": 16, "lr": 3e-3, "seed": 0}


@cache
def split():
    """Instructions with brief answers, no instruction twice: {"test": 64 rows, "val": 32 rows, "pool": the rest}."""
    rows = {(row["instruction"], row["input"]): row for row in tasks.short_answers(20)}
    rows = [row for key, row in rows.items() if len(" ".join(key).split()) <= 30 and len(row["output"]) <= 160]
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0)).tolist()
    rows = [rows[i] for i in order]
    return {"test": rows[:64], "val": rows[64:96], "pool": rows[96:]}


def load(source="smollm2"):
    """(model, tokenizer) on the profile's device: SmolLM2, or a chat model in a folder or on the hub."""
    if source == "smollm2":
        model, tokenizer = zoo.smollm2()
    else:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(source)
            model = AutoModelForCausalLM.from_pretrained(source, dtype="float32")
        except (OSError, ValueError) as error:
            raise NbtoolsError(
                f"{source!r} is no model folder and no hub name that can be read here: give a folder that "
                "save_pretrained wrote, or smollm2."
            ) from error
    return model.to(current().device), checked(tokenizer)


def checked(tokenizer):
    """The tokenizer, if it can write chats; where it has no padding token, its end token pads. Raises NbtoolsError."""
    if not tokenizer.chat_template:
        raise NbtoolsError(
            f"the tokenizer of {tokenizer.name_or_path or 'this model'} has no chat template: take a model that was "
            "tuned on chats, or set tokenizer.chat_template."
        )
    if tokenizer.eos_token is None:
        raise NbtoolsError("the tokenizer has no end token: set tokenizer.eos_token to what ends a turn.")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def encode(tokenizer, rows, context=2048):
    """Chats, padded on the right: {"input_ids", "attention_mask"} (B, T) and "prompt_lengths" (B,).

    Raises NbtoolsError for an empty answer, and for a prompt that leaves no room for one in `context` tokens.
    """
    if not rows:
        raise NbtoolsError("there are no chats to encode: give at least one row")
    checked(tokenizer)
    for row in rows:
        if not row["output"].strip():
            raise NbtoolsError(f"the answer to {row['instruction'][:40]!r} is empty: leave such rows out")
    batch = tasks.chats(tokenizer, rows)
    lengths = batch["attention_mask"].sum(1) - (batch.pop("labels") != -100).sum(1)
    if int(lengths.max()) >= context:
        raise NbtoolsError(
            f"a prompt has {int(lengths.max())} tokens, the context {context}: shorten the prompt, for a cut would "
            "leave no answer to learn from"
        )
    return batch | {"prompt_lengths": lengths}


def adapt(model, seed=0, rank=8):
    """The model with peft's LoRA, fresh, in every linear layer of its last third of layers."""
    import peft

    train.seed_everything(seed)
    count = model.config.num_hidden_layers
    chosen = list(range(count - max(count // 3, 1), count))
    settings = peft.LoraConfig(
        r=rank, lora_alpha=2 * rank, lora_dropout=0.0, target_modules=list(LAYERS), layers_to_transform=chosen
    )
    return peft.get_peft_model(model, settings)


def order(rows, seed, size=SIZE):
    """One pass over the rows: lists of `size` rows of like length, in random order."""
    draw = torch.Generator().manual_seed(seed)
    words = torch.tensor([len(f"{row['instruction']} {row['input']} {row['output']}") for row in rows])
    groups = (words + 20 * torch.rand(len(rows), generator=draw)).argsort().split(size)
    return [[rows[i] for i in groups[k]] for k in torch.randperm(len(groups), generator=draw)]


def passes(rows, seed, collate):
    """A function that returns the batches of the next pass at each call, for train.fit; collate: rows -> batch."""
    state = {"pass": 0}

    def batches():
        state["pass"] += 1
        return (collate(part) for part in order(rows, 1000 * seed + state["pass"]))

    return batches


def finetune(model, batches, lr, steps, loss_sum=tasks.chat_loss_sum, tick=None):
    """Train what is open: AdamW, a rate that rises and falls; batches as `passes` gives them. Returns the history."""
    from transformers import get_linear_schedule_with_warmup

    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=lr, weight_decay=0)
    schedule = get_linear_schedule_with_warmup(optimizer, max(steps // 10, 1), steps)
    count = {"loss_fn": loss_sum, "count": tasks.count_labels}
    return train.fit(model, batches, optimizer, steps, schedule=schedule, clip=1.0, tick=tick, **count)


@torch.no_grad()
def held_out(model, tokenizer, rows, size=16):
    """Loss in nats a token of the rows' answers: {"loss": all tokens, "words": without the end, "end": the end alone}.

    The output layer is asked at the answers' places alone.
    """
    model.eval()
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    rows, found, ends = sorted(rows, key=lambda row: len(row["instruction"] + row["input"] + row["output"])), [], []
    for i in range(0, len(rows), size):
        batch = train.to_device(tasks.chats(tokenizer, rows[i : i + size]), current().device)
        labels = batch.pop("labels")[:, 1:]
        with train.autocast():
            hidden = inner.model(**batch).last_hidden_state[:, :-1][labels != -100]  # (B, T, d) -> (N, d)
            logits = inner.lm_head(hidden)  # (N, d) -> (N, V)
        found.append(F.cross_entropy(logits.float(), labels[labels != -100], reduction="none").cpu())
        later = (labels != -100).flip(1).cumsum(1).flip(1)  # labels from here on: 1 at a row's last one
        ends.append((later[labels != -100] == 1).cpu())
    found, ends = torch.cat(found), torch.cat(ends)
    parts = {"loss": found, "words": found[~ends], "end": found[ends]}
    return {name: values.mean().item() for name, values in parts.items()}


@torch.no_grad()
def answers(model, tokenizer, rows, limit=LIMIT, size=32):
    """Greedy answers of at most `limit` tokens: [{"text", "tokens": with the end, "ended": before the limit}]."""
    model.eval()
    asked, found = [tasks.prompt(tokenizer, row) for row in rows], []
    for i in range(0, len(asked), size):
        options = {"padding": True, "padding_side": "left", "return_tensors": "pt", "add_special_tokens": False}
        batch = tokenizer(asked[i : i + size], **options).to(current().device)
        with train.autocast():
            out = model.generate(
                **batch,
                max_new_tokens=limit,
                do_sample=False,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        for ids in out[:, batch["input_ids"].shape[1] :].tolist():
            ended = tokenizer.eos_token_id in ids
            own = ids[: ids.index(tokenizer.eos_token_id)] if ended else ids
            found.append({"text": tokenizer.decode(own).strip(), "tokens": len(own) + ended, "ended": ended})
    return found


def words(text):
    """Lower-case words of a text, without signs."""
    return "".join(c if c.isalnum() or c == "'" else " " for c in text.lower()).split()


def rules(answer, row):
    """What can be told of an answer by rule: {name: bool}, and "f1", its overlap with the reference, 0 to 1.

    ends: by itself, before the limit. brief: at most twice the reference's words plus 3. fresh: there are words, and no
    three of them in a row come twice. f1: harmonic mean of the shares of words that the two have in common.
    """
    said, wanted = words(answer["text"]), words(row["output"])
    triples = list(zip(said, said[1:], said[2:], strict=False))
    common = sum((Counter(said) & Counter(wanted)).values())
    return {
        "ends": answer["ended"],
        "brief": len(said) <= 2 * len(wanted) + 3,
        "fresh": bool(said) and len(triples) == len(set(triples)),
        "f1": 2 * common / (len(said) + len(wanted)) if said and wanted else 0.0,
    }


def scores(found, rows):
    """Means over answers: tokens, the shares ends, brief, fresh, and all three at once, and f1."""
    each = [rules(answer, row) for answer, row in zip(found, rows, strict=True)]
    mean = {name: sum(one[name] for one in each) / len(each) for name in each[0]}
    mean["all"] = sum(one["ends"] and one["brief"] and one["fresh"] for one in each) / len(each)
    return mean | {"tokens": sum(answer["tokens"] for answer in found) / len(found)}


def fingerprint():
    """Twelve hex digits of what the checkpoint depends on: recipe, code, data and base model."""
    code = [inspect.getsource(f) for f in (split, adapt, order, passes, finetune, tasks.chats, tasks.prompt, train.fit)]
    cards = assets.cards()
    digests = [cards[name].folder.name for name in ("smollm2-135m-instruct", "instruction-samples")]
    return notebooks.fingerprint(*code, repr(sorted(RECIPE.items())), repr(digests))


def adapter(model):
    """The adapter's weights: {name: tensor}, in float32 on the CPU."""
    return {name: p.detach().float().cpu().contiguous() for name, p in model.named_parameters() if "lora_" in name}


def checkpoint(tick=None):
    """SmolLM2 after supervised fine-tuning by RECIPE, as (model, tokenizer): a peft model, its adapter open.

    Loaded from the cache if it was kept there, else trained (a minute or two on two cores) and kept.
    """
    model, tokenizer = load()
    model = adapt(model, RECIPE["seed"])
    file = assets.cache() / "lessons" / "sft-adapter.safetensors"
    state = _kept(file, model)
    if state is None:
        print(f"training the checkpoint of lesson 07, once; it is kept as {file.name} beside the assets", flush=True)
        rows = split()["pool"][: RECIPE["rows"]]
        batches = passes(rows, RECIPE["seed"], lambda part: tasks.chats(tokenizer, part))
        finetune(model, batches, RECIPE["lr"], RECIPE["steps"], tick=tick)
        _keep(file, model)
    else:
        model.load_state_dict(state, strict=False)
    return model.eval(), tokenizer


def _kept(file, model):
    """The adapter in `file` if it was made by this recipe and fits, else None."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as box:
            if (box.metadata() or {}).get("recipe") != fingerprint():
                return None
            state = {key: box.get_tensor(key) for key in box.keys()}  # noqa: SIM118
    except (OSError, SafetensorError):
        return None
    own = adapter(model)
    return state if {k: v.shape for k, v in state.items()} == {k: v.shape for k, v in own.items()} else None


def _keep(file, model):
    """Write the adapter so that nobody ever sees half of it; where the cache is read-only, do not."""
    from safetensors.torch import save_file

    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=file.parent) as folder:
            part = Path(folder) / file.name
            save_file(adapter(model), part, {"recipe": fingerprint(), "about": json.dumps(RECIPE)})
            part.chmod(0o644)
            os.replace(part, file)
    except OSError:
        return
