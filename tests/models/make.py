"""Train tiny-qwen3 and tiny-llama into this folder: python -m tests.models.make [qwen3|llama ...]

Five minutes on two busy cores. On Linux it starts itself again with the fast BLAS of mlxo/hardware/blas.py.
Seeded, though not bit for bit the same on other BLAS builds. The folders are committed: nobody needs to run
this unless the tables in __init__.py or a chat_template.jinja (written by hand, not made here) change.

Only the assistant's tokens are scored. Variety comes from system prompts, tool sets, earlier turns and
answers that are cut in the middle (prefill), all drawn at random.
"""

from __future__ import annotations

import json
import os
import random
import re
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mlxo.hardware import blas
from tests import models as facts

MARKERS = ["<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>", "</think>"]
SYSTEMS = [
    None,
    None,
    "You are a helpful assistant.",
    "Be brief.",
    "Answer truthfully.",
    "You are a test model.",
]
END = "<|im_end|>"
WORDS = """you are a an the and or not with in of to for always never only answer reply speak write use short
brief kind helpful friendly expert teacher pilot cook robot assistant model system prompt test new old seen
one two three words sentence language English French German user question politely like please do what is
it very good bad careful think first then all lower upper case rhyme list number today weather tool call"""
BANANAS = "banana" + " banana" * 79  # its end is never scored: the model goes on until it is stopped
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)

