"""Lesson 01: what its notebook defines, against torch, torchvision and timm; its backbone, against its authors' code.

The functions come out of the notebook by name. Networks are small or untrained wherever weights do not matter.
"""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models import resnet18
from torchvision.transforms import v2

from nbtools import assets, notebooks, zoo
from nbtools.errors import NbtoolsError

TAUGHT = (
    "to_pixels load_data draw stages unfreeze_top param_groups set_mode finetune embed correct corrupt mixup STRATEGIES"
)


@pytest.fixture(scope="module")
def lesson():
    """The functions of the notebook as attributes."""
    return SimpleNamespace(**notebooks.definitions("01", *TAUGHT.split()))


def untrained(name="efficientnet"):
    """A network of 10 classes with random weights: EfficientNet-Lite0 or ResNet-18."""
    torch.manual_seed(0)
    if name == "resnet18":
        return resnet18(num_classes=10)
    return zoo.efficientnet_lite0(num_classes=10, pretrained=False)


def pictures(count, size=32):
    """Random images uint8 (count, 3, size, size) and labels (count,)."""
    g = torch.Generator().manual_seed(0)
    images = torch.randint(256, (count, 3, size, size), generator=g, dtype=torch.uint8)
    return images, torch.randint(10, (count,), generator=g)


def copied(module):
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def changed(module, before):
    """The names of tensors (weights and statistics) that differ from the copy."""
    return {name for name, tensor in module.state_dict().items() if not torch.equal(tensor, before[name])}


NORM_STATE = ("running_mean", "running_var", "num_batches_tracked")


# --- images


def test_to_pixels_scales_and_resizes_like_torchvision(lesson):
    images, _ = pictures(4)
    given = images.clone()
    pixels = lesson.to_pixels(images)
    assert pixels.shape == (4, 3, 96, 96) and pixels.dtype == torch.float32
    assert pixels.is_contiguous(memory_format=torch.channels_last) and torch.equal(images, given)
    assert pixels.abs().max() < 1 + 1e-6
    resized = v2.functional.resize(images.float() / 255, [96, 96], v2.InterpolationMode.BILINEAR, antialias=False)
    torch.testing.assert_close(pixels.contiguous(), v2.functional.normalize(resized, [0.5] * 3, [0.5] * 3))
    black_and_white = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 3, 32, 32)
    ends = lesson.to_pixels(black_and_white, size=40)
    torch.testing.assert_close(ends.contiguous(), torch.tensor([-1.0, 1.0]).view(2, 1, 1, 1).expand(2, 3, 40, 40))


def test_cifar10_is_the_test_set():
    """1,000 a class in order, and the channel means that the literature gives for the test set."""
    images, labels = zoo.cifar10()
    assert images.shape == (10000, 3, 32, 32) and images.dtype == torch.uint8
    assert torch.equal(labels, torch.arange(10).repeat_interleave(1000))
    mean = (images.float() / 255).mean((0, 2, 3))
    torch.testing.assert_close(mean, torch.tensor([0.4942, 0.4851, 0.4504]), atol=2e-4, rtol=0)


@pytest.fixture
def numbered(lesson, monkeypatch):
    """The lesson's data, where an image is only its own number."""
    labels = torch.arange(10).repeat_interleave(1000)
    monkeypatch.setattr(zoo, "cifar10", lambda: (torch.arange(10000), labels))
    return lesson.load_data()


def test_the_three_parts_of_the_data_share_no_image(lesson, numbered):
    parts = [set(part.tolist()) for part in (numbered.test, numbered.val, numbered.pool)]
    assert [len(part) for part in parts] == [1000, 1000, 6000]
    assert len(set.union(*parts)) == 8000
    assert torch.equal(lesson.load_data().test, numbered.test)
    assert not torch.equal(lesson.load_data(seed=1).test, numbered.test)


@pytest.mark.parametrize("per_class", [1, 10, 100])
def test_draw_is_balanced_repeatable_and_from_the_pool(lesson, numbered, per_class):
    images, labels = lesson.draw(numbered, per_class, seed=3)
    assert labels.bincount(minlength=10).tolist() == [per_class] * 10
    assert torch.equal(numbered.labels[images], labels)  # each image with its own label
    drawn = set(images.tolist())
    assert len(drawn) == 10 * per_class and drawn <= set(numbered.pool.tolist())
    assert not drawn & set(torch.cat([numbered.test, numbered.val]).tolist())
    assert torch.equal(lesson.draw(numbered, per_class, seed=3)[0], images)
    assert not torch.equal(lesson.draw(numbered, per_class, seed=4)[0], images)


