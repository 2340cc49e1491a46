"""The planner's table: formulas against the traced modules, and what other estimators say of the same rows.

Each arm is one configuration of a real shape. Nothing is drawn or tuned, so one seed says it all:
`nbtools study planner-cpu --seeds 0`. Two comparisons, both of the peak of allocated bytes, no GPU involved:
- error: formulas against the trace, in per cent, on the shape cut to its first DEPTH layers (rows named "whole" are
  not cut); worst: the error of the phase (at) where it is largest.
- Other estimators against the formulas at full depth, in per cent. What they count as overhead is left out.

`nbtools study planner-t4 --seeds 0` holds the plans against what another project measured on a T4 (the asset
t4-measurements), each configuration once. The allocator's and softmax's rules were found on the rows of its roles
calibration and repeat; those of role holdout and the verdicts were looked at after that.

`nbtools study planner --seeds 0` asks a GPU the same: whole models, real steps, the figures of the allocator and the
driver. It has not been run.
"""

import inspect
import json
from functools import cache
from pathlib import Path

from . import assets, meters, notebooks, planner
from .errors import NbtoolsError
from .studies import Study

DEPTH = 6  # layers: a trace of all of them takes a minute or more on two busy cores
BLOCK, MIXED, EAGER = {"checkpointing": "block"}, {"precision": "mixed"}, {"attention": "eager"}
CASES = [
    ("smollm2-135m", {"method": "full", "batch": 4}),
    ("smollm2-135m", {"method": "full", "precision": "fp32", "batch": 2, "seq": 256} | EAGER),
    ("smollm2-135m", {"batch": 4, "whole": True}),
    ("smollm2-135m", {"batch": 4} | BLOCK | MIXED),
    ("smollm2-135m", {"method": "qlora", "batch": 8} | BLOCK),
    ("smollm2-135m", {"method": "qlora", "batch": 8} | MIXED),
    ("smollm2-360m", {"batch": 2} | MIXED),
    ("smollm2-360m", {"method": "full", "batch": 2} | BLOCK | MIXED),
    ("smollm2-1.7b", {"method": "full", "seq": 1024} | BLOCK),
    ("smollm2-1.7b", {"targets": "qv", "seq": 1024}),
    ("qwen2.5-0.5b", {"method": "full", "batch": 2}),
    ("qwen2.5-0.5b", {"loss": "chunked", "batch": 2, "seq": 1024}),
    ("qwen2.5-0.5b", {"batch": 2, "seq": 256} | MIXED | EAGER),
    ("qwen2.5-0.5b", {"task": "dpo", "batch": 2}),
    ("qwen2.5-1.5b", {"batch": 2, "seq": 1024} | BLOCK),
    ("qwen2.5-1.5b", {"method": "qlora", "seq": 1024}),
    ("qwen2.5-7b", {"method": "qlora", "loss": "chunked", "seq": 2048} | BLOCK),
    ("llama-3.2-1b", {"method": "full", "batch": 2, "whole": True}),
    ("llama-3.2-1b", {"method": "full", "batch": 2, "seq": 1024} | BLOCK),
    ("llama-3.2-1b", {"method": "full", "precision": "fp32"}),
    ("llama-3.2-1b", {"method": "full", "optimizer": "adamw-fused", "accumulation": 4}),
    ("llama-3.2-1b", {"method": "full", "loss": "chunked", "batch": 2, "seq": 1024} | BLOCK),
    ("llama-3.2-1b", {"method": "full", "optimizer": "sgd"} | MIXED),
    ("llama-3.2-1b", {"method": "full", "task": "dpo"}),
    ("llama-3.2-1b", {"targets": "qv", "batch": 2, "seq": 1024}),
    ("llama-3.2-1b", {"batch": 2, "seq": 1024, "whole": True}),
    ("llama-3.2-1b", {"batch": 2} | MIXED),
    ("llama-3.2-1b", {"checkpointing": "selective", "batch": 4}),
    ("llama-3.2-1b", {"method": "qlora", "batch": 2, "seq": 1024} | BLOCK),
    ("llama-3.2-1b", {"task": "reward", "batch": 2}),
    ("llama-3.2-1b", {"task": "ppo", "batch": 4, "seq": 256}),
    ("llama-3.2-1b", {"method": "head", "task": "reward", "batch": 4}),
    ("llama-3.2-3b", {"rank": 32, "batch": 2, "seq": 1024} | BLOCK),
    ("llama-3.2-3b", {"method": "full", "seq": 1024} | BLOCK),
    ("llama-3-8b", {"method": "qlora", "seq": 2048}),
    ("llama-3-8b", {"method": "qlora", "seq": 2048} | BLOCK),
    ("llama-3-8b", {} | EAGER),
    ("llama-3-8b", {"method": "full", "seq": 2048} | BLOCK),
    ("mistral-7b", {"seq": 1024}),
    ("mistral-7b", {"seq": 4096} | BLOCK),
    ("gemma-2-2b", {"method": "full"} | BLOCK),
    ("gemma-2-2b", {} | EAGER),
    ("gemma-2-2b", {"seq": 1024} | BLOCK | MIXED),
    ("minilm", {"method": "full", "precision": "fp32", "batch": 32, "seq": 128}),
    ("minilm", {"batch": 32, "seq": 128} | MIXED),
    ("minilm", {"method": "full", "batch": 16, "seq": 128} | MIXED | EAGER),
    ("bert-base", {"method": "full", "precision": "fp32", "batch": 16, "seq": 256, "whole": True} | BLOCK),
    ("bert-base", {"precision": "fp32", "batch": 16, "seq": 128}),
    ("bert-base", {"method": "head", "precision": "fp32", "batch": 32, "seq": 128}),
    ("vit-base", {"method": "full", "precision": "fp32", "batch": 16}),
    ("vit-base", {"batch": 32}),
    ("vit-base", {"method": "full", "batch": 32} | BLOCK | MIXED),
    ("llama-3.2-1b", {"precision": "amp", "batch": 2}),
    ("llama-3-8b", {"method": "qlora", "precision": "amp", "seq": 1024} | BLOCK),
    ("llama-3.2-1b", {"loss": "trl", "batch": 2, "seq": 1024} | BLOCK),
    ("qwen2.5-1.5b", {"method": "qlora", "upcast": True, "double_quant": False, "seq": 1024} | BLOCK),
    ("llama-3.2-1b", {"method": "head", "task": "reward", "batch": 2} | BLOCK),
]


