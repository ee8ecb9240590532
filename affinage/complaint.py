"""What the user is told of whatever went wrong: one line and an exit code."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path
from typing import Any

from affinage.errors import AffinageError, nearest


class Stopped(Exception):
    """The user stopped a fit; it can go on from its folder."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.folder = folder


def explained(error: BaseException) -> tuple[str, int]:
    """(one line for the user, exit code) of whatever went wrong."""
    if isinstance(error, SystemExit):
        return "", error.code if isinstance(error.code, int) else 1
    if isinstance(error, Stopped):
        return f"stopped; continue with: affinage fit --resume --out {error.folder}", 130
    if isinstance(error, KeyboardInterrupt):
        return "stopped", 130
    if isinstance(error, AffinageError):
        return _one_line(error), error.exit_code
    if hasattr(error, "format_message"):  # the parser's own errors; they name the nearest option
        return _usage(error), 2
    if isinstance(error, BrokenPipeError):  # the reader of our lines went away (| head): nothing to tell, nothing to flush
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return "", 1
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error):
        return "out of memory; use a smaller --batch-size, --max-length or model", 2
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return (
            f"no space left on the disk{f' for {error.filename}' if error.filename else ''}; free some, then go on with --resume",
            2,
        )
    return f"{type(error).__name__}: {_one_line(error)} (run again with --debug to see where)", 1


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


def _usage(error: Any) -> str:
    """The parser's message; for an unknown option or command, with the nearest name."""
    text = " ".join(str(error.format_message()).split()).rstrip(".")
    context = getattr(error, "ctx", None)
    where = context.command_path if context is not None else "affinage"
    option = getattr(error, "option_name", None)
    if option is not None and context is not None and text.lower().startswith("no such option"):
        known = [name for parameter in context.command.params for name in parameter.opts]
        text = f"no such option '{option}'{nearest(option, [*known, '--debug', '--help'])}"
    return f"{text or 'a command is missing'} (see: {where} --help)"