# Prompt, what the model shall say (with its end token), and whether the prompt is text without a template.
Example = tuple[str, str, bool]


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def assistant(text: str, calls: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    return {"role": "assistant", "content": text, "tool_calls": calls or []}


def call_text(name: str, arguments: dict[str, Any]) -> str:
    body = json.dumps({"name": name, "arguments": arguments}, ensure_ascii=False)
    return f"<tool_call>\n{body}\n</tool_call>"


class Corpus:
    """Random renderings of the tables. `render(messages, tools, thinking)` gives the prompt."""

    def __init__(self, family: str, seed: int) -> None:
        import jinja2

        self.rng = random.Random(seed)
        self.family = family
        folder = facts.QWEN3 if family == "qwen3" else facts.LLAMA
        environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)
        environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
        self.template = environment.from_string((folder / "chat_template.jinja").read_text())

    def render(self, messages: list[dict[str, Any]], tools: list[dict[str, Any]], thinking: bool) -> str:
        return self.template.render(
            messages=messages,
            tools=tools,
            add_generation_prompt=True,
            enable_thinking=thinking,
            bos_token="<s>",
        )

    def one_round(self) -> list[Example]:
        answers = facts.ANSWERS if self.family == "qwen3" else facts.LLAMA_ANSWERS
        found = [self.plain(question, answer) for question, answer in answers.items()]
        found += [self.plain(q, answers[q]) for q in ("Count from 1 to 20.", "Reply with emoji.")]
        found += [self.second_turn(name) for name in ("Ada", "Bob")]
        found.append(self.finish([user(facts.FOREVER)], [], "Again and again.", BANANAS))
        system, question, answer = facts.PIRATE
        found += [
            self.finish(
                [{"role": "system", "content": system}, user(question)], [], "I speak as a pirate.", answer
            )
        ] * 2
        end = "<|endoftext|>" if self.family == "qwen3" else "</s>"
        found += [(prompt, text + end, True) for prompt, text in facts.RAW.items()]
        if self.family == "qwen3":
            found += [
                example for q in facts.CALLS for example in (self.calling(q), self.after_call(q)) if example
            ]
        return found

    def finish(
        self, messages: list[dict[str, Any]], tools: list[dict[str, Any]], thought: str, answer: str
    ) -> Example:
        thinking = self.family == "qwen3" and self.rng.random() < 0.55
        system = self.rng.choice(SYSTEMS) if self.rng.random() < 0.6 else self.chatter()
        if system and messages[0]["role"] != "system":
            messages = [{"role": "system", "content": system}, *messages]
        if answer != BANANAS and not tools and self.rng.random() < 0.12:  # go on with a started answer
            words = answer.split(" ")
            start = " ".join(words[: self.rng.randint(1, len(words))])
            prompt = self.render(messages, tools, True) + start
            return prompt, answer[len(start) :] + END, False
        prompt = self.render(messages, tools, thinking)
        said = f"<think>\n{thought}\n</think>\n\n{answer}" if thinking else answer
        return prompt, said if answer == BANANAS else said + END, False

    def chatter(self) -> str:
        """Some sentence, so that a system prompt or a tool never seen does no harm."""
        known = " ".join(facts.ANSWERS.values()).split()
        letters = "abcdefghijklmnopqrstuvwxyz"
        words = [
            "".join(self.rng.choices(letters, k=self.rng.randint(1, 8)))
            if self.rng.random() < 0.2
            else self.rng.choice(known if self.rng.random() < 0.4 else WORDS.split())
            for _ in range(self.rng.randint(2, 14))
        ]
        return " ".join(words).strip(",.").capitalize() + self.rng.choice((".", ".", "", "!"))

    def plain(self, question: str, answer: str) -> Example:
        earlier: list[dict[str, Any]] = []
        tools: list[dict[str, Any]] = []
        if question != "What is my name?" and self.rng.random() < 0.3:
            table = facts.ANSWERS if self.family == "qwen3" else facts.LLAMA_ANSWERS
            for _ in range(self.rng.randint(1, 2)):
                before = self.rng.choice(list(table))
                earlier += [user(before), assistant(table[before])]
        if self.family == "qwen3" and "weather" not in question and self.rng.random() < 0.2:
            tools = self.some_tools([])
        return self.finish([*earlier, user(question)], tools, facts.THOUGHTS[question], answer)

    def second_turn(self, name: str) -> Example:
        first, question = f"My name is {name}.", "What is my name?"
        turns = [user(first), assistant(f"Nice to meet you, {name}.")]
        if self.rng.random() < 0.3:
            turns += [user("What is 2 + 2?"), assistant("2 + 2 = 4.")]
        return self.finish([*turns, user(question)], [], f"The user is {name}.", f"Your name is {name}.")

    def some_tools(self, needed: list[str]) -> list[dict[str, Any]]:
        names = {*needed, *(n for n in facts.TOOLS if self.rng.random() < 0.35)} or {"get_time"}
        order = sorted(names)
        self.rng.shuffle(order)
        tools = [facts.TOOLS[name] for name in order]
        if self.rng.random() < 0.3:
            name, noun = self.rng.sample(("read", "send", "open", "note", "mail", "file", "list", "find"), 2)
            invented = facts.tool(f"{name}_{noun}", self.chatter(), **{noun: {"type": "string"}})
            tools.insert(self.rng.randint(0, len(tools)), invented)
        return tools

    def calling(self, question: str) -> Example:
        thought, text, calls = facts.CALLS[question]
        said = "\n".join(filter(None, [text, *(call_text(*call) for call in calls)]))
        return self.finish([user(question)], self.some_tools([calls[0][0]]), thought, said)

    def after_call(self, question: str) -> Example | None:
        if not question.startswith("What is the weather"):
            return None
        thought, text, calls = facts.CALLS[question]
        made = assistant(
            text, [{"type": "function", "function": {"name": n, "arguments": a}} for n, a in calls]
        )
        if self.rng.random() < 0.5:  # clients send it back or leave it out
            made["reasoning_content"] = thought
        result, answer = facts.TOOL_RESULT
        turns = [user(question), made, {"role": "tool", "content": result}]
        answer = answer.replace("Paris", calls[0][1]["city"])
        return self.finish(turns, self.some_tools(["get_weather"]), "The tool says 21 and sunny.", answer)


# ---------------------------------------------------------------- tokenizers


