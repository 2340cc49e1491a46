"""The checks of lesson 13: round_to, stochastic_round, scaler_step and step_bytes.

Ground truth: torch's own casts, all numbers of a small format written out, the two neighbours and the mean of draws,
torch.amp.GradScaler over the same gradients, and the tensors that torch's AdamW leaves after a step.
"""

import copy

import torch

from nbtools.checks import exercise


def _round_to(x, exponent, mantissa):
    x, bias = x.to(torch.float64), 2 ** (exponent - 1) - 1
    least, largest = 1 - bias - mantissa, 2.0**bias * (2 - 2.0**-mantissa)
    digits = torch.frexp(x).exponent - 1 - mantissa
    step = torch.ldexp(torch.ones_like(x), torch.where(digits < least, least, digits))
    rounded = (x / step).round() * step
    return rounded.masked_fill(rounded > largest, torch.inf).masked_fill(rounded < -largest, -torch.inf)


def _stochastic_round(x, generator=None):
    below = (x.view(torch.int32) & -65536).view(torch.float32)  # the neighbour nearer to zero
    above = ((x.view(torch.int32) & -65536) + 65536).view(torch.float32)
    way = ((x.double() - below) / (above.double() - below)).nan_to_num(0.0)
    draw = torch.rand(x.shape, dtype=torch.float64, device=x.device, generator=generator)
    return torch.where(draw < way, above, below).bfloat16()


def _scaler_step(optimizer, scale, good=0, interval=2000, clip=None):
    grads = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    for grad in grads:
        grad.mul_(1 / scale)
    if any(not bool(torch.isfinite(grad).all()) for grad in grads):
        return scale * 0.5, 0
    if clip is not None:
        norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(grad) for grad in grads]))
        for grad in grads:
            grad.mul_((clip / (norm + 1e-6)).clamp(max=1.0))
    optimizer.step()
    good += 1
    return (2 * scale, 0) if good == interval else (scale, good)


def _step_bytes(model, master=False):
    weights = gradients = states = 0
    for p in model.parameters():
        size = p.numel() * p.element_size()
        weights += size
        if p.requires_grad:
            gradients += size
            states += p.numel() * 3 * 4 if master else size * 2
    return weights, gradients, states


def _same(a, b):
    """Equal numbers, signs of zeros too; nan is equal to nan."""
    return a.shape == b.shape and torch.equal(a.nan_to_num(7.0), b.nan_to_num(7.0)) and torch.equal(_sign(a), _sign(b))


def _sign(x):
    return torch.signbit(x) & ~x.isnan()


