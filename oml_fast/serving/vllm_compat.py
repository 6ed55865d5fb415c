"""What this package needs of vLLM's inside, in one place: it differs between vLLM's versions (tried with 0.32)."""

from __future__ import annotations

from typing import Any

from ..errors import BackendUnavailableError


def require_vllm() -> Any:
    """The package; BackendUnavailableError with the way out where it is not installed or cannot be imported."""
    way_out = "pip install 'oml_fast[vllm]', or verify with transformers instead"
    try:
        import vllm

        vllm.LLM, vllm.SamplingParams  # noqa: B018 - it imports these when they are first wanted
    except ModuleNotFoundError as error:
        raise BackendUnavailableError(f"vLLM is not installed (no module {error.name}): {way_out}.") from error
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        raise BackendUnavailableError(f"vLLM cannot be imported ({first_line(error)}): {way_out}.") from error
    return vllm


def scores_given_ids(vllm: Any) -> bool:
    """Whether a request can name the token ids whose log-probabilities it wants."""
    return "logprob_token_ids" in getattr(vllm.SamplingParams, "__struct_fields__", ())


def vocabulary(engine: Any) -> int:
    """V, the width of the model's logits."""
    return int(engine.llm_engine.model_config.get_vocab_size())


def longest(engine: Any) -> int:
    """Token ids that a prompt and its completion may have together."""
    return int(engine.llm_engine.model_config.max_model_len)


def describe(engine: Any) -> str:
    """Device and dtype, as the engine resolved them: "cpu, bfloat16"."""
    config = engine.llm_engine.vllm_config
    return f"{config.device_config.device_type}, {str(config.model_config.dtype).removeprefix('torch.')}"


def shut_down(engine: Any) -> None:
    """End the engine's processes now; without this they end when the object goes."""
    engine.llm_engine.engine_core.shutdown()


def first_line(error: BaseException) -> str:
    """The first line of a third party's message."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(" .:")
