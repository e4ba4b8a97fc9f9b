"""On the path of the processes that `dsv3-port hostnpu run` starts, and of theirs: after `import
torch`, whenever that is, device npu exists. Processes without torch pay nothing."""

import contextlib
import os
import sys

_here = os.path.dirname(os.path.abspath(__file__))


def _enable():
    from dsv3_port import hostnpu

    hostnpu.enable(int(os.environ.get("DSV3_HOSTNPU_DEVICES", hostnpu.CARDS)))


def _own():
    """The environment's own sitecustomize, which this one stands in front of."""
    sys.path[:] = [p for p in sys.path if os.path.abspath(p or ".") != _here]
    sys.modules.pop("sitecustomize", None)
    with contextlib.suppress(ImportError):
        import sitecustomize  # noqa: F401


if os.environ.get("DSV3_HOSTNPU_DEVICES"):
    from dsv3_port.hostnpu.on_import import after_import

    after_import("torch", contextlib.nullcontext, _enable)
_own()
