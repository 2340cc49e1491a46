"""The checks of lesson 02: align_labels, answer_span and token_f1.

Ground truth: the first place of each word; a map from every character to its token; SQuAD 1.1's rules over lists.
"""

import random
import re
import string

from nbtools.checks import exercise


def _align_labels(word_ids, labels):
    seen, found = set(), []
    for word in word_ids:
        found.append(-100 if word is None or word in seen else labels[word])
        seen.add(word)
    return found


def _answer_span(offsets, sequence_ids, start, end):
    place = {}
    for i, part in enumerate(sequence_ids):
        if part == 1:
            place |= dict.fromkeys(range(*offsets[i]), i)
    if not place or start < min(place) or end - 1 > max(place):
        return None
    inside = [place[c] for c in range(start, end) if c in place]
    return (inside[0], inside[-1]) if inside else None


def _words(text):
    kept = "".join(c for c in text.lower() if c not in string.punctuation)
    return [word for word in re.split(r"\s+", kept) if word and word not in ("a", "an", "the")]


def _token_f1(prediction, answers):
    best = 0.0
    for answer in answers:
        guess, truth = _words(prediction), _words(answer)
        left = list(truth)
        for word in guess:
            if word in left:
                left.remove(word)
        shared = len(truth) - len(left)
        if shared:
            precision, recall = shared / len(guess), shared / len(truth)
            best = max(best, 2 * precision * recall / (precision + recall))
    return best


@exercise("align_labels", reference=_align_labels, minutes=5)
def check_align_labels(align_labels):
    """Special tokens, pieces, word 0, label 0, words of one label, words without a token, padding; random sentences."""
    ids, labels = [None, 0, 0, 0, 1, None, None], [5, 3]
    found = align_labels(list(ids), list(labels))
    if not isinstance(found, list) or len(found) != len(ids) or not all(type(label) is int for label in found):
        yield f"7 tokens should give a list of 7 labels (int), not {found!r}"
        return
    yield (found[0], found[5], found[6]) != (-100,) * 3 and (
        f"[CLS], [SEP] and padding have no word (None): they get -100, not {found[0]}, {found[5]} and {found[6]}"
    )
    yield found[1] != 5 and f"the first token belongs to word 0, whose label is 5, not {found[1]}"
    yield found[2:4] != [-100, -100] and f"a word's further tokens get -100, not {found[2:4]}"
    yield found[4] != 3 and f"the one token of word 1 carries its label 3, not {found[4]}"
    found = align_labels([None, 0, 1, 1, None], [0, 0])
    yield found != [-100, 0, 0, -100, -100] and f"two words of the same label 0 are two words: {found}"
    found = align_labels([None, 0, 2, 2, 3, None], [1, 9, 4, 6])
    yield found != [-100, 1, 4, -100, 6, -100] and (
        f"a word without a token, such as an empty one, is left out and the next ones keep their own labels: {found}"
    )
    found = align_labels([None, 0, 0, None], [2, 7, 7])
    yield found != [-100, 2, -100, -100] and f"words cut off at the end have no token and no label: {found}"
    yield align_labels([None, None], []) != [-100, -100] and "a sentence without a token of its own is all -100"
    rng = random.Random(0)
    for _ in range(200):
        labels = [rng.randrange(7) for _ in range(rng.randrange(1, 9))]
        ids = [None] + [w for w in range(len(labels)) for _ in range(rng.choice((0, 1, 1, 2, 4)))] + [None] * 2
        given = list(ids), list(labels)
        found, wanted = align_labels(*given), _align_labels(ids, labels)
        if found != wanted:
            yield f"word_ids {ids} with labels {labels} should give {wanted}, not {found}"
            return
        if given != (ids, labels):
            yield "the lists that were given should stay as they are"
            return
    yield None


def _window(rng):
    """A made-up window: (offsets, sequence_ids, {character: token}) of a question and a part of a context."""
    question = [(i, i + 2) for i in range(0, 2 * rng.randrange(1, 5), 2)]
    pieces, at = [], 0
    for _ in range(rng.randrange(6, 14)):
        size = rng.randrange(1, 5)
        pieces.append((at, at + size))
        at += size + rng.choice((0, 0, 1))  # the next token follows at once, or after a space
    a = rng.randrange(0, len(pieces) - 3)
    kept = pieces[a : rng.randrange(a + 2, len(pieces) + 1)]
    offsets = [(0, 0), *question, (0, 0), *kept, (0, 0), (0, 0)]
    parts = [None, *[0] * len(question), None, *[1] * len(kept), None, None]
    place = {c: len(question) + 2 + k for k, piece in enumerate(kept) for c in range(*piece)}
    return offsets, parts, place, at


