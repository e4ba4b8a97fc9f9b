"""The one exception whose message is meant for a person."""


class PortError(Exception):
    """Bad input or an unusable machine: the message names what is wrong and what to do.

    The command line prints it as one sentence and exits with code 2; in a notebook or a script it
    is an ordinary exception. Programming errors stay ValueError, TypeError and so on.
    """