SHAPES = [  # of the GPU's table: model, batch, tokens
    ("smollm2-135m", 8, 512),
    ("smollm2-360m", 4, 1024),
    ("qwen2.5-0.5b", 4, 1024),
    ("llama-3.2-1b", 2, 2048),
    ("qwen2.5-1.5b", 2, 1024),
    ("gemma-2-2b", 2, 1024),
    ("llama-3.2-3b", 2, 1024),
    ("mistral-7b", 1, 2048),
]
WAYS = [
    {"method": "full"},
    {"method": "full", "optimizer": "adamw-8bit"} | BLOCK,
    {},
    BLOCK,
    {"checkpointing": "selective"} | MIXED,
    {"method": "qlora"},
    {"method": "qlora", "loss": "chunked"} | BLOCK,
]
GPU_CASES = [(model, {"batch": b, "seq": n} | way) for model, b, n in SHAPES for way in WAYS] + [
    ("llama-3-8b", {"method": "qlora", "seq": 2048} | BLOCK),
    ("llama-3.2-1b", {"batch": 2, "seq": 1024} | EAGER),
    ("llama-3.2-1b", {"task": "dpo", "batch": 2}),
    ("llama-3.2-1b", {"task": "ppo", "batch": 4}),
    ("llama-3.2-1b", {"task": "reward", "batch": 4}),
    ("qwen2.5-0.5b", {"method": "full", "task": "dpo", "batch": 2}),
    ("minilm", {"method": "full", "precision": "fp32", "batch": 64, "seq": 128}),
    ("bert-base", {"method": "full", "batch": 32, "seq": 256} | MIXED),
    ("vit-base", {"method": "full", "precision": "fp32", "batch": 64}),
    ("llama-3.2-1b", {"method": "full", "precision": "fp32"}),  # sdpa's fallback
]


