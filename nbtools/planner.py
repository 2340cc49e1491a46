"""Will it fit, and what to turn: memory of a training step predicted before anything is loaded.

Design choices
- The peak is the maximum over phases (load, forward, loss, backward, step, generation), not a sum over everything.
- Bytes of tensors come from `formulas`, checked against `tracing` (the real modules under fake tensors) and, where a
  CPU can tell, against real small models. No torch is imported here.
- What PyTorch reserves on a GPU comes from replaying the step's requests in a copy of its allocator's rules.
- Of GPUs, published measurements of a T4 have been compared (study planner-t4), with options of their own; every answer
  says so.
- A verdict is "does not fit" where the tensors alone do not, "fits" where what is reserved does with a margin to spare.
  Between the two the allocator has to give segments back, and may fail: "too close to call".
"""

import inspect
import json
import re
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from . import assets, formulas
from .errors import NbtoolsError
from .meters import size

MIB = 2**20
# Total capacity in GiB as CUDA's own out-of-memory messages give it, the smallest that was found for each card; less
# than nvidia-smi shows. Of the T4, with error correction on.
CARDS = {
    "t4": 14.5625,
    "a10g": 21.99,
    "3090": 23.55,
    "4090": 23.52,
    "a100-40": 39.25,
    "l40s": 44.4,
    "a100-80": 79.14,
    "h100": 79.1,
    "h200": 139.72,
}
CONTEXT, CONTEXT_ELSE = {"t4": 141 * MIB}, 500 * MIB  # measured on a T4 (datasets/t4-measurements.toml), else assumed
SAME = {"a100": "a100-40 or a100-80", "h100-80": "h100", "h200-141": "h200"}  # what else cards are called
CHECKED = (
    "Of GPUs only a T4 has checked this: 61 published measurements (LoRA and QLoRA in fp16, checkpointing block; 12 "
    "of QLoRA held out). Predicted of these: allocated within 1.2 %, reserved from 15.9 % too low to 14.3 % too high. "
    "Not validated: other cards, methods and kernels, and contexts (500 MiB; T4 141)."
)
MARGIN = 1.2  # on what is reserved: more than the worst of those measurements
WORKSPACE, LARGER = 8320 * 2**10, {"h100": 32 * MIB, "h200": 32 * MIB}  # cuBLAS, bytes a thread, by torch's defaults

MODELS = tuple(json.loads((assets.CARDS / "shapes.json").read_text(encoding="utf-8")))
METHODS = ("full", "lora", "qlora", "head")
TASKS = ("sft", "reward", "dpo", "ppo", "classify")
PRECISIONS = ("fp32", "mixed", "amp", "bf16", "fp16")
ATTENTION = ("eager", "sdpa", "flash", "efficient", "math")
CHECKPOINTING = ("off", "selective", "block")
LOSSES = ("stock", "chunked", "trl")
OPTIMIZERS = ("adamw", "adamw-fused", "adamw-8bit", "adamw-paged", "lion", "sgd")
DEVICES = ("cuda", "cpu")
CHOICES = {
    "method": METHODS,
    "task": TASKS,
    "precision": PRECISIONS,
    "attention": ATTENTION,
    "checkpointing": CHECKPOINTING,
    "loss": LOSSES,
    "optimizer": OPTIMIZERS,
    "device": DEVICES,
}
MEANINGS = {  # of CHOICES, where names alone do not tell
    "precision": "mixed: 32-bit weights under autocast; amp: 16-bit weights under autocast, as trl's trainers do; "
    "bf16, fp16: 16-bit weights, no autocast; LoRA's adapters are 32-bit in all",
    "attention": "sdpa is torch's choice of flash, efficient or math; efficient has grouped heads repeated first",
    "checkpointing": "selective: every second block",
    "loss": "chunked: logits of 256 tokens at a time; trl: its chunked_nll",
    "optimizer": "adamw-8bit and adamw-paged: bitsandbytes' in 8 bits, of the latter large states on the host",
    "device": "cpu: tensors alone, as a trace counts them",
}
SWITCHES = {
    "double_quant": "NF4's scales quantised too (qlora)",
    "upcast": "norms, embeddings and head in 32 bits, as peft's prepare_model_for_kbit_training leaves them (qlora)",
    "held": "the training loop keeps the model's output, with the logits, until its step is over",
}
TARGETS = {"attention": slice(0, 4), "qv": slice(0, 3, 2), "mlp": slice(4, 7), "all-linear": slice(None)}
PHASES = ("load", "forward", "loss", "backward", "step", "generation")
PARTS = ("weights", "adapters", "gradients", "optimizer", "activations", "logits", "workspace", "context")
REQUIRED = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
COUNTS = ("num_key_value_heads", "head_dim", "sliding_window", "type_vocab_size", "num_labels")  # if they are there
BOOLEANS = ("tie_word_embeddings", "attention_bias", "use_sliding_window")


