"""Every operator's meaning and check by its name, past the choice of a device."""

from __future__ import annotations

from types import SimpleNamespace

from dsv3_port.ops import OPERATORS

reference = SimpleNamespace(**{name: operator.meaning for name, operator in OPERATORS.items()})
contracts = SimpleNamespace(**{name: operator.check for name, operator in OPERATORS.items()})