@exercise("answer_span", reference=_answer_span, minutes=10)
def check_answer_span(answer_span):
    """One window by hand, then random ones against a map of characters: inside, cut, outside; question not touched."""
    # [CLS] wh at [SEP] in 19 90s . [SEP]: the context "in 1990s."
    offsets = [(0, 0), (0, 2), (2, 4), (0, 0), (0, 2), (3, 5), (5, 8), (8, 9), (0, 0)]
    parts = [None, 0, 0, None, 1, 1, 1, 1, None]
    found = answer_span(list(offsets), list(parts), 3, 8)
    if found is not None and (not isinstance(found, tuple) or len(found) != 2):
        yield f"the answer should be a pair (first, last) or None, not {found!r}"
        return
    yield found != (5, 6) and f"'1990s' are the characters 3 to 8, tokens 5 and 6, not {found}"
    found = answer_span(offsets, parts, 0, 2)
    yield found != (4, 4) and (
        f"'in' are the characters 0 to 2 of the context, token 4; tokens 0 and 1 are [CLS] and the question's: {found}"
    )
    found = answer_span(offsets, parts, 3, 7)
    yield found != (5, 6) and f"'1990' ends inside token 6, which is then the last: {found}"
    found = answer_span(offsets, parts, 4, 5)
    yield found != (5, 5) and f"an answer inside one token is that token, first and last: {found}"
    cut, own = offsets[:6] + offsets[8:], parts[:6] + parts[8:]
    found = answer_span(cut, own, 3, 8)
    yield found is not None and f"a window that ends within the answer does not hold it: None, not {found}"
    late, own = offsets[:4] + offsets[6:], parts[:4] + parts[6:]
    found = answer_span(late, own, 3, 8)
    yield found is not None and f"a window that begins within the answer does not hold it: None, not {found}"
    found = answer_span(late, own, 0, 2)
    yield found is not None and f"an answer before the window gives None, not {found}"
    found = answer_span([(0, 0), (0, 2), (0, 0)], [None, 0, None], 0, 2)
    yield found is not None and f"a window without context has no answer: None, not {found}"
    rng = random.Random(0)
    for _ in range(400):
        offsets, parts, place, length = _window(rng)
        start = rng.randrange(length - 1)
        end = rng.randrange(start + 1, min(start + 7, length) + 1)
        if start not in place or end - 1 not in place:
            wanted = None
            if min(place) <= start and end - 1 <= max(place):
                continue  # the answer begins or ends with a space: no answer does
        else:
            wanted = place[start], place[end - 1]
        found = answer_span(list(offsets), list(parts), start, end)
        if found != wanted:
            context = [pair for pair, part in zip(offsets, parts, strict=True) if part == 1]
            first = parts.index(1)
            yield f"context tokens {context} from token {first} on, characters {start} to {end}: {wanted}, not {found}"
            return
    yield None


CASES = (
    ("Denver Broncos", ["Denver Broncos"], "the answer itself", 1.0),
    ("The  Denver broncos!", ["denver Broncos"], "case, punctuation, articles and spaces do not count", 1.0),
    ("Broncos", ["Denver Broncos"], "one of two words", 2 / 3),
    ("in the city of Denver", ["Denver"], "too long an answer pays for its length", 2 / 5),
    ("Paris", ["Denver Broncos"], "no word shared", 0.0),
    ("very very old", ["very old very old"], "repeated words count as often as both have them", 2 * 3 / 7),
    ("old", ["old old old"], "one repeat of three", 2 / 4),
    ("Denver", ["the Broncos", "Denver", "Denver Broncos"], "the best of several answers", 1.0),
    ("Denver", ["Denver Broncos team", "Denver Broncos"], "the best of several, none exact", 2 / 3),
    ("", ["Denver"], "an empty prediction", 0.0),
    ("the", ["Denver"], "nothing is left of the prediction", 0.0),
    ("theatre", ["atre"], "an article inside a word stays", 0.0),
    ("U.S. army", ["US army"], "punctuation goes before words are split", 1.0),
)


def _say(rng):
    return " ".join(rng.choice(("old", "Old,", "the", "a", "dog", "cat", "mat.")) for _ in range(rng.randrange(5)))


@exercise("token_f1", reference=_token_f1, minutes=8)
def check_token_f1(token_f1):
    """Cases with their F1 by hand, then random predictions against SQuAD 1.1's rules over lists."""
    for prediction, answers, why, wanted in CASES:
        found = token_f1(prediction, list(answers))
        if not isinstance(found, (int, float)):
            yield f"F1 should be a number, not {found!r}"
            return
        yield (
            abs(found - wanted) > 1e-6
            and f"{why}: {prediction!r} for {answers} should be {wanted:.3f}, not {found:.3f}"
        )
    rng = random.Random(0)
    for _ in range(300):
        prediction, answers = _say(rng), [_say(rng) for _ in range(rng.randrange(1, 4))]
        found, wanted = token_f1(prediction, list(answers)), _token_f1(prediction, answers)
        if abs(found - wanted) > 1e-6:
            yield f"{prediction!r} for {answers} should be {wanted:.3f}, not {found:.3f}"
            return
    yield None