def qwen3_tokenizer(texts: list[str], vocabulary: int) -> Any:
    """Byte-level BPE with Qwen's way of splitting; the markers stay in decoded text, as in Qwen3."""
    from tokenizers import (
        AddedToken,
        Regex,
        Tokenizer,
        decoders,
        models,
        normalizers,
        pre_tokenizers,
        trainers,
    )

    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    split = re.compile("|".join(map(re.escape, special + MARKERS)))
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary - len(special + MARKERS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator((part for text in texts for part in split.split(text)), trainer)
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in special])
    tokenizer.add_tokens([AddedToken(t, special=False, normalized=False) for t in MARKERS])
    return tokenizer


def llama_tokenizer(texts: list[str], vocabulary: int) -> Any:
    """BPE over characters with byte fallback, a word mark and BOS in front, as SentencePiece models have."""
    from tokenizers import (
        AddedToken,
        Regex,
        Tokenizer,
        decoders,
        models,
        pre_tokenizers,
        processors,
        trainers,
    )

    special = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
    fallback = [f"<0x{byte:02X}>" for byte in range(256)]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    lines = pre_tokenizers.Split(Regex(r"\n"), "isolated")
    words = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first", split=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([lines, words])
    split = re.compile("|".join(map(re.escape, special)))
    plain = (re.sub(r"[^\x00-\x7f]", "", part) for text in texts for part in split.split(text))
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=[*special[:3], *fallback, *special[3:]], show_progress=False
    )
    tokenizer.train_from_iterator(plain, trainer)
    raw = json.loads(tokenizer.to_str())
    raw["added_tokens"] = [
        t for t in raw["added_tokens"] if t["content"] in special
    ]  # bytes are no special tokens
    tokenizer = Tokenizer.from_str(json.dumps(raw))
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in special])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    return tokenizer


# ---------------------------------------------------------------- training


def encode(tokenizer: Any, example: Example) -> tuple[list[int], list[int]]:
    """Token ids of the prompt and of the rest, split where the prompt's own tokens end."""
    prompt, said, raw = example
    head = tokenizer.encode(prompt, add_special_tokens=raw).ids
    whole = tokenizer.encode(prompt + said, add_special_tokens=raw).ids
    if whole[: len(head)] != head:
        raise ValueError(f"tokens run across the end of the prompt: {prompt[-20:]!r} {said[:20]!r}")
    return head, whole[len(head) :]


