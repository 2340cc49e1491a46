"""Answers to lesson 02's answer_span(offsets, sequence_ids, start, end), wrong and right."""


def _inside(offsets, sequence_ids, start, end):
    return [i for i, part in enumerate(sequence_ids) if part == 1 and offsets[i][0] < end and offsets[i][1] > start]


def _holds(offsets, sequence_ids, start, end):
    context = [offsets[i] for i, part in enumerate(sequence_ids) if part == 1]
    return bool(context) and context[0][0] <= start and context[-1][1] >= end


def wrong_question_too(offsets, sequence_ids, start, end):
    """Looks at all tokens, the question's too."""
    if not _holds(offsets, sequence_ids, start, end):
        return None
    inside = [i for i, (a, b) in enumerate(offsets) if a < end and b > start]
    return (inside[0], inside[-1]) if inside else None


def wrong_zero_for_none(offsets, sequence_ids, start, end):
    """Gives (0, 0) where the answer is not there."""
    inside = _inside(offsets, sequence_ids, start, end)
    return (inside[0], inside[-1]) if inside and _holds(offsets, sequence_ids, start, end) else (0, 0)


def wrong_part_of_an_answer(offsets, sequence_ids, start, end):
    """Takes the part of an answer that the window holds."""
    inside = _inside(offsets, sequence_ids, start, end)
    return (inside[0], inside[-1]) if inside else None


def wrong_end_not_included(offsets, sequence_ids, start, end):
    """Gives the token after the last."""
    inside = _inside(offsets, sequence_ids, start, end)
    return (inside[0], inside[-1] + 1) if inside and _holds(offsets, sequence_ids, start, end) else None


def wrong_whole_tokens_only(offsets, sequence_ids, start, end):
    """Wants the answer to begin and end where tokens do."""
    context = [i for i, part in enumerate(sequence_ids) if part == 1]
    first = [i for i in context if offsets[i][0] == start]
    last = [i for i in context if offsets[i][1] == end]
    return (first[0], last[0]) if first and last else None


def wrong_end_is_a_character_too_far(offsets, sequence_ids, start, end):
    """Counts the character at `end` in."""
    inside = _inside(offsets, sequence_ids, start, end + 1)
    return (inside[0], inside[-1]) if inside and _holds(offsets, sequence_ids, start, end) else None


def wrong_counts_from_the_context(offsets, sequence_ids, start, end):
    """Counts tokens from the first of the context."""
    inside = _inside(offsets, sequence_ids, start, end)
    if not inside or not _holds(offsets, sequence_ids, start, end):
        return None
    return inside[0] - sequence_ids.index(1), inside[-1] - sequence_ids.index(1)


def wrong_first_token_only(offsets, sequence_ids, start, end):
    """Gives the first token twice."""
    inside = _inside(offsets, sequence_ids, start, end)
    return (inside[0], inside[0]) if inside and _holds(offsets, sequence_ids, start, end) else None


def right_two_walks(offsets, sequence_ids, start, end):
    """Walks in from both ends of the context."""
    if 1 not in sequence_ids:
        return None
    a, b = sequence_ids.index(1), len(sequence_ids) - 1 - sequence_ids[::-1].index(1)
    if offsets[a][0] > start or offsets[b][1] < end:
        return None
    while offsets[a][1] <= start:
        a += 1
    while offsets[b][0] >= end:
        b -= 1
    return a, b
