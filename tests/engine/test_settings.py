"""Settings: flag over environment over default, checked once, and each value knows where it came
from."""

from __future__ import annotations

import dataclasses
import os

import pytest

from dsv3_port import PortError, cli, paths
from dsv3_port.engine.settings import TABLE, Settings
from dsv3_port.model.paged_cache import Paging


def test_table_and_dataclass_hold_the_same_fields_and_defaults():
    fields = {f.name: f.default for f in dataclasses.fields(Settings) if f.name != "origin"}
    assert {row.field: row.default for row in TABLE} == fields


def test_the_page_is_what_the_command_writes(capsys):
    assert cli.main(["settings", "--markdown"]) == 0
    page = (paths.repo_root() / "docs" / "settings.md").read_text(encoding="utf-8")
    assert f"-->\n{capsys.readouterr().out}<!-- settings:end -->" in page


def test_the_command_names_every_setting(capsys):
    assert cli.main(["settings"]) == 0
    out = capsys.readouterr().out
    assert all(row.variable in out and row.flag in out for row in TABLE)


def test_which_names_are_not_of_the_old_sample():
    own = [r.variable for r in TABLE if not r.in_sample]
    assert own == [
        "PREFILL_CHUNK",
        "BLOCK_SIZE",
        "NUM_SPECULATIVE_TOKENS",
        "GMM_PROVIDER",
        "JOB_TIMEOUT",
        "DSV3_LANG",
    ]


def test_defaults_are_those_of_the_old_sample():
    s = Settings.from_env_and_flags({}, {})
    assert s == Settings()
    assert (s.input_max_len, s.max_new_tokens, s.batch_size, s.tokenizer_mode) == (
        1024,
        32,
        1,
        "default",
    )
    assert (s.exe_mode, s.enable_aclgraph, s.hccl_deterministic, s.hccl_op_expansion_mode) == (
        "eager",
        0,
        "false",
        "",
    )


def test_flag_wins_over_environment():
    env = {
        "MAX_NEW_TOKENS": "7",
        "BATCH_SIZE": "2",
        "RANK": "3",
        "WORLD_SIZE": "4",
        "EXE_MODE": "dynamo",
        "ENABLE_ACLGRAPH": "1",
    }
    got = Settings.from_env_and_flags({"batch_size": 5, "model_dir": None}, env)
    assert (got.max_new_tokens, got.batch_size, got.rank_id, got.graph) == (7, 5, 3, "aclgraph")
    assert Settings.from_env_and_flags({}, {"EXE_MODE": "dynamo"}).graph == "ge"


def test_every_setting_is_read_from_its_variable_and_its_flag():
    other = {int: "1", str: "x"}
    for row in TABLE:
        text = str(row.choices[-1] if row.choices else row.at_most or other[row.kind])
        base = {"WORLD_SIZE": "4"} if row.field in ("rank_id", "local_rank") else {}
        by_variable = Settings.from_env_and_flags({}, base | {row.variable: text})
        by_flag = Settings.from_env_and_flags({row.field: text}, base)
        assert getattr(by_variable, row.field) == getattr(by_flag, row.field) == row.kind(text)
        assert by_variable.origin[row.field] == f"environment {row.variable}"
        assert by_flag.origin[row.field] == "flag --" + row.field.replace("_", "-")


def test_every_block_size_of_the_setting_is_one_of_the_cache():
    (row,) = (r for r in TABLE if r.variable == "BLOCK_SIZE")
    for size in (0, 8, 16, 24, 128, 1024, 1040):
        try:
            Paging(size)
        except PortError:
            assert not row.takes(size)
        else:
            assert row.takes(size)
    assert row.default == Paging().block_size


def test_rows_say_where_each_value_came_from():
    env = {"RANK": "1", "WORLD_SIZE": "2", "BATCH_SIZE": ""}
    rows = Settings.from_env_and_flags({"max_new_tokens": "8"}, env).rows()
    assert [r[0] for r in rows] == [row.variable for row in TABLE]
    found = {name: (value, origin) for name, value, origin in rows}
    assert found["RANK_ID"] == (1, "environment RANK")
    assert found["MAX_NEW_TOKENS"] == (8, "flag --max-new-tokens")
    assert found["BATCH_SIZE"] == (1, "default")


def test_a_process_is_a_rank_only_where_somebody_numbered_it():
    assert not Settings.from_env_and_flags({}, {"WORLD_SIZE": "4"}).is_rank
    assert Settings.from_env_and_flags({}, {"WORLD_SIZE": "4", "RANK": "0"}).is_rank
    assert Settings.from_env_and_flags({"rank_id": 0}, {"WORLD_SIZE": "4"}).is_rank


def test_hccl_settings_given_as_flags_reach_the_environment(monkeypatch):
    monkeypatch.setenv("HCCL_OP_EXPANSION_MODE", "HOST")
    monkeypatch.delenv("HCCL_DETERMINISTIC", raising=False)
    Settings.from_env_and_flags({"hccl_op_expansion_mode": "AIV"}).export()
    assert os.environ["HCCL_OP_EXPANSION_MODE"] == "AIV"
    assert "HCCL_DETERMINISTIC" not in os.environ  # what nobody set is left to HCCL


@pytest.mark.parametrize(
    ("env", "message"),
    [
        ({"BATCH_SIZE": "two"}, "BATCH_SIZE is 'two'; a whole number"),
        ({"BATCH_SIZE": "0"}, "BATCH_SIZE must be 1 or more"),
        ({"BLOCK_SIZE": "24"}, r"BLOCK_SIZE must be a multiple of 16 in 16\.\.1024, not 24"),
        ({"BLOCK_SIZE": "2048"}, "BLOCK_SIZE must be a multiple of 16"),
        ({"BLOCK_SIZE": "0"}, "BLOCK_SIZE must be a multiple of 16"),
        ({"JOB_TIMEOUT": "0"}, "JOB_TIMEOUT must be 1 or more"),
        ({"EXE_MODE": "fast"}, "EXE_MODE is 'fast'; it can be 'eager', 'dynamo'"),
        ({"MASTER_PORT": "70000"}, "MASTER_PORT must be within 0..65535"),
        ({"WORLD_SIZE": "2", "RANK": "2"}, "RANK_ID 2 .* does not exist with WORLD_SIZE 2"),
        ({"HCCL_DETERMINISTIC": "TRUE", "HCCL_OP_EXPANSION_MODE": "AIV"}, "exclude each other"),
    ],
)
def test_bad_values_are_named(env, message):
    with pytest.raises(PortError, match=message):
        Settings.from_env_and_flags({}, env)