class UnknownKind(NbtoolsError):
    """A model whose architecture the formulas do not cover."""


@dataclass(frozen=True)
class Setup:
    """A checked question: plan's arguments, with the configuration read and names resolved."""

    name: str
    config: dict
    method: str
    task: str
    rank: int
    targets: tuple  # linear layers with an adapter, by name; () without adapters
    batch: int
    seq: int
    accumulation: int
    precision: str
    attention: str
    checkpointing: str
    loss: str
    optimizer: str
    double_quant: bool
    upcast: bool
    held: bool
    device: str
    labels: int = 2
    judge: "Setup | None" = None  # PPO's reward model, frozen

    @property
    def kind(self):
        return self.config["model_type"]

    @property
    def rows(self):
        """Sequences in one forward pass: reward and DPO see a chosen and a rejected one for each example."""
        return self.batch * (2 if self.task in ("reward", "dpo") else 1)

    @property
    def head(self):
        """What the model ends in: lm (logits over the vocabulary), score (one number) or classifier."""
        return "classifier" if self.kind in formulas.ENCODERS else "score" if self.task == "reward" else "lm"


def configuration(model):
    """(name, config dict) of a shape, a folder or file with config.json, a hub id, or a dict. Raises NbtoolsError."""
    if isinstance(model, dict):
        return model.get("_name_or_path") or "model", model
    if str(model).lower() in MODELS:
        model = str(model).lower()
        shape = json.loads((assets.CARDS / "shapes.json").read_text(encoding="utf-8"))[model]["config"]
        return model, {"model_type": "llama"} | shape
    path = Path(model).expanduser()
    if path.is_dir() and not (path / "config.json").exists():
        raise NbtoolsError(f"The folder {path} has no config.json: give one that save_pretrained wrote.")
    path = path / "config.json" if path.is_dir() else path
    try:
        text = path.read_text(encoding="utf-8") if path.exists() else _from_hub(model)
        config = json.loads(text)
    except (OSError, ValueError) as error:
        raise NbtoolsError(
            f"{path} is no readable config.json ({error}): give one that save_pretrained wrote."
        ) from None
    if not isinstance(config, dict):
        raise NbtoolsError(f"{path} holds no configuration but a {type(config).__name__}: give a model's config.json.")
    return path.parent.name if path.name == "config.json" else str(model), config


def _from_hub(model):
    """The text of a hub model's config.json, by the hub's own client: its cache, token and offline switch count."""
    sentence = f"There is no model {model!r}: choose one of {', '.join(MODELS)}, or a folder with a config.json"
    if not re.fullmatch(r"\w[\w.-]*/[\w.-]+", str(model)):
        raise NbtoolsError(f"{sentence}.")
    import huggingface_hub as hub

    try:
        try:
            found = hub.hf_hub_download(model, "config.json", local_files_only=True)
        except hub.errors.LocalEntryNotFoundError:
            hub.get_hf_file_metadata(hub.hf_hub_url(model, "config.json"), timeout=5)  # one try, where download has six
            found = hub.hf_hub_download(model, "config.json")
        return Path(found).read_text(encoding="utf-8")
    except Exception as error:  # of the hub's client and of what it asks through
        said = "gated: `hf auth login` helps" if "Gated" in type(error).__name__ else f"{type(error).__name__}"
        raise NbtoolsError(f"{sentence}; as a hub name it cannot be read here ({said}).") from None


