"""Loaders: an asset's files become tensors, pictures, a model. Nothing here trains or transforms."""

import base64
import codecs
import io
import json
import os
import tarfile
import tempfile

from . import assets
from .errors import NbtoolsError

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def cifar10():
    """CIFAR-10's 10,000 test images as (images, labels): uint8 (10000, 3, 32, 32) and int64 (10000,), sorted by class.

    Krizhevsky 2009. Decoded from the asset's PNGs at each call.
    """
    import numpy as np
    import torch
    from PIL import Image

    task = json.loads(assets.file("cifar10-test", "task.json").read_text())
    images, labels = [], []
    for example in task["examples"]:
        picture = Image.open(io.BytesIO(base64.b64decode(example["input"]))).convert("RGB")
        images.append(np.asarray(picture))
        labels.append(CIFAR10_CLASSES.index(max(example["target_scores"], key=example["target_scores"].get)))
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous(), torch.tensor(labels)


def photo(name):
    """A photograph of the `photos` asset ("chelsea" or "coffee") as a PIL image."""
    from PIL import Image

    return Image.open(assets.file("photos", f"{name}.png")).convert("RGB")


def efficientnet_lite0(num_classes=1000, pretrained=True):
    """EfficientNet-Lite0 (Tan 2020) from timm; ImageNet weights from the asset; input (B, 3, H, W), mean = std = 0.5.

    The asset names its tensors otherwise than timm does, in the same order: tensors are paired by position, and a shape
    that does not fit is an error. With `num_classes` other than 1000 the head is a fresh `nn.Linear`: timm's own start
    for a head is eleven times wider (fan-out 10 against fan-in 1280), noise that few labels have to unlearn.
    """
    import timm
    import torch

    model = timm.create_model("tf_efficientnet_lite0")
    if pretrained:
        weights = torch.load(assets.file("efficientnet-lite0"), map_location="cpu", weights_only=True)
        model.load_state_dict(rename(weights, model.state_dict()))
    if num_classes != 1000:
        model.classifier = torch.nn.Linear(model.classifier.in_features, num_classes)
    return model


def rename(weights, own):
    """Give the tensors of `weights` the names of `own`, pair by pair. Raises NbtoolsError where they do not fit."""
    if len(own) != len(weights):
        raise NbtoolsError(
            f"timm's model has {len(own)} tensors, the file {len(weights)}; install the timm of requirements.lock."
        )
    for (mine, a), (theirs, b) in zip(own.items(), weights.items(), strict=True):
        if a.shape != b.shape:
            raise NbtoolsError(
                f"{mine} {tuple(a.shape)} is not {theirs} {tuple(b.shape)}; install the timm of requirements.lock."
            )
    return dict(zip(own, weights.values(), strict=True))


def resnet50(num_classes=1000, pretrained=True):
    """ResNet-50 (He 2015) from torchvision, weights by its own download; input in [-1, 1] as above."""
    import torch
    from torchvision.models import ResNet50_Weights
    from torchvision.models import resnet50 as build

    model = build()
    if pretrained:
        model.load_state_dict(ResNet50_Weights.DEFAULT.get_state_dict(check_hash=True))
    if num_classes != 1000:
        model.fc = torch.nn.Linear(model.fc.in_features, num_classes)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    model.register_forward_pre_hook(lambda _, args: ((args[0] / 2 + 0.5 - mean.to(args[0])) / std.to(args[0]),))
    return model


def backbones():
    """Names of the pretrained image models that can be used without a download, by asking the caches."""
    import torch
    from torchvision.models import ResNet50_Weights

    cached = os.path.join(torch.hub.get_dir(), "checkpoints", os.path.basename(ResNet50_Weights.DEFAULT.url))
    return ["efficientnet-lite0"] + (["resnet50"] if os.path.exists(cached) else [])


