"""Answers to lesson 14's Checkpoint, wrong and right."""

import torch


class _Kept(torch.autograd.Function):
    """A right forward pass, for those that go wrong in backward."""

    @staticmethod
    def forward(ctx, run, *inputs):
        ctx.run, ctx.state = run, torch.get_rng_state()
        ctx.save_for_backward(*inputs)
        return run(*inputs)

    @staticmethod
    def again(ctx, inputs):
        """The second run, in the first one's random state."""
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            torch.set_rng_state(ctx.state)
            return ctx.run(*inputs)

    @staticmethod
    def fresh(ctx):
        return [x.detach().requires_grad_(x.requires_grad) for x in ctx.saved_tensors]


class wrong_no_random_state(_Kept):
    """Runs again with other random numbers: dropout drops other places."""

    @staticmethod
    def backward(ctx, grad):
        inputs = _Kept.fresh(ctx)
        with torch.enable_grad():
            result = ctx.run(*inputs)
        torch.autograd.backward(result, grad)
        return (None, *(x.grad for x in inputs))


class wrong_state_not_put_back(_Kept):
    """Puts the old random state in and leaves it there: the rest of the training draws numbers again."""

    @staticmethod
    def backward(ctx, grad):
        inputs = _Kept.fresh(ctx)
        torch.set_rng_state(ctx.state)
        with torch.enable_grad():
            result = ctx.run(*inputs)
        torch.autograd.backward(result, grad)
        return (None, *(x.grad for x in inputs))


class wrong_not_detached(_Kept):
    """Runs on the inputs as they are: the inner backward goes on through the whole network before them."""

    @staticmethod
    def backward(ctx, grad):
        inputs = ctx.saved_tensors
        for x in inputs:
            if x.requires_grad:
                x.retain_grad()
        torch.autograd.backward(_Kept.again(ctx, inputs), grad)
        return (None, *(x.grad for x in inputs))


class wrong_inputs_alone(_Kept):
    """Asks for the inputs' gradients alone: parameters inside get none."""

    @staticmethod
    def backward(ctx, grad):
        inputs = _Kept.fresh(ctx)
        open_ones = [x for x in inputs if x.requires_grad]
        found = iter(torch.autograd.grad(_Kept.again(ctx, inputs), open_ones, grad))
        return (None, *(next(found) if x.requires_grad else None for x in inputs))


class wrong_ignores_the_gradient(_Kept):
    """Goes backward from the result's sum, whatever comes from above."""

    @staticmethod
    def backward(ctx, grad):
        inputs = _Kept.fresh(ctx)
        result = _Kept.again(ctx, inputs)
        torch.autograd.backward(result, torch.ones_like(result))
        return (None, *(x.grad for x in inputs))


class wrong_every_input_open(_Kept):
    """Asks every input for a gradient, integers too."""

    @staticmethod
    def backward(ctx, grad):
        inputs = [x.detach().requires_grad_() for x in ctx.saved_tensors]
        torch.autograd.backward(_Kept.again(ctx, inputs), grad)
        return (None, *(x.grad for x in inputs))


class wrong_keeps_the_graph(torch.autograd.Function):
    """Makes the graph in forward and goes through it in backward: nothing is saved."""

    @staticmethod
    def forward(ctx, run, *inputs):
        ctx.inputs = [x.detach().requires_grad_(x.requires_grad) for x in inputs]
        with torch.enable_grad():
            ctx.result = run(*ctx.inputs)
        return ctx.result.detach()

    @staticmethod
    def backward(ctx, grad):
        torch.autograd.backward(ctx.result, grad)
        return (None, *(x.grad for x in ctx.inputs))


class wrong_on_ctx(_Kept):
    """Hangs the inputs on ctx: nobody sees that they are kept, nor that one was changed."""

    @staticmethod
    def forward(ctx, run, *inputs):
        ctx.run, ctx.state, ctx.inputs = run, torch.get_rng_state(), inputs
        return run(*inputs)

    @staticmethod
    def backward(ctx, grad):
        inputs = [x.detach().requires_grad_(x.requires_grad) for x in ctx.inputs]
        torch.autograd.backward(_Kept.again(ctx, inputs), grad)
        return (None, *(x.grad for x in inputs))


class wrong_copies(_Kept):
    """Keeps copies: twice the bytes wherever an input is kept anyway, and a change of the input goes unseen."""

    @staticmethod
    def forward(ctx, run, *inputs):
        ctx.run, ctx.state, ctx.open = run, torch.get_rng_state(), [x.requires_grad for x in inputs]
        ctx.save_for_backward(*(x.clone() for x in inputs))
        return run(*inputs)

    @staticmethod
    def backward(ctx, grad):
        inputs = [x.requires_grad_(is_open) for x, is_open in zip(ctx.saved_tensors, ctx.open, strict=True)]
        torch.autograd.backward(_Kept.again(ctx, inputs), grad)
        return (None, *(x.grad for x in inputs))


