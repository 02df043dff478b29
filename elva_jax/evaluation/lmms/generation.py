"""How an answer is written, from the `generation_kwargs` of a task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from elva_jax.errors import ConfigError
from elva_jax.inference.batches.queries import Writing
from elva_jax.inference.sampling import Sampling
from elva_jax.utils import numbers

# Values of keys that ask for nothing else than what is done anyway.
TRIVIAL: Mapping[str, tuple[Any, ...]] = {
    "num_beams": (0, 1, None),
    "n": (1, None),
    "best_of": (1, None),
    "num_return_sequences": (1, None),
    "use_cache": (True, None),
    "top_k": (None,),
}
USED = ("max_new_tokens", "max_gen_toks", "until", "temperature", "top_p", "do_sample")


def read_generation(
    given: Mapping[str, Any], *, max_new_tokens: int, seed: int = 0
) -> tuple[Writing, tuple[str, ...]]:
    """Reads the keys that mean something here.

    As in transformers, a temperature matters only where an answer is drawn: with `do_sample`, or
    with a temperature above 0 where `do_sample` is absent.

    Args:
      given: the task's `generation_kwargs`.
      max_new_tokens: longest answer where they do not say.
      seed: of answers that are drawn.

    Returns:
      The settings, and the names of the keys that are ignored.

    Raises:
      ConfigError: a value that cannot be.
    """
    longest = _number(given, "max_new_tokens", _number(given, "max_gen_toks", max_new_tokens))
    if isinstance(longest, float) and longest.is_integer():
        longest = int(longest)
    numbers.TOKENS.check("generation_kwargs: max_new_tokens", longest)
    temperature = _number(given, "temperature", None)
    draw = given.get("do_sample")
    if draw is None:
        draw = bool(temperature)
    if temperature is None:
        temperature = 1.0
    top_p = _number(given, "top_p", 1.0)
    draw = bool(draw) and temperature > 0 and top_p > 0
    sampling = Sampling(
        temperature=float(temperature) if draw else 0.0,
        top_p=float(top_p) if draw else 1.0,
        repetition_penalty=float(_number(given, "repetition_penalty", 1.0)),
        seed=seed if draw else 0,
        stop=_stop(given.get("until")),
    )
    known = {*USED, "repetition_penalty"}
    ignored = tuple(
        str(name)
        for name, value in given.items()
        if name not in known and value not in TRIVIAL.get(name, ())
    )
    return Writing(max_new_tokens=longest, sampling=sampling), ignored


def _number(given: Mapping[str, Any], name: str, default: Any) -> Any:
    value = given.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ConfigError(
            f"generation_kwargs: {name}: must be a number, got {numbers.shown(value)}"
        )
    return value


def _stop(until: Any) -> tuple[str, ...]:
    if isinstance(until, str):
        until = [until]
    if until is None:
        return ()
    if not isinstance(until, Sequence) or not all(isinstance(text, str) for text in until):
        raise ConfigError(f"generation_kwargs: until: must be texts, got {numbers.shown(until)}")
    return tuple(dict.fromkeys(text for text in until if text))