def smollm2(**options):
    """SmolLM2-135M-Instruct as (model, tokenizer), float32: de-quantised from a 4-bit GGUF, not the original.

    Reading the GGUF takes half a minute, so the first call keeps a converted copy (bit-exact) beside the assets.
    options: to `from_pretrained` of that copy, such as quantization_config, dtype or device_map.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    source, name = assets.fetch("smollm2-135m-instruct"), "SmolLM2-135M-Instruct.Q4_1.gguf"
    copy = source.with_name(source.name + "-converted")
    there = copy.exists()
    tokenizer = AutoTokenizer.from_pretrained(copy) if there else AutoTokenizer.from_pretrained(source, gguf_file=name)
    tokenizer.eos_token = tokenizer.pad_token = "<|im_end|>"  # transformers 5.17 takes the GGUF's bos for its eos
    tokenizer.clean_up_tokenization_spaces = False  # decode what is there; the file's flag only draws a warning
    if not there:
        model = AutoModelForCausalLM.from_pretrained(source, gguf_file=name)
        _keep_converted(model, tokenizer, copy)
        if not options:
            return model, tokenizer
        if not copy.exists():
            raise NbtoolsError(f"{copy} cannot be written; SmolLM2 with {', '.join(options)} needs a copy there.")
    return AutoModelForCausalLM.from_pretrained(copy, **options), tokenizer


def smollm2_folder():
    """The folder of SmolLM2's converted copy, for libraries that load models themselves; made if it is not there."""
    copy = assets.fetch("smollm2-135m-instruct")
    copy = copy.with_name(copy.name + "-converted")
    if not copy.exists():
        smollm2(device_map="cpu")
    return copy


