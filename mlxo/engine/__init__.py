"""Everything that touches MLX. Importing this package imports mlx_lm, which costs seconds: runners alone
do.

One thread owns all of it: the one that constructs `Engine` (lazy arrays, generators and streams belong to a
thread).
"""

from __future__ import annotations

import resource


def _import_mlx_lm() -> None:
    """Import mlx_lm without letting it rewrite this process's limit on open files.

    Its import sets RLIMIT_NOFILE to (2048, 4096): that lowers a higher limit for good, and fails where the
    hard limit is lower.
    """
    setrlimit = resource.setrlimit
    resource.setrlimit = lambda *_: None
    try:
        import mlx_lm.generate  # noqa: F401
    finally:
        resource.setrlimit = setrlimit


_import_mlx_lm()
