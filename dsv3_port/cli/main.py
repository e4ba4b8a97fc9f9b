"""The command line: arguments in, sentences out; one file a command, which prints what the rooms
below find.

Exit codes: 0 done; 1 done, and the answer is "no" (a notebook failed, models differ, a check of
doctor failed); 2 bad input or an unusable machine, told in one sentence; 130 interrupted. torch is
imported by the commands that need it, so that `--help` is quick.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from typing import Any

from .. import messages
from ..engine.language import reader_language
from ..errors import PortError
from ..files import keep_traceback
from ..version import __version__
from .streams import open_streams, plain, stdout_works

# command -> its line of help. The module of that name here has arguments(parser) and run(args), which
# returns an exit code, and NEEDS_TORCH = False where it works without; it is imported on use.
COMMANDS = {
    "doctor": "what this machine has, and what will run on it",
    "hostnpu": "the real torch_npu on a machine without NPU and CANN: install it, or say what there is",
    "plan": "memory per card, from config.json alone; times by a forecast or by measured kernels; or the steps",
    "shard": "split a published checkpoint into one folder per rank",
    "calibrate": "the scales of an int8 cache (+c8), from a text",
    "infer": "continue prompts; every setting is a flag and an environment variable",
    "serve": "continue a file of prompts in slots (continuous batching); a library loop, no server",
    "settings": "what can be set for `infer`: variables, flags, values, defaults",
    "bench": "measure the ladder on this machine, or the full port beside other engines",
    "record": "a signed measurement of this device for data/recorded",
    "compare": "find the first layer in which two models differ",
    "judge": "judge a function that you wrote for a slot of the course, in the embedded model",
    "ge": "list, count, draw, run or compare converted GE graphs (.air, pbtxt)",
    "npu-kernels": "kernel times that a profiler wrote on your card, beside the published ones",
    "start": "put the course (notebooks, embedded model, recorded data) into a folder of your own",
    "tutorial": "execute the notebooks and build the pages",
    "copies": "the notebooks with every answer filled in, and without prose, for a class",
    "class": "what a class has built, as one page, from collected progress.json files",
}


class _Command(argparse.ArgumentParser):
    """Parses one command; asks the command's module for its arguments when it is first used."""

    name = ""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        if self.name:
            module = importlib.import_module(f".{self.name.replace('-', '_')}", __package__)
            module.arguments(self)
            self.set_defaults(run=module.run, needs_torch=getattr(module, "NEEDS_TORCH", True))
            self.name = ""
        return super().parse_known_args(args, namespace)


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="dsv3-port",
        description="Learn and carry out a port of DeepSeek-V3 inference to Ascend NPUs.",
    )
    parser.add_argument("--version", action="version", version=f"dsv3-port {__version__}")
    sub = parser.add_subparsers(
        dest="command", required=True, metavar="COMMAND", parser_class=_Command
    )
    for name, text in COMMANDS.items():
        sub.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".").name = name
    return parser


def _check_values(words: Sequence[str]) -> None:
    """argparse takes the -- of --flag=-- away, and gives the flag an empty list."""
    for word in words:
        if word in ("--", "run"):  # what follows belongs to another program
            return
        if word.startswith("--") and word.endswith("=--"):
            raise PortError(f"{word[:-3]}: -- is no value")


def _require_torch() -> None:
    """A torch_npu without CANN breaks `import torch`: say so instead of showing its traceback."""
    from ..doctor.machine import import_torch

    torch, problem = import_torch()
    if torch is None:
        raise PortError(f"torch cannot be imported ({problem}); `dsv3-port doctor` says what to do")


def _out_of_memory(error: BaseException) -> bool:
    """torch raises its own kind on cuda and npu, and a plain RuntimeError on cpu."""
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or isinstance(error, RuntimeError)
        and "can't allocate memory" in str(error)
    )


def _warn(message: Warning | str, *_: Any, **__: Any) -> None:
    print(f"dsv3-port: warning: {plain(str(message))}", file=sys.stderr)


def main(argv: Sequence[str] | None = None) -> int:
    open_streams()
    code = _main(argv)
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        pass
    except OSError as error:
        code = 2
        with contextlib.suppress(OSError):
            print(f"dsv3-port: stdout cannot be written: {error.strerror}", file=sys.stderr)
    else:
        return code
    with contextlib.suppress(OSError, ValueError):  # or the interpreter tries again at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return code


def _main(argv: Sequence[str] | None) -> int:
    warnings.showwarning = _warn
    try:
        messages.use(reader_language())
        args = make_parser().parse_args(argv)
        _check_values(sys.argv[1:] if argv is None else argv)
        if args.needs_torch and not getattr(args, "steps", False):
            _require_torch()
        return int(args.run(args))
    except KeyboardInterrupt:
        print("\ndsv3-port: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `dsv3-port plan | head`: nobody reads on
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        message = _sentence(error)
    with contextlib.suppress(OSError):
        print(f"dsv3-port: {plain(message)}", file=sys.stderr)
    return 2


def _sentence(error: Exception) -> str:
    """What is said of an error; the stack of one that nobody foresaw is kept in a file."""
    if isinstance(error, PortError):
        return str(error)
    name = (getattr(error, "name", None) or "").partition(".")[0]
    if isinstance(error, ModuleNotFoundError) and name not in ("", "dsv3_port"):
        extra = {"matplotlib": "bench", "PIL": "bench", "pytest": "dev"}.get(name, "tutorial")
        return f"{name} is not installed, which this needs: pip install 'dsv3-port[{extra}]'"
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror or error}"
    if isinstance(error, OSError) and not stdout_works():
        return f"stdout: {error.strerror or error}"
    if isinstance(error, RecursionError):
        return "the input nests too deep"
    if _out_of_memory(error):
        return (
            f"out of memory ({' '.join(str(error).split())[:200]}); a smaller batch, context or model is "
            "needed"
        )
    stack = "".join(traceback.format_exception(error))
    said = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}".rstrip(": ")
    return f"not foreseen, and so a defect of dsv3-port: {said}; {keep_traceback(stack)}; please report it"
