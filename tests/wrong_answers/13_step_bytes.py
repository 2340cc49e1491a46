"""Answers to lesson 13's step_bytes(model, master), wrong and right."""


def _trained(model):
    return [p for p in model.parameters() if p.requires_grad]


def _weights(model):
    return sum(p.nbytes for p in model.parameters())


def wrong_gradients_of_all(model, master=False):
    """Gives frozen parameters a gradient too."""
    weights, trained = _weights(model), _trained(model)
    return weights, weights, 12 * sum(p.numel() for p in trained) if master else 2 * sum(p.nbytes for p in trained)


def wrong_states_of_all(model, master=False):
    """Gives frozen parameters states too."""
    states = 12 * sum(p.numel() for p in model.parameters()) if master else 2 * _weights(model)
    return _weights(model), sum(p.nbytes for p in _trained(model)), states


def wrong_one_state(model, master=False):
    """AdamW with one number a weight, as momentum has."""
    gradients = sum(p.nbytes for p in _trained(model))
    return _weights(model), gradients, 8 * sum(p.numel() for p in _trained(model)) if master else gradients


def wrong_master_not_counted(model, master=False):
    """Counts the master's two states and forgets the copy."""
    gradients = sum(p.nbytes for p in _trained(model))
    return _weights(model), gradients, 8 * sum(p.numel() for p in _trained(model)) if master else 2 * gradients


def wrong_master_for_weights(model, master=False):
    """Puts the master among the weights."""
    trained = _trained(model)
    numbers, gradients = sum(p.numel() for p in trained), sum(p.nbytes for p in trained)
    return _weights(model) + 4 * numbers * master, gradients, 8 * numbers if master else 2 * gradients


def wrong_states_in_float32(model, master=False):
    """States of four bytes a number, whatever the weight's type."""
    trained = _trained(model)
    states = (12 if master else 8) * sum(p.numel() for p in trained)
    return _weights(model), sum(p.nbytes for p in trained), states


def wrong_gradients_in_float32(model, master=False):
    """Gradients of four bytes a number, whatever the weight's type."""
    trained = _trained(model)
    numbers = sum(p.numel() for p in trained)
    return _weights(model), 4 * numbers, 12 * numbers if master else 2 * sum(p.nbytes for p in trained)


def wrong_sixteen_bytes(model, master=False):
    """The rule of four, four and eight bytes."""
    numbers = sum(p.numel() for p in _trained(model))
    return 4 * sum(p.numel() for p in model.parameters()), 4 * numbers, (12 if master else 8) * numbers


def wrong_first_type_for_all(model, master=False):
    """Takes the first parameter's type for that of all."""
    width = next(model.parameters()).element_size()
    numbers = sum(p.numel() for p in _trained(model))
    return width * sum(p.numel() for p in model.parameters()), width * numbers, (12 if master else 2 * width) * numbers


def wrong_shared_twice(model, master=False):
    """Goes through the state's names, so a shared weight counts twice, and buffers count as weights."""
    trained = _trained(model)
    gradients = sum(p.nbytes for p in trained)
    states = 12 * sum(p.numel() for p in trained) if master else 2 * gradients
    return sum(t.nbytes for t in model.state_dict().values()), gradients, states


def wrong_layer_by_layer(model, master=False):
    """Goes through the layers, so a shared weight counts twice."""
    params = [p for layer in model.modules() for p in layer.parameters(recurse=False)]
    trained = [p for p in params if p.requires_grad]
    gradients = sum(p.nbytes for p in trained)
    states = 12 * sum(p.numel() for p in trained) if master else 2 * gradients
    return sum(p.nbytes for p in params), gradients, states


def wrong_numbers(model, master=False):
    """Counts numbers, not bytes."""
    numbers = sum(p.numel() for p in _trained(model))
    return sum(p.numel() for p in model.parameters()), numbers, (3 if master else 2) * numbers


def wrong_the_sum(model, master=False):
    """Gives one number."""
    trained = _trained(model)
    gradients = sum(p.nbytes for p in trained)
    return _weights(model) + gradients + (12 * sum(p.numel() for p in trained) if master else 2 * gradients)


def wrong_ignores_master(model, master=False):
    """Two states in the weight's type, master or not."""
    gradients = sum(p.nbytes for p in _trained(model))
    return _weights(model), gradients, 2 * gradients


def right_by_storage(model, master=False):
    """Counts storages, by where they lie."""
    places = {p.data_ptr(): p for p in model.parameters()}
    trained = [p for p in places.values() if p.requires_grad]
    kept = sum(p.untyped_storage().nbytes() for p in places.values())
    gradients = sum(p.untyped_storage().nbytes() for p in trained)
    states = 3 * sum(p.float().untyped_storage().nbytes() for p in trained) if master else gradients + gradients
    return kept, gradients, states
