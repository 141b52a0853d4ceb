"""`mlxo _runner FD`: the child process that holds one model. FD is one end of a socket pair.

Two threads: the main one owns the engine and everything MLX, a reader turns bytes into frames for it. When
the daemon's end closes the reader ends the process there and then, in the middle of a load or a long step
too.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import signal
import socket
import sys
import threading

from mlxo.core import logs, wire
from mlxo.core.errors import RunnerError

log = logging.getLogger(__name__)

_READ = 256 << 10  # bytes a read


def main(argv: list[str]) -> int:
    """Returns only when it was not started by a daemon, with exit status 2."""
    # A terminal's Ctrl-C goes to the whole process group; when to leave is the daemon's decision.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # A runner never reaches for the network, and says nothing that is not about its model.
    os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", TRANSFORMERS_NO_ADVISORY_WARNINGS="1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    logs.setup("runner", debug=os.environ.get("MLXO_DEBUG", "0") not in ("", "0"))
    try:
        end = socket.socket(fileno=int(argv[0]))
        end.set_inheritable(False)  # a compiler that MLX starts must not hold it open when we are gone
    except (IndexError, ValueError, OSError):
        print("Error: _runner is started by the server, not by hand", file=sys.stderr)
        return 2
    inbox: queue.SimpleQueue[wire.ToRunner] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(end, inbox), name="reader", daemon=True).start()

    from mlxo.runner.loop import serve

    status = serve(end, inbox)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    # Not by returning: MLX's threads may abort an interpreter that is being torn down.
    os._exit(status)


def _read(end: socket.socket, inbox: queue.SimpleQueue[wire.ToRunner]) -> None:
    unpacker = wire.to_runner()
    try:
        while data := end.recv(_READ):
            for frame in unpacker.feed(data):
                inbox.put(frame)
    except OSError:
        pass  # a broken pipe says the same as a closed one
    except RunnerError as e:
        log.error("%s", e)
        os._exit(1)
    os._exit(0)
