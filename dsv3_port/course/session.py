"""What the first cell of every notebook sets up: where things lie, which device, how much to
measure."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path

import torch

from ..bench.measure import BusyMachine, in_a_lesson
from ..bench.records import Results, load, save
from ..config import DeepseekV3Config
from ..engine.device import pick_device
from ..errors import PortError
from ..paths import repo_root


@dataclass(frozen=True)
class Timing:
    """How much a notebook measures. `model` is a preset of random weights (weights/synthetic.py) or
    "tiny"."""

    model: str
    rounds: int
    context: int  # cached positions at a decode step
    prefill: int  # tokens of a prompt
    batches: tuple[int, ...]


PROFILES = {
    # w1 keeps DeepSeek-V3's own routing numbers (256 experts, 8 groups, top 8) and fits a laptop
    "tiny": Timing("w1", rounds=5, context=1024, prefill=128, batches=(1, 32)),
    "small": Timing("w1", rounds=15, context=2048, prefill=512, batches=(1, 32)),
    "medium": Timing("w2", rounds=9, context=2048, prefill=512, batches=(1, 32)),
    "large": Timing("l", rounds=9, context=2048, prefill=512, batches=(1, 32)),
}


@dataclass(frozen=True)
class Session:
    """Paths, device and amounts of one notebook run."""

    profile: str
    device: str
    seed: int
    root: Path
    tiny: Path  # the embedded, trained model: equivalence and text
    results: Path  # the one JSON file that all notebooks append to
    timing: Timing

    @property
    def config(self) -> DeepseekV3Config:
        return DeepseekV3Config.from_pretrained(self.tiny)

    def save(self, results: Results) -> Results:
        """Append to the results file and hand the results on."""
        save(results, self.results)
        return results

    def recorded(self) -> Results:
        """Everything measured so far by this and the earlier notebooks (empty if none ran)."""
        return load(self.results) if self.results.exists() else Results()

    def tokens(self, batch: int, length: int) -> torch.Tensor:
        """Random token ids of the embedded model's vocabulary [batch, length], the same for the
        same seed."""
        generator = torch.Generator().manual_seed(self.seed)
        return torch.randint(3, self.config.vocab_size, (batch, length), generator=generator).to(
            self.device
        )

    def _repr_html_(self) -> str:
        from .show import banner

        return banner(self.device)._repr_html_() or ""


_usual = warnings.formatwarning


def _formatted(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    line: str | None = None,
) -> str:
    """A busy machine in one sentence, without a path of it and a line of code that no reader wrote."""
    if issubclass(category, BusyMachine):
        return f"{message}\n"
    return _usual(message, category, filename, lineno, line)


def start(
    profile: str = "tiny", device: str = "auto", results_dir: str | Path = "results", seed: int = 0
) -> Session:
    """Check a notebook's parameters and seed torch. A relative `results_dir` lies in the checkout."""
    if profile not in PROFILES:
        raise PortError(f"unknown profile {profile!r}; it can be {', '.join(PROFILES)}")
    in_a_lesson()
    root = repo_root()
    warnings.filterwarnings(
        "ignore", message="IProgress not found"
    )  # transformers' bars are text without ipywidgets
    warnings.formatwarning = _formatted
    torch.manual_seed(seed)
    folder = root / results_dir  # an absolute results_dir stays itself
    folder.mkdir(parents=True, exist_ok=True)
    made = Session(
        profile,
        str(pick_device(device)),
        seed,
        root,
        root / "data" / "tiny-dsv3",
        folder / "results.json",
        PROFILES[profile],
    )
    _started[:] = [made]
    return made


_started: list[Session] = []


def current() -> Session | None:
    """What `start` returned last in this process: one notebook, one kernel, one session."""
    return _started[0] if _started else None