@exercise("round_to", reference=_round_to, minutes=10)
def check_round_to(round_to):
    """A format small enough to write out; torch's casts over all sizes; ties, subnormals, overflow, inf and nan."""
    x = torch.tensor([[1.2, -0.3, 5.0]])
    given, rounded = x.clone(), round_to(x, 3, 2)
    if not torch.is_tensor(rounded) or rounded.dtype != torch.float64 or rounded.shape != x.shape:
        yield "a float32 tensor (1, 3) should give a float64 tensor (1, 3)"
        return
    yield not x.equal(given) and "the numbers were changed in place: work on a copy"
    # three bits of exponent, two of mantissa: all numbers from 0 up
    numbers = [m / 16 for m in range(4)] + [2.0 ** (e - 3) * (1 + m / 4) for e in range(1, 7) for m in range(4)]
    numbers = torch.tensor(numbers, dtype=torch.float64)
    middle = (numbers[1:] + numbers[:-1]) / 2
    for name, x in (("numbers", numbers), ("negative numbers", -numbers)):
        yield not _same(round_to(x, 3, 2), x) and f"the {name} that a format holds should stay as they are"
    x = torch.cat([middle - 1e-3, middle + 1e-3])
    wanted = torch.cat([numbers[:-1], numbers[1:]])
    wrong = (round_to(x, 3, 2) != wanted).nonzero().flatten()
    yield len(wrong) and (
        f"3 exponent and 2 mantissa bits: {x[wrong[0]]:.4f} lies nearest to {wanted[wrong[0]]}, "
        f"not {round_to(x, 3, 2)[wrong[0]]}"
    )
    even = torch.stack([numbers[:-1], numbers[1:]], 1)[range(len(middle)), [i % 2 for i in range(len(middle))]]
    wrong = (round_to(middle, 3, 2) != even).nonzero().flatten()
    yield len(wrong) and (
        f"{middle[wrong[0]]} lies halfway between two numbers: the even mantissa is that of {even[wrong[0]]}"
    )
    size = torch.logspace(-46, 38.4, 20_000, dtype=torch.float64)
    x = (size * torch.randn(20_000).sign()).float()
    for name, form in (("bfloat16", (8, 7)), ("float16", (5, 10)), ("float8_e5m2", (5, 2))):
        wanted = x.to(getattr(torch, name)).double()
        found, large = round_to(x, *form), wanted.isinf()
        yield (found != wanted)[~large].any() and f"{name}: torch rounds random numbers of all sizes otherwise"
        yield (found != wanted)[large].any() and f"{name}: what rounds beyond the largest number should be infinite"
        border = torch.tensor(torch.finfo(getattr(torch, name)).max, dtype=torch.float64)
        half = border * (1 + 2.0 ** -(form[1] + 2) / (2 - 2.0 ** -form[1]))  # less than half a step above the largest
        yield round_to(half, *form) != border and f"{name}: just above the largest number the nearest is the largest"
    x = torch.tensor([1 + 2**-8 + 2**-40], dtype=torch.float64)  # in float32 it is halfway, and 1 is even
    yield round_to(x, 8, 7) != 1 + 2**-7 and "a float64 number just above halfway rounds up: compute in float64"
    special = torch.tensor([torch.inf, -torch.inf, torch.nan, 0.0, -0.0])
    yield not _same(round_to(special, 5, 10), special.double()) and "inf, -inf, nan, 0 and -0 should stay as they are"


@exercise("stochastic_round", reference=_stochastic_round, minutes=8)
def check_stochastic_round(stochastic_round):
    """Only the two neighbours; the right mean at many places, both signs; own draws, new each call; exact numbers."""
    seeded = torch.Generator().manual_seed
    x = torch.randn(1000) * torch.logspace(-6, 6, 1000)
    given, rounded = x.clone(), stochastic_round(x, seeded(0))
    if not torch.is_tensor(rounded) or rounded.dtype != torch.bfloat16 or rounded.shape != x.shape:
        yield "a float32 tensor should give a bfloat16 tensor of its shape"
        return
    yield not x.equal(given) and "the numbers were changed in place: work on a copy"
    yield not rounded.equal(stochastic_round(x, seeded(0))) and "the same seed should give the same result"
    state = torch.random.get_rng_state()
    stochastic_round(x, seeded(0))
    yield not torch.random.get_rng_state().equal(state) and "with a generator the global one should stay untouched"
    yield rounded.equal(stochastic_round(x, seeded(1))) and "another seed should give another result"
    g = seeded(0)
    same = stochastic_round(x, g).equal(stochastic_round(x, g))
    yield same and "two calls with one generator should draw anew: take it as it is, do not seed another from it"
    yield stochastic_round(x).equal(stochastic_round(x)) and "two calls without a generator should draw anew"
    zero = (x.view(torch.int32) & -65536).view(torch.float32)
    away = ((x.view(torch.int32) & -65536) + 65536).view(torch.float32)
    outside = (rounded.float() != zero) & (rounded.float() != away)
    yield outside.any() and f"{int(outside.sum())} of 1000 results are none of the number's two neighbours in bfloat16"
    held = torch.cat([torch.randn(2000).bfloat16().float(), torch.tensor([0.0, 1.0, -2.0, torch.inf, -torch.inf])])
    changed = sum(int((stochastic_round(held, seeded(s)).float() != held).sum()) for s in range(100))
    yield changed and "numbers that bfloat16 can hold should stay, always"
    yield not stochastic_round(torch.tensor([torch.nan]), seeded(0)).isnan().all() and "nan should stay nan"
    draws = 100_000
    for low, high in ((1.0, 1.0078125), (-1.0, -1.0078125), (0.0498046875, 0.05004882812), (-3e-5, -3.0040740967e-05)):
        low = torch.tensor(low).bfloat16().float()
        high = (low.view(torch.int32) + 65536).view(torch.float32)  # the next number away from zero
        for share in (0.01, 0.125, 0.37, 0.75):
            x = (low + share * (high - low)).expand(draws).contiguous()
            found = (stochastic_round(x, seeded(2)).float() == high).double().mean().item()
            yield abs(found - share) > 4.5 * (share * (1 - share) / draws) ** 0.5 and (
                f"{x[0]:.6g} lies {share} of the way from {low:.6g} to {high:.6g}: it should go there with that "
                f"probability, but did in {found:.3f} of {draws:,} draws"
            )
    x = torch.full((200, 200), 1.00390625)  # halfway
    found = (stochastic_round(x, seeded(3)).float() > 1).double()
    yield found.mean(0).std() > 0.1 and "numbers of a tensor should be drawn independently, each on its own"
    yield found.mean(1).std() > 0.1 and "numbers of a tensor should be drawn independently, row by row too"
    halves = torch.corrcoef(found.reshape(2, -1))[0, 1].abs()
    yield not halves < 0.05 and "numbers of a tensor should be drawn independently: its halves are alike or mirrored"


