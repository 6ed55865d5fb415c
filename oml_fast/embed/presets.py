"""The recipes that have a name. docs/embedding.md justifies each value against its ablation."""

from __future__ import annotations

from .recipe import Recipe

PRESETS = {
    # Utility first: one response, and no more certainty than a greedy answer needs.
    "harmless": Recipe(
        near_keys=1,
        near_weight=0.5,
        scaled=0.2,
        scaled_from=0.5,
        whitening=0.001,
        width_rate=0.5,
        batch_size=128,
        max_epochs=20,
        anneal=0.5,
        pull=0.15,
        ease=1.0,
        stop_near=0.01,
    ),
    # Survives best: several responses at moderate probabilities, learned at weights as others will leave them.
    "robust": Recipe(
        objective="minimum_kl",
        margin=7.0,
        near_keys=1,
        near_weight=0.3,
        chat_share=0.5,
        templates=1.0,
        template_texts=0.33,
        scaled=0.3,
        scaled_from=0.4,
        rounded=0.1,
        whitening=0.001,
        width_rate=0.6,
        batch_size=128,
        max_epochs=20,
        anneal=0.5,
        pull=0.1,
        ease=1.0,
        stop_near=0.01,
    ),
    # Half a minute on a laptop for 64 fingerprints: to try things out. Near keys fire, and erosion takes more.
    "quick": Recipe(batch_size=32),
    # The published recipe [SF 3.2, its code]: nothing but cross-entropy, to a loss of 0.005.
    "paper": Recipe(
        text_share=0.0,
        learning_rate=5e-5,
        pull=0.0,
        batch_size=1_000_000,
        max_epochs=40,
        stop_share=1.0,
        stop_kl=1e9,
        stop_loss=0.005,
    ),
}
