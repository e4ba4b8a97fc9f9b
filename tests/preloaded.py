"""What the process whose forks are the tests' ranks and commands (forks.py) imports, once. It computes
nothing and starts no thread: a fork has only the thread that forked."""

from __future__ import annotations

import gc

import ipykernel.kernelapp  # noqa: F401
import pytest  # noqa: F401  # functions of test modules are what ranks run
import torch.distributed.elastic.multiprocessing.api
import torch.distributed.launcher.api  # noqa: F401
from transformers import DeepseekV3ForCausalLM, PreTrainedTokenizerFast  # noqa: F401

import dsv3_port.bench.worlds
import dsv3_port.check.rank_calls
import dsv3_port.cli.infer
import dsv3_port.cli.plan
import dsv3_port.cli.serve
import dsv3_port.cli.shard
import dsv3_port.course.over_ranks  # noqa: F401

gc.collect()
gc.freeze()  # a fork looks through its own objects only
