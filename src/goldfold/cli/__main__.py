"""``goldfold``, and ``python -m goldfold.cli``."""

import atexit
import os
import sys
import threading
from typing import NoReturn

from goldfold.cli import main


def run() -> NoReturn:
    """Run the command that was typed, and end the process with its exit code.

    Threads and exit handlers end as ever, but torch is not taken apart object by object: that takes two seconds.
    """
    code = main()
    threading._shutdown()  # type: ignore[attr-defined]  # as the interpreter calls it; pools of threads wait for it
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None and not stream.closed:
                stream.flush()
        except OSError:
            code = code or 120  # the interpreter's own code for it
    os._exit(code)


if __name__ == "__main__":
    run()
