"""The settings of an inference run, and the only place where environment variables are read.

Each is an environment variable and a flag, and the flag wins; names are those of Ascend's sample
where it has them. `Settings.origin` says where each value came from, TABLE what
`dsv3-port settings` and docs/settings.md tell.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from ..errors import PortError


@dataclass(frozen=True)
class Setting:
    """One row of TABLE: a field of Settings, and what is known about it."""

    field: str
    kind: type
    default: Any
    variable: str
    meaning: str
    choices: tuple[Any, ...] = ()
    at_least: int | None = None
    at_most: int | None = None
    multiple_of: int = 1
    in_sample: bool = True  # Ascend's sample has a variable of this name

    @property
    def flag(self) -> str:
        return "--" + self.field.replace("_", "-")

    @property
    def values(self) -> str:
        """What it can be, in words."""
        if self.choices:
            return ", ".join("unset" if c == "" else str(c) for c in self.choices)
        if self.kind is str:
            return "text"
        if self.at_most is not None:
            return f"multiple of {self.multiple_of} in {self.at_least}..{self.at_most}"
        return "whole number" + (f", {self.at_least} or more" if self.at_least is not None else "")

    def takes(self, value: Any) -> bool:
        """Whether a value of the right kind can be; PortError's words are Settings'."""
        least = value if self.at_least is None else self.at_least
        most = value if self.at_most is None else self.at_most
        return bool(least <= value <= most and value % self.multiple_of == 0)


def setting(variable: str, default: Any, meaning: str, *choices: Any, **more: Any) -> Any:
    """A field of Settings with its row; `more` are the other columns of Setting."""
    return field(
        default=default, metadata=dict(more, variable=variable, meaning=meaning, choices=choices)
    )


@dataclass(frozen=True)
class Settings:
    world_size: int = setting(
        "WORLD_SIZE",
        1,
        "ranks (cards) of the run; unset, that of the folder's manifest",
        at_least=1,
    )
    local_rank: int = setting(
        "LOCAL_RANK", 0, "this process's card on its machine; torchrun sets it"
    )
    rank_id: int = setting(
        "RANK_ID",
        0,
        "this process's rank among all (torchrun's RANK is read too); a process in which it is set is that "
        "rank, one without it starts all ranks",
    )
    master_addr: str = setting("MASTER_ADDR", "127.0.0.1", "address of rank 0's machine")
    master_port: int = setting("MASTER_PORT", 0, "port on it; 0 takes a free one")
    model_name: str = setting("MODEL_NAME", "deepseek_v3", "name used in reports")
    model_dir: str = setting(
        "MODEL_DIR", "", "checkpoint folder, published format or written by `dsv3-port shard`"
    )
    input_max_len: int = setting(
        "INPUT_MAX_LEN",
        1024,
        "tokens of the longest prompt; graphs pad every prompt to it, eager to the longest of its batch",
        at_least=1,
    )
    max_new_tokens: int = setting("MAX_NEW_TOKENS", 32, "tokens generated at most", at_least=1)
    batch_size: int = setting("BATCH_SIZE", 1, "sequences decoded together", at_least=1)
    tokenizer_mode: str = setting(
        "TOKENIZER_MODE",
        "default",
        "prompt as it is, or through the chat template",
        "default",
        "chat",
    )
    prefill_chunk: int = setting(
        "PREFILL_CHUNK",
        0,
        "positions of a prompt computed at once, so that long prompts need no more memory; 0: all",
        at_least=0,
        in_sample=False,
    )
    block_size: int = setting(
        "BLOCK_SIZE",
        128,
        "positions of a block of the paged cache (`--plan production`)",
        at_least=16,
        at_most=1024,
        multiple_of=16,
        in_sample=False,
    )
    exe_mode: str = setting(
        "EXE_MODE", "eager", "operator by operator, or compiled graphs", "eager", "dynamo"
    )
    enable_aclgraph: int = setting(
        "ENABLE_ACLGRAPH", 0, "with dynamo: 0 GE graph, 1 aclgraph", 0, 1
    )
    gmm_provider: str = setting(
        "GMM_PROVIDER",
        "auto",
        "who multiplies the experts on npu; auto is torch_npu",
        *("auto", "torch_npu", "mindspeed", "reference"),
        in_sample=False,
    )
    job_timeout: int = setting(
        "JOB_TIMEOUT",
        300,
        "seconds that ranks wait for one that does not answer before the job ends",
        at_least=1,
        in_sample=False,
    )
    hccl_deterministic: str = setting(
        "HCCL_DETERMINISTIC", "false", "deterministic reductions across cards", "false", "true"
    )
    hccl_op_expansion_mode: str = setting(
        "HCCL_OP_EXPANSION_MODE",
        "",
        "AIV: collectives on the vector cores",
        *("", "AIV", "AI_CPU", "HOST", "HOST_TS"),
    )
    lang: str = setting(
        "DSV3_LANG",
        "auto",
        "language of what a reader reads: notebooks, verdicts, pages, `doctor`; auto: the system's. A notebook "
        "in Chinese speaks Chinese whatever is set",
        *("auto", "en", "zh"),
        in_sample=False,
    )
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
            if row.kind is int and not row.takes(value):
                wanted = row.values.removeprefix("whole number, ").replace("multiple", "a multiple")
                raise PortError(f"{row.variable} must be {wanted}, not {value}")
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
            origin[row.field] = f"flag {row.flag}"
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


TABLE = tuple(
    Setting(f.name, type(f.default), f.default, **f.metadata)
    for f in fields(Settings)
    if "variable" in f.metadata
)


def environment(name: str, default: str | None = None) -> str | None:
    """An environment variable that is not a setting of a run (CANN's own, for `doctor`)."""
    return os.environ.get(name, default)
