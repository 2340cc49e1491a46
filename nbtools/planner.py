"""Will it fit, and what to turn: memory of a training step predicted before anything is loaded.

Design choices
- The peak is the maximum over phases (load, forward, loss, backward, step, generation), not a sum over everything.
- Bytes of tensors come from `formulas`, checked against `tracing` (the real modules under fake tensors) and, where a
  CPU can tell, against real small models. No torch is imported here.
- What PyTorch reserves on a GPU comes from replaying the step's requests in a copy of its allocator's rules.
- Of GPUs, published measurements of a T4 have been compared (study planner-t4) and nothing else; every answer says so.
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
    "3090": 23.55,
    "4090": 23.52,
    "a100-40": 39.25,
    "a100-80": 79.14,
    "h100": 79.1,
    "h200": 139.72,
}
CONTEXT, CONTEXT_ELSE = {"t4": 141 * MIB}, 500 * MIB  # measured on a T4 (datasets/t4-measurements.toml), else assumed
CHECKED = (
    "Not validated on a GPU but for 61 published measurements of a T4 (LoRA and QLoRA in fp16, checkpointing block): "
    "allocated was within 1.2 %, reserved from 13 % less than replayed to 19 % more. Contexts (500 MiB; T4 141), other "
    "cards, methods and kernels are unchecked."
)
MARGIN = 1.2  # on what is reserved: more than the worst of those measurements
WORKSPACE, LARGER = 8320 * 2**10, {"h100": 32 * MIB, "h200": 32 * MIB}  # cuBLAS, bytes a thread, by torch's defaults

MODELS = tuple(json.loads((assets.CARDS / "shapes.json").read_text(encoding="utf-8")))
METHODS = ("full", "lora", "qlora", "head")
TASKS = ("sft", "reward", "dpo", "ppo", "classify")
PRECISIONS = ("fp32", "mixed", "bf16", "fp16")
ATTENTION = ("eager", "sdpa", "flash", "math")
CHECKPOINTING = ("off", "selective", "block")
LOSSES = ("stock", "chunked")
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
SWITCHES = {
    "double_quant": "NF4's scales quantised too (qlora)",
    "upcast": "norms, embeddings and head in 32 bits, as peft's prepare_model_for_kbit_training leaves them (qlora)",
    "held": "the training loop keeps the model's output, with the logits, until its step is over",
}
TARGETS = {"attention": slice(0, 4), "qv": slice(0, 3, 2), "mlp": slice(4, 7), "all-linear": slice(None)}
PHASES = ("load", "forward", "loss", "backward", "step", "generation")
PARTS = ("weights", "adapters", "gradients", "optimizer", "activations", "logits", "workspace", "context")
REQUIRED = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")


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
    if model in MODELS:
        return model, json.loads((assets.CARDS / "shapes.json").read_text(encoding="utf-8"))[model]["config"]
    path = Path(model).expanduser()
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
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", str(model)):
        raise NbtoolsError(f"{sentence}.")
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(model, "config.json")).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        why = f"{type(error).__name__}; a gated model needs `hf auth login`"
        raise NbtoolsError(f"{sentence}; as a hub name it cannot be read here ({why}).") from None


def normalised(name, config):
    """The configuration with what the formulas need, defaults filled in. Raises NbtoolsError for half a config."""
    kind = config.get("model_type", "llama")
    known = formulas.DECODERS + formulas.ENCODERS
    if kind not in known:
        raise UnknownKind(f"{name} is a {kind!r} model, which is not known here: the planner knows {', '.join(known)}.")
    needed = REQUIRED + (() if kind == "vit" else ("vocab_size", "max_position_embeddings"))
    needed += ("image_size", "patch_size", "num_channels") if kind == "vit" else ()
    needed += ("num_key_value_heads",) if kind in ("mistral", "qwen2", "gemma2") else ()
    wrong = [key for key in needed if not isinstance(config.get(key), int) or config[key] < 1]
    if wrong:
        raise NbtoolsError(f"The configuration of {name} lacks {', '.join(wrong)}: give a whole config.json.")
    heads, found = config["num_attention_heads"], dict(config)
    found["model_type"] = kind
    found["num_key_value_heads"] = config.get("num_key_value_heads") or heads
    found["head_dim"] = config.get("head_dim") or config["hidden_size"] // heads
    found.setdefault("tie_word_embeddings", kind == "gemma2")
    found.setdefault("type_vocab_size", 2)
    return found


def setup(model, **given):
    """A Setup out of plan's arguments. Raises NbtoolsError: one sentence that names the value and the way out."""
    given = {key: value for key, value in (DEFAULTS | given).items() if key != "card"}
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
        raise NbtoolsError(f"seq must be at most {context}, the context of {name}, got {seq}: shorten the rows.")
    _fit_together(name, config, encoder, method, task, loss)
    _switched(given)
    chosen = _targets(config, targets) if method in ("lora", "qlora") else ()
    for layer in chosen:
        side = min(formulas.sides(config)[layer])
        if rank > side:
            raise NbtoolsError(f"rank must be between 1 and {side} (the smaller side of {layer}), got {rank}.")
    task = "classify" if encoder else task
    labels = config.get("num_labels") or len(config.get("id2label") or "ab")
    return Setup(
        **given | {"name": name, "config": config, "task": task, "targets": chosen, "seq": seq, "labels": labels}
    )


