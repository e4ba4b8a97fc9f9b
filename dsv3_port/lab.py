"""What notebooks import: `from dsv3_port.lab import measure, plots, show`.

Each name is looked up in its room on first use, so a notebook loads only what it names; `plots` and
a few more stand for several modules. Nothing is defined here; importing it puts the notebook's language
in force.
"""

from __future__ import annotations

import importlib
from typing import Any

from .engine.language import settle

settle()

# names that are a module, or several read as one, and where these stand
MODULES = {
    "anatomy": "forecast.anatomy plots.model_map plots.parameters",
    "bench": "bench.cases",
    "bench_tables": "bench.speed_tables",
    "census": "count.operators count.memory",
    "cost_plots": "plots.curves",
    "defects": "check.defects",
    "diagrams": "plots.memory",
    "doctor": "doctor.machine",
    "faults": "check.faults check.fault_cases",
    "flops": "count.flops",
    "ge_picture": "plots.ge_layer",
    "graphs": "count.compiled count.inductor",
    "npu_graphs": "ge.census count.captured course.host_npu",
    "planner": "forecast.planner",
    "plots": "plots.bars plots.curves plots.forecast plots.memory plots.operators plots.routing "
    "plots.sharding plots.style",
    "profiler": "bench.profiler plots.profile",
    "record": "bench.record",
    "roofline": "forecast.roofline",
    "rounding": "plots.rounding",
    "show": "course.show course.diff",
}
# module: the names in it
MEMBERS = {
    "course.interrupted": "killed_split",
    "course.judge": "check",
    "course.over_ranks": "over_ranks",
    "course.session": "start",
    "course.texts": "text_table",
    "course.yours": "catalogue fit hint slot solution your_model",
    "plots.cache_strips": "cache_strips",
    "plots.drafts": "accepted_steps draft_costs draft_steps",
    "plots.faults": "step_map tool_map",
    "plots.graph_rungs": "graph_rungs",
    "plots.group_boards": "group_boards",
    "plots.merge_strips": "merge_strips",
    "plots.graph_pieces": "graph_pieces",
    "plots.int8": "int8_errors scales_outside",
    "plots.lanes": "lanes",
    "plots.mailboxes": "mailboxes",
    "plots.mla": "absorb_picture kv_b_split",
    "plots.model_map": "model_picture",
    "plots.npu_forward": "npu_forward",
    "plots.npu_ladder": "npu_ladder",
    "plots.npu_step": "npu_step",
    "plots.one_launch": "int8_cache launches_picture nz_elements nz_picture",
    "plots.pages": "blocks_over_time page_strips",
    "plots.parameters": "parameter_picture",
    "plots.rank_lines": "rank_lines",
    "plots.prompts": "prompt_curves",
    "plots.ranks": "step_split traffic_plot",
    "plots.ratios": "ratio_chart",
    "plots.routing_steps": "routing_steps",
    "plots.rows": "hand_over rows_over_time",
    "plots.shard_strips": "shard_strips",
    "bench.drafts": "pair_times",
    "bench.ladder": "bench_ladder",
    "bench.measure": "measure",
    "bench.mlp": "measure_mlp",
    "bench.records": "FAIR PEER Results UPSTREAM YOURS",
    "bench.results_table": "seconds_text",
    "bench.rungs": "recorded_rungs",
    "bench.outcome": "say step_rows",
    "bench.models": "checkpoint_of ladder_plans load_variants",
    "bench.sweep": "sweep",
    "bench.workload": "decode_call",
    "bench.worlds": "time_worlds",
    "forecast.anatomy": "component_params config_rows",
    "forecast.checks": "check_rows cited_checks",
    "forecast.planner": "forecast kv_bytes_per_token world_sizes",
    "check.broken": "refused_kept row_major_row_idx up_before_gate",
    "check.alone": "check_alone",
    "check.compare": "compare_models",
    "check.drafts": "drawn_with_drafts",
    "check.equivalence": "check_equivalence run",
    "check.gate": "strict_gate stressed",
    "check.greedy": "check_greedy",
    "check.int8_costs": "int8_twin matrix_errors rounded_weights with_outlier zero_codes",
    "check.int8_exact": "int8_exact replayed_others",
    "check.paged": "paged_error",
    "check.peer": "peer_model",
    "check.prolog_traps": "PROLOG_TRAPS prolog_trap",
    "check.quality": "QUALITY_HEADS quality quality_rows recorded_quality",
    "check.rank_calls": "tokens_of_rank",
    "count.batching": "in_batches in_slots",
    "count.blocks": "block_log",
    "count.operators": "count_ops",
    "count.activations": "expert_load module_args module_call",
    "count.copies": "addresses addresses_over append_bytes",
    "count.flops": "FORMS attention_cost",
    "count.speculation": "speculation_work",
    "count.rows": "row_log",
    "count.step_work": "step_work",
    "count.syncs": "host_syncs",
    "count.tape": "Tape replayed taped",
    "count.traffic": "count_traffic handed_bytes sent_bytes",
    "engine.calibrate": "calibrate",
    "engine.device": "rank_device",
    "engine.launch": "run_ranks",
    "engine.loading": "with_plan",
    "engine.sampler": "Sampling",
    "engine.tokenizer": "encode pad_left",
    "model.c8": "set_kv_scales",
    "model.paged_cache": "Paging",
    "steps": "title_of",
}
_HOMES = {name: module for module, names in MEMBERS.items() for name in names.split()}


class _Several:
    """Modules read as one: the first that has a name gives it."""

    def __init__(self, name: str, modules: list[str]) -> None:
        self.__name__, self._modules = name, modules

    def __getattr__(self, name: str) -> Any:
        for module in map(_module, self._modules):
            if not name.startswith("_") and hasattr(module, name):
                return getattr(module, name)
        raise AttributeError(f"{self.__name__} has no {name!r}: {', '.join(self._modules)} do not")

    def __dir__(self) -> list[str]:
        return sorted({n for m in map(_module, self._modules) for n in vars(m) if n[0] != "_"})


def _module(name: str) -> Any:
    return importlib.import_module(f".{name}", __package__)


def __getattr__(name: str) -> Any:
    if name in MODULES:
        modules = MODULES[name].split()
        return _module(modules[0]) if len(modules) == 1 else _Several(name, modules)
    if name in _HOMES:
        return getattr(_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*MODULES, *_HOMES])
