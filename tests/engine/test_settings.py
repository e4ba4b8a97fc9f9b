"""Settings: flag over environment over default, checked once."""

from __future__ import annotations

import dataclasses

import pytest

from dsv3_port import PortError
from dsv3_port.engine.settings import TABLE, Settings


def test_table_and_dataclass_hold_the_same_fields_and_defaults():
    fields = {f.name: f.default for f in dataclasses.fields(Settings)}
    assert {row.field: row.default for row in TABLE} == fields


def test_flag_wins_over_environment():
    env = {"MAX_NEW_TOKENS": "7", "BATCH_SIZE": "2", "RANK": "3", "EXE_MODE": "dynamo", "ENABLE_ACLGRAPH": "1"}
    got = Settings.from_env_and_flags({"batch_size": 5, "model_dir": None}, env)
    assert (got.max_new_tokens, got.batch_size, got.rank_id, got.graph) == (7, 5, 3, "aclgraph")
    assert Settings.from_env_and_flags({}, {"EXE_MODE": "dynamo"}).graph == "ge"
    assert Settings.from_env_and_flags({}, {}) == Settings()


@pytest.mark.parametrize(("env", "message"), [
    ({"BATCH_SIZE": "two"}, "BATCH_SIZE is 'two'; a whole number"),
    ({"BATCH_SIZE": "0"}, "BATCH_SIZE must be 1 or more"),
    ({"EXE_MODE": "fast"}, "EXE_MODE is 'fast'; it can be 'eager', 'dynamo'"),
    ({"HCCL_DETERMINISTIC": "TRUE", "HCCL_OP_EXPANSION_MODE": "AIV"}, "exclude each other"),
])
def test_bad_values_are_named(env, message):
    with pytest.raises(PortError, match=message):
        Settings.from_env_and_flags({}, env)