def _gradients():
    """Three gradients for each of 12 steps, unscaled; some not finite, some missing."""
    rows = [[torch.randn(3), torch.randn(2, 2), torch.randn(1)] for _ in range(12)]
    rows[3][0][1] = torch.inf
    rows[4][1][1, 0] = torch.nan
    rows[8][2][0] = -torch.inf
    rows[6][1] = None
    return rows


def _optimizers(make):
    params = [torch.nn.Parameter(x) for x in (torch.ones(3), torch.ones(2, 2), torch.ones(1), torch.ones(2))]
    twins = copy.deepcopy(params)
    return [(own, make([{"params": own[:1]}, {"params": own[1:], "lr": 0.03}])) for own in (params, twins)]


def _against_torch(scaler_step, make, interval, clip, scale=1024.0):
    """The first difference to GradScaler over 12 steps as a sentence, or None."""
    (own, optimizer), (twin, reference) = _optimizers(make)
    scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=interval)
    good = 0
    for step, grads in enumerate(_gradients()):
        before = scaler.scale(torch.ones(1)).item()
        for p, q, grad in zip(own[:3], twin[:3], grads, strict=True):
            p.grad, q.grad = (None, None) if grad is None else (grad * before, grad * before)
        answer = scaler_step(optimizer, scale, good, interval, clip)
        if not isinstance(answer, tuple) or len(answer) != 2:
            return f"the answer should be (scale, good), but is {answer!r}"
        scale, good = answer
        scaler.unscale_(reference)
        if clip is not None:
            torch.nn.utils.clip_grad_norm_([q for q in twin if q.grad is not None], clip)
        scaler.step(reference)
        scaler.update()
        where = f"step {step + 1} of 12 (steps 4, 5 and 9 have gradients that are not finite), scale {before:g}"
        if not all(torch.allclose(p, q, rtol=1e-6, atol=1e-7) for p, q in zip(own, twin, strict=True)):
            return f"{where}: torch's GradScaler leaves other parameters"
        if scale != scaler.get_scale():
            return f"{where}: the next scale should be {scaler.get_scale():g}, but is {scale}"
        if good != scaler._get_growth_tracker():
            return f"{where}: good steps in a row should be {scaler._get_growth_tracker()}, but are {good}"
    return None


