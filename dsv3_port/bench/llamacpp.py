"""llama.cpp as a peer: the engine people pick on a CPU, on the weights of one of our checkpoints.

It runs in this process through llama-cpp-python's bindings, with as many threads as torch has. Its
settings that matter here are the attention path (one softmax over all scores, or "flash": tiles,
with half precision inside) and the type of the cache. On float32 weights only the first path with
a float32 cache computes in float32 throughout.
"""

from __future__ import annotations

import ctypes
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor

from ..config import DeepseekV3Config
from ..errors import PortError
from ..steps import TOLERANCE
from .gguf_file import INSTALL, gguf_package, write_gguf
from .peer_forms import PIECE

NAME = "llama.cpp"
PACKAGE = "llama-cpp-python"
_ERROR = 4  # GGML_LOG_LEVEL_ERROR of ggml.h
_said: list[str] = []  # what llama.cpp logged: its only explanation of a refusal
_callback: Any = None  # the library keeps a bare pointer to it


@dataclass(frozen=True)
class LlamaForm:
    """One configuration. cache: type of its entries, as ggml names it."""

    cache: str
    flash: bool

    @property
    def name(self) -> str:
        return f"{NAME}, {'flash, ' * self.flash}{self.cache.lower()} cache"

    def bound(self, dtype: str) -> float:
        """Of the difference from our logits. Half precision inside rounds as bfloat16 does at
        worst, whatever the weights are."""
        exact = dtype == "float32" and self.cache == "F32" and not self.flash
        return TOLERANCE["float32" if exact else "bfloat16"]


def llama_forms(dtype: torch.dtype) -> list[LlamaForm]:
    """The configurations to time: both attention paths, over the caches that fit the weights (F16 is
    llama.cpp's own default)."""
    caches = ("F32", "F16", "BF16") if dtype == torch.bfloat16 else ("F32", "F16")
    return [LlamaForm(cache, flash) for cache in caches for flash in (False, True)]