def name(model, options):
    """A row's name: the model, and what differs from the planner's defaults."""
    shown = ("method", "batch", "seq")
    given = {"method": "lora", "batch": 1, "seq": 512} | options
    words = {"whole": "whole", "upcast": "upcast", "double_quant": "single scales"}
    rest = [words.get(key, str(value)) for key, value in given.items() if key not in shown]
    rows = f"{given['batch']} images" if model.startswith("vit") else f"{given['batch']}x{given['seq']}"
    return " ".join([model, given["method"], rows, *rest])


ARMS = {name(*case): case for case in CASES}
GPU_ARMS = {name(*case): case for case in GPU_CASES}


@cache
def measured(arm):
    """One row: peaks in GiB, traced and by formulas, at the traced depth; errors in per cent; other estimators."""
    from . import tracing

    model, options = ARMS[arm]
    options = dict(options)
    config = dict(planner.configuration(model)[1])
    if not options.pop("whole", False):
        config["num_hidden_layers"] = min(config["num_hidden_layers"], DEPTH)
    traced, plan = tracing.trace(config, **options), planner.plan(config, **options, device="cpu")
    totals = {phase: sum(parts.values()) for phase, parts in traced.items()}
    peak, predicted = max(totals.values()), max(plan.total(phase) for phase in totals)
    errors = {phase: 100 * (plan.total(phase) / total - 1) for phase, total in totals.items()}
    worst = max(errors, key=lambda phase: abs(errors[phase]))
    row = {"layers": config["num_hidden_layers"], "traced": peak / 2**30, "formulas": predicted / 2**30}
    row |= {"error": 100 * (predicted / peak - 1), "worst": errors[worst]} | peers(
        planner.plan(model, **options, device="cpu")
    )
    return {key: None if value is None else round(value, 3) for key, value in row.items()} | {"at": worst}


def peers(plan):
    """The formulas' peak at full depth in GiB, and how far other estimators are from it, in per cent."""
    said = {
        "accelerate": accelerate_bytes(plan),
        "sixteen": 16 * plan.facts["parameters"],
        "fitcheck": fitcheck_bytes(plan),
    }
    off = {peer: None if n is None else 100 * (n / plan.allocated - 1) for peer, n in said.items()}
    return {"full": plan.allocated / 2**30} | off


def accelerate_bytes(plan):
    """What `accelerate estimate-memory` prints for training with Adam; it knows no method, batch or length."""
    from accelerate.commands.estimate import estimate_training_usage

    kind = "float32" if plan.setup.precision == "fp32" else "bfloat16"
    return max(estimate_training_usage(4 * plan.facts["parameters"], kind).values())


def fitcheck_bytes(plan):
    """fitcheck-llm's weights, adapters, optimizer, gradients and activations, for what it knows; None without it."""
    s = plan.setup
    try:
        from fitcheck import GPU_DB, ModelConfig, TrainingConfig, estimate
    except ImportError:
        return None
    if s.head != "lm" or s.task != "sft" or s.method == "head" or s.optimizer == "adamw-fused":
        return None
    keys = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "intermediate_size")
    sizes = [s.config[key] for key in (*keys, "vocab_size", "head_dim", "tie_word_embeddings")]
    training = TrainingConfig(
        precision="bf16" if s.precision == "bf16" else "fp32",
        quantization="nf4" if s.method == "qlora" else "none",
        double_quant=s.method == "qlora",
        optimizer="sgd" if s.optimizer == "sgd" else "adamw",
        optimizer_dtype="bf16" if (s.precision, s.method) == ("bf16", "full") else "fp32",
        batch_size=s.rows,
        seq_len=s.seq,
        lora_rank=s.rank if s.targets else None,
        lora_targets=list(s.targets) or ["q_proj"],
        grad_checkpoint=s.checkpointing == "block",
        flash_attn=s.attention != "eager",
    )
    found = estimate(ModelConfig(s.name, plan.facts["parameters"], *sizes), training, next(iter(GPU_DB.values())))
    parts = (found.weight_mib, found.lora_mib, found.optimizer_mib, found.gradient_mib, found.activation_mib)
    return sum(parts) * 2**20


