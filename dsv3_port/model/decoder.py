"""The decoder and the whole model: `build(config, plan)` assembles the forms that the
plan names.

What a learner writes goes in by attributes of one model: `visible`, `write`, `slots`,
`accept`, `admission`, `keep` and `run_step` here, `absorbed` and `turn` of an attention,
`route` of the grouped experts, `group_mask` of a gate, `add_norm` of a fused norm, `int8_linear` of a linear
layer, `mla_prolog` of an attention with that operator. A twin that shares the weights keeps its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from .. import ops
from ..config import DeepseekV3Config
from ..errors import PortError
from ..ops.providers import GroupedMatmul, by_torch_npu
from ..parallel import SINGLE, TensorParallel
from ..plan import PortPlan
from .attention import StepInputs
from .cache import Cache, FixedCache, Write, write_at_slot
from .context import BuildContext
from .inputs import left_padding
from .layer import DecoderLayer
from .linear import LM_HEAD, ParallelLMHead, VocabParallelEmbedding
from .mla_prolog import lay_out
from .mtp import VERIFIED, Accept, MultiTokenPrediction, accept
from .norm import make_norm
from .paged_cache import CACHE, PagedCache, Paging, Slots, slot_mapping
from .rope import RotaryEmbedding
from .visible import Visible, added, compressed_causal, sees


class Decoder(nn.Module):
    """Embedding, layers and final norm; names are those of the published checkpoint
    (`model.`)."""

    def __init__(self, ctx: BuildContext) -> None:
        super().__init__()
        self.embed_tokens = VocabParallelEmbedding(ctx)
        layers = [DecoderLayer(ctx, i) for i in range(ctx.config.num_hidden_layers)]
        self.cache_widths = layers[0].self_attn.cache_widths
        self.layers = nn.ModuleList(layers)
        self.norm = make_norm(ctx, ctx.config.hidden_size)

    def forward(
        self, input_ids: Tensor, inputs: StepInputs, cache: Cache | None
    ) -> Tensor:
        delta, residual = self.embed_tokens(input_ids), None
        for layer in self.layers:
            delta, residual = layer(delta, residual, inputs, cache)
        return self.norm(delta, residual)[0]


class DeepseekV3(nn.Module):
    """DeepSeek-V3 for inference, built by `build`; attributes `config`, `plan`,
    `parallel`."""

    def __init__(self, ctx: BuildContext) -> None:
        super().__init__()
        self.config, self.plan, self.parallel = ctx.config, ctx.plan, ctx.parallel
        self.gmm = ctx.gmm
        self.model = Decoder(ctx)
        self.lm_head = ParallelLMHead(ctx)
        self.mtp = MultiTokenPrediction(ctx) if ctx.plan.mtp else None
        per_step = ctx.plan.rope == "per_step"
        self.rotary_emb = RotaryEmbedding(ctx.config, ctx.device) if per_step else None
        self.keep = LM_HEAD[ctx.plan.lm_head]
        self.write: Write = write_at_slot  # of the fixed caches that `new_cache` makes
        self.slots: Slots = slot_mapping  # of the paged ones
        self.accept: Accept = accept  # asked with drafts, where text is greedy
        # None: as `visible_keys`, from the positions that a step has anyway
        self.visible: Visible | None = None
        # a prompt needs no mask then
        self.fused_prefill = (
            ctx.plan.attention == "low_rank"
            and ctx.plan.prefill_attention == "expanded"
            and ops.prompt_without_mask(torch.device(ctx.device).type)
        )
        self.paging = Paging()  # of the paged caches that `new_cache` makes
        self.device_lengths = False  # a graph that cannot take a paged cache's numbers
        # who begins where among slots; None: engine/continuous.py's own rule
        self.admission: Callable[..., Any] | None = None
        # engine/graph.py puts a compiled or captured one here, and says which
        self.run_step, self.made = self.forward_step, "eager"
        self.run_verify, self.run_draft = self.verify_step, self.draft_step

    @property
    def steps(self) -> dict[str, Callable[..., Any]]:
        """What a graph captures, by the attribute that is called: with an MTP layer also
        `run_verify` and `run_draft`."""
        steps: dict[str, Callable[..., Any]] = {"run_step": self.forward_step}
        if self.mtp is not None:
            steps |= {"run_verify": self.verify_step, "run_draft": self.draft_step}
        return steps

    @property
    def device(self) -> torch.device:
        return self.lm_head.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.lm_head.weight.dtype

    def new_cache(
        self, batch_size: int, max_length: int, form: type[Cache] | None = None
    ) -> Cache:
        """An empty cache of this plan's form, or of another that takes the same rows, for
        `batch_size` sequences of at most `max_length` positions."""
        c, form = self.config, form or CACHE[self.plan.cache]
        extra = (self.paging,) if issubclass(form, PagedCache) else ()
        layers = c.num_hidden_layers + (self.mtp is not None)
        sizes = layers, self.model.cache_widths, batch_size, max_length
        int8 = self.plan.kv_cache_dtype == "int8"
        dtype: Any = (self.dtype, torch.int8) if int8 else self.dtype
        cache = form(*sizes, self.device, dtype, *extra)
        cache.write = self.write
        if isinstance(cache, PagedCache):
            cache.slots = self.slots
        if self.plan.mla_prolog:
            lay_out(self)
        return cache

    @torch.no_grad()
    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        cache: Cache | None = None,
    ) -> Tensor:
        """Logits of the next token in float32: [B, S, V], or [B, 1, V] with the
        last-token LM head on.

        input_ids: [B, S] int64. attention_mask: [B, S], 0 on padding, which stands left
        of the tokens; only with the first call, the cache remembers it. cache: from
        `new_cache`; without one nothing is remembered.
        """
        first = cache is None or cache.length == 0
        pad = left_padding(input_ids, attention_mask, cache, first)
        if cache is None:
            return self.run_step(input_ids, pad, None, True)
        if first:
            cache.pad.copy_(pad)
        cache.require_capacity(input_ids.shape[1])
        return self._advance(input_ids, cache, first)

    @torch.no_grad()
    def prefill(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        cache: Cache,
        chunk: int = 0,
    ) -> Tensor:
        """`forward` of a prompt into an empty cache, `chunk` positions at a time (0:
        all at once), so that no tensor grows with the prompt but its cache; the last
        chunk's logits.

        The first chunk is the remainder: a graph meets two shapes. Without a graph a
        chunk reads the filled part of the cache, in a graph all of it.
        """
        if not 0 < chunk < input_ids.shape[1]:
            return self(input_ids, attention_mask, cache)
        for ids, part, first in self.chunks(input_ids, attention_mask, cache, chunk):
            logits = self._advance(ids, part, first)
        return logits

    def chunks(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        cache: Cache,
        chunk: int = 0,
    ) -> Iterator[tuple[Tensor, Cache, bool]]:
        """What `prefill` computes at once: (ids, the filled part of the cache, whether it
        is the first)."""
        if cache.length:
            raise PortError(
                f"prefill: the cache holds {cache.length} positions already"
            )
        length = input_ids.shape[1]
        chunk = chunk if 0 < chunk < length else length
        cache.pad.copy_(left_padding(input_ids, attention_mask, cache, True))
        cache.require_capacity(length)
        eager = self.run_step == self.forward_step
        start = 0
        for end in range(length % chunk or chunk, length + 1, chunk):
            part = cache.narrow(end) if eager else cache
            yield input_ids[:, start:end], part, start == 0
            if part is not cache:
                cache.advance(end - start)
            start = end

    def _advance(self, input_ids: Tensor, cache: Cache, first: bool) -> Tensor:
        if isinstance(cache, PagedCache):
            cache.expect(input_ids.shape[1])
        logits = self.run_step(input_ids, cache.pad, cache, first)
        cache.advance(input_ids.shape[1])
        return logits

    def forward_step(
        self, input_ids: Tensor, pad: Tensor, cache: Cache | None, first: bool
    ) -> Tensor:
        """One call without host-side checks: what a graph captures. pad: [B] int64,
        left padding of each row."""
        inputs = self._step_inputs(input_ids, pad, cache, first)
        hidden = self.model(input_ids, inputs, cache)
        if cache is not None:
            cache.slot.add_(input_ids.shape[1])
        return self.lm_head(self.keep(hidden))

    def verify_step(
        self, input_ids: Tensor, pad: Tensor, cache: Cache | None, first: bool
    ) -> tuple[Tensor, Tensor]:
        """As `forward_step`, where tokens are drafted: the logits (of both positions of a
        verify step), and what `draft_step` needs, the states behind the final norm
        [B, S, H]. `draft_step` ends the step: it advances the slot."""
        inputs = self._step_inputs(input_ids, pad, cache, first)
        hidden = self.model(input_ids, inputs, cache)
        return self.lm_head(hidden if inputs.verify else self.keep(hidden)), hidden

    def draft_step(
        self,
        next_ids: Tensor,
        pad: Tensor,
        cache: Cache | None,
        first: bool,
        hidden: Tensor,
    ) -> Tensor:
        """The positions of `verify_step`, hidden [B, S, H], with each one's next token [B,
        S] -> logits of the token after it, by the MTP layer."""
        inputs = self._step_inputs(next_ids, pad, cache, first)
        assert self.mtp is not None
        embedded = self.model.embed_tokens(next_ids)
        state = self.mtp.draft(embedded, hidden, inputs, cache)
        if cache is not None:
            cache.slot.add_(next_ids.shape[1])
        return self.lm_head(state if inputs.verify else self.keep(state))

    def _step_inputs(
        self, input_ids: Tensor, pad: Tensor, cache: Cache | None, first: bool
    ) -> StepInputs:
        (batch, new), device = input_ids.shape, input_ids.device
        query = torch.arange(new, device=device).expand(batch, new)
        keys = new
        if cache is not None and not first:
            query = query + cache.slot.unsqueeze(1)
            fixed = isinstance(cache, FixedCache)
            keys = cache.max_length if fixed else cache.buffers[-1][0].shape[2] + new
        inputs = StepInputs((query - pad.unsqueeze(1)).clamp(min=0), None, pad, first)
        inputs.verify = self.mtp is not None and not first and new == VERIFIED
        if self.rotary_emb is not None:
            inputs.cos, inputs.sin = self.rotary_emb(inputs.positions, self.dtype)
        if isinstance(cache, PagedCache):
            query = query - pad.unsqueeze(1)  # rows of the blocks: padding has none
            as_tensor = self.device_lengths and ops.lengths_may_be_a_tensor(pad)
            inputs.paged = cache.step(query, as_tensor)
            if new == 1:
                return inputs
            if self.plan.prefill_attention == "absorbed" or inputs.verify:
                inputs.mask = compressed_causal(device)
                return inputs
            if not first:
                inputs.mask = added(sees(query, cache.room, torch.zeros_like(pad)))
                return inputs
            query = query + pad.unsqueeze(1)
        if first and new > 1 and self.visible is None and self.fused_prefill:
            return inputs
        decodes = not first and (new == 1 or inputs.verify) and self.visible is None
        if cache is not None and decodes and self.plan.decode_attention == "split":
            inputs.slot = cache.slot  # with pad it says what a mask would
            return inputs
        if self.visible is None:
            visible = sees(query, keys, pad)
        else:
            slot = torch.zeros_like(pad) if cache is None or first else cache.slot
            visible = self.visible(slot, new, keys, pad)
        inputs.mask = added(visible)
        return inputs


def build(
    config: DeepseekV3Config,
    plan: PortPlan | None = None,
    parallel: TensorParallel = SINGLE,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    gmm: GroupedMatmul = by_torch_npu,
) -> DeepseekV3:
    """The model of this plan with empty parameters, for `weights.load` to fill;
    `parallel` says which cut it holds, `gmm` multiplies its experts (ops/providers.py)."""
    plan = plan or PortPlan.full()
    ctx = BuildContext(config, plan, parallel, device, dtype, gmm)
    ctx.require()
    return DeepseekV3(ctx).eval()
