"""GPT-2 Workbench: no arguments open the window, a COMMAND is the command line."""

import gc
import sys


def main() -> int:
    """Run the program; returns the exit status."""
    if sys.version_info[:2] != (3, 11):
        version = ".".join(map(str, sys.version_info[:2]))
        message = f"GPT-2 Workbench needs Python 3.11, this is {version}; see README.md"
        print(message, file=sys.stderr)
        return 2
    from app.cli import run

    status = run(sys.argv[1:])
    # Collecting the cycles of PyTorch's modules once more at the end would take seconds.
    gc.freeze()
    return status


if __name__ == "__main__":
    raise SystemExit(main())