def against(plan, found, total=None):
    """A row: GiB measured and predicted, the prediction's errors in per cent, cards it wrongly calls large enough.

    total(phase) -> predicted bytes, where the measured phases are not the plan's own.
    """
    total = total or plan.total
    errors = {phase: 100 * (total(phase) / held - 1) for phase, held in found["phases"].items()}
    worst = max(errors, key=lambda phase: abs(errors[phase]))
    row = {"allocated": found["allocated"] / 2**30, "formulas": max(map(total, found["phases"])) / 2**30}
    row |= {"error": 100 * (row["formulas"] / row["allocated"] - 1), "worst": errors[worst]}
    for kind in ("reserved", "process"):
        row |= {kind: found[kind] / 2**30, f"{kind} error": 100 * (getattr(plan, kind) / found[kind] - 1)}
    row |= {kind: found[kind] / 2**30 for kind in ("context", "total") if kind in found}
    wrong = [c for c in planner.CARDS if plan.verdict(c) == "fits" and found["process"] > planner.memory(c)]
    return {key: round(value, 3) for key, value in row.items()} | {"at": worst, "false fits": " ".join(wrong)}


def on_gpu(cell):
    """A row of the GPU's table; there is nothing to tune. A row that fails says why, and the next one is measured."""
    if cell["phase"] == "tune":
        return {"score": 0.0}
    from . import measuring, profiles

    if profiles.current().device != "cuda":
        raise NbtoolsError("The study planner measures a GPU, and none is used here: run planner-cpu.")
    model, options = GPU_ARMS[cell["arm"]]
    plan = planner.plan(model, **options, card=own_card())
    try:
        return against(plan, measuring.measure(model, **options))
    except RuntimeError as error:
        told = meters.out_of_memory(error)
        if told is None and "CUDA error" in str(error):
            raise  # the context is broken: no later row could be trusted
        meters.let_go(error)
        return {"failed": str(told or error)[:200]}


def own_card():
    """The card of CARDS that this machine has, by torch's name for it, else None."""
    import torch

    name = torch.cuda.get_device_name().lower()
    found = [card for card in planner.CARDS if card.split("-")[0] in name.replace("-", " ").split()]
    return found[-1] if found else None


def run(cell):
    """A row of the table; there is nothing to tune."""
    if cell["phase"] == "tune":
        return {"score": 0.0}
    if cell["arm"] not in ARMS:
        raise NbtoolsError(f"The planner's table has no row {cell['arm']!r}.")
    return measured(cell["arm"])


MEASURED = ("allocated", "formulas", "error", "worst", "at", "reserved", "reserved error")  # not of runs at the limit
MEASURED += ("process error", "fitcheck", "accelerate", "sixteen")


@cache
def published():
    """{arm: (role, plan's arguments, what was measured)} of the asset t4-measurements, each configuration once."""
    folder = assets.fetch("t4-measurements", progress=False)

    def read(name):
        return json.loads((folder / name).read_text(encoding="utf-8"))

    found, configs = {}, {}
    for entry in read("manifest.json")["rows"]:
        if entry["role"] in ("calibration", "holdout"):
            run = read(entry["file"])["runs"][entry["index"]]
            model, role = run["model_id"], entry["role"]
            configs[model] = t4_config(model, run["model_config"])
            found[t4_name(model, entry["identity"], entry["session"])] = role, entry["identity"], run
    for run in read("verdicts.json")["results"]:
        name = t4_name(run["identity"]["model_id"], run["identity"], "at the limit")
        found[name] = "verdict", run["identity"], run | {"model_id": run["identity"]["model_id"]}
    return {
        arm: (role, {"model": configs[run["model_id"]], **t4_options(identity)}, run)
        for arm, (role, identity, run) in found.items()
    }


def t4_name(model, identity, session):
    kind = "qlora" if identity["quantization"] == "nf4" else "lora"
    attention = "eager" if identity["kernel"] == "eager" else "sdpa"
    return f"{model} {kind} {identity['batch_size']}x{identity['seq_len']} {attention}, {session}"


def t4_config(model, sizes):
    """A config.json's fields from a row's own names for them."""
    kind = next((kind for kind in ("qwen2", "mistral") if kind in model.lower()), "llama")
    config = {key: sizes[key] for key in ("hidden_size", "num_attention_heads", "intermediate_size", "vocab_size")}
    config |= {"head_dim": sizes["head_dim"], "tie_word_embeddings": sizes["tie_word_embeddings"]}
    config |= {"num_hidden_layers": sizes["num_layers"], "num_key_value_heads": sizes["num_kv_heads"]}
    return config | {"model_type": kind, "max_position_embeddings": 4096, "_name_or_path": model}


