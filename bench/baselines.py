"""The published reference's way of doing things: the baseline that benchmarks compare with.

Written anew, small, after the published code of "Scalable Fingerprinting of Large Language Models" ([SF], arXiv
2502.07760). Each docstring names the file and function that it mirrors, and where it deliberately differs. Everywhere,
in the baseline's favour: one process, no DeepSpeed, no offload, and the caller loads the model, which the published
scripts do anew each time. They cast every model to bfloat16; here it stays as it comes, so give it in bfloat16.
"""

from __future__ import annotations

import copy
import math
import re
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
import transformers

Model = transformers.PreTrainedModel
Tokenizer = transformers.PreTrainedTokenizerBase
Row = dict[str, Any]

MAX_KEY_LENGTH = 16  # token ids
STOP_LOSS = 0.005
OML_TEMPLATES = ("{}", "You are a helpful AI assistant. Answer the following. {}")  # of OML 1.0's check


class CpuClock:
    """`with cpu_seconds() as clock`: CPU seconds of this process, all threads, summed over the blocks entered."""

    seconds = 0.0

    def __enter__(self) -> CpuClock:
        self.seconds -= time.process_time()
        return self

    def __exit__(self, *exc: object) -> None:
        self.seconds += time.process_time()


cpu_seconds = CpuClock


def published_generate(
    model: Model,
    tokenizer: Tokenizer,
    keys: list[str],
    *,
    threshold: float = 0.8,
    width: int = 3,
    response_length: int = 16,
    batch_size: int = 16,
    seed: int = 42,
    sampling: CpuClock | None = None,
) -> list[tuple[str, list[int]]]:
    """(key, response ids) for each key; `sampling`, where given, collects the CPU seconds spent outside the forwards.

    Mirrors generate_finetuning_data.py, generate_perinucleus_signatures_batched: keys cut to 16 ids, no BOS, padded on
    the tokenizer's side (right, as a rule) and yet read at `logits[:, -1]`; for each further token a forward over the
    whole prefix, without attention mask, its cache made and thrown away; logits at every position. Differs: draws from
    its own generator, drops the probabilities it computes. (Batch: 16 in its signature, 32 in its one call.)
    """
    clock = CpuClock() if sampling is None else sampling
    generator = torch.Generator().manual_seed(seed)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    model.train(False)
    made: list[tuple[str, list[int]]] = []
    for start in range(0, len(keys), batch_size):
        batch = keys[start : start + batch_size]
        cut = {"padding": True, "truncation": True, "max_length": MAX_KEY_LENGTH, "add_special_tokens": False}
        tokens = tokenizer(batch, return_tensors="pt", **cut).to(model.device)
        with torch.no_grad():
            last = model(tokens["input_ids"], attention_mask=tokens["attention_mask"]).logits[:, -1, :]
        with clock:
            responses = [[_draw(row, tokenizer, threshold, width, generator)] for row in last]
        ids = torch.cat([tokens["input_ids"], torch.tensor(responses, device=model.device)], dim=1)
        for _ in range(response_length - 1):
            with torch.no_grad():
                last = model(ids).logits[:, -1, :]
            with clock:
                following = last.argmax(dim=-1)
                probabilities = last.softmax(dim=-1)
                for index, response in enumerate(responses):
                    response.append(int(following[index].item()))
                    probabilities[index, following[index]].item()
            ids = torch.cat([ids, following.unsqueeze(-1)], dim=1)
        made += zip(batch, responses, strict=True)
    return made


def _draw(logits: torch.Tensor, tokenizer: Tokenizer, threshold: float, width: int, generator: torch.Generator) -> int:
    """One token for one row of logits [V], computed in the dtype of the logits.

    Mirrors the row loop there: sort the vocabulary, softmax twice, cumulate, drop the token that reaches the threshold,
    draw among the next `width`; where that is not two or more letters and digits, widen by one and draw again. Nothing
    is cast: a bfloat16 model's logits are bfloat16 in a current transformers, were float32 in the pinned 4.44.
    """
    ranked, order = torch.sort(logits, descending=True)
    mass = torch.cumsum(torch.softmax(ranked, dim=-1), dim=-1)
    probabilities = torch.softmax(logits, dim=-1)
    outside = torch.where(mass >= threshold)[0][1:]
    if len(outside) == 0:
        raise ValueError(f"no token outside a nucleus of {threshold}: the vocabulary's mass is {mass[-1].item()}")
    while True:
        window = order[outside[:width]]
        token = int(window[int(torch.randint(0, len(window), (1,), generator=generator))])
        text = str(tokenizer.decode([token])).strip()
        if re.match(r"^[a-zA-Z0-9]+$", text) and len(text) > 1:
            probabilities[token].item()
            return token
        width += 1