def test_noise_is_that_of_its_name(lesson):
    grey = torch.full((32, 3, 32, 32), 128, dtype=torch.uint8)
    noisy = lesson.corrupt(grey, "noise")
    assert noisy.dtype == torch.uint8 and noisy.shape == grey.shape and (grey == 128).all()
    assert noisy.float().std().item() == pytest.approx(25, abs=0.3)
    assert noisy.float().mean().item() == pytest.approx(127.5, abs=0.3)  # integers are cut off, not rounded
    assert torch.equal(lesson.corrupt(grey, "noise"), noisy)
    assert lesson.corrupt(torch.full_like(grey, 255), "noise").min() > 100  # white does not turn over into black


def test_blur_is_a_convolution_with_a_gaussian(lesson):
    images, _ = pictures(3)
    blurred = lesson.corrupt(images, "blur")
    bell = torch.exp(-(torch.arange(-2.0, 3) ** 2) / 2)
    kernel = (torch.outer(bell, bell) / bell.sum() ** 2).expand(3, 1, 5, 5)
    expected = F.conv2d(F.pad(images.float(), [2] * 4, mode="reflect"), kernel, groups=3)
    assert blurred.dtype == torch.uint8 and (blurred.float() - expected).abs().max() < 0.6
    flat = torch.full((1, 3, 32, 32), 77, dtype=torch.uint8)
    assert torch.equal(lesson.corrupt(flat, "blur"), flat)


def test_mixup_is_torchvisions(lesson):
    """v2.MixUp draws lambda itself: a white image paired with a black one shows which."""
    images, labels = torch.rand(6, 3, 8, 8), torch.tensor([3, 7, 7, 0, 9, 3])
    images[0], images[-1] = 1, 0
    seen = set()
    for seed in range(5):
        torch.manual_seed(seed)
        expected_images, expected_labels = v2.MixUp(alpha=0.7, num_classes=10)(images, labels)
        lam = expected_images[0, 0, 0, 0].item()
        mixed, soft = lesson.mixup(images, labels, lam, torch.arange(6).roll(1))
        torch.testing.assert_close(mixed, expected_images)
        torch.testing.assert_close(soft, expected_labels)
        seen.add(round(lam, 3))
    assert len(seen) == 5


# --- freezing


@pytest.mark.parametrize("name", ["efficientnet", "resnet18"])
def test_stages_hold_each_parameter_and_each_norm_once(lesson, name):
    model = untrained(name)
    parts = [module for _, modules in lesson.stages(model) for module in modules]
    assert sorted(id(p) for part in parts for p in part.parameters()) == sorted(map(id, model.parameters()))
    assert sorted(id(b) for part in parts for b in part.buffers()) == sorted(map(id, model.buffers()))


def test_stages_are_timms_layer_groups(lesson):
    """timm's grouping for rates by layer is the same, but for conv_head, which it counts with the last block."""
    from timm.models import group_parameters

    model = untrained()
    theirs = [set(names) for names in group_parameters(model, model.group_matcher(coarse=True)).values()]
    name_of = {id(p): name for name, p in model.named_parameters()}
    ours = [{name_of[id(p)] for m in modules for p in m.parameters()} for _, modules in lesson.stages(model)]
    assert [*ours[:7], ours[7] | ours[8], ours[9]] == theirs


@pytest.mark.parametrize("name", ["efficientnet", "resnet18"])
def test_only_the_top_gets_gradients(lesson, name):
    model = untrained(name)
    parts = lesson.stages(model)
    for k in (len(parts), 3, 1):
        lesson.unfreeze_top(model, k)
        model.zero_grad()
        model(torch.rand(2, 3, 32, 32)).square().sum().backward()
        has = [{p.grad is not None for m in modules for p in m.parameters()} for _, modules in parts]
        assert has == [{False}] * (len(parts) - k) + [{True}] * k


def test_parameters_of_resnet50():
    """The numbers everyone quotes, counted without allocating a weight."""
    with torch.device("meta"):
        whole, small = zoo.resnet50(pretrained=False), zoo.resnet50(num_classes=10, pretrained=False)
    assert sum(p.numel() for p in whole.parameters()) == 25_557_032
    assert sum(p.numel() for p in small.parameters()) == 23_528_522