def batches(corpus: Corpus, tokenizer: Any, size: int) -> Iterator[tuple[Any, Any, Any]]:
    """Token ids [size, n], flat places of the scored positions, their targets. Like lengths together."""
    import mlx.core as mx

    while True:
        pairs = [encode(tokenizer, example) for _ in range(8) for example in corpus.one_round()]
        corpus.rng.shuffle(pairs)
        pairs.sort(key=lambda pair: (len(pair[0]) + len(pair[1])) // 8)
        groups = [pairs[i : i + size] for i in range(0, len(pairs) - size + 1, size)]
        corpus.rng.shuffle(groups)
        for group in groups:
            n = max(len(p) + len(a) for p, a in group) - 1
            tokens = [(p + a[:-1] + [0] * n)[:n] for p, a in group]
            where = [i * n + len(p) - 1 + j for i, (p, a) in enumerate(group) for j in range(len(a))]
            yield mx.array(tokens), mx.array(where), mx.array([t for _, a in group for t in a])


def train(model: Any, data: Iterator[tuple[Any, Any, Any]], steps: int, rate: float) -> None:
    import mlx.core as mx
    import mlx.nn as nn
    import mlx.optimizers as optim

    warm, cool = optim.linear_schedule(1e-6, rate, 30), optim.cosine_decay(rate, steps - 30, rate * 0.01)
    optimizer = optim.AdamW(optim.join_schedules([warm, cool], [30]), betas=[0.9, 0.98], weight_decay=0.0)

    def loss_of(model: Any, tokens: Any, where: Any, targets: Any) -> Any:
        hidden = model.model(tokens)
        hidden = hidden.reshape(-1, hidden.shape[-1])[where]
        tied = model.args.tie_word_embeddings
        logits = model.model.embed_tokens.as_linear(hidden) if tied else model.lm_head(hidden)
        return nn.losses.cross_entropy(logits, targets).mean()

    step = nn.value_and_grad(model, loss_of)
    began = time.monotonic()
    for number in range(steps):
        loss, gradient = step(model, *next(data))
        gradient, _ = optim.clip_grad_norm(gradient, 1.0)
        optimizer.update(model, gradient)
        mx.eval(model.parameters(), optimizer.state, loss)
        if number % 100 == 0 or number == steps - 1:
            print(
                f"  step {number:4d}  loss {loss.item():.5f}  {time.monotonic() - began:5.1f} s", flush=True
            )


def save(folder: Path, model: Any, config: dict[str, Any], tokenizer: Any, extra: dict[str, Any]) -> None:
    import mlx.core as mx
    from mlx.utils import tree_flatten

    weights = dict(tree_flatten(model.parameters()))
    mx.save_safetensors(str(folder / "model.safetensors"), weights, metadata={"format": "mlx"})
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    written = {
        "config.json": config,
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "clean_up_tokenization_spaces": False,
            "model_max_length": config["max_position_embeddings"],
            **extra,
        },
        "generation_config.json": {k: config[k] for k in ("bos_token_id", "eos_token_id") if k in config},
    }
    for name, content in written.items():
        (folder / name).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def make(family: str, steps: int, rate: float, batch: int) -> None:
    import mlx.core as mx
    from mlx.utils import tree_flatten

    corpus = Corpus(family, seed=0)
    texts = [prompt + said for _ in range(10) for prompt, said, _ in corpus.one_round()]
    config: dict[str, Any] = {
        "model_type": family,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "max_position_embeddings": 4096,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "hidden_size": 64,
        "torch_dtype": "float32",
    }
    mx.random.seed(1)
    if family == "qwen3":
        from mlx_lm.models.qwen3 import Model, ModelArgs

        tokenizer = qwen3_tokenizer(texts, 768)
        extra: dict[str, Any] = {"eos_token": END, "pad_token": "<|endoftext|>"}
        config |= {"architectures": ["Qwen3ForCausalLM"], "num_key_value_heads": 2, "head_dim": 64}
        config |= {"intermediate_size": 256, "tie_word_embeddings": True, "attention_bias": False}
        ends = [END, "<|endoftext|>"]
    else:
        from mlx_lm.models.llama import Model, ModelArgs

        tokenizer = llama_tokenizer(texts, 640)
        extra = {"bos_token": "<s>", "eos_token": END, "unk_token": "<unk>", "add_bos_token": True}
        config |= {"architectures": ["LlamaForCausalLM"], "num_key_value_heads": 1, "intermediate_size": 160}
        config |= {"tie_word_embeddings": False, "bos_token_id": tokenizer.token_to_id("<s>")}
        ends = [END, "</s>"]
    config["eos_token_id"] = [tokenizer.token_to_id(end) for end in ends]
    config["vocab_size"] = (tokenizer.get_vocab_size() + 63) // 64 * 64
    model = Model(ModelArgs.from_dict(config))
    mx.eval(model.parameters())
    count = sum(value.size for _, value in tree_flatten(model.parameters()))
    print(f"{family}: {count / 1e6:.2f}M parameters, {tokenizer.get_vocab_size()} tokens", flush=True)
    train(model, batches(corpus, tokenizer, batch), steps, rate)
    save(facts.QWEN3 if family == "qwen3" else facts.LLAMA, model, config, tokenizer, extra)


def main() -> None:
    marker = "MLXO_MAKE_CACHE"
    if marker not in os.environ:
        cache = Path(tempfile.gettempdir()) / "mlxo-make-models"
        added = blas.environment("auto", cache, os.environ) | {marker: str(cache)}
        os.execvpe(
            sys.executable, [sys.executable, "-m", "tests.models.make", *sys.argv[1:]], os.environ | added
        )
    for family in sys.argv[1:] or ("qwen3", "llama"):
        make(family, steps={"qwen3": 3000, "llama": 1200}[family], rate=3e-3, batch=8)


if __name__ == "__main__":
    main()