@exercise("scaler_step", reference=_scaler_step, minutes=10)
def check_scaler_step(scaler_step):
    """Beside torch's GradScaler over 12 steps with inf, nan and missing gradients: SGD, AdamW; clipping; growth."""
    from functools import partial

    sgd = partial(torch.optim.SGD, lr=0.1, momentum=0.9)
    adamw = partial(torch.optim.AdamW, lr=0.1)
    yield (found := _against_torch(scaler_step, sgd, 100, None)) and f"SGD with momentum, {found}"
    yield (found := _against_torch(scaler_step, adamw, 100, None)) and f"AdamW, {found}"
    yield (found := _against_torch(scaler_step, sgd, 2, None)) and f"growing after 2 good steps, {found}"
    yield (found := _against_torch(scaler_step, sgd, 100, 0.5)) and f"clipped to 0.5, {found}"
    yield (found := _against_torch(scaler_step, adamw, 3, 0.5, 2.0**16)) and f"AdamW, clipped, {found}"
    yield (found := _against_torch(scaler_step, sgd, 100, None, 2.0)) and f"a small scale, {found}"
    (own, optimizer), (twin, reference) = _optimizers(sgd)
    for p, q in zip(own, twin, strict=True):
        p.grad, q.grad = torch.full_like(p, 8.0), torch.ones_like(q)
    yield scaler_step(optimizer, 8.0) != (8.0, 1) and "good, interval and clip left out: one good step gives (scale, 1)"
    reference.step()
    same = all(torch.allclose(p, q) for p, q in zip(own, twin, strict=True))
    yield not same and "clip left out: the step should be that of the unscaled gradients, not clipped"
    yield scaler_step(optimizer, 8.0, 1999) != (16.0, 0) and "interval left out: after 2,000 good steps it doubles"


def _models():
    """{what it is: a small model}."""
    torch.manual_seed(0)
    plain, frozen, mixed, buffers = (
        torch.nn.Sequential(torch.nn.Linear(5, 3), torch.nn.Linear(3, 2)) for _ in range(4)
    )
    frozen[0].requires_grad_(False)
    mixed[1].to(torch.bfloat16)
    mixed[0].bias.requires_grad_(False)
    buffers.append(torch.nn.BatchNorm1d(2))
    tied = torch.nn.Sequential(torch.nn.Embedding(7, 3), torch.nn.Linear(3, 7, bias=False))
    tied[1].weight = tied[0].weight
    still = torch.nn.Linear(4, 4).requires_grad_(False)
    half = torch.nn.Linear(6, 5).bfloat16()
    return {
        "of two linear layers": plain,
        "all in bfloat16": half,
        "with a frozen layer": frozen,
        "in two types, a bias of it frozen": mixed,
        "with buffers, which are no parameters": buffers,
        "whose two layers share one weight": tied,
        "with nothing to train": still,
    }


def _after_a_step(model, master):
    """Bytes of the parameters, of their gradients, and of what AdamW holds after a real step."""
    trained = [p for p in {*model.parameters()} if p.requires_grad]
    for p in trained:
        p.grad = torch.ones_like(p)
    held = [torch.nn.Parameter(p.detach().float().clone()) for p in trained] if master else trained
    for p in held:
        p.grad = torch.ones_like(p) if master else p.grad
    optimizer = torch.optim.AdamW(held, foreach=False) if held else None
    states = sum(p.nbytes for p in held) if master else 0
    if optimizer:
        optimizer.step()
        states += sum(t.nbytes for row in optimizer.state.values() for name, t in row.items() if name != "step")
    return sum(p.nbytes for p in {*model.parameters()}), sum(p.grad.nbytes for p in trained), states


@exercise("step_bytes", reference=_step_bytes, minutes=8)
def check_step_bytes(step_bytes):
    """Against what is there after a step of torch's AdamW: types, frozen and shared parameters, buffers, a master."""
    for what, model in _models().items():
        for master in (False, True):
            before = {name: p.detach().clone() for name, p in model.named_parameters()}
            found = step_bytes(model, master) if master else step_bytes(model)
            if not isinstance(found, tuple) or len(found) != 3:
                yield f"the answer should be (weights, gradients, states), but is {found!r}"
                return
            same = all(p.equal(before[name]) for name, p in model.named_parameters())
            yield not same and "the model was changed: only count"
            for name, own, wanted in zip(
                ("weights", "gradients", "states"), found, _after_a_step(model, master), strict=True
            ):
                yield own != wanted and (
                    f"a model {what}, {'with' if master else 'without'} a master copy: {name} take {wanted} bytes, "
                    f"not {own}"
                )
