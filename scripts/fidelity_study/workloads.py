"""The workloads of `scripts/fidelity.py`: sizes at which a step takes 30 to 150 ms on one core."""

from __future__ import annotations

WORKLOADS = {
    "inception_v3": "inception_v3:image=128,aux=0,batch=2",
    "nmt": "nmt:steps=8,hidden=256,vocabulary=4000,batch=16",
    "rnnlm": "rnnlm:steps=12,hidden=384,vocabulary=4000,batch=16",
    "moe_lm": "moe_lm:experts=8,layers=2,hidden=256,heads=4,length=64,vocabulary=4000,batch=4",
    "bert": "python:scripts.fidelity_study.workloads:bert",
}
"""Source of each graph by name."""


def bert() -> dict[str, object]:
    """BERT of the `transformers` library (extra ``test``), small, with random weights: masked words are guessed."""
    import torch
    from transformers import BertConfig, BertForMaskedLM

    config = BertConfig(
        vocab_size=4000,
        hidden_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=1024,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    torch.manual_seed(0)
    words = torch.randint(4000, (8, 64))
    batch = {"input_ids": words, "attention_mask": torch.ones_like(words), "labels": words}
    return {"model": BertForMaskedLM(config), "example_batch": batch, "name": "transformers-bert"}
