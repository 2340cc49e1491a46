"""Answers to lesson 07's answer_labels(input_ids, attention_mask, prompt_lengths), wrong and right."""

import torch


def wrong_learns_the_prompt(input_ids, attention_mask, prompt_lengths):
    """Masks padding alone: the prompt is learned too."""
    return input_ids.masked_fill(attention_mask == 0, -100)


def wrong_learns_padding(input_ids, attention_mask, prompt_lengths):
    """Masks the prompt alone: padding is learned, so the end is learned many times over."""
    place = torch.arange(input_ids.shape[1])
    return input_ids.masked_fill(place < prompt_lengths[:, None], -100)


def wrong_masks_by_id(input_ids, attention_mask, prompt_lengths):
    """Takes every token with the padding's id for padding: the end token is never learned."""
    place = attention_mask.cumsum(1) - 1
    return input_ids.masked_fill((place < prompt_lengths[:, None]) | (input_ids == 2), -100)


def wrong_one_too_many(input_ids, attention_mask, prompt_lengths):
    """Masks the answer's first token too."""
    place = attention_mask.cumsum(1) - 1
    return input_ids.masked_fill((place <= prompt_lengths[:, None]) | (attention_mask == 0), -100)


def wrong_one_too_few(input_ids, attention_mask, prompt_lengths):
    """Learns the prompt's last token."""
    place = attention_mask.cumsum(1)
    return input_ids.masked_fill((place < prompt_lengths[:, None]) | (attention_mask == 0), -100)


def wrong_right_padding_only(input_ids, attention_mask, prompt_lengths):
    """Counts places from the left edge, so padding on the left counts as prompt."""
    place = torch.arange(input_ids.shape[1])
    return input_ids.masked_fill((place < prompt_lengths[:, None]) | (attention_mask == 0), -100)


def wrong_longest_prompt(input_ids, attention_mask, prompt_lengths):
    """Cuts all rows where the longest prompt ends."""
    place = attention_mask.cumsum(1) - 1
    return input_ids.masked_fill((place < prompt_lengths.max()) | (attention_mask == 0), -100)


def wrong_shifted(input_ids, attention_mask, prompt_lengths):
    """Shifts the labels, which the loss does once more."""
    place = attention_mask.cumsum(1) - 1
    labels = input_ids.masked_fill((place < prompt_lengths[:, None]) | (attention_mask == 0), -100)
    return torch.cat([labels[:, 1:], torch.full_like(labels[:, :1], -100)], 1)


def wrong_zero(input_ids, attention_mask, prompt_lengths):
    """Marks what is not learned by 0, which is a token."""
    place = attention_mask.cumsum(1) - 1
    return input_ids.masked_fill((place < prompt_lengths[:, None]) | (attention_mask == 0), 0)


def wrong_in_place(input_ids, attention_mask, prompt_lengths):
    """Overwrites the ids, so the model no longer sees the prompt."""
    place = attention_mask.cumsum(1) - 1
    return input_ids.masked_fill_((place < prompt_lengths[:, None]) | (attention_mask == 0), -100)


def right_row_by_row(input_ids, attention_mask, prompt_lengths):
    """A loop over the rows."""
    labels = torch.full_like(input_ids, -100)
    for row, length in enumerate(prompt_lengths.tolist()):
        real = attention_mask[row].nonzero()[:, 0][length:]
        labels[row, real] = input_ids[row, real]
    return labels
