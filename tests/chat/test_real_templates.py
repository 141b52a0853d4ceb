"""The chat templates that real models ship: 70 in the sdist of llama-cpp-python, fetched, never committed."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest

from mlxo.chat import harmony, reasoning, tools
from mlxo.chat.harmony import AnswerSplitter
from mlxo.chat.splitter import Splitter
from mlxo.chat.template import Template, capabilities
from mlxo.core.errors import InvalidRequest
from mlxo.core.types import Call, Function, Message, ToolCall
from tests import models
from tests.jobs.index import fetch

pytestmark = pytest.mark.weights

# The plain conversation is beyond these: made for tools alone, or for variables of another program.
NEED_TOOLS = {
    "CohereForAI-c4ai-command-r-plus-tool_use",
    "NousResearch-Hermes-2-Pro-Llama-3-8B-tool_use",
    "NousResearch-Hermes-3-Llama-3.1-8B-tool_use",
}
FOREIGN = {"fireworks-ai-llama-3-firefunction-v2"}
# The conversation with a call fails in transformers too: they append to a list, or know no tool role.
NO_CALLS = FOREIGN | {"Kimi-K2-Instruct", "Kimi-K2-Thinking", "google-gemma-2-2b-it"}
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
CALL = ToolCall(id="abcdefghi", function=Function(name="get_weather", arguments={"city": "Zürich"}))
# Some templates write out the description of every parameter.
WEATHER = models.tool("get_weather", "Get the weather.", city={"type": "string", "description": "The city"})


@pytest.fixture(scope="module")
def templates() -> dict[str, str]:
    sdist = fetch(
        "llama-cpp-python==0.3.36",
        "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e",
        "--no-binary",
        "llama-cpp-python",
    )
    found = {}
    with tarfile.open(sdist) as archive:
        for member in archive:
            if member.name.endswith(".jinja") and "/models/templates/" in member.name:
                file = archive.extractfile(member)
                assert file is not None
                found[Path(member.name).stem] = file.read().decode()
    return found


def test_every_template_renders(templates: dict[str, str]) -> None:
    assert len(templates) == 70
    user = Message(role="user", content="What is the weather?")
    started = Message(role="assistant", content="The capital")
    for name, source in templates.items():
        template = Template(source, SPECIAL)
        if name in NEED_TOOLS | FOREIGN:
            with pytest.raises(InvalidRequest, match="the chat template"):
                template.render([user])
            continue
        for think in (None, True, False, "high"):
            assert "What is the weather?" in template.render([user], think=think), name
        assert template.render([user, started], continue_final=True).endswith("The capital"), name


def test_calls_and_results_are_rendered(templates: dict[str, str]) -> None:
    turns = [
        Message(role="system", content="Be brief."),
        Message(role="user", content="What is the weather?"),
        Message(role="assistant", thinking="I look it up.", tool_calls=(CALL,)),
        Message(role="tool", content="21", tool_name="get_weather", tool_call_id="abcdefghi"),
    ]
    for name, source in templates.items():
        if name in NO_CALLS:
            continue
        prompt = Template(source, SPECIAL).render(turns, [WEATHER])
        if "tools" in capabilities(source):
            assert "get_weather" in prompt, name


def test_what_is_read_from_the_text(templates: dict[str, str]) -> None:
    assert capabilities(templates["Qwen-Qwen3-0.6B"]) == ("completion", "tools", "thinking")
    assert capabilities(templates["Qwen-Qwen2.5-7B-Instruct"]) == ("completion", "tools")
    assert capabilities(templates["meta-llama-Llama-3.2-3B-Instruct"]) == ("completion", "tools")
    assert capabilities(templates["google-gemma-2-2b-it"]) == ("completion",)
    assert "thinking" in capabilities(templates["openai-gpt-oss-120b"])


# Their templates write out no calls, or write them behind a header that is no part of an answer.
UNWRITTEN = {
    *("GigaChat3-10B-A1.8B", "GigaChat3.1-10B-A1.8B", "HuggingFaceTB-SmolLM3-3B", "Kimi-K3", "LFM2-8B-A1B"),
    *("LFM2.5-Instruct", "deepseek-ai-DeepSeek-R1-Distill-Llama-8B", "google-gemma-2-2b-it", "muse-glimmer"),
    *("ibm-granite-granite-3.3-2B-Instruct", "llama-cpp-rwkv-world", "meetkai-functionary-medium-v3.2"),
    "microsoft-Phi-3.5-mini-instruct",
}


def test_the_calls_that_a_template_writes_are_read_again(templates: dict[str, str]) -> None:
    parameters = WEATHER["function"]["parameters"]
    read = set()
    for name, source in templates.items():
        if name in UNWRITTEN | NO_CALLS:
            continue
        turns = [Message(role="user", content="QQ"), Message(role="assistant", tool_calls=(CALL,))]
        template = Template(source, SPECIAL)
        text = template.render(turns, tools=[WEATHER], think=False, add_generation_prompt=False)
        answer = text[text.rindex("QQ") + 2 :]
        if name.startswith("meta-llama"):
            answer = answer[answer.index("{") :]  # the header before it is the prompt's
        parser = tools.pick(source)
        known = {"get_weather": parameters}
        reader: AnswerSplitter = Splitter((), None, parser, schemas=known, bare=True)
        if harmony.speaks(source):
            reader = harmony.Harmony(tools=True)
        pieces = [piece for c in answer for piece in reader.feed(c)] + reader.finish()
        calls = [p.call.function for p in pieces if isinstance(p, Call)]
        assert calls == [CALL.function], name
        read.add("harmony" if parser is None else parser.name)
    assert len(read) >= 18
    assert {"hermes", "qwen3-coder", "llama", "mistral", "gemma", "deepseek", "glm", "kimi", "minimax"} < read


def test_blocks_that_the_prompt_opens_and_closes(templates: dict[str, str]) -> None:
    user = Message(role="user", content="hi")
    for name, opened, opened_off in [
        ("Qwen-Qwen3-0.6B", False, False),
        ("Qwen3.5-4B", True, False),
        ("deepseek-ai-DeepSeek-V3.1", True, False),
        ("NVIDIA-Nemotron-3-Nano-30B-A3B-BF16", True, False),
        ("MiniMax-M2", True, True),
    ]:
        source = templates[name]
        template, marks = Template(source, SPECIAL), reasoning.find(source)
        assert reasoning.inside(template.render([user]), marks) is opened, name
        assert reasoning.inside(template.render([user], think=False), marks) is opened_off, name
