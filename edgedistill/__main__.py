"""`edgedistill`, `python -m edgedistill` and `torchrun -m edgedistill`: the command line as a program."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from typing import NoReturn


def main() -> None:
    """Run the command line; exit at once after a signal, and where several processes trained together.

    After a signal nothing waits for threads that are still at work. Where several processes trained together, threads
    of gloo may still free the tensors of the last message: one that meets the end of the interpreter aborts it.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        # until the command line handles it: nothing has begun yet, and half an import is no traceback to show
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from edgedistill import cli
    from edgedistill.run import interrupts

    try:
        cli.main()
    except SystemExit as end:
        if os.environ.get("WORLD_SIZE", "1") != "1" and isinstance(end.code, int):
            _exit(end.code)
        raise
    finally:
        code = interrupts.exit_code()
        if code is not None:
            _exit(code)


def _exit(code: int) -> NoReturn:
    """End the process without the end of the interpreter."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