def llama_library() -> Any:
    """llama-cpp-python's bindings, silent. PortError where they aren't installed, or do not load."""
    global _callback
    try:
        import llama_cpp
    except (ImportError, OSError, RuntimeError) as error:
        raise PortError(
            f"{PACKAGE} {'is not installed' if isinstance(error, ImportError) else 'does not load'} "
            f"({error}): {INSTALL} builds it with the machine's compiler (docs/speed.md)"
        ) from error
    if _callback is None:

        @llama_cpp.llama_log_callback
        def heard(level: int, text: bytes, data: Any) -> None:
            if level == _ERROR:
                _said.append(text.decode(errors="replace").strip())

        _callback = heard
        llama_cpp.llama_log_set(_callback, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
    return llama_cpp


def llama_versions() -> dict[str, str]:
    """What a figure of llama.cpp depends on: the package, and what its build uses of the processor."""
    used = llama_library().llama_print_system_info().decode()
    return {PACKAGE: metadata.version(PACKAGE), "llama.cpp built for": " ".join(used.split())}


def _refused(what: str) -> PortError:
    said = " ".join(_said[-3:])[:300]
    return PortError(f"{NAME}: {what}" + (f": {said}" if said else ""))


class LlamaModel:
    """Weights in llama.cpp's hands; `close` gives them back. The contexts of LlamaPeer need it open."""

    def __init__(self, file: Path, config: DeepseekV3Config, dtype: torch.dtype) -> None:
        self.config, self.dtype, self.library = config, dtype, llama_library()
        params = self.library.llama_model_default_params()
        params.n_gpu_layers = 0
        params.load_mode = self.library.LLAMA_LOAD_MODE_NONE  # into memory, as ours are
        _said.clear()
        self.pointer = self.library.llama_model_load_from_file(str(file).encode(), params)
        if not self.pointer:
            raise _refused(f"{file.name} cannot be loaded")

    def close(self) -> None:
        if self.pointer:
            self.library.llama_model_free(self.pointer)
            self.pointer = None


class LlamaPeer:
    """A form with its cache: the interface of peer_forms.Peer. `batch` sequences of at most
    `capacity` positions each; logits: of so many last positions, 1 or 0 for all."""

    def __init__(
        self, form: LlamaForm, model: LlamaModel, batch: int, capacity: int, logits: int = 1
    ) -> None:
        if logits not in (0, 1):
            raise PortError(f"{NAME}: logits of the last position or of all, not of {logits}")
        self.form, self.model, self.logits = form, model, logits
        self.batch, self.capacity = batch, capacity
        self.device, self.config, self.library = torch.device("cpu"), model.config, model.library
        self.length = 0
        self.inputs: dict[int, _Input] = {}  # length -> a batch of that shape
        self.pointer = self.library.llama_init_from_model(
            model.pointer, self._params(batch, capacity)
        )
        if not self.pointer:
            raise _refused(f"{form.name}: no context of {batch} x {capacity} positions")
        self.memory = self.library.llama_get_memory(self.pointer)

    def _params(self, batch: int, capacity: int) -> Any:
        library, types = self.library, gguf_package().GGMLQuantizationType
        params = library.llama_context_default_params()
        params.n_ctx = -(-capacity // 256) * 256 * batch  # it rounds each sequence's up to 256
        params.n_seq_max, params.n_batch = batch, params.n_ctx
        params.n_threads = params.n_threads_batch = torch.get_num_threads()
        params.flash_attn_type = int(self.form.flash)
        params.type_k = params.type_v = int(types[self.form.cache])
        params.offload_kqv = params.op_offload = False
        _said.clear()
        return params

    def rewind(self, length: int) -> None:
        """Forget all but the first `length` positions."""
        if self.length > length:
            self.library.llama_memory_seq_rm(self.memory, -1, length, -1)
        self.length = min(self.length, length)

    def fill(self, ids: Tensor) -> None:
        self.rewind(0)
        for piece in ids.split(PIECE, dim=1):
            self.forward(piece)

    def forward(self, ids: Tensor) -> Tensor:
        """A step [B, 1] or a prompt [B, S] -> logits [B, 1 or S, V] float32: llama.cpp's own buffer,
        which the next call fills anew."""
        batch, count = ids.shape
        if batch != self.batch:
            raise PortError(f"{self.form.name}: made for batch {self.batch}, given {batch}")
        if self.length + count > self.capacity:  # it would end this process
            raise PortError(
                f"{self.form.name}: {self.length} positions are cached, {count} more pass its "
                f"capacity of {self.capacity}"
            )
        if count not in self.inputs:
            self.inputs[count] = _Input(self.library, batch, count, self.logits)
        at = self.inputs[count]
        at.tokens[:] = ids.numpy()
        at.positions[:] = numpy.arange(self.length, self.length + count)
        if code := self.library.llama_decode(self.pointer, at.batch):
            raise _refused(f"{self.form.name}: llama_decode of [{batch}, {count}] returned {code}")
        self.length += count
        shape = (batch, self.logits or count, self.config.vocab_size)
        found = self.library.llama_get_logits(self.pointer)  # waits for them
        return torch.from_numpy(numpy.ctypeslib.as_array(found, shape=shape))

    def close(self) -> None:
        for at in self.inputs.values():
            self.library.llama_batch_free(at.batch)
        self.inputs = {}
        if self.pointer:
            self.library.llama_free(self.pointer)
            self.pointer = None


class _Input:
    """A llama_batch of B sequences of S tokens, sequence after sequence; tokens, positions: its
    arrays, [B, S]."""

    def __init__(self, library: Any, batch: int, count: int, logits: int) -> None:
        total = batch * count
        self.batch = library.llama_batch_init(total, 0, 1)
        self.batch.n_tokens = total

        def array(field: Any) -> Any:
            return numpy.ctypeslib.as_array(field, shape=(total,)).reshape(batch, count)

        self.tokens, self.positions = array(self.batch.token), array(self.batch.pos)
        array(self.batch.n_seq_id)[:] = 1
        for i in range(total):
            self.batch.seq_id[i][0] = i // count
        wanted = array(self.batch.logits)
        wanted[:] = not logits
        wanted[:, -1] = 1


@contextmanager
def llama_model(folder: str | Path, dtype: torch.dtype) -> Iterator[LlamaModel]:
    """The checkpoint in `folder` in llama.cpp, through a GGUF file that is gone once it is read."""
    llama_library()  # before the file is written
    config = DeepseekV3Config.from_pretrained(folder)
    with tempfile.TemporaryDirectory(prefix="dsv3-gguf-") as work:
        model = LlamaModel(write_gguf(folder, Path(work) / "model.gguf", dtype), config, dtype)
    try:
        yield model
    finally:
        model.close()
