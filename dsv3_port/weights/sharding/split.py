"""The on-disk splitter: a published checkpoint becomes one folder per rank, streamed tensor by
tensor.

Every source tensor is read once, cut for all ranks by the pieces of layout.py and written straight
to its place, so memory holds a few tiles whatever the size of the model (source.py). What is safely
written stands in a journal, and the next run goes on from there (journal.py). A rank folder gets
its name only when everything in it is on the disk.
"""

from __future__ import annotations

import os
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from ...errors import PortError
from ...files import read_json
from ...plan import PortPlan
from ..checkpoint import Checkpoint
from ..content import Remembered
from ..int8_formats import FORMATS
from ..load import by_source, check_sources
from .contents import Contents
from .estimate import Estimate, estimate, require_space
from .identity import identity, layout_of
from .manifest import finish
from .plan import DTYPES, rank_plan, sources
from .ranks import open_ranks
from .read import verify_shards
from .workers import stream

FILE_BYTES = 4 << 30
COMMIT_BYTES = (
    32 << 20
)  # written for each rank between two entries in its journal: twice that is what a kill can cost


@dataclass(frozen=True)
class ShardReport:
    """What was (or, for a dry run, would be) done."""

    output: str
    world_size: int
    ranks: list[int]
    dtype: str
    bytes_per_rank: int
    bytes_read: int  # of the source, in this run
    tensors_read: int  # source tensors that the model uses, each exactly once over the whole job
    tensors_resumed: int  # of them found written by an earlier run
    tensors_left_out: int
    parameters_filled: int  # of each rank, each exactly once
    quant_format: str  # of int8 matrices; empty without them
    estimate: Estimate
    seconds: float
    dry_run: bool
    complete: bool  # all ranks of the world size are there
    verified: bool

    def to_dict(self) -> dict[str, object]:
        return asdict(self)

    def summary(self) -> str:
        done = "would write" if self.dry_run else "wrote"
        kind = f"{self.dtype}, int8 as {self.quant_format}" if self.quant_format else self.dtype
        text = (
            f"{done} {len(self.ranks)} of {self.world_size} ranks, {self.bytes_per_rank / 2**30:.2f} GiB each "
            f"({kind}), to {self.output}; {self.tensors_read} source tensors each used once, "
            f"{self.tensors_left_out} left out on purpose (MTP layer, copies), {self.parameters_filled} parameters "
            f"a rank filled once"
        )
        if self.dry_run:
            e = self.estimate
            return (
                f"{text}; estimate: {e.memory_bytes / 2**30:.2f} GiB of memory, {e.disk_bytes / 2**30:.2f} GiB of "
                f"disk ({e.disk_free_bytes / 2**30:.1f} free), {e.seconds:.0f} s with {e.jobs} jobs"
            )
        if self.tensors_resumed:
            text += f"; {self.tensors_resumed} of them by an earlier run"
        text += f"; {self.seconds:.1f} s, {self.bytes_read / max(self.seconds, 1e-9) / 1e9:.2f} GB/s read"
        text += "; every hash verified" if self.verified else ""
        return text + ("" if self.complete else "; other ranks are still to be written")