def test_the_head_alone_is_20490_parameters_of_resnet50(lesson):
    with torch.device("meta"):
        model = zoo.resnet50(num_classes=10, pretrained=False)
    lesson.unfreeze_top(model, 1)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 20_490
    lesson.unfreeze_top(model, len(lesson.stages(model)))
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 23_528_522


@pytest.mark.parametrize("name", ["efficientnet", "resnet18"])
def test_frozen_norms_keep_their_statistics(lesson, name):
    """In train mode the open ones move and the frozen ones stay; under a plain model.train() all drift."""
    model = untrained(name)
    lesson.unfreeze_top(model, 3)
    frozen = nn.ModuleList(m for _, modules in lesson.stages(model)[:-3] for m in modules)
    top = nn.ModuleList(m for _, modules in lesson.stages(model)[-3:] for m in modules)
    states = copied(frozen), copied(top)
    lesson.set_mode(model)
    assert model.training
    model(torch.rand(2, 3, 32, 32))
    assert not changed(frozen, states[0])
    assert changed(top, states[1]) == {n for n in states[1] if n.endswith(NORM_STATE)}
    top.load_state_dict(states[1])
    lesson.set_mode(model, fixed_statistics=True)
    model(torch.rand(2, 3, 32, 32))
    assert not changed(frozen, states[0]) and not changed(top, states[1])
    model.train()
    model(torch.rand(2, 3, 32, 32))
    assert changed(frozen, states[0]) == {n for n in states[0] if n.endswith(NORM_STATE)}


@pytest.mark.parametrize("strategy", ["scratch", "frozen", "partial", "progressive", "probe_then_tune"])
def test_a_seed_fixes_the_start_and_the_whole_run(lesson, strategy):
    """Random numbers drawn before a run must not change it: a resumed study would give other results."""
    images, labels = pictures(8)

    def run(seed, before):
        torch.rand(before)
        options = {"lr": 1e-3, "steps": 8, "seed": seed, "tick": lambda *a, **k: None}
        return lesson.STRATEGIES[strategy](images, labels, **options).classifier.weight

    first = run(3, before=1)
    assert torch.equal(first, run(3, before=7))
    assert not torch.equal(first, run(4, before=1))


@pytest.mark.parametrize("given", ["open", "all"])
def test_finetune_changes_nothing_that_is_frozen(lesson, given):
    """Neither weights nor statistics, whether the optimizer gets the open parameters or all of them."""
    model, (images, labels) = untrained(), pictures(4)
    lesson.unfreeze_top(model, 3)
    frozen = nn.ModuleList(m for _, modules in lesson.stages(model)[:-3] for m in modules)
    states = copied(frozen), copied(model)
    groups = [p for p in model.parameters() if p.requires_grad]
    if given == "all":
        groups = lesson.param_groups(model, 1e-3, 0.5)
    history = lesson.finetune(model, images, labels, groups, lr=1e-3, steps=3, tick=lambda *a, **k: None)
    assert len(history) == 3 and not changed(frozen, states[0])
    moved = changed(model, states[1])
    assert {"classifier.weight", "conv_head.weight", "bn2.running_mean", "blocks.6.0.conv_pw.weight"} <= moved


@pytest.mark.parametrize("name", ["efficientnet", "resnet18"])
def test_each_stage_moves_at_its_rate(lesson, name):
    """AdamW's first step moves a weight by exactly its rate, so the rates can be read off the weights."""
    model = untrained(name)
    optimizer = torch.optim.AdamW(lesson.param_groups(model, lr=0.1, decay=0.6), weight_decay=0)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    before = {p: p.detach().double() for p in model.parameters()}
    optimizer.step()
    for depth, (_, modules) in enumerate(reversed(lesson.stages(model))):
        for p in (p for module in modules for p in module.parameters()):
            step, rate = before[p] - p.detach(), torch.full_like(before[p], 0.1 * 0.6**depth)
            torch.testing.assert_close(step, rate, rtol=1e-3, atol=1e-6)


# --- features


@pytest.mark.parametrize("name", ["efficientnet", "resnet18"])
def test_embed_is_the_network_without_its_head(lesson, name):
    model, (images, labels) = untrained(name), pictures(4)
    features = lesson.embed(model, images)
    with torch.no_grad():
        pixels = lesson.to_pixels(images)
        if name == "efficientnet":
            expected = model.forward_head(model.forward_features(pixels), pre_logits=True)
        else:
            expected = nn.Sequential(*list(model.children())[:-1], nn.Flatten())(pixels)
    torch.testing.assert_close(features, expected)
    assert not features.requires_grad and expected.std() > 0
    head = lesson.stages(model)[-1][1][0]
    assert not head._forward_pre_hooks  # nothing is left behind in the model
    assert torch.equal(lesson.correct(model, images, labels), head(features).argmax(1) == labels)


