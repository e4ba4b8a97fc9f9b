"""What notebooks import: `from dsv3_port.lab import measure, plots, show`.

Each name is looked up in its room on first use, so a notebook loads only what it names. Nothing is
defined here.
"""

from __future__ import annotations

import importlib
from typing import Any

# names that are modules, and where these stand
MODULES = {
    "anatomy": "plots.anatomy",
    "bench": "bench.cases",
    "bench_tables": "bench.speed_tables",
    "census": "count.census",
    "cost_plots": "plots.costs",
    "defects": "check.defects",
    "diagrams": "plots.memory",
    "doctor": "doctor.machine",
    "flops": "count.flops",
    "ge_picture": "plots.ge_layer",
    "graphs": "count.graphs",
    "npu_graphs": "ge.census",
    "planner": "forecast.planner",
    "plots": "plots.measured",
    "profiler": "bench.profiler",
    "ranks": "check.rank_calls",
    "record": "bench.record",
    "roofline": "forecast.roofline",
    "rounding": "plots.rounding",
    "show": "course.show",
}
# module: the names in it
MEMBERS = {
    "course.interrupted": "killed_split",
    "course.judge": "check",
    "course.session": "start",
    "plots.anatomy": "component_params config_rows model_picture parameter_picture",
    "plots.mla": "absorb_picture kv_b_split",
    "plots.npu_forward": "npu_forward",
    "plots.npu_ladder": "npu_ladder",
    "plots.npu_step": "npu_step",
    "plots.ranks": "step_split traffic_plot",
    "plots.ratios": "ratio_chart",
    "plots.style": "title_of",
    "bench.ladder": "bench_ladder checkpoint_of ladder_plans load_variants",
    "bench.measure": "count_ops measure",
    "bench.mlp": "measure_mlp",
    "bench.records": "FAIR PEER Results UPSTREAM seconds_text",
    "bench.sweep": "decode_call sweep with_plan",
    "bench.worlds": "time_worlds",
    "forecast.checks": "check_rows cited_checks",
    "forecast.planner": "forecast kv_bytes_per_token world_sizes",
    "check.broken": "row_major_row_idx up_before_gate",
    "check.compare": "compare_models",
    "check.equivalence": "check_equivalence run",
    "check.greedy": "check_greedy",
    "check.peer": "peer_model",
    "check.rank_calls": "logits_of_rank rank_device tokens_of_rank",
    "count.activations": "expert_load module_args module_call",
    "count.copies": "addresses append_bytes",
    "count.flops": "FORMS attention_cost",
    "count.syncs": "host_syncs",
    "count.tape": "Tape taped",
    "count.traffic": "count_traffic handed_bytes sent_bytes",
}
_HOMES = {name: module for module, names in MEMBERS.items() for name in names.split()}


def __getattr__(name: str) -> Any:
    if name in MODULES:
        return importlib.import_module(f".{MODULES[name]}", __package__)
    if name in _HOMES:
        return getattr(importlib.import_module(f".{_HOMES[name]}", __package__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*MODULES, *_HOMES])