def normalised(name, config):
    """The configuration with what the formulas need, defaults filled in. Raises NbtoolsError for half a config."""
    kind = config.get("model_type")
    known = formulas.DECODERS + formulas.ENCODERS
    if kind not in known:
        what = f"is a {kind!r} model, which is not known here" if kind else "has no model_type in its configuration"
        raise UnknownKind(f"{name} {what}: the planner knows {', '.join(known)}.")
    needed = REQUIRED + (() if kind == "vit" else ("vocab_size", "max_position_embeddings"))
    needed += ("image_size", "patch_size", "num_channels") if kind == "vit" else ()
    needed += ("num_key_value_heads",) if kind in ("mistral", "qwen2", "gemma2") else ()
    needed += ("head_dim", "sliding_window") if kind == "gemma2" else ()
    if missing := [key for key in needed if config.get(key) is None]:
        raise NbtoolsError(f"The configuration of {name} lacks {', '.join(missing)}: give a whole config.json.")
    for key in (*needed, *COUNTS, *BOOLEANS):
        value, wanted = config.get(key), bool if key in BOOLEANS else int
        if value is not None and (type(value) is not wanted or wanted is int and value < 1):
            what = "true or false" if wanted is bool else "a whole number of at least 1"
            raise NbtoolsError(f"{key} in the configuration of {name} must be {what}, got {value!r}.")
    _plain(name, kind, config)
    heads, found = config["num_attention_heads"], dict(config)
    found["model_type"] = kind
    grouped = config.get("num_key_value_heads") if kind in formulas.DECODERS else None
    found["num_key_value_heads"] = grouped or heads
    found["head_dim"] = config.get("head_dim") or config["hidden_size"] // heads
    if heads % found["num_key_value_heads"] or (not config.get("head_dim") and config["hidden_size"] % heads):
        sizes = f"{config['hidden_size']} numbers, {heads} heads, {found['num_key_value_heads']} of keys"
        raise NbtoolsError(f"The heads of {name} do not divide ({sizes}): give a whole config.json.")
    found.setdefault("tie_word_embeddings", kind == "gemma2")
    found.setdefault("type_vocab_size", 2)
    found["sliding_window"] = _window(kind, config)
    if kind == "mistral":
        found["attention_bias"] = False
    return found


def _plain(name, kind, config):
    """Nothing, or an NbtoolsError for what changes sizes and is not followed by the formulas."""
    unlike = {
        "mlp_bias": bool(config.get("mlp_bias")),
        "qkv_bias": kind == "vit" and config.get("qkv_bias") is False,
        "quantization_config": config.get("quantization_config") is not None,
        "use_sliding_window": kind == "qwen2" and config.get("use_sliding_window") is True,
    }
    if any(unlike.values()):
        key = next(key for key, found in unlike.items() if found)
        raise NbtoolsError(f"{name} sets {key}, which the planner does not know: plan a model without it.")


def _window(kind, config):
    """The sliding window that transformers would use, or None: Qwen2 has it switched off, Llama does not know it."""
    return config.get("sliding_window") if kind in ("mistral", "gemma2") else None


