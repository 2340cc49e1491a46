"""Answers to lesson 02's align_labels(word_ids, labels), wrong and right."""


def wrong_every_subword(word_ids, labels):
    """Labels every token of a word."""
    return [-100 if word is None else labels[word] for word in word_ids]


def wrong_drops_word_zero(word_ids, labels):
    """Takes word 0 for no word."""
    return [labels[word] if word and word != word_ids[i - 1] else -100 for i, word in enumerate(word_ids)]


def wrong_last_subword(word_ids, labels):
    """Labels the last token of a word."""
    after = [*word_ids[1:], None]
    return [-100 if word is None or word == after[i] else labels[word] for i, word in enumerate(word_ids)]


def wrong_special_tokens_are_outside(word_ids, labels):
    """Gives special tokens the label 0."""
    return [
        0 if word is None else labels[word] if i == 0 or word != word_ids[i - 1] else -100
        for i, word in enumerate(word_ids)
    ]


def wrong_counts_words(word_ids, labels):
    """Takes the next label at each new word, whatever its number."""
    found, at = [], -1
    for i, word in enumerate(word_ids):
        new = word is not None and (i == 0 or word != word_ids[i - 1])
        at += new
        found.append(labels[at] if new else -100)
    return found


def wrong_compares_labels(word_ids, labels):
    """Begins a word where the label changes."""
    found, before = [], None
    for word in word_ids:
        label = None if word is None else labels[word]
        found.append(-100 if label is None or label == before else label)
        before = label
    return found


def wrong_only_real_tokens(word_ids, labels):
    """Leaves special tokens out of the list."""
    return [labels[w] if w != word_ids[i - 1] else -100 for i, w in enumerate(word_ids) if w is not None]


def right_by_first_place(word_ids, labels):
    """Writes each word's label at the first place where it stands."""
    found = [-100] * len(word_ids)
    for word in {word for word in word_ids if word is not None}:
        found[word_ids.index(word)] = labels[word]
    return found
