"""The settings of an inference run, and the only place where environment variables are read.

Names and defaults are those of Ascend's sample; each is an environment variable and a flag, and the
flag wins. `Settings.origin` says where each value came from.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import PortError


@dataclass(frozen=True)
class Setting:
    """One row of the table: field of Settings, variable, type, default, meaning."""

    field: str
    variable: str
    kind: type
    default: Any
    meaning: str
    choices: tuple[Any, ...] = ()


TABLE: tuple[Setting, ...] = (
    Setting(
        "world_size",
        "WORLD_SIZE",
        int,
        1,
        "ranks (cards) of the run; unset, that of the folder's manifest",
    ),
    Setting(
        "local_rank", "LOCAL_RANK", int, 0, "this process's card on its machine; torchrun sets it"
    ),
    Setting(
        "rank_id",
        "RANK_ID",
        int,
        0,
        "this process's rank among all (torchrun's RANK is read too); a "
        "process in which it is set is that rank, one without it starts all ranks",
    ),
    Setting("master_addr", "MASTER_ADDR", str, "127.0.0.1", "address of rank 0's machine"),
    Setting("master_port", "MASTER_PORT", int, 0, "port on it; 0 takes a free one"),
    Setting("model_name", "MODEL_NAME", str, "deepseek_v3", "name used in reports"),
    Setting(
        "model_dir",
        "MODEL_DIR",
        str,
        "",
        "checkpoint folder, published format or written by `dsv3-port shard`",
    ),
    Setting(
        "input_max_len",
        "INPUT_MAX_LEN",
        int,
        1024,
        "tokens of the longest prompt; graphs pad every "
        "prompt to it, eager to the longest of its batch",
    ),
    Setting("max_new_tokens", "MAX_NEW_TOKENS", int, 32, "tokens generated at most"),
    Setting("batch_size", "BATCH_SIZE", int, 1, "sequences decoded together"),
    Setting(
        "tokenizer_mode",
        "TOKENIZER_MODE",
        str,
        "default",
        "prompt as it is, or through the chat template",
        ("default", "chat"),
    ),
    Setting(
        "exe_mode",
        "EXE_MODE",
        str,
        "eager",
        "operator by operator, or compiled graphs",
        ("eager", "dynamo"),
    ),
    Setting(
        "enable_aclgraph", "ENABLE_ACLGRAPH", int, 0, "with dynamo: 0 GE graph, 1 aclgraph", (0, 1)
    ),
    Setting(
        "gmm_provider",
        "GMM_PROVIDER",
        str,
        "auto",
        "who multiplies the experts on npu; auto is torch_npu",
        ("auto", "torch_npu", "mindspeed", "reference"),
    ),
    Setting(
        "job_timeout",
        "JOB_TIMEOUT",
        int,
        300,
        "seconds that ranks wait for one that does not answer before the job ends",
    ),
    Setting(
        "hccl_deterministic",
        "HCCL_DETERMINISTIC",
        str,
        "false",
        "deterministic reductions across cards",
        ("false", "true"),
    ),
    Setting(
        "hccl_op_expansion_mode",
        "HCCL_OP_EXPANSION_MODE",
        str,
        "",
        "AIV: collectives on the vector cores",
        ("", "AIV", "AI_CPU", "HOST", "HOST_TS"),
    ),
)


@dataclass(frozen=True)
class Settings:
    world_size: int = 1
    local_rank: int = 0
    rank_id: int = 0
    master_addr: str = "127.0.0.1"
    master_port: int = 0
    model_name: str = "deepseek_v3"
    model_dir: str = ""
    input_max_len: int = 1024
    max_new_tokens: int = 32
    batch_size: int = 1
    tokenizer_mode: str = "default"
    exe_mode: str = "eager"
    enable_aclgraph: int = 0
    gmm_provider: str = "auto"
    job_timeout: int = 300
    hccl_deterministic: str = "false"
    hccl_op_expansion_mode: str = ""
    origin: Mapping[str, str] = field(
        default_factory=dict, compare=False, repr=False
    )  # field -> what set it

    def __post_init__(self) -> None:
        for row in TABLE:
            value = getattr(self, row.field)
            if row.choices and value not in row.choices:
                raise PortError(
                    f"{row.variable} is {value!r}; it can be {', '.join(repr(c) for c in row.choices)}"
                )
        for name in ("world_size", "input_max_len", "max_new_tokens", "batch_size", "job_timeout"):
            if getattr(self, name) < 1:
                raise PortError(f"{name.upper()} must be 1 or more, not {getattr(self, name)}")
        if not 0 <= self.master_port < 2**16:
            raise PortError(f"MASTER_PORT must be within 0..65535, not {self.master_port}")
        if self.local_rank < 0 or not 0 <= self.rank_id < self.world_size and self.is_rank:
            raise PortError(
                f"RANK_ID {self.rank_id} (LOCAL_RANK {self.local_rank}) does not exist with WORLD_SIZE "
                f"{self.world_size}"
            )
        if self.hccl_deterministic == "true" and self.hccl_op_expansion_mode == "AIV":
            raise PortError(
                "HCCL_DETERMINISTIC=true and HCCL_OP_EXPANSION_MODE=AIV exclude each other: unset one"
            )

    @property
    def graph(self) -> str:
        """PortPlan.graph for EXE_MODE and ENABLE_ACLGRAPH."""
        if self.exe_mode == "eager":
            return "eager"
        return "aclgraph" if self.enable_aclgraph else "ge"

    @property
    def is_rank(self) -> bool:
        """Whether somebody else (torchrun, a script) started this process as one rank of a job."""
        return "rank_id" in self.origin

    def rows(self) -> list[tuple[str, Any, str]]:
        """(variable, value, where it came from) in the order of TABLE."""
        return [
            (row.variable, getattr(self, row.field), self.origin.get(row.field, "default"))
            for row in TABLE
        ]

    def export(self) -> None:
        """Put what HCCL reads by itself into the environment, so that a flag reaches it on every
        rank; before ranks meet."""
        for row in TABLE:
            value = getattr(self, row.field)
            if row.variable.startswith("HCCL_") and row.field in self.origin and value:
                os.environ[row.variable] = value

    @classmethod
    def from_env_and_flags(
        cls, flags: Mapping[str, Any] | None = None, environment: Mapping[str, str] | None = None
    ) -> Settings:
        """Flags that are not None, then the environment, then defaults; all checked."""
        env = os.environ if environment is None else environment
        values: dict[str, Any] = {}
        origin: dict[str, str] = {}
        for row in TABLE:
            raw, variable = (flags or {}).get(row.field), row.variable
            origin[row.field] = f"flag --{row.field.replace('_', '-')}"
            if raw is None:
                if row.field == "rank_id" and variable not in env:
                    variable = "RANK"
                raw = env.get(variable)
                origin[row.field] = f"environment {variable}"
            if raw is None or raw == "" and row.kind is int:
                del origin[row.field]
                continue
            try:
                values[row.field] = row.kind(raw)
            except ValueError:
                raise PortError(f"{row.variable} is {raw!r}; a whole number is needed") from None
        if "hccl_deterministic" in values:
            values["hccl_deterministic"] = str(values["hccl_deterministic"]).lower()
        return cls(**values, origin=origin)


def environment(name: str, default: str | None = None) -> str | None:
    """An environment variable that is not a setting of a run (CANN's own, for `doctor`)."""
    return os.environ.get(name, default)