def setup(model, **given):
    """A Setup out of plan's arguments. Raises NbtoolsError: one sentence that names the value and the way out."""
    given = {key: value for key, value in (DEFAULTS | given).items() if key != "card"}
    reward_model = given.pop("reward_model")
    method, task, rank, targets, seq, loss = (
        given[key] for key in ("method", "task", "rank", "targets", "seq", "loss")
    )
    for name, choices in CHOICES.items():
        if given[name] not in choices:
            raise NbtoolsError(f"There is no {name} {given[name]!r}: choose one of {', '.join(choices)}.")
    for name in ("rank", "batch", "seq", "accumulation"):
        if isinstance(given[name], bool) or not isinstance(given[name], int) or given[name] < 1:
            raise NbtoolsError(f"{name} must be a whole number of at least 1, got {given[name]!r}.")
    for name in SWITCHES:
        if not isinstance(given[name], bool):
            raise NbtoolsError(f"{name} must be True or False, got {given[name]!r}.")
    name, config = configuration(model)
    config = normalised(name, config)
    encoder = config["model_type"] in formulas.ENCODERS
    if config["model_type"] == "vit":
        seq = (config["image_size"] // config["patch_size"]) ** 2 + 1
    elif seq > config["max_position_embeddings"]:
        context = config["max_position_embeddings"]
        raise NbtoolsError(
            f"seq must be at most {context}, the context of {name}, got {seq}: shorten the rows, or raise "
            "max_position_embeddings in a config.json of your own."
        )
    _fit_together(name, config, encoder, method, task, loss)
    _switched(given)
    chosen = _targets(config, targets) if method in ("lora", "qlora") else ()
    side, layer = min(((min(formulas.sides(config)[layer]), layer) for layer in chosen), default=(rank, None))
    if rank > side:
        raise NbtoolsError(f"rank must be between 1 and {side} (the smaller side of {layer}), got {rank}.")
    task = "classify" if encoder else task
    labels = config.get("num_labels") or len(config.get("id2label") or "ab")
    found = Setup(
        **given | {"name": name, "config": config, "task": task, "targets": chosen, "seq": seq, "labels": labels}
    )
    return found if reward_model is None else replace(found, judge=_judge(found, reward_model))


def _judge(s, reward_model):
    """The Setup of a frozen model with one score, in the precision of the policy."""
    if s.task != "ppo":
        raise NbtoolsError(f"reward_model is for task 'ppo', not for {s.task!r}: leave it out.")
    name, config = configuration(reward_model)
    config = normalised(name, config)
    if config["model_type"] == "vit":
        raise NbtoolsError(f"{name} reads images and cannot be a reward_model: name a model of text.")
    task = "classify" if config["model_type"] in formulas.ENCODERS else "reward"
    more = {"method": "lora", "targets": (), "upcast": False, "checkpointing": "off"}  # nothing is trained
    return replace(s, name=name, config=config, task=task, labels=1, **more)


def _fit_together(name, config, encoder, method, task, loss):
    misfits = {"task": task not in ("sft", "classify"), "method": method == "qlora", "loss": loss != "stock"}
    if encoder and any(misfits.values()):
        wrong = next(key for key, misfit in misfits.items() if misfit)
        value = {"task": task, "method": method, "loss": loss}[wrong]
        raise NbtoolsError(
            f"{name} is an encoder, planned as a classifier, so {wrong} {value!r} does not apply: leave it out."
        )
    if not encoder and task == "classify":
        raise NbtoolsError(f"{name} is a language model: its classifier is planned as task 'reward', not 'classify'.")
    if method == "head" and task != "reward" and config["tie_word_embeddings"] and not encoder:
        raise NbtoolsError(
            f"The head of {name} is its input embedding too (tied), so method 'head' needs task 'reward'."
        )
    if loss != "stock" and task != "sft":
        raise NbtoolsError(f"The loss {loss!r} is for task 'sft', not for {task!r}: take loss 'stock'.")


def _switched(given):
    if given["upcast"] and (given["method"] != "qlora" or given["precision"] not in ("bf16", "fp16")):
        raise NbtoolsError(
            f"upcast is for method 'qlora' in 'bf16' or 'fp16', not for {given['method']!r} in "
            f"{given['precision']!r}: leave it out."
        )
    if given["attention"] == "flash" and given["precision"] == "fp32":
        raise NbtoolsError("attention 'flash' wants 16 bits, not precision 'fp32': take 'sdpa'.")
    if given["method"] in ("full", "head") and given["precision"] == "fp16":
        raise NbtoolsError(
            f"method {given['method']!r} in 'fp16' has 16-bit gradients, which a GradScaler refuses: plan 'mixed'."
        )
    if given["held"] and (given["task"] != "sft" or given["loss"] != "stock"):
        raise NbtoolsError(
            f"held is for task 'sft' with loss 'stock', not for {given['task']!r} with {given['loss']!r}: leave it out."
        )


def traceable(s):
    """Nothing, or an NbtoolsError for a Setup that `tracing` cannot run; known before torch is imported."""
    if s.attention == "flash":
        raise NbtoolsError("attention 'flash' has no CPU form to trace: trace 'sdpa', whose formulas are the same.")
    if s.optimizer not in ("adamw", "adamw-fused", "sgd"):
        raise NbtoolsError(f"optimizer {s.optimizer!r} cannot run on fake tensors: trace adamw, adamw-fused or sgd.")


def _targets(config, targets):
    layers = formulas.LINEAR[config["model_type"]]
    if isinstance(targets, str):
        names = [target.strip() for target in targets.split(",")]
        targets = [layer for name in names for layer in (layers[TARGETS[name]] if name in TARGETS else [name])]
    if unknown := [target for target in targets if target not in layers]:
        raise NbtoolsError(
            f"There is no target {unknown[0]!r}: choose {', '.join(TARGETS)} or some of {', '.join(layers)}."
        )
    return tuple(layer for layer in layers if layer in targets)


@dataclass(frozen=True)
class Change:
    """One thing to turn, after those before it: the new peak and process in bytes, its price in words."""

    what: str
    price: str
    arguments: dict  # of plan, with this and all earlier changes
    peak: int
    process: int
    verdict: str
    flags: str  # of `nbtools plan`, for this change alone

    def __str__(self):
        return f"{self.what} [{self.flags}]: {size(self.process)}, {self.verdict} ({self.price})"


@dataclass(frozen=True)
class Plan:
    """`phases` {phase: {part: bytes}}, `peak` the highest phase; allocated, reserved, process in bytes.

    `setup` is what was planned, `arguments` what was asked: attention can differ.
    """

    setup: Setup
    arguments: dict = field(repr=False)
    phases: dict = field(repr=False)
    facts: dict = field(repr=False)
    card: str | None = None

    def total(self, phase):
        """Bytes of tensors in a phase, without the context."""
        return sum(self.phases[phase].values()) - self.phases[phase]["context"]

    @property
    def peak(self):
        return max(self.phases, key=self.total)

    @property
    def allocated(self):
        return self.total(self.peak)

    @property
    def reserved(self):
        return self.facts.get("reserved", self.allocated)

    @property
    def process(self):
        return self.reserved + self.phases[self.peak]["context"]

    def verdict(self, card=None):
        """ "fits", "does not fit", "too close to call" or, for what this card has no kernel for, "cannot run".

        Raises NbtoolsError for an unknown card and for a CPU.
        """
        card = card or self.card
        room = memory(card) - CONTEXT.get(card, CONTEXT_ELSE)
        if self.setup.device == "cpu":
            raise NbtoolsError(f"Device 'cpu' has no card, got {card!r}: leave one of them out.")
        if card == "t4" and self.setup.attention == "flash":
            return "cannot run"
        if card != self.card and (there := self._there(card)):
            return there.verdict()
        if self.reserved * MARGIN <= room:
            return "fits"
        return "does not fit" if self.allocated > room else "too close to call"

    def _there(self, card):
        """The plan for a card where attention runs in another kernel than here, else None."""
        if (self.setup.attention == "math") != _falls_back(setup(**self.arguments), card):
            return plan(**self.arguments, card=card)
        return None

    def _line(self, card):
        """(verdict, sentence) of a card, with what is otherwise there than in the figures above."""
        there = None if self.card or card == "t4" and self.setup.attention == "flash" else self._there(card)
        told, verdict = [], (there or self).verdict(card)
        if there:
            told.append(f"{size(there.process)} with its {there.setup.attention} kernel for attention")
        if not self.card and card == "t4":
            told += ["no flash attention"] * (verdict == "cannot run")
            told += ["no bf16 units"] * (self.setup.precision in ("bf16", "amp", "mixed"))
        beside = f" ({'; '.join(told)})" if told else ""
        return verdict, f"{card} ({size(memory(card))}): {verdict}{beside}"

    def advice(self, card=None):
        """The cheapest changes in order, each on top of those before it, until it fits; [] where it does.

        Without those that the later ones make needless.
        """
        card, now, found, plans = card or self.card, self, [], {}
        room = memory(card) - CONTEXT.get(card, CONTEXT_ELSE)
        for i, change in enumerate(ORDER):
            while now.verdict(card) != "fits":
                heavy = now.total("load") > room  # the weights alone
                if heavy and i < len(CHANGES) and change not in LIGHTER:
                    break  # no use yet
                then = _turned(now, [change], card, plans)
                lighter = heavy and then and then.total("load") < 0.99 * now.total("load")
                if not then or then.allocated > 0.99 * now.allocated and not lighter:
                    break
                now, found = then, [*found, change]
                if change is not BATCH:
                    break
        for i in reversed(range(len(found) - 1)):
            without = found[:i] + found[i + 1 :]
            then = _turned(self, without, card, plans)
            if then and then.verdict(card) == "fits":
                found = without
        made, before = [], self.arguments
        for i, change in enumerate(found):
            if change is BATCH and found[i + 1 : i + 2] == [BATCH]:
                continue  # of halvings the last is told
            then = _turned(self, found[: i + 1], card, plans)
            sizes = then.allocated, then.process, then.verdict(card)
            what, flags = change[0].format(**then.arguments), _flags(before, then.arguments)
            made.append(Change(what, change[1], then.arguments, *sizes, flags))
            before = then.arguments
        return made

    def __str__(self):
        s, top = self.setup, self.phases[self.peak]
        kinds = "1 kind of layer" if len(s.targets) == 1 else f"{len(s.targets)} kinds of layer"
        adapters = f" (rank {s.rank} in {kinds})" if s.targets else ""
        lines = [
            f"{s.name}, {s.method}{adapters}, {s.task}, {s.rows} x {s.seq} tokens, {s.precision}, "
            f"{s.attention} attention, checkpointing {s.checkpointing}, {s.loss} loss, {s.optimizer}"
            f"{f', reward model {s.judge.name}' if s.judge else ''}",
            f"{self.facts['parameters']:,} parameters; trained: {self.facts['trained']:,}"
            f"{' in adapters' * bool(s.targets)}",
            "",
            "phase       allocated   (load: what stays; the rest: of a second step, with the optimizer's states)",
            *(f"{p:10} {size(self.total(p)):>10}{'  <- the peak' * (p == self.peak)}" for p in self.phases),
            "",
            "at the peak: " + ", ".join(f"{part} {size(n)}" for part, n in top.items() if n and part != "context"),
            f"allocated {size(self.allocated)}"
            + (f", reserved {size(self.reserved)}, process {size(self.process)}" if s.device == "cuda" else ""),
        ]
        shown = () if s.device == "cpu" else [self.card] if self.card else CARDS
        verdicts, sentences = zip(*map(self._line, shown), strict=True) if shown else ((), ())
        lines += [
            *sentences,
            "(room: the card less the context; fits: 1.2 times what is reserved has room; does not fit: what is "
            "allocated alone has none; else too close to call)",
        ] * bool(shown)
        lines += self._notes()
        lines += ["for the cheapest changes name a card"] * bool({*verdicts} - {"fits"} and not self.card)
        if self.card and (changes := self.advice()):
            lines += [
                "",
                "cheapest changes, one on top of the other, and process with each:",
                *(f"{i}. {c}" for i, c in enumerate(changes, 1)),
            ]
        if self.card and (changes or [self])[-1].verdict != "fits" and self.verdict() != "fits":
            lines.append(self._elsewhere(changes))
        return "\n".join([*lines, "", CHECKED])

    def _elsewhere(self, changes):
        """A sentence for what no change makes fit: which cards hold it with all of them made."""
        last = plan(**changes[-1].arguments) if changes else self
        cards = [card for card in sorted(CARDS, key=CARDS.get) if last.verdict(card) == "fits"]
        alike = [card for card in cards if CARDS[card] < 1.01 * CARDS[cards[0]]]
        larger = f"the smallest card here that holds it{' so' * bool(changes)}: {' or '.join(alike)}"
        none = "no single card here holds it, and what several share (FSDP, ZeRO) is not planned"
        which = "none of these" if changes else "no change known here"
        return f"{which} makes it fit on a {self.card}; {larger if cards else none}"

    def _notes(self):
        """Sentences on what is beside the figures for this very question."""
        s, found = self.setup, []
        if self.card == "t4" and s.precision in ("bf16", "mixed", "amp"):
            other = f"plan precision {'fp16' if s.method in ('lora', 'qlora') else 'mixed'}"
            same = "mixed stands for fp16 autocast, with as many bytes"
            found.append(f"a T4 has no bf16 units: {same if s.precision == 'mixed' else other}")
        if s.method in ("full", "head") and s.precision in ("bf16", "amp"):
            found.append(
                f"{s.precision}: what is trained and the optimizer's states are in 16 bits, where small updates can be "
                "lost; precision mixed keeps 32"
            )
        if s.attention != self.arguments["attention"]:
            found.append(
                "sdpa's fast kernels refuse these grouped heads here, so torch takes its math kernel; "
                "a batch that needs a padding mask does not meet this"
            )
        if unused := self._unused():
            found.append(f"{' and '.join(unused)}: without a part in {s.name} with method {s.method}")
        if s.task == "ppo":
            if not s.judge:
                found.append("ppo: no reward model is counted; name one with reward_model (--reward-model)")
            found.append("ppo: a value model of its own, such as trl trains, is not counted")
        if s.optimizer == "adamw-8bit" and s.method == "full" and s.kind in formulas.DECODERS:
            more = size(6 * s.config["vocab_size"] * s.config["hidden_size"])
            found.append(f"not counted: transformers' Trainer keeps the embeddings' states in 32 bits, {more} more")
        if self.reserved > 1.1 * self.allocated:
            found.append("a tenth or more is holes: PYTORCH_ALLOC_CONF=expandable_segments:True can mend it")
        return found

    def _unused(self):
        """Names of arguments that were set and change nothing here."""
        s = self.setup
        idle = {
            "rank": not s.targets,
            "targets": not s.targets,
            "double_quant": s.method != "qlora",
            "seq": s.kind == "vit",
        }
        return [name for name, nothing in idle.items() if nothing and self.arguments[name] != DEFAULTS[name]]

    def json(self):
        """Everything as one dict, ready for json.dumps."""
        cards = [] if self.setup.device == "cpu" else [self.card] if self.card else list(CARDS)
        question = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self.setup).items()}
        return {
            "setup": question,
            "arguments": self.arguments,
            "card": self.card,
            "facts": self.facts,
            "phases": self.phases,
            "peak": self.peak,
            "allocated": self.allocated,
            "reserved": self.reserved,
            "process": self.process,
            "verdicts": {card: self.verdict(card) for card in cards},
            "advice": [asdict(change) for change in self.advice()] if self.card else [],
            "validated_on_gpu": False,
            "note": CHECKED,
        }

    def figure(self):
        """A matplotlib figure: bars by phase, stacked by part, and a line at the card's memory."""
        import matplotlib.pyplot as plt

        from . import plots

        plots.style()
        fig, ax = plt.subplots(figsize=(6.4, 3.2))
        floor, hatches = [0.0] * len(self.phases), ("", "//", "..", "xx", "\\\\", "--", "oo", "++")
        for part, colour, hatch in zip(PARTS, plots.COLOURS, hatches, strict=True):
            heights = [row[part] / 2**30 for row in self.phases.values()]
            if any(heights):
                ax.bar([*self.phases], heights, bottom=floor, label=part, color=colour, hatch=hatch, edgecolor="white")
            floor = [a + b for a, b in zip(floor, heights, strict=True)]
        if self.card:
            ax.axhline(memory(self.card) / 2**30, color="black", linestyle="--", marker="", label=self.card)
        if self.setup.device == "cuda":
            ax.axhline(self.process / 2**30, color="black", linestyle=":", marker="", label="process")
        ax.set(ylabel="GiB", title=f"{self.setup.name}, {self.setup.method}: predicted")
        fig.legend(loc="outside right upper")
        return fig


