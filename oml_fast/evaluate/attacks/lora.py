"""Fine-tuning with low-rank adapters (LoRA, arXiv 2106.09685), merged into the weights afterwards.

Rank 16 on all linear layers at 2e-4, alpha twice the rank: what guides for instruction tuning give.
"""

from __future__ import annotations

from typing import Any

import torch

from ...errors import BackendUnavailableError
from ...models import HfCompleter, LanguageModel
from ..attack import Attack, Attacked, Scene
from ..finetuning import Budget, choose, held_out_loss, supervise
from ..hosts import copy_of

_RANK, _RATE = 16, 2e-4
_BUDGET = Budget()


def fine_tune(scene: Scene, *, rank: int = _RANK, learning_rate: float = _RATE, budget: Budget = _BUDGET) -> Attacked:
    """Adapters of `rank` trained and merged. The result is a plain model in the dtype of `scene.model`.

    Raises BackendUnavailableError without peft, InvalidArgumentError where the data are too few.
    """
    peft = _peft()
    examples, held_out = choose(scene.model, scene.data, budget, scene.seed)
    working = copy_of(scene.model, scene.model.name)
    before = held_out_loss(working, held_out)
    config = peft.LoraConfig(
        r=rank, lora_alpha=2 * rank, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    with torch.random.fork_rng():  # adapters start at random
        torch.manual_seed(scene.seed)
        adapted = peft.get_peft_model(working.model, config)
    adapted.eval()
    trained = supervise(working, examples, learning_rate, budget, scene.seed)
    model = _plain(scene.model, adapted.merge_and_unload(), f"{scene.model.name}, LoRA")
    details = {
        "rank": rank,
        "learning_rate": learning_rate,
        "held_out_loss_before": before,
        "held_out_loss_after": held_out_loss(model, held_out),
        **trained.to_json(),
    }
    return Attacked(HfCompleter(model), model, details)


def _plain(like: LanguageModel, merged: Any, name: str) -> LanguageModel:
    """The merged weights in a model that adapters never touched: frozen parameters and hooks stay behind."""
    model = copy_of(like, name)
    model.model.load_state_dict(merged.state_dict())
    return model


def _peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise BackendUnavailableError(
            "lora needs peft: pip install 'oml_fast[eval]', or leave it out of --attacks."
        ) from error
    return peft


ATTACKS = (
    Attack(
        f"lora/r{_RANK}",
        f"{_BUDGET.train} instructions with answers, {_BUDGET.epochs} times through training, each about 3 forward "
        "passes; gradients and optimizer state for adapters alone",
        fine_tune,
        ("instructions", "peft"),
    ),
)
