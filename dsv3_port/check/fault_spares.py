"""Three more cases for check/faults.py, for a second group."""

from __future__ import annotations

from functools import partial

from . import faulty
from .fault_cases import Case

SPARES: dict[int, Case] = {
    7: Case(
        spoil=partial(faulty.experts_swapped, layer=1),
        symptom="'7 plus 5 is' is 13. Names and colours are exchanged from the first token on.",
        symptom_zh="从第一个 token 起名字与数字就错了。",
        layer=1,
        part="routed experts",
        why="experts swapped",
        tools={
            "layer": ("compare_models on the prompt.", "在提示上比较。"),
            "part": (
                'within="model.layers.1": are the chosen experts the right ones?',
                "用 within 查看：选中的专家是否正确？",
            ),
            "why": (
                "compare group_w2 with the right model's, expert by expert.",
                "逐个专家比较 group_w2。",
            ),
        },
        confirmed=(
            "In layer 1 two experts have each other's down projection.",
            "第 1 层两个专家的 down 投影互换。",
        ),
    ),
    8: Case(
        spoil=faulty.output_reused,
        symptom="Text is right. A script that keeps the logits of all steps finds them all alike.",
        symptom_zh="文本正确，但保存下来的各步 logits 全都相同。",
        layer="outside",
        part="step",
        why="output reused",
        tools={
            "layer": (
                "stages agree, one after the other. Keep what a step hands out, uncopied, until the next: "
                "strict_gate does.",
                "各阶段一致：保留每步输出再比较。",
            ),
            "part": ("data_ptr() of the logits of three steps.", "打印三步 logits 的 data_ptr()。"),
            "why": ("who writes into that memory next?", "谁会再次写入这块内存？"),
        },
        confirmed=(
            "Every cached step hands out the same tensor: it must be cloned, or used before the next.",
            "每步返回同一个张量，应当克隆。",
        ),
    ),
    9: Case(
        spoil=faulty.rows_mixed,
        symptom="One prompt alone is answered well. Three at once are babble from the second token on.",
        symptom_zh="单条提示正常，三条同批则胡言乱语。",
        layer="outside",
        part="LM head",
        why="rows mixed",
        tools={
            "layer": (
                "compare_models on the prompt, with three rows: does any layer part?",
                "用三行提示比较：是否有层不一致？",
            ),
            "part": (
                "the last stage that agrees, and the first that does not.",
                "最后一致与最先不一致的阶段。",
            ),
            "why": (
                "put the right logits of row 0 beside those of all rows: where do their halves stand?",
                "把第 0 行正确 logits 的两半与各行比较。",
            ),
        },
        confirmed=(
            "The parts of two ranks were put together without moving the ranks' axis behind the rows'.",
            "两个 rank 的结果拼接时没有移动 rank 轴。",
        ),
    ),
}
