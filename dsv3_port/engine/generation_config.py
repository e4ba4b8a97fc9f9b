"""generation_config.json: where a model's text ends, and how its tokens are chosen unless somebody
says otherwise.

Read as transformers' generate() reads it: its eos_token_id replaces that of config.json; what it
leaves out has transformers' default (5.23, generation/configuration_utils.py,
_get_default_generation_params). Lengths are not taken: MAX_NEW_TOKENS is the run's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import ConfigDict, Field, ValidationError
from pydantic.dataclasses import dataclass as typed

from ..errors import PortError
from ..files import read_json
from ..typed import sentence
from ..weights.content import side_file
from .sampler import Sampling

FILE = "generation_config.json"
TOP_K = 50  # transformers' own where a file that draws does not say
# what changes the tokens that transformers would choose and is not computed here: the values that
# leave it out
_OTHER: dict[str, tuple[Any, ...]] = {
    "num_beams": (1,),
    "num_beam_groups": (1,),
    "repetition_penalty": (1, 1.0),
    "encoder_repetition_penalty": (1, 1.0),
    "no_repeat_ngram_size": (0,),
    "encoder_no_repeat_ngram_size": (0,),
    "bad_words_ids": ([],),
    "suppress_tokens": ([],),
    "begin_suppress_tokens": ([],),
    "sequence_bias": ({}, []),
    "forced_bos_token_id": (),
    "forced_eos_token_id": (),
    "exponential_decay_length_penalty": (),
    "min_length": (0,),
    "min_new_tokens": (0,),
    "stop_strings": ([],),
    "guidance_scale": (1, 1.0),
    "watermarking_config": (),
    "penalty_alpha": (0, 0.0),
    "dola_layers": (),
    "num_return_sequences": (1,),
}
# as _OTHER, but only where tokens are drawn
_DRAWN: dict[str, tuple[Any, ...]] = {
    "min_p": (0, 0.0),
    "top_h": (),
    "typical_p": (1, 1.0),
    "epsilon_cutoff": (0, 0.0),
    "eta_cutoff": (0, 0.0),
}
_Token = Annotated[int, Field(ge=0, lt=1 << 31)]
_Above = Annotated[float, Field(gt=0, allow_inf_nan=False)]


@typed(frozen=True, config=ConfigDict(strict=True))
class _Values:
    """What this package takes from the file, typed."""

    eos_token_id: _Token | list[_Token] | None = None
    do_sample: bool | None = None
    temperature: _Above | None = None
    top_k: Annotated[int, Field(ge=0, lt=1 << 31)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None


@dataclass(frozen=True)
class GenerationConfig:
    """A folder's file, or what stands for one that is not there."""

    place: str = FILE
    eos_token_ids: tuple[int, ...] = ()  # none: those of config.json count
    do_sample: bool = False
    temperature: float = 1.0
    top_k: int = TOP_K
    top_p: float = 1.0
    other: tuple[str, ...] = ()  # "name is value" of what is set there and not computed here
    other_drawn: tuple[str, ...] = ()  # and of what counts where tokens are drawn

    @classmethod
    def from_pretrained(cls, path: str | Path) -> GenerationConfig:
        """Of a checkpoint folder. PortError, with the file's name, where a value is none that it
        can be."""
        file = Path(path) / FILE
        if not file.exists() and not file.is_symlink():
            return cls(str(file))
        values = read_json(side_file(Path(path), FILE))
        if not isinstance(values, dict):
            raise PortError(f"{file}: holds a {type(values).__name__}, not an object")
        own = {k: v for k, v in values.items() if k in _Values.__dataclass_fields__}
        try:
            found = _Values(**own)
        except ValidationError as error:
            raise PortError(f"{file}: {sentence(error)}") from error
        eos = found.eos_token_id
        ids = () if eos is None else tuple(eos) if isinstance(eos, list) else (eos,)
        return cls(
            str(file),
            ids,
            bool(found.do_sample),
            1.0 if found.temperature is None else found.temperature,
            TOP_K if found.top_k is None else found.top_k,
            1.0 if found.top_p is None else found.top_p,
            _set(values, _OTHER),
            _set(values, _DRAWN),
        )

    def check_vocabulary(self, size: int) -> None:
        """PortError where text is to end at a token that the model does not have."""
        if self.eos_token_ids and max(self.eos_token_ids) >= size:
            raise PortError(
                f"{self.place}: eos_token_id {max(self.eos_token_ids)} is no token of this model, whose "
                f"vocabulary has {size}: does the file belong to these weights?"
            )

    def sampling(
        self,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        say: Callable[[str], str] = str,
    ) -> Sampling:
        """How tokens are chosen: what is given here, else what the file says. A temperature that is
        given decides whether tokens are drawn (0: they are not). PortError where the file asks for
        what is not computed here. say(name) is how a message calls an argument."""
        draws = self.do_sample if temperature is None else temperature != 0
        if not draws:
            for name, value in (("top_k", top_k), ("top_p", top_p)):
                if value is not None:
                    raise PortError(
                        f"{say(name)} {value} has no effect on greedy text: give {say('temperature')} "
                        f"above 0 too, or leave it out"
                    )
        found = self.other + (self.other_drawn if draws else ())
        if found:
            raise PortError(
                f"{self.place}: {found[0]}, which is not computed here: text would not be what the file "
                f"asks for; leave the file out with {say('generation_config')} none"
            )
        if not draws:
            return Sampling(0.0 if temperature is None else temperature)
        return Sampling(
            self.temperature if temperature is None else temperature,
            self.top_k if top_k is None else top_k,
            self.top_p if top_p is None else top_p,
        )


def _set(values: dict[str, Any], neutral: dict[str, tuple[Any, ...]]) -> tuple[str, ...]:
    return tuple(
        f"{name} is {values[name]!r:.60}"
        for name, allowed in neutral.items()
        if values.get(name) is not None
        and not any(values[name] == x and not isinstance(values[name], bool) for x in allowed)
    )