def _fit_together(name, config, encoder, method, task, loss):
    misfits = {"task": task not in ("sft", "classify"), "method": method == "qlora", "loss": loss == "chunked"}
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
    if loss == "chunked" and task != "sft":
        raise NbtoolsError(f"The chunked loss is for task 'sft', not for {task!r}: take loss 'stock'.")


def _switched(given):
    if given["upcast"] and (given["method"] != "qlora" or given["precision"] not in ("bf16", "fp16")):
        raise NbtoolsError(
            f"upcast is for method 'qlora' in 'bf16' or 'fp16', not for {given['method']!r} in "
            f"{given['precision']!r}: leave it out."
        )
    if given["held"] and (given["task"] != "sft" or given["loss"] != "stock"):
        raise NbtoolsError(
            f"held is for task 'sft' with loss 'stock', not for {given['task']!r} with {given['loss']!r}: leave it out."
        )


def _targets(config, targets):
    layers = formulas.LINEAR[config["model_type"]]
    if isinstance(targets, str):
        targets = layers[TARGETS[targets]] if targets in TARGETS else targets.split(",")
    if unknown := [target for target in targets if target not in layers]:
        raise NbtoolsError(
            f"There is no target {unknown[0]!r}: choose {', '.join(TARGETS)} or some of {', '.join(layers)}."
        )
    return tuple(layer for layer in layers if layer in targets)