def t4_options(identity):
    """plan's arguments for the loop of that project's measure.py: it keeps the output, peft upcasts NF4's rest.

    Its sdpa repeats grouped keys and is held to the memory-efficient kernel, so it does not fall back.
    """
    four = identity["quantization"] == "nf4"
    return {
        "method": "qlora" if four else "lora",
        "rank": identity["lora_rank"],
        "targets": ",".join(identity["lora_targets"]),
        "batch": identity["batch_size"],
        "seq": identity["seq_len"],
        "precision": identity["precision"],
        "attention": "eager" if identity["kernel"] == "eager" else "efficient",
        "checkpointing": "block" if identity["grad_checkpoint"] else "off",
        "double_quant": False,
        "upcast": four,
        "held": True,
        "card": "t4",
    }


def on_t4(cell):
    """A row against a T4: errors in per cent, those of other estimators too, or a verdict; there is nothing to tune."""
    if cell["phase"] == "tune":
        return {"score": 0.0}
    role, arguments, run = published()[cell["arm"]]
    plan = planner.plan(**arguments)
    if role == "verdict":
        process = run["measured_process_mib"] and round(run["measured_process_mib"] / 1024, 3)
        row = {"role": role, "completed": run["outcome"] == "completed", "process": process}
        row |= {"replayed": round(plan.process / 2**30, 3), "verdict": plan.verdict()}
        return dict.fromkeys(MEASURED) | row | {"outcome": "completed" if row["completed"] else "ran out"}
    held = {key.removesuffix("_mib"): n * 2**20 for key, n in run["measured"].items() if key.endswith("_mib")}
    phases = {"load": held["resident_before_step"]}
    phases |= {phase: held[f"peak_{phase}"] for phase in ("forward", "backward")} | {"step": held["peak_optimizer"]}
    found = {"phases": phases, "allocated": held["peak_allocated"]}
    found |= {"reserved": held["peak_reserved"], "process": held["process"]}

    def total(phase):
        return max(map(plan.total, ("forward", "loss"))) if phase == "forward" else plan.total(phase)

    said = {key: n * 2**20 for key, n in run["predicted"].items()}
    peers = {"fitcheck": said["total_mib"] - said["overhead_mib"], "accelerate": accelerate_bytes(plan)}
    peers |= {"sixteen": 16 * plan.facts["parameters"]}
    off = {peer: round(100 * (n / found["allocated"] - 1), 3) for peer, n in peers.items()}
    row = against(plan, found, total) | off | {"replayed": round(plan.process / 2**30, 3)}
    return {"role": role} | row | {"verdict": plan.verdict(), "outcome": "completed"}


class Table(Study):
    """A study that depends on the planner's engines, and on no lesson."""

    def code(self):
        names, own = ("allocator", "ledger", "formulas", "tracing"), measured
        if self.run is on_gpu:
            names, own = (*names, "measuring"), against
        if self.run is on_t4:
            names, own = names[:3], on_t4
        files = [Path(__file__).with_name(f"{module}.py") for module in names]
        return notebooks.fingerprint(inspect.getsource(own), *(file.read_text("utf-8") for file in files))


STUDIES = {
    "planner-cpu": Table(
        "14",
        lambda full: dict.fromkeys(ARMS, [{}]),
        lambda full: [{}],
        run,
        "peak of allocated bytes: formulas and other estimators against the traced modules, errors in per cent",
    ),
    "planner-t4": Table(
        "14",
        lambda full: dict.fromkeys(published(), [{}]),
        lambda full: [{}],
        on_t4,
        "allocated and reserved memory that another project measured on a T4 against the formulas, errors in per cent",
    ),
    "planner": Table(
        "14",
        lambda full: dict.fromkeys(GPU_ARMS, [{}]),
        lambda full: [{}],
        on_gpu,
        "allocated, reserved and process memory of real steps on a GPU against the formulas, errors in per cent",
    ),
}