def pocket():
    """The pocket model, ours, as (model, tokenizer): a small Llama that writes film opinions; see nbtools/pocket.py.

    float32, its weights stored in bfloat16; context 64; the tokenizer pads on the left and begins a text with <s>.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    folder = assets.CARDS / "own" / "pocket"
    return AutoModelForCausalLM.from_pretrained(folder, dtype="float32"), AutoTokenizer.from_pretrained(folder)


def minilm():
    """all-MiniLM-L6-v2 as (model, tokenizer): a BertModel without pooler, (B, T) -> last_hidden_state (B, T, 384)."""
    from transformers import AutoTokenizer, BertModel
    from transformers.utils import logging

    logging.disable_progress_bar()
    folder, level = assets.fetch("minilm-l6"), logging.get_verbosity()
    logging.set_verbosity_error()  # else it reports that the file holds a pooler, which this model does not use
    model = BertModel.from_pretrained(folder, add_pooling_layer=False)
    logging.set_verbosity(level)
    return model, AutoTokenizer.from_pretrained(folder)


def shape(name):
    """The configuration of a real model without its weights, as a transformers config; datasets/shapes.json."""
    from transformers import AutoConfig

    known = json.loads((assets.CARDS / "shapes.json").read_text(encoding="utf-8"))
    if name not in known:
        raise NbtoolsError(f"There is no shape {name!r}: choose one of {', '.join(known)}.")
    return AutoConfig.for_model(**{"model_type": "llama"} | known[name]["config"])


def vader(domain="movie"):
    """VADER's snippets as a list of dicts: id, text, rating (mean, -4 to 4), ratings (list of int, one a rater).

    domain: movie, amazon, nyt or tweets. An id of amazon or nyt is "DOCUMENT_PIECE". Hutto and Gilbert 2014.
    """
    stems = {
        "movie": "movieReviewSnippets",
        "amazon": "amazonReviewSnippets",
        "nyt": "nytEditorialSnippets",
        "tweets": "tweets",
    }
    if domain not in stems:
        raise NbtoolsError(f"There are no snippets of {domain!r}: choose one of {', '.join(stems)}.")
    with tarfile.open(assets.file("vader-snippets")) as box:
        texts, scores = (
            box.extractfile(f"hutto_ICWSM_2014/{stems[domain]}_{part}.txt").read().removeprefix(codecs.BOM_UTF8)
            for part in ("GroundTruth", "anonDataRatings")
        )
    texts, scores = (data.decode("latin-1").strip().split("\n") for data in (texts, scores))  # no splitlines: \x85
    ratings = {row.split("\t")[0]: json.loads(row.split("\t")[-1]) for row in scores}
    rows = (row.split("\t", 2) for row in texts)
    return [
        {"id": key, "text": text.strip(), "rating": float(mean), "ratings": ratings[key]} for key, mean, text in rows
    ]


def alpaca():
    """The instruction sample as a list of 999 dicts: instruction, input (often empty), output."""
    return json.loads(assets.file("instruction-samples", "alpaca_en_demo.json").read_text(encoding="utf-8"))


def wikipedia():
    """The Wikipedia sample as a list of passages, one str each."""
    return assets.file("instruction-samples", "wiki_demo.txt").read_text(encoding="utf-8").splitlines()


def squad():
    """SQuAD 1.1's development set as a list of 10,565 questions, in the file's order.

    Each is a dict: title (of the article), context, question, answers (list of str), starts (their places in context,
    in characters). In 15 of 34,680 answers the context does not hold the text at its start. Rajpurkar et al. 2016.
    """
    data = json.loads(assets.file("squad-dev", "squaddev.json").read_text(encoding="utf-8"))["data"]
    return [
        {
            "title": article["title"],
            "context": paragraph["context"],
            "question": row["question"],
            "answers": [answer["text"] for answer in row["answers"]],
            "starts": [answer["answer_start"] for answer in row["answers"]],
        }
        for article in data
        for paragraph in article["paragraphs"]
        for row in paragraph["qas"]
    ]


def intents():
    """Requests to a voice assistant as a list of 693 dicts: text, intent (one of seven, str). Coucke et al. 2018."""
    rows = json.loads(assets.file("intents", "task.json").read_text(encoding="utf-8"))["examples"]
    return [
        {
            "text": row["input"].removeprefix("Utterance: "),
            "intent": max(row["target_scores"], key=row["target_scores"].get),
        }
        for row in rows
    ]


def claims():
    """VitaminC's claims as a list of 54,668 dicts: evidence, claim, label (True, False or Neither, as str).

    Claims come in groups that share a passage or a claim: split by claim. Schuster et al. 2021.
    """
    rows = json.loads(assets.file("vitaminc", "task.json").read_text(encoding="utf-8"))["examples"]
    return [
        dict(zip(("evidence", "claim"), row["input"].split("\nClaim: "), strict=True))
        | {"label": max(row["target_scores"], key=row["target_scores"].get)}
        for row in rows
    ]


def synonyms():
    """WordNet's synonyms as {word: sorted list of words that share a meaning with it}, lower case, single words only.

    Miller 1995. Meanings are not told apart, and neither are parts of speech: "bank" has "deposit" and "trust".
    """
    found = {}
    for name in ("data.adj", "data.adv", "data.noun1", "data.noun2", "data.verb"):
        for line in assets.file("wordnet", name).read_text(encoding="latin-1").splitlines():
            if line[:1].isdigit():  # the licence stands before the data, indented
                fields = line.split(" ")
                words = {fields[4 + 2 * i].partition("(")[0].lower() for i in range(int(fields[3], 16))}
                words = {word for word in words if word.isalpha()}  # no phrases, joined by underscores
                for word in words:
                    found.setdefault(word, set()).update(words - {word})
    return {word: sorted(others) for word, others in found.items() if others}


def _keep_converted(model, tokenizer, folder):
    """Save a de-quantised model so that it loads as an ordinary one; where the cache is read-only, do not."""
    del model.config.quantization_config
    model.is_quantized = False
    for name in ("hf_quantizer", "quantization_method"):
        vars(model).pop(name, None)
    try:
        with tempfile.TemporaryDirectory(dir=folder.parent) as part:
            model.save_pretrained(part)
            tokenizer.save_pretrained(part)
            os.chmod(part, 0o755)  # a temporary directory is its owner's alone
            os.replace(part, folder)
            os.mkdir(part)  # TemporaryDirectory wants to remove something
    except OSError:
        return