@dataclass(frozen=True)
class Change:
    """One thing to turn, after those before it: the new peak and process in bytes, its price in speed in words."""

    what: str
    price: str
    arguments: dict  # of plan, with this and all earlier changes
    peak: int
    process: int
    verdict: str

    def __str__(self):
        return f"{self.what}: {size(self.process)}, {self.verdict} ({self.price})"


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
        """ "fits", "does not fit" or "too close to call". Raises NbtoolsError for an unknown card and for a CPU."""
        card = card or self.card
        room = memory(card) - CONTEXT.get(card, CONTEXT_ELSE)
        if self.setup.device == "cpu":
            raise NbtoolsError(f"Device 'cpu' has no card, got {card!r}: leave one of them out.")
        if self.reserved * MARGIN <= room:
            return "fits"
        return "does not fit" if self.allocated > room else "too close to call"

    def advice(self, card=None):
        """The cheapest changes in order, each on top of those before it, until it fits; [] where it does.

        Without those that the later ones make needless.
        """
        card, now, found, plans = card or self.card, self, [], {}
        for change in CHANGES:
            if now.verdict(card) == "fits":
                break
            then = _turned(now, [change], card, plans)
            if then and then.allocated <= 0.99 * now.allocated:
                now, found = then, [*found, change]
        for change in found[-2::-1]:
            without = [other for other in found if other is not change]
            then = _turned(self, without, card, plans)
            if then and then.verdict(card) == "fits":
                found = without
        made = []
        for i, (what, price, _) in enumerate(found):
            then = _turned(self, found[: i + 1], card, plans)
            sizes = then.allocated, then.process, then.verdict(card)
            made.append(Change(what.format(**then.arguments), price, then.arguments, *sizes))
        return made

    def __str__(self):
        s, top = self.setup, self.phases[self.peak]
        adapters = f" (rank {s.rank} in {len(s.targets)} kinds of layer)" if s.targets else ""
        lines = [
            f"{s.name}, {s.method}{adapters}, {s.task}, {s.rows} x {s.seq} tokens, {s.precision}, "
            f"{s.attention} attention, checkpointing {s.checkpointing}, {s.loss} loss, {s.optimizer}",
            f"{self.facts['parameters']:,} parameters; trained: {self.facts['trained']:,}"
            f"{' in adapters' * bool(s.targets)}",
            "",
            "phase       allocated",
            *(f"{p:10} {size(self.total(p)):>10}{'  <- the peak' * (p == self.peak)}" for p in self.phases),
            "",
            "at the peak: " + ", ".join(f"{part} {size(n)}" for part, n in top.items() if n and part != "context"),
            f"allocated {size(self.allocated)}"
            + (f", reserved {size(self.reserved)}, process {size(self.process)}" if s.device == "cuda" else ""),
        ]
        shown = () if s.device == "cpu" else [self.card] if self.card else CARDS
        lines += [f"{card} ({size(memory(card))}): {self.verdict(card)}" for card in shown]
        if self.card == "t4" and s.precision in ("bf16", "mixed"):
            lines.append("a T4 has no bf16 units: plan precision fp16")
        if s.attention != self.arguments["attention"]:
            lines.append("sdpa's fast kernels refuse these grouped heads here: torch takes its math kernel")
        if self.reserved > 1.1 * self.allocated:
            lines.append("a tenth or more of it is holes: PYTORCH_ALLOC_CONF=expandable_segments:True mends most")
        if self.card and (changes := self.advice()):
            lines += [
                "",
                "cheapest changes, one on top of the other:",
                *(f"{i}. {c}" for i, c in enumerate(changes, 1)),
            ]
        return "\n".join([*lines, "", CHECKED])

    def json(self):
        """Everything as one dict, ready for json.dumps."""
        cards = [] if self.setup.device == "cpu" else [self.card] if self.card else list(CARDS)
        question = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self.setup).items()}
        return {
            "setup": question,
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
            ax.axhline(CARDS[self.card], color="black", linestyle="--", marker="", label=self.card)
        ax.set(ylabel="GiB", title=f"{self.setup.name}, {self.setup.method}: predicted, not validated on a GPU")
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
    """A card's bytes. Raises NbtoolsError."""
    if card not in CARDS:
        raise NbtoolsError(f"There is no card {card!r}: choose one of {', '.join(CARDS)}.")
    return round(CARDS[card] * 1024) * MIB


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
    key = str({name: value for name, value in arguments.items() if name != "model"})
    if key not in plans:
        try:
            plans[key] = plan(**arguments | {"card": card})
        except NbtoolsError:
            plans[key] = None
    return plans[key]


def _half(arguments, key, least=1):
    return {**arguments, key: arguments[key] // 2} if arguments[key] // 2 >= least else None


def _smaller_batch(arguments):
    if arguments["batch"] == 1:
        return None
    return {**arguments, "batch": 1, "accumulation": arguments["accumulation"] * arguments["batch"]}


def _to(arguments, key, value, *only):
    return {**arguments, key: value} if not only or arguments[key] in only else None


CHANGES = (  # what, price in speed, arguments -> new arguments or None; cheapest first
    ("the model's output let go before backward", "not slower", lambda a: _to(a, "held", False, True)),
    (
        "double quantisation",
        "hardly slower: scales are de-quantised too",
        lambda a: _to(a, "double_quant", True, False) if a["method"] == "qlora" else None,
    ),
    ("norms, embeddings and head in 16 bits", "not slower", lambda a: _to(a, "upcast", False, True)),
    ("chunked loss", "slower: logits are made twice", lambda a: _to(a, "loss", "chunked")),
    ("sdpa attention", "not slower", lambda a: _to(a, "attention", "sdpa", "eager")),
    ("fused AdamW", "not slower", lambda a: _to(a, "optimizer", "adamw-fused", "adamw")),
    ("batch 1 with {accumulation} accumulated", "slower where a row does not fill the card", _smaller_batch),
    (
        "16-bit weights",
        "not slower where the card has 16-bit units; without 32-bit master weights small updates can be lost",
        lambda a: _to(a, "precision", "bf16", "fp32", "mixed"),
    ),
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
    ("LoRA", "not slower; fewer weights learn", lambda a: _to(a, "method", "lora", "full")),
    ("QLoRA", "slower: weights are de-quantised at each use", lambda a: _to(a, "method", "qlora", "lora")),
    ("rows of {seq} tokens", "faster a step; longer texts are cut", lambda a: _half(a, "seq", 128)),
    ("rows of {seq} tokens", "faster a step; longer texts are cut", lambda a: _half(a, "seq", 128)),
)


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
    device="cuda",
    card=None,
):
    """Predict the memory of a training step, as a Plan. Under two seconds; nothing is loaded, torch is not imported.

    model: one of MODELS, a folder or file with a config.json, or a hub id whose config.json can be read.
    precision: fp32; mixed (32-bit weights under bf16 autocast); bf16 and fp16 (16-bit weights, LoRA's adapters 32-bit
    as peft makes them). checkpointing: selective is every second block. seq: tokens a row (fixed for ViT).
    targets: all-linear, attention, mlp, qv, or names joined by commas. double_quant, upcast: of qlora; the latter is
    what peft's prepare_model_for_kbit_training does. attention: sdpa is torch's choice, or math, its fallback;
    flash never is. held: the loop keeps the model's output, logits and all, until its step is over, as in
    `out = model(...); out.loss.backward()`. device: cpu counts storages alone, as a trace does. Raises NbtoolsError.
    """
    arguments = {key: value for key, value in locals().items() if key != "card"}
    if card is not None:
        memory(card)
    s = setup(**arguments)
    if device == "cpu" and card is not None:
        raise NbtoolsError(f"Device 'cpu' has no card, got {card!r}: leave one of them out.")
    s = replace(s, attention="math") if _falls_back(s, card) else s
    found, facts = formulas.phases(s, 0 if device == "cpu" else LARGER.get(card, WORKSPACE))
    context = {"context": 0 if device == "cpu" else CONTEXT.get(card, CONTEXT_ELSE)}
    return Plan(s, arguments, {phase: found[phase] | context for phase in PHASES if phase in found}, facts, card)


DEFAULTS = {name: given.default for name, given in inspect.signature(plan).parameters.items() if name != "model"}
