"""A tiny random model with a real tokenizer, made in a second: for everything that needs no trained weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
SIZES = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
_CORPUS = Path(__file__).resolve().parent.parent / "LICENSE"


def tiny_tokenizer(
    vocabulary: int = 1500, *, chat: bool = True, bos: bool = False
) -> transformers.PreTrainedTokenizerFast:
    """Byte-level BPE trained on the licence text; with a chat template and a BOS token if wanted."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(_CORPUS.read_text().splitlines(), trainer)
    if bos:
        from tokenizers.processors import TemplateProcessing

        bpe.post_processor = TemplateProcessing(single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)])
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token=SPECIAL[0],
        eos_token=SPECIAL[2],
        pad_token=SPECIAL[0],
        additional_special_tokens=[SPECIAL[1]],
    )
    tokenizer.chat_template = CHAT_TEMPLATE if chat else None
    return tokenizer


def write_tiny_model(
    folder: Path,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    chat: bool = True,
    bos: bool = False,
    sizes: Mapping[str, int] = MappingProxyType({}),
) -> Path:
    """A 2-layer Llama with random weights, saved as transformers saves it; `sizes` instead of its own."""
    tokenizer = tiny_tokenizer(chat=chat, bos=bos)
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        **{**SIZES, **sizes},
        vocab_size=len(tokenizer),
        initializer_range=0.3,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=2,
        pad_token_id=0,
    )
    model = transformers.LlamaForCausalLM(config).to(dtype)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