# --- the backbones


@pytest.fixture(scope="module")
def photos():
    """The two photos as the network wants them: timm's own evaluation transform, 256 pixels cut to 224."""
    from timm.data import create_transform, resolve_model_data_config

    transform = create_transform(**resolve_model_data_config(untrained()), is_training=False)
    return torch.stack([transform(zoo.photo(name)) for name in ("chelsea", "coffee")])


@pytest.fixture(scope="module")
def expected(photos):
    """The logits by the code that the weights were published with."""
    from efficientnet_lite_pytorch import EfficientNet

    model = EfficientNet.from_name("efficientnet-lite0").eval()
    model.load_state_dict(torch.load(assets.file("efficientnet-lite0"), weights_only=True))
    with torch.no_grad():
        return model(photos)


def logits(photos):
    with torch.no_grad():
        return zoo.efficientnet_lite0().eval()(photos)


def test_efficientnet_is_that_of_its_own_code(photos, expected):
    found = logits(photos)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    chances = found.softmax(1)
    assert chances.argmax(1).tolist() == [282, 967]  # tiger cat, espresso
    assert chances[0, 282].item() == pytest.approx(0.39, abs=0.02)
    assert chances[1, 967].item() == pytest.approx(0.95, abs=0.01)


SWAPS = [
    ("bn1.weight", "bn1.bias"),
    ("blocks.0.0.bn1.running_mean", "blocks.0.0.bn1.running_var"),
    ("blocks.4.1.conv_pw.weight", "blocks.4.2.conv_pw.weight"),
    ("blocks.5.2.bn2.weight", "blocks.5.3.bn2.weight"),
    ("bn2.weight", "bn2.running_var"),
]


@pytest.mark.parametrize(("one", "other"), SWAPS)
def test_two_tensors_swapped_would_be_seen(photos, expected, monkeypatch, one, other):
    """Tensors are paired by position; where two of one shape change places, the logits tell."""
    rename = zoo.rename

    def swapped(weights, own):
        named = rename(weights, own)
        assert named[one].shape == named[other].shape
        return named | {one: named[other], other: named[one]}

    monkeypatch.setattr(zoo, "rename", swapped)
    with pytest.raises(AssertionError, match="not close"):
        torch.testing.assert_close(logits(photos), expected, atol=1e-4, rtol=0)


def test_rename_refuses_what_does_not_fit():
    own = {"a": torch.zeros(2, 3), "b": torch.zeros(3)}
    weights = {"x": torch.ones(2, 3), "y": torch.ones(3)}
    assert zoo.rename(weights, own) == {"a": weights["x"], "b": weights["y"]}
    with pytest.raises(NbtoolsError, match="2 tensors.* file 1"):
        zoo.rename({"x": weights["x"]}, own)
    with pytest.raises(NbtoolsError, match=r"b \(3,\).* y \(4,\)"):
        zoo.rename(weights | {"y": torch.ones(4)}, own)


def test_a_new_head_leaves_the_body_as_it_was():
    """And its start is nn.Linear's, at most 1 / sqrt(1280) wide."""
    ours, whole = zoo.efficientnet_lite0(num_classes=10), zoo.efficientnet_lite0()
    assert changed(ours, copied(whole)) == {"classifier.weight", "classifier.bias"}
    assert ours.classifier.weight.shape == (10, 1280)
    assert ours.classifier.weight.abs().max() <= 1280**-0.5


def test_resnet50_takes_the_same_pixels_as_the_other_backbone():
    """Its own normalisation is put in front: from [-1, 1] to ImageNet's mean and deviation."""
    from torchvision.models import ResNet50_Weights

    model, seen = zoo.resnet50(pretrained=False).eval(), []
    model.conv1.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    image = torch.rand(1, 3, 64, 64)
    model(v2.functional.normalize(image, [0.5] * 3, [0.5] * 3))
    transform = ResNet50_Weights.DEFAULT.transforms()
    torch.testing.assert_close(seen[0], v2.functional.normalize(image, transform.mean, transform.std))