def shard_checkpoint(
    model_path: str | Path,
    output_path: str | Path,
    world_size: int,
    *,
    plan: PortPlan | None = None,
    dtype: str = "bf16",
    ranks: list[int] | None = None,
    jobs: int | None = None,
    dry_run: bool = False,
    resume: bool = True,
    verify: bool = False,
    allow_nonfinite: bool = False,
    quant_format: str | None = None,
    progress: bool = False,
    file_bytes: int = FILE_BYTES,
    commit_bytes: int = COMMIT_BYTES,
) -> ShardReport:
    """Split `model_path` (published format) for `world_size` ranks into `output_path`.

    plan decides names and shapes (default: the full port), dtype is bf16, fp16 or fp32 (FP8 blocks
    are dequantised), ranks limits what this call writes (several machines share one job), jobs is
    the number of threads. resume goes on from what an earlier run wrote; without it that is begun
    anew. verify reads everything back and hashes it. allow_nonfinite keeps values that are NaN,
    infinite or all zero, and is noted in the manifest. A plan with quant 'w8a8' makes int8 of its
    matrices, and quant_format (int8_formats.FORMATS; default the first) is what is written. Raises
    PortError before anything is written where sizes do not divide, tensors are missing or unused,
    another run is at work, the output is of another job, or the disk is too small.
    """
    start = time.perf_counter()
    plan, chosen = _arguments(plan, dtype, world_size, ranks)
    layout = layout_of(plan, _format(plan, quant_format, allow_nonfinite))
    jobs = jobs if jobs is not None else default_jobs()
    if jobs < 1:
        raise PortError(f"jobs must be 1 or more, not {jobs}")
    output = Path(output_path)
    _refuse_source_as_output(Path(model_path), output)
    checkpoint = Checkpoint.open(model_path)
    values = read_json(checkpoint.path / "config.json")
    files = rank_plan(checkpoint.config, layout, world_size, dtype, file_bytes, values)
    wanted = files.targets
    left_out = check_sources(checkpoint, by_source(wanted))
    to_read = sources(checkpoint, files)
    job = identity(checkpoint, world_size, layout, dtype, file_bytes, allow_nonfinite)
    report = ShardReport(
        str(output),
        world_size,
        chosen,
        dtype,
        files.nbytes,
        0,
        len(to_read),
        0,
        len(left_out),
        len(wanted),
        layout.get("quant_format", ""),
        estimate(to_read, files, output, len(chosen), jobs, probe=dry_run),
        0.0,
        dry_run,
        False,
        False,
    )
    if dry_run:
        require_space(output, files.nbytes * len(chosen))
        return replace(report, seconds=time.perf_counter() - start)
    past = Remembered(checkpoint.path, checkpoint.files)
    contents = Contents(output, to_read, past, allow_nonfinite)
    with ExitStack() as stack:
        try:
            todo = open_ranks(stack, output, chosen, job, files, to_read, resume, contents)
            read, resumed = stream(
                to_read, todo, jobs, progress, commit_bytes * len(todo), contents
            )

            def name_ranks(content: str) -> None:
                for rank in todo:
                    rank.finish(content)

            for rank in todo:
                rank.writer.sync()
            shapes = {t.name: list(t.shape) for t in wanted}
            there = finish(
                checkpoint.path, output, job, contents.known, left_out, shapes, name_ranks
            )
            past.save()
        except OSError as error:
            raise PortError(
                f"{error.filename or output}: writing stopped: {error.strerror or error}; the same command "
                "goes on from what is safely written"
            ) from error
    if verify:
        verify_shards(output, chosen, jobs=jobs, progress=progress)
    return replace(
        report,
        bytes_read=read,
        tensors_resumed=resumed,
        seconds=time.perf_counter() - start,
        complete=len(there) == world_size,
        verified=verify,
    )


def _refuse_source_as_output(source: Path, output: Path) -> None:
    home, place = source.resolve(), output.resolve()
    if home == place or home in place.parents:
        raise PortError(
            f"{output}: the output is the source {source} itself, or lies in it; give another folder"
        )
    if output.exists() and not output.is_dir():
        raise PortError(f"{output}: is there and is no folder")


def default_jobs() -> int:
    return min(8, (os.cpu_count() or 1) + 1)


def _arguments(
    plan: PortPlan | None, dtype: str, world_size: int, ranks: list[int] | None
) -> tuple[PortPlan, list[int]]:
    plan = plan or PortPlan.full()
    if dtype not in DTYPES:
        raise PortError(f"dtype {dtype!r} is not one of {', '.join(DTYPES)}")
    if world_size > 1 and not plan.tensor_parallel:
        raise PortError(f"world size {world_size} needs the step 'tensor_parallel' in the plan")
    chosen = sorted(set(range(world_size) if ranks is None else ranks))
    if not chosen or chosen[0] < 0 or chosen[-1] >= world_size:
        raise PortError(f"ranks {chosen} are not within 0..{world_size - 1}")
    return plan, chosen


def _format(plan: PortPlan, chosen: str | None, allow_nonfinite: bool) -> str:
    """What int8 matrices are written as; empty where there are none."""
    if plan.quant == "none":
        if chosen is not None:
            raise PortError(f"--quant-format {chosen} is of int8 matrices: add --quant w8a8")
        return ""
    if allow_nonfinite:
        raise PortError(
            "--allow-nonfinite: int8 has neither NaN nor infinity; leave it or --quant out"
        )
    if chosen is not None and chosen not in FORMATS:
        raise PortError(f"--quant-format {chosen!r} is not one of {', '.join(FORMATS)}")
    return chosen or FORMATS[0]