class wrong_no_none(_Kept):
    """Returns one gradient too few: none for run."""

    @staticmethod
    def backward(ctx, grad):
        inputs = _Kept.fresh(ctx)
        torch.autograd.backward(_Kept.again(ctx, inputs), grad)
        return tuple(x.grad for x in inputs)


class wrong_first_input_alone(_Kept):
    """Gives the first input's gradient and None for the others."""

    @staticmethod
    def backward(ctx, grad):
        inputs = _Kept.fresh(ctx)
        torch.autograd.backward(_Kept.again(ctx, inputs), grad)
        return (None, inputs[0].grad, *(None for _ in inputs[1:]))


class wrong_graph_off(_Kept):
    """Forgets that gradients are off inside backward."""

    @staticmethod
    def backward(ctx, grad):
        inputs = _Kept.fresh(ctx)
        torch.autograd.backward(ctx.run(*inputs), grad)
        return (None, *(x.grad for x in inputs))


class wrong_random_state_on_the_class(_Kept):
    """Notes the random state on the class: a second use in the graph overwrites the first one's."""

    @staticmethod
    def forward(ctx, run, *inputs):
        ctx.run, wrong_random_state_on_the_class.state = run, torch.get_rng_state()
        ctx.save_for_backward(*inputs)
        return run(*inputs)

    @staticmethod
    def backward(ctx, grad):
        inputs, ctx.state = _Kept.fresh(ctx), wrong_random_state_on_the_class.state
        torch.autograd.backward(_Kept.again(ctx, inputs), grad)
        return (None, *(x.grad for x in inputs))


class wrong_run_on_the_class(_Kept):
    """Notes run on the class: with two uses in a graph the last one's runs for both."""

    @staticmethod
    def forward(ctx, run, *inputs):
        wrong_run_on_the_class.run, ctx.state = run, torch.get_rng_state()
        ctx.save_for_backward(*inputs)
        return run(*inputs)

    @staticmethod
    def backward(ctx, grad):
        inputs, ctx.run = _Kept.fresh(ctx), wrong_run_on_the_class.run
        torch.autograd.backward(_Kept.again(ctx, inputs), grad)
        return (None, *(x.grad for x in inputs))


class wrong_two_inputs_alone(_Kept):
    """Takes two inputs, never one or three."""

    @staticmethod
    def backward(ctx, grad):
        a, b = _Kept.fresh(ctx)
        torch.autograd.backward(_Kept.again(ctx, (a, b)), grad)
        return None, a.grad, b.grad


class wrong_every_float_open(_Kept):
    """Asks every input of floats for a gradient: the second run works for gradients that nobody takes."""

    @staticmethod
    def backward(ctx, grad):
        inputs = [x.detach().requires_grad_(x.is_floating_point()) for x in ctx.saved_tensors]
        torch.autograd.backward(_Kept.again(ctx, inputs), grad)
        return (None, *(x.grad for x in inputs))


class wrong_keeps_the_output(_Kept):
    """Keeps a copy of the result on ctx as well."""

    @staticmethod
    def forward(ctx, run, *inputs):
        ctx.run, ctx.state = run, torch.get_rng_state()
        ctx.save_for_backward(*inputs)
        out = run(*inputs)
        ctx.out = out.clone()
        return out

    @staticmethod
    def backward(ctx, grad):
        inputs = _Kept.fresh(ctx)
        torch.autograd.backward(_Kept.again(ctx, inputs), grad)
        return (None, *(x.grad for x in inputs))


class wrong_keeps_a_graph_too(_Kept):
    """Right gradients by a second run, and a graph of the first one held on ctx for nothing."""

    @staticmethod
    def forward(ctx, run, *inputs):
        ctx.run, ctx.state = run, torch.get_rng_state()
        with torch.enable_grad():
            ctx.waste = run(*(x.detach().requires_grad_(x.requires_grad) for x in inputs))
        ctx.save_for_backward(*inputs)
        return ctx.waste.detach()

    @staticmethod
    def backward(ctx, grad):
        inputs = _Kept.fresh(ctx)
        torch.autograd.backward(_Kept.again(ctx, inputs), grad)
        return (None, *(x.grad for x in inputs))


class right_by_need(_Kept):
    """Asks for what autograd says is needed; the stream of random numbers is put back by hand."""

    @staticmethod
    def backward(ctx, grad):
        needed = ctx.needs_input_grad[1:]
        inputs = [x.detach().requires_grad_(need) for x, need in zip(ctx.saved_tensors, needed, strict=True)]
        now = torch.get_rng_state()
        torch.set_rng_state(ctx.state)
        try:
            with torch.enable_grad():
                result = ctx.run(*inputs)
        finally:
            torch.set_rng_state(now)
        result.backward(grad)
        return (None, *(x.grad for x in inputs))


class right_by_grad(_Kept):
    """Through the scalar product of result and gradient."""

    @staticmethod
    def backward(ctx, grad):
        inputs = _Kept.fresh(ctx)
        result = _Kept.again(ctx, inputs)
        with torch.enable_grad():
            (result * grad).sum().backward()
        return None, *[x.grad for x in inputs]