def _falls_back(s, card):
    """Whether sdpa has no kernel on a GPU but the one that keeps all weights: grouped heads in 32 bits, or on a T4.

    Flash attention wants 16 bits and a newer card; torch 2.13's memory-efficient kernel wants a key a query.
    """
    wide = s.precision == "fp32" or s.upcast
    grouped = s.config["num_key_value_heads"] < s.config["num_attention_heads"]
    return s.device == "cuda" and s.attention == "sdpa" and grouped and (wide or card == "t4")


def memory(card):
    """Bytes of one of CARDS, or of a card of so many GiB, as in "22.5". Raises NbtoolsError."""
    if card in CARDS:
        return round(CARDS[card] * 1024) * MIB
    if re.fullmatch(r"\d{1,4}(\.\d+)?", str(card)) and float(card) >= 1:
        return round(float(card) * 1024) * MIB
    raise NbtoolsError(
        f"There is no card {card!r}: choose {SAME.get(card) or 'one of ' + ', '.join(CARDS)}, "
        "or give its memory in GiB as CUDA tells it."
    )


def _card(given):
    """The name in CARDS, or a number of GiB, of what people call a card. Raises NbtoolsError."""
    name = re.sub(r"nvidia|geforce|tesla|rtx|gb$|\s", "", str(given).lower())
    name = SAME.get(name) if SAME.get(name) in CARDS else name
    if name not in CARDS and name not in SAME:
        name = str(given)  # a number, or to be refused as it was written
    memory(name)
    return name