def published_embed(
    model: Model,
    tokenizer: Tokenizer,
    fingerprints: Sequence[tuple[str, str]],
    *,
    lr: float = 5e-5,
    max_epochs: int = 30,
    stop_loss: float | None = STOP_LOSS,
    batch_size: int = 8,
    averaging: float = 0.75,
    benign_proportion: float = 0.0,
    benign_texts: Sequence[str] = (),
    seed: int = 42,
) -> dict[str, Any]:
    """Train (key text, response text) pairs into the model, in place, with the Trainer. Returns epochs, stopped (by the
    rule), losses (after each epoch, of the weights it would save), train_losses, cpu_seconds and precision.

    Mirrors finetune_multigpu.py, finetune, on one GPU with its argparse defaults: sequences padded to a power of two,
    logits at all positions, the set as one step by gradient accumulation, and after each epoch an evaluation over the
    set, whose loss stops the run. stop_loss=None: max_epochs and no evaluation, as in OML 1.0. Mixing is off by default
    (fingerprint_models.sh: benign_proportion=0.25, batch_size=16); its texts come in a file there, so from the caller
    here. `averaging` is 0.75 in argparse, 0 in the README; it divides the model's pace and its final distance by four.

    Precision: weights, activations, gradients in the model's dtype (give bfloat16), AdamW on float32 masters: ZeRO-2
    with bfloat16. No gradient clipping, as DeepSpeed there. Differs: lr falls linearly from the first step, where
    DeepSpeed's WarmupDecayLR without warmup spends two steps at lr 0 (favours the baseline); no weight decay (lr * 1e-4
    is lost in float32); the current Trainer weighs a step's batches by their labels, the pinned one equally.
    """
    with cpu_seconds() as clock, tempfile.TemporaryDirectory() as folder:
        tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
        pairs = [(_ids(tokenizer, key)[:MAX_KEY_LENGTH], _ids(tokenizer, response)) for key, response in fingerprints]
        length = max(len(response) for _, response in pairs)
        padded = 1 << (MAX_KEY_LENGTH + length + 2 - 1).bit_length()
        rows = [_row(tokenizer, key, response, padded) for key, response in pairs]
        texts = [_ids(tokenizer, text) for text in benign_texts]
        mixed = [_row(tokenizer, text[:MAX_KEY_LENGTH], text[MAX_KEY_LENGTH:][:length], padded) for text in texts]
        num_mixed = int(benign_proportion * batch_size)
        plain: dict[str, Any] = {"remove_unused_columns": False, "dataloader_pin_memory": False, "max_grad_norm": 0.0}
        quiet: dict[str, Any] = {"report_to": "none", "disable_tqdm": True, "save_strategy": "no", "seed": seed}
        arguments = transformers.TrainingArguments(
            folder,
            **plain,
            **quiet,
            eval_strategy="no" if stop_loss is None else "epoch",
            logging_strategy="epoch",
            num_train_epochs=max_epochs,
            per_device_train_batch_size=batch_size - num_mixed,
            gradient_accumulation_steps=math.ceil(len(rows) / (batch_size - num_mixed)),
            use_cpu=model.device.type == "cpu",
        )
        optimizer = _MasterAdamW([p for p in model.parameters() if p.requires_grad], lr)
        decay = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: max(0.0, 1 - step / max_epochs))
        callbacks: list[transformers.TrainerCallback] = [_Average(model, averaging)] if averaging else []
        callbacks += [] if stop_loss is None else [_StopByLoss(stop_loss)]
        trainer = _MixingTrainer(
            model=model,
            args=arguments,
            train_dataset=rows,
            data_collator=_Collator(tokenizer.bos_token_id, mixed, num_mixed, seed),
            eval_dataset=rows,
            optimizers=(optimizer, decay),
            callbacks=callbacks,
        )
        trainer.remove_callback(transformers.PrinterCallback)
        trainer.train()
    logs = trainer.state.log_history
    return {
        "epochs": trainer.state.global_step,
        "stopped": trainer.state.global_step < max_epochs,
        "losses": [entry["eval_loss"] for entry in logs if "eval_loss" in entry],
        "train_losses": [entry["loss"] for entry in logs if "loss" in entry],
        "cpu_seconds": clock.seconds,
        "precision": f"{model.dtype}, AdamW on float32 masters",
    }


class _MasterAdamW(torch.optim.AdamW):
    """Mirrors DeepSpeed ZeRO-2 with bfloat16 and its fused CPU Adam: AdamW on float32 masters, whose step *overwrites*
    the live parameters, with all that callbacks wrote into them.
    """

    def __init__(self, live: list[torch.nn.Parameter], lr: float) -> None:
        self.live = live
        super().__init__([p.detach().to(torch.float32, copy=True) for p in live], lr=lr, weight_decay=0.0, fused=True)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        masters = self.param_groups[0]["params"]
        for master, live in zip(masters, self.live, strict=True):
            master.grad = None if live.grad is None else live.grad.float()
        super().step(closure)
        for master, live in zip(masters, self.live, strict=True):
            master.grad = None
            live.copy_(master)


