"""Several commands at once: `python ci/side_by_side.py WORDS... -- WORDS... -- WORDS...`.

Their lines come as they print them, and again, at the end, those of each that failed; the exit code
is the first failed one's. Standard library only; nothing newer than Python 3.6.
"""

import subprocess
import sys
import threading

SEPARATOR = "--"


def joined(commands: "list[list[str]]") -> "list[str]":
    """The words of one command that runs all of them."""
    words = [sys.executable, __file__]
    for number, command in enumerate(commands):
        words += ([SEPARATOR] if number else []) + command
    return words


def split(words: "list[str]") -> "list[list[str]]":
    commands = [[]]  # type: list[list[str]]
    for word in words:
        if word == SEPARATOR:
            commands.append([])
        else:
            commands[-1].append(word)
    return commands


class Running:
    """A command in this process's group: who ends the group ends it."""

    def __init__(self, command: "list[str]") -> None:
        self.command, self.lines = command, []  # type: list[str], list[str]
        self.child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        self.reader = threading.Thread(target=self.read)
        self.reader.start()

    def read(self) -> None:
        assert self.child.stdout is not None
        for line in self.child.stdout:
            self.lines.append(line.decode("utf-8", "replace"))
            sys.stdout.write(self.lines[-1])
            sys.stdout.flush()

    def wait(self) -> int:
        self.reader.join()
        return self.child.wait()


def main(words: "list[str]") -> int:
    running = [Running(command) for command in split(words)]
    codes = [each.wait() for each in running]
    for each, code in zip(running, codes):  # noqa: B905 # Python 3.6 has no strict=
        if code != 0:
            print("$ " + " ".join(each.command) + "\n" + "".join(each.lines), flush=True)
    return next((code for code in codes if code != 0), 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
