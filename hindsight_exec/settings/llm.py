"""LLM providers of the embedded server, and the model that each uses unless told otherwise."""

from __future__ import annotations

from typing import Dict, Tuple

__all__ = ["PROVIDERS", "as_hindsight"]

#: As Hindsight 1.1.0 has them, but for those that need a login of their own. It may know more.
PROVIDERS: Dict[str, str] = {
    "openai": "gpt-4o-mini",
    "anthropic": "claude-haiku-4-5",
    "gemini": "gemini-3.5-flash",
    "groq": "openai/gpt-oss-120b",
    "openrouter": "qwen/qwen3.5-9b",
    "minimax": "MiniMax-M3",
    "deepseek": "deepseek-v4-flash",
    "zai": "glm-4.5-flash",
    "fireworks": "accounts/fireworks/models/llama-v3p1-8b-instruct",
    "ollama": "gemma3:12b",
    "lmstudio": "local-model",
    "openai_compatible": "",
    "none": "none",
}
_OPENROUTER = "https://openrouter.ai/api/v1"


def as_hindsight(provider: str, base_url: str) -> Tuple[str, str]:
    """Return provider and endpoint as Hindsight's daemon takes them: these two speak as OpenAI."""
    if provider == "openrouter":
        return "openai", base_url or _OPENROUTER
    return ("openai" if provider == "openai_compatible" else provider), base_url