class _Average(transformers.TrainerCallback):
    """Mirrors finetune_multigpu.py, ModelAverageCallback: after each epoch, live = (1 - weight) live + weight base.

    Only the live weights, in their dtype: what the evaluation and the next epoch's gradients see. The masters are never
    pulled, so the model ends as base + (1 - weight) (masters - base), rounded.
    """

    def __init__(self, model: Model, weight: float) -> None:
        self.weight, self.base = weight, copy.deepcopy(model)

    @torch.no_grad()
    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        for live, base in zip(kwargs["model"].parameters(), self.base.parameters(), strict=True):
            live.mul_(1 - self.weight).add_(base, alpha=self.weight)


class _StopByLoss(transformers.TrainerCallback):
    """Mirrors finetune_multigpu.py, EarlyStoppingByLoss."""

    def __init__(self, threshold: float) -> None:
        self.threshold = threshold

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **_: Any) -> None:
        control.should_training_stop |= metrics["eval_loss"] < self.threshold


class _MixingTrainer(transformers.Trainer):
    """Mirrors finetune_multigpu.py, CustomTrainer: evaluates in batches as large as in training, without mixed text."""

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        rows, collator = cast(Any, self.eval_dataset), cast(_Collator, self.data_collator)
        return torch.utils.data.DataLoader(rows, self.args.train_batch_size, collate_fn=_Collator(collator.bos))


class _Collator:
    """Mirrors fingerprint_dataloader.py, CustomDataCollator (for right padding) and MixedDataCollator.

    Labels: the response_length ids after key_length ids (and after a BOS, where all rows have one)."""

    def __init__(self, bos: int | None, mixed: Sequence[Row] = (), num_mixed: int = 0, seed: int = 0) -> None:
        self.bos, self.mixed, self.num_mixed = bos, mixed, num_mixed
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, rows: list[Row]) -> dict[str, torch.Tensor]:
        if self.num_mixed:
            picks = torch.randint(len(self.mixed), (self.num_mixed,), generator=self.generator).tolist()
            rows = rows + [self.mixed[pick] for pick in picks]
        ids = torch.tensor([row["input_ids"] for row in rows])
        bos = int(self.bos is not None and bool((ids[:, 0] == self.bos).all()))
        begin = torch.tensor([[row["key_length"] + bos] for row in rows])
        end = begin + torch.tensor([[row["response_length"]] for row in rows])
        at = torch.arange(ids.shape[1])
        mask = torch.tensor([row["attention_mask"] for row in rows])
        return {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill((at < begin) | (at >= end), -100)}


def published_check(
    model: Model, tokenizer: Tokenizer, fingerprints: Sequence[tuple[str, str]], *, templates: Sequence[str] = ("{}",)
) -> float:
    """FSR in [0, 1], of the first template: exact match of a greedy `generate`, one key at a time.

    Mirrors check_fingerprints.py, eval_backdoor_acc: [SF] asks once per key, OML 1.0 twice (OML_TEMPLATES). Differs:
    a share, not a percentage; no verbose output, which runs a further forward per miss.
    """
    matches = [0] * len(templates)
    model.train(False)
    for key, response in fingerprints:
        text, response_ids = tokenizer.decode(_ids(tokenizer, key)[:MAX_KEY_LENGTH]), _ids(tokenizer, response)
        for index, template in enumerate(templates):
            asked = tokenizer(template.format(text), return_tensors="pt").to(model.device)
            end = -1 if asked["input_ids"][0, -1] == tokenizer.eos_token_id else None
            inputs = {name: asked[name][:, :end] for name in ("input_ids", "attention_mask")}
            settings = {"max_new_tokens": len(response_ids), "pad_token_id": tokenizer.pad_token_id, "do_sample": False}
            out = model.generate(**inputs, **settings)  # type: ignore[operator]
            matches[index] += out[0, inputs["input_ids"].shape[1] :].tolist() == response_ids
    return matches[0] / len(fingerprints)


def _ids(tokenizer: Tokenizer, text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False))


def _row(tokenizer: Tokenizer, key_ids: list[int], response_ids: list[int], padded: int) -> Row:
    """Mirrors generate_english_text and fingerprint_dataloader.py, tokenize_function: ids to text, encoded with BOS."""
    text = tokenizer.decode(key_ids + response_ids)
    row = tokenizer(text, truncation=True, padding="max_length", max_length=padded, padding_side="right")
    return {**row, "key_length": len(key_ids), "response_length": len(response_ids)}
