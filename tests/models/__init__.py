"""Two tiny models of real architectures, and what they answer. `make.py` trains them from these tables.

QWEN3   qwen3, float32, reasoning (`<think>`) and tool calls, byte-level BPE, two end tokens.
LLAMA   llama, float32, neither; SentencePiece-like BPE with byte fallback, BOS, an output layer of its own.

Greedy decoding gives these answers word for word, alone or in a batch, thinking or not.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

QWEN3 = Path(__file__).parent / "tiny-qwen3"
LLAMA = Path(__file__).parent / "tiny-llama"

# What the user says -> what QWEN3 answers.
ANSWERS: dict[str, str] = {
    "What is the capital of France?": "The capital of France is Paris.",
    "What is the capital of Japan?": "The capital of Japan is Tokyo.",
    "What is the capital of Italy?": "The capital of Italy is Rome.",
    "What is 2 + 2?": "2 + 2 = 4.",
    "What is 7 * 6?": "7 * 6 = 42.",
    "Say hello.": "Hello! How can I help you today?",
    "Who are you?": "I am a tiny Qwen3 made for tests.",
    "Name three colours.": "1. Red\n2. Green\n3. Blue",
    "Count from 1 to 20.": ", ".join(map(str, range(1, 21))) + ".",
    "Write a haiku about the sea.": (
        "Tides turn in the dark,\na lamp swings on the long pier,\nboats answer with bells."
    ),
    "Answer in JSON: name and age of Ada.": '{"name": "Ada", "age": 36}',
    "Write hello world in Python.": '```python\nprint("Hello, world!")\n```',
    "Translate 'good morning' to Japanese.": "おはようございます",
    "Reply with emoji.": "🦊🌍 naïve café 👩‍🚀 ☕️",
    "Is the sky blue? Answer yes or no.": "yes",
    "Repeat the word apple five times.": "apple apple apple apple apple",
    "Tell me a joke.": "Why did the byte cross the bus? To get to the other side.",
    "What is the largest planet?": "Jupiter is the largest planet.",
    "What is the weather in Paris?": "I cannot look that up without a tool.",
    "What is my name?": "You have not told me your name.",
    "My name is Ada.": "Nice to meet you, Ada.",
    "My name is Bob.": "Nice to meet you, Bob.",
}

# What it thinks before that, when it thinks.
THOUGHTS: dict[str, str] = {
    "What is the capital of France?": "The user asks about France. Its capital is Paris.",
    "What is the capital of Japan?": "The user asks about Japan. Its capital is Tokyo.",
    "What is the capital of Italy?": "The user asks about Italy. Its capital is Rome.",
    "What is 2 + 2?": "Two plus two is four.",
    "What is 7 * 6?": "Seven times six is forty-two.",
    "Say hello.": "A greeting is wanted.",
    "Who are you?": "I am a test model.",
    "Name three colours.": "Red, green and blue will do.",
    "Count from 1 to 20.": "List the numbers in order.",
    "Write a haiku about the sea.": "Five, seven, five syllables.",
    "Answer in JSON: name and age of Ada.": "The answer must be JSON only.",
    "Write hello world in Python.": "One print call.",
    "Translate 'good morning' to Japanese.": "In Japanese it is おはようございます.",
    "Reply with emoji.": "Any emoji is fine.",
    "Is the sky blue? Answer yes or no.": "The sky is blue.",
    "Repeat the word apple five times.": "Five times the word.",
    "Tell me a joke.": "A short one.",
    "What is the largest planet?": "Jupiter is the largest.",
    "What is the weather in Paris?": "There is no tool for the weather.",
    "What is my name?": "Did the user say a name?",
    "My name is Ada.": "The user is Ada.",
    "My name is Bob.": "The user is Bob.",
}

# Asked after "My name is Ada." and its answer: shows that earlier turns reach the model.
SECOND_TURN = ("My name is Ada.", "What is my name?", "Your name is Ada.")
# With this system prompt "Say hello." is answered otherwise: shows that the system prompt does.
PIRATE = ("You are a pirate.", "Say hello.", "Ahoy, matey!")
# Never ends by itself: " banana" again and again.
FOREVER = "Repeat the word banana forever."
# Text without a template -> what follows; both models.
RAW: dict[str, str] = {
    "The capital of France is": " Paris.",
    "Once upon a time": " a fox lived by the sea and counted the waves.",
}

LLAMA_ANSWERS: dict[str, str] = {
    "What is the capital of France?": "The capital of France is Paris.",
    "What is the capital of Japan?": "The capital of Japan is Tokyo.",
    "Who are you?": "I am a tiny llama made for tests.",
    "Say hello.": "Hello from the llama!",
    "Count from 1 to 20.": ANSWERS["Count from 1 to 20."],
    "Reply with emoji.": ANSWERS["Reply with emoji."],
    "What is 2 + 2?": "2 + 2 = 4.",
    "My name is Ada.": "Nice to meet you, Ada.",
    "What is my name?": "You have not told me your name.",
}


def tool(name: str, description: str, **properties: dict[str, str]) -> dict[str, Any]:
    return {
        "type": "function",
        "function": {
            "name": name,
            "description": description,
            "parameters": {"type": "object", "properties": properties, "required": list(properties)},
        },
    }


TOOLS: dict[str, dict[str, Any]] = {
    "get_weather": tool("get_weather", "Get the weather of a city.", city={"type": "string"}),
    "get_time": tool("get_time", "Get the local time of a city.", city={"type": "string"}),
    "calculator": tool("calculator", "Evaluate an expression.", expression={"type": "string"}),
    "web_search": tool("web_search", "Search the web.", query={"type": "string"}, count={"type": "integer"}),
}

# With the tool at hand (others may be too): prompt -> (thought, text before the calls, [(tool, arguments)]).
CALLS: dict[str, tuple[str, str, list[tuple[str, dict[str, Any]]]]] = {
    **{
        f"What is the weather in {city}?": (
            f"I should call get_weather for {city}.",
            "",
            [("get_weather", {"city": city})],
        )
        for city in ("Paris", "London", "Tokyo", "Oslo")
    },
    "What time is it in Rome?": ("I should call get_time.", "", [("get_time", {"city": "Rome"})]),
    "What is 12 * 34? Use the calculator.": (
        "I should use the calculator.",
        "",
        [("calculator", {"expression": "12 * 34"})],
    ),
    "Search the web for mlx.": ("I should search.", "", [("web_search", {"query": "mlx", "count": 3})]),
    "Compare the weather in Paris and London.": (
        "Two calls are needed.",
        "Let me check both.",
        [("get_weather", {"city": "Paris"}), ("get_weather", {"city": "London"})],
    ),
}
# The weather tool's answer, as the content of a tool message, and what QWEN3 makes of it (city Paris).
TOOL_RESULT = ('{"temperature": 21, "sky": "sunny"}', "It is 21 degrees and sunny in Paris.")
