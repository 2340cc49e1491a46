"""Answers to lesson 12's pacing(step, steps, start, end, power), wrong and right."""


def _refuse(step, steps, start, end, power):
    if not (steps > 0 and 0 <= step <= steps and 0 < start <= 1 and 0 < end <= 1 and power >= 0):
        raise ValueError("out of range")


def wrong_forgets_to_stop_at_one(step, steps, start=0.2, end=0.8, power=1.0):
    """Goes on growing after the end."""
    _refuse(step, steps, start, end, power)
    return start + (1 - start) * (step / (end * steps)) ** power


def wrong_ends_at_steps(step, steps, start=0.2, end=0.8, power=1.0):
    """Opens all only at the last step."""
    _refuse(step, steps, start, end, power)
    return start + (1 - start) * (step / steps) ** power


def wrong_starts_at_zero(step, steps, start=0.2, end=0.8, power=1.0):
    """Takes the start as a smallest share, not as where the growth begins."""
    _refuse(step, steps, start, end, power)
    return max(start, min(1.0, step / (end * steps)) ** power)


def wrong_power_of_the_whole(step, steps, start=0.2, end=0.8, power=1.0):
    """Raises the whole share to the power, the start with it."""
    _refuse(step, steps, start, end, power)
    return (start + (1 - start) * min(1.0, step / (end * steps))) ** power


def wrong_root_for_power(step, steps, start=0.2, end=0.8, power=1.0):
    """Takes the power's root: fast and slow are exchanged."""
    _refuse(step, steps, start, end, power)
    return start + (1 - start) * min(1.0, step / (end * steps)) ** (1 / power if power else 0)


def wrong_adds_the_start(step, steps, start=0.2, end=0.8, power=1.0):
    """Adds the start without making room for it."""
    _refuse(step, steps, start, end, power)
    return min(1.0, start + min(1.0, step / (end * steps)) ** power)


def wrong_accepts_anything(step, steps, start=0.2, end=0.8, power=1.0):
    """Says nothing about a start of 0 or a step that is not there."""
    return start + (1 - start) * max(0.0, min(1.0, step / (end * steps))) ** power


def wrong_returns_a_count(step, steps, start=0.2, end=0.8, power=1.0):
    """Returns steps instead of a share."""
    _refuse(step, steps, start, end, power)
    return round(steps * (start + (1 - start) * min(1.0, step / (end * steps)) ** power))


def right_by_what_is_closed(step, steps, start=0.2, end=0.8, power=1.0):
    """Computes the part still closed and takes it off."""
    for value, low in ((start, 0), (end, 0)):
        if value <= low or value > 1:
            raise ValueError(f"{value} is not a share")
    if steps <= 0 or step not in range(steps + 1) or power < 0:
        raise ValueError(f"step {step} of {steps} or power {power} cannot be")
    if step >= end * steps:
        return 1.0
    return 1.0 - (1.0 - start) * (1.0 - (step / end / steps) ** power)
