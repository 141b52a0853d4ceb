"""Hidden states to one vector a text, the way the model's own configuration says.

Sentence Transformers' format: `modules.json` lists what is behind the transformer, `1_Pooling/config.json`
says how to pool, `sentence_bert_config.json` how long a text may be.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx

from mlxo.core.errors import LoadFailed

_KNOWN = ("Transformer", "Pooling", "Normalize")
# The names of older configurations; newer ones have one "pooling_mode".
_MODES = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_lasttoken": "last",
    "pooling_mode_max_tokens": "max",
}
_LENGTH = 1 << 20  # tokens: longer than any model reads


class Pooling(NamedTuple):
    """`mode` is cls, mean, last or max; `longest` the most tokens of a text."""

    mode: str
    longest: int

    def __call__(self, hidden: mx.array, there: mx.array) -> mx.array:
        """(rows, length, width) and (rows, length) to (rows, width) in float32. Padding is on the right."""
        hidden = hidden.astype(mx.float32)
        if self.mode == "cls":
            return hidden[:, 0]
        lengths = there.sum(axis=1)
        if self.mode == "last":
            return mx.take_along_axis(hidden, (lengths - 1)[:, None, None], axis=1)[:, 0]
        if self.mode == "max":
            return mx.where(there[:, :, None], hidden, -mx.inf).max(axis=1)
        return (hidden * there[:, :, None]).sum(axis=1) / lengths[:, None]


def read(folder: Path, default: str) -> Pooling:
    """What the folder says, else `default` mode. Raises LoadFailed for what is not supported."""
    modules = _json(folder, "modules.json", [])
    kinds = [str(m.get("type")).rpartition(".")[2] for m in modules if isinstance(m, dict)]
    strange = [kind for kind in kinds if kind not in _KNOWN]
    if strange:
        raise LoadFailed(
            f"this embedding model has a module {strange[0][:80]!r}, which mlxo does not support"
        )
    config = _json(folder, "1_Pooling/config.json", {})
    modes = [mode for key, mode in _MODES.items() if config.get(key) is True]
    others = [key for key, on in config.items() if key.startswith("pooling_mode_") and on is True]
    if not others and isinstance(config.get("pooling_mode"), str):
        modes = others = [config["pooling_mode"].replace("lasttoken", "last")]
    mode = modes[0] if modes else default
    if len(others) > 1 or (others and not modes) or mode not in _MODES.values():
        raise LoadFailed(
            f"this embedding model pools by {' and '.join(others)}", "mlxo pools in one way only"
        )
    longest = _json(folder, "sentence_bert_config.json", {}).get("max_seq_length")
    return Pooling(mode, longest if isinstance(longest, int) and longest > 0 else _LENGTH)


def _json(folder: Path, name: str, kind: Any) -> Any:
    """The value in a file, when it is there and of the kind of the one given, else that one."""
    try:
        found = json.loads((folder / name).read_bytes())
    except FileNotFoundError:
        return kind
    except (OSError, ValueError, RecursionError) as e:
        raise LoadFailed(f"{name} of this embedding model cannot be read: {type(e).__name__}") from e
    return found if isinstance(found, type(kind)) else kind