def _turned(before, changes, card, plans):
    """A Plan with some of CHANGES made, or None where one of them changes nothing or does not go with the rest.

    plans: those made before, kept here.
    """
    arguments = before.arguments
    for _, _, turn in changes:
        turned = turn(arguments)
        if not turned or turned == arguments:
            return None
        arguments = turned
        if card == "t4" and turned["precision"] == "bf16" != before.arguments["precision"]:  # it has no such units
            arguments = {**turned, "precision": "fp16"}
    key = str({name: value for name, value in arguments.items() if name != "model"})
    if key not in plans:
        try:
            made = plan(**arguments | {"card": card})
        except NbtoolsError:
            made = None
        slow = made and before.arguments["attention"] != arguments["attention"] and made.setup.attention == "math"
        plans[key] = None if slow else made
    return plans[key]


def _flags(before, after):
    """What to give `nbtools plan` beside `before` to get `after`."""
    changed = {name: value for name, value in after.items() if value != before[name]}
    words = {name: name.replace("_", "-") for name in changed}
    return " ".join(
        f"--{'no-' * (not value)}{words[name]}" if isinstance(value, bool) else f"--{words[name]} {value}"
        for name, value in changed.items()
    )


def _half(arguments, key, least=1):
    return {**arguments, key: arguments[key] // 2} if arguments[key] // 2 >= least else None


def _smaller_batch(arguments):
    if arguments["batch"] == 1:
        return None
    return {**arguments, "batch": arguments["batch"] // 2, "accumulation": arguments["accumulation"] * 2}


def _to(arguments, key, value, *only):
    return {**arguments, key: value} if not only or arguments[key] in only else None


# What, price in words, arguments -> new arguments or None.
BATCH = ("batch {batch} with {accumulation} accumulated", "slower where a row does not fill the card", _smaller_batch)
CHANGES = (  # cheapest first
    ("the model's output let go before backward", "not slower", lambda a: _to(a, "held", False, True)),
    (
        "double quantisation",
        "hardly slower: scales are de-quantised too",
        lambda a: _to(a, "double_quant", True, False) if a["method"] == "qlora" else None,
    ),
    ("norms, embeddings and head in 16 bits", "not slower", lambda a: _to(a, "upcast", False, True)),
    ("chunked loss", "slower: logits are made twice", lambda a: _to(a, "loss", "chunked", "stock")),
    ("sdpa attention", "not slower", lambda a: _to(a, "attention", "sdpa", "eager")),
    (
        "grouped heads repeated before sdpa",
        "torch's fast kernels take them then; patch use_gqa_in_sdpa of transformers.integrations.sdpa_attention to "
        "return False",
        lambda a: _to(a, "attention", "efficient", "sdpa", "eager"),
    ),
    ("fused AdamW", "not slower", lambda a: _to(a, "optimizer", "adamw-fused", "adamw")),
    BATCH,
    (
        "8-bit AdamW",
        "states are quantised at each step",
        lambda a: _to(a, "optimizer", "adamw-8bit", "adamw", "adamw-fused"),
    ),
    (
        "checkpointing of every second block",
        "slower: half of the blocks run forward twice",
        lambda a: _to(a, "checkpointing", "selective", "off"),
    ),
    (
        "checkpointing of every block",
        "slower: every block runs forward twice, a third more operations in full fine-tuning, more with LoRA",
        lambda a: _to(a, "checkpointing", "block"),
    ),
    (
        "16-bit weights",
        "not slower where the card has 16-bit units; without 32-bit master weights small updates can be lost",
        lambda a: None if a["method"] in ("lora", "qlora") else _to(a, "precision", "bf16", "fp32", "mixed"),
    ),
    (
        "16-bit frozen weights",
        "not slower where the card has 16-bit units; they are rounded, adapters stay in 32 bits",
        lambda a: _to(a, "precision", "bf16", "fp32", "mixed") if a["method"] in ("lora", "qlora") else None,
    ),
    ("LoRA", "not slower; fewer weights learn", lambda a: _to(a, "method", "lora", "full")),
    ("QLoRA", "slower: weights are de-quantised at each use", lambda a: _to(a, "method", "qlora", "lora")),
)
WEIGHTS = ("double quantisation", "norms, embeddings and head in 16 bits", "16-bit weights", "16-bit frozen weights")
LIGHTER = [change for change in CHANGES if change[0] in (*WEIGHTS, "LoRA", "QLoRA")]
CUT = ("rows of {seq} tokens", "faster a step; longer texts are cut", lambda a: _half(a, "seq", 128))
ORDER = (*CHANGES, *CHANGES[:-2], CUT, CUT)  # what gave nothing for all weights may give much beside LoRA


def plan(
    model,
    method="lora",
    task="sft",
    rank=16,
    targets="all-linear",
    batch=1,
    seq=512,
    accumulation=1,
    precision="bf16",
    attention="sdpa",
    checkpointing="off",
    loss="stock",
    optimizer="adamw",
    double_quant=True,
    upcast=False,
    held=False,
    reward_model=None,
    device="cuda",
    card=None,
):
    """Predict the memory of a training step, as a Plan. Under two seconds; nothing is loaded, torch is not imported.

    model: one of MODELS, a folder or file with a config.json, or a hub id whose config.json can be read.
    precision: fp32; mixed (32-bit weights under autocast); amp (16-bit weights under autocast, as trl's trainers do);
    bf16 and fp16 (16-bit weights, no autocast). LoRA's adapters are 32-bit, as peft makes them. attention: sdpa is
    torch's choice: flash, efficient or math, its fallback. loss: chunked is 256 tokens of logits at a time, trl its
    chunked_nll, which copies the head to 32 bits. checkpointing: selective is every second block. seq: tokens a row
    (fixed for ViT). targets: all-linear, attention, mlp, qv, or names joined by commas. double_quant, upcast: of qlora;
    the latter is what peft's prepare_model_for_kbit_training does. held: the loop keeps the model's output, logits and
    all, until its step is over, as in `out = model(...); out.loss.backward()`. reward_model: of ppo, named as model; it
    lies there frozen. device: cpu counts storages alone, as a trace does. Raises NbtoolsError.
    """
    arguments = {key: value for key, value in locals().items() if key != "card"}
    card = None if card is None else _card(card)
    if card == "t4" and attention == "flash":
        raise NbtoolsError("attention 'flash' wants a newer card than 't4': take 'sdpa'.")
    s = setup(**arguments)
    if device == "cpu" and card is not None:
        raise NbtoolsError(f"Device 'cpu' has no card, got {card!r}: leave one of them out.")
    s = replace(s, attention="math") if _falls_back(s, card) else s
    found, facts = formulas.phases(s, 0 if device == "cpu" else LARGER.get(card, WORKSPACE))
    context = {"context": 0 if device == "cpu" else CONTEXT.get(card, CONTEXT_ELSE)}
    return Plan(s, arguments, {phase: found[phase] | context for phase in PHASES if phase in found}, facts, card)


DEFAULTS = {name: given.default for name, given in inspect.signature(plan).parameters.items() if name != "model"}
