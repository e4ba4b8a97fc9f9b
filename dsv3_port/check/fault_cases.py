"""The cases of check/faults.py as data: how each twin is spoiled, what a user saw, what is true, and
which tool comes next where an accusation is wrong."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from ..model.decoder import DeepseekV3
from . import faulty

# "every": what all layers share; "outside": before or behind them
LAYERS: tuple[int | str, ...] = (0, 1, 2, 3, "every", "outside")
PARTS = (
    "attention",
    "gate",
    "routed experts",
    "shared expert",
    "norm",
    "cache",
    "positions",
    "mask",
    "LM head",
    "step",
)
WHYS = (
    "slot stands still",
    "halves swapped",
    "wrong scale",
    "padding counted",
    "bias forgotten",
    "host reads",
    "experts swapped",
    "output reused",
    "rows mixed",
    "harmless",
)
DECOY = 6


@dataclass(frozen=True, kw_only=True)
class Case:
    """layer, part, why: the truth, in words of the lists. tools: what to try next where one of them
    is wrong, English and Chinese. confirmed: what is said in the end (of the decoy: first what the
    obvious accusation gets)."""

    spoil: Callable[[DeepseekV3], None]
    symptom: str
    symptom_zh: str
    layer: int | str
    part: str
    why: str
    tools: Mapping[str, tuple[str, str]]
    confirmed: tuple[str, ...]
    healed_zh: str = "修复成立。"


HUNT: dict[int, Case] = {
    0: Case(
        spoil=faulty.standing_slot,
        symptom="The text begins well and then repeats itself: 'a pink rope she kept a pink rope she kept'.",
        symptom_zh="文本开头正常，随后不断重复。",
        layer="every",
        part="cache",
        why="slot stands still",
        tools={
            "layer": (
                "a prompt and one cached step agree, so take more of them: compare_models(…, cached=4). "
                "If layer 0 parts already, all layers share the cause.",
                "提示与第一个缓存步都一致：用 cached=4 再比较。",
            ),
            "part": (
                "weights and the first step are right. Look at what one step leaves to the next: "
                "cache.slot and cache.length.",
                "权重没问题：查看一步留给下一步的状态。",
            ),
            "why": (
                "print cache.slot after three cached steps, beside the right model's.",
                "打印三个缓存步之后的 cache.slot。",
            ),
        },
        confirmed=(
            "Only the prompt moved the slot: every later token was written over the first one.",
            "slot 只随提示前进，后续 token 都写在同一位置。",
        ),
    ),
    1: Case(
        spoil=partial(faulty.halves_swapped, layer=2),
        symptom="Fluent, and wrong in places: a silver box is white, and a finished text goes on.",
        symptom_zh="文本通顺，但个别事实错误：银色盒子变成白色，已结束的文本继续生成。",
        layer=2,
        part="shared expert",
        why="halves swapped",
        tools={
            "layer": (
                "the wrong token comes late, the numbers part early: compare_models on the prompt.",
                "在提示上用 compare_models 比较。",
            ),
            "part": (
                'compare_models(…, within="model.layers.2") lists the modules in the order of their outputs.',
                "用 within 查看该层内部各模块。",
            ),
            "why": (
                "the shape is right: compare the weight's two halves with the right model's, crosswise too.",
                "形状正确：把权重的两半与参考交叉比较。",
            ),
        },
        confirmed=(
            "Layer 2's shared expert was packed [up | gate]: SiLU went to the wrong half.",
            "第 2 层共享专家按 [up | gate] 合并，SiLU 作用在错误的一半。",
        ),
    ),
    2: Case(
        spoil=partial(faulty.wide_scale, layer=1),
        symptom="Fluent. One text of three changes late: a silver ring where a silver flag belongs.",
        symptom_zh="文本通顺，三条中有一条在后段变化：旗子变成了戒指。",
        layer=1,
        part="attention",
        why="wrong scale",
        tools={
            "layer": (
                "the prompt agrees bit for bit, so what is wrong runs later: compare_models(…, cached=1).",
                "提示逐位一致：用 cached=1 比较。",
            ),
            "part": (
                'compare_models(…, cached=1, within="model.layers.1"): what goes into o_proj, and is what '
                "goes before it clean?",
                "在该层用 within 与 cached=1：o_proj 之前是否干净？",
            ),
            "why": (
                "call both layers' absorbed(…) with the same tensors, once with q_nope and q_rope times "
                "sqrt((R + Dr) / (Dn + Dr)): which call agrees?",
                "以同一输入调用两个 absorbed，比较分数相差的倍数。",
            ),
        },
        confirmed=(
            "Layer 1's absorbed path scales by the row's width, R + Dr; the head's width, Dn + Dr, "
            "belongs there.",
            "第 1 层吸收路径按缓存行宽 R + Dr 缩放，应为 Dn + Dr。",
        ),
    ),
    3: Case(
        spoil=faulty.padding_counted,
        symptom="'7 plus 5 is' is answered '12 lives in a house by the lake', but only in a batch with longer "
        "prompts.",
        symptom_zh="只有与更长的提示同批时，最短的提示才出错。",
        layer="every",
        part="positions",
        why="padding counted",
        tools={
            "layer": (
                "alone, the prompt is answered well: compare with the padded mask, and behind the prompt, "
                "cached=1.",
                "单独运行正常：同时使用填充 mask 与 cached=1。",
            ),
            "part": (
                "layer 0 parts, in the padded rows only, its weights are right, and the prompt is right. What "
                "does a row get per step that depends on its padding?",
                "只有填充行出错：每步有什么依赖填充？",
            ),
            "why": (
                "a prompt alone, and behind three pads: which position has its next token in each?",
                "比较有无填充时下一个 token 的位置编号。",
            ),
        },
        confirmed=(
            "Cached steps counted the padding as positions, the prompt did not: the row is torn apart "
            "between them.",
            "缓存步把填充计入位置，提示没有。",
        ),
    ),
    4: Case(
        spoil=partial(faulty.bias_forgotten, layer=3),
        symptom="None: the greedy text of all three prompts is the same. A load balancer's log looks odd.",
        symptom_zh="没有症状：贪心文本完全一致，只是专家负载日志有些异常。",
        layer=3,
        part="gate",
        why="bias forgotten",
        tools={
            "layer": (
                "logits may look well in most rows: let strict_gate, or compare_models, compare the sets of "
                "experts.",
                "比较每个 token 选中的专家集合。",
            ),
            "part": (
                "what goes into that layer is equal to the last bit, and other experts are chosen.",
                "该层输入完全一致，选中的专家却不同。",
            ),
            "why": (
                "the gate's parameters are the right ones. Which of them steers the choice and not the "
                "weights?",
                "参数正确：哪一个只影响选择，不影响权重？",
            ),
        },
        confirmed=(
            "Layer 3 chooses by the scores alone: the correction bias is loaded and never added.",
            "第 3 层只按分数选择专家，修正偏置未被加上。",
        ),
    ),
    5: Case(
        spoil=faulty.host_reads,
        symptom="Text and every stage are right. 'It is slow on the card, and it will not compile.'",
        symptom_zh="文本与所有阶段都正确，但“在卡上很慢，也无法编译”。",
        layer="every",
        part="mask",
        why="host reads",
        tools={
            "layer": (
                "no comparison of numbers can see it. Count instead: host_syncs(step), beside the right "
                "model's; it happens once a step, not once a layer.",
                "数值比较看不出来：用 host_syncs 计数。",
            ),
            "part": (
                "graphs.first_break(model, step) names the line at which a graph of the step breaks.",
                "graphs.first_break 指出断图的那一行。",
            ),
            "why": (
                "what must the host know to go on at that line?",
                "执行到该行，主机必须知道什么？",
            ),
        },
        confirmed=(
            "The mask is made from numbers that the host reads in every step: the queue runs empty, and no "
            "graph can hold it.",
            "每步为生成 mask 而在主机读取数值。",
        ),
    ),
    DECOY: Case(
        spoil=partial(faulty.padding_counted, prompt_too=True),
        symptom="A reviewer found that the first token of a padded row gets position 11 and not 0. The text?",
        symptom_zh="评审发现填充行首 token 的位置不是 0。文本是否受影响？",
        layer="every",
        part="positions",
        why="harmless",
        tools={
            "layer": (
                "strict_gate: at which stage does it show? Positions are made once for all layers.",
                "用 strict_gate 看是否有任何差异。",
            ),
            "part": (
                "what did the reviewer look at? Layers get it ready-made.",
                "评审看的是什么？",
            ),
            "why": (
                "strict_gate(right, ill), and compare with model 3: what is shifted there, and what here?",
                "与 3 号模型比较：各自移动了什么？",
            ),
        },
        confirmed=(
            "Suspicious, and harmless: why? Compare what model 3 shifts with what this one shifts.",
            "可疑，但无害：为什么？",
            "Nothing differs: prompt and steps of a row are shifted alike, and rotary positions enter a score "
            "as a difference only.",
            "提示与缓存步一同平移，而旋转位置只以差值进入分数。",
        ),
    ),
}
