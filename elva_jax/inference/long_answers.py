"""Answers and likelihoods of prefilled prompts, whatever their lengths.

RoPE is scaled for each row by its own length (`inference.long_context`), so one prefilled prefix
does not serve all questions and tokens of a long row. Where an answer crosses, its row is prefilled
again, and the answer so far is fed after the question:

    prefix, question ── answer … ┐
                         f = 1   └── prefix, question, answer … ── answer … ┐
                                                          f = 2             └── …   f = 4

Up to the model's longest sequence everything uses the prefix that is there. Options are scored for
the length of the prompt with the whole option.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

from elva_jax.inference.batching import ChooseLength
from elva_jax.inference.engine import Decoding, Progress, Questions
from elva_jax.inference.long_context import longest_of, most_tokens, stretch_of
from elva_jax.inference.prefilled_rows import PrefilledRows
from elva_jax.inference.scoring import Ids, Likelihood, Options, option_tree

Place = tuple[int, int]  # row and number of a question


class _Answers:
    """The answers so far to the questions of every row."""

    def __init__(self, prefilled: PrefilledRows, questions: Questions, most: int) -> None:
        self.prefilled, self.questions, self.most = prefilled, questions, most
        self.tokens: list[list[Ids]] = [[()] * len(row) for row in questions]
        self.ended = [[False] * len(row) for row in questions]

    def text(self, place: Place) -> Ids:
        """A question with its answer so far."""
        b, g = place
        return (*self.questions[b][g], *self.tokens[b][g])

    def length(self, place: Place) -> int:
        """Tokens before the next one of the answer."""
        return self.prefilled.prefix_tokens[place[0]] + len(self.text(place))

    def stretch(self, place: Place) -> int:
        """How RoPE is scaled for the next token."""
        return stretch_of(self.prefilled.reader.model_config, self.length(place))

    def unfinished(self, place: Place) -> bool:
        """Whether another token is wanted, and possible."""
        b, g = place
        longest = most_tokens(self.prefilled.reader.model_config)
        wanted = not self.ended[b][g] and len(self.tokens[b][g]) < self.most
        return wanted and self.length(place) <= longest


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Part:
    """Answers that are decoded together, with equally many tokens so far.

    Attributes:
      prefilled: their prefixes.
      places: of each row of `prefilled`, which questions.
    """

    prefilled: PrefilledRows
    places: list[list[Place]]

    @classmethod
    def again(cls, answers: _Answers, places: Sequence[Place], lengths: ChooseLength) -> _Part:
        """Prefills the rows of some answers for their lengths."""
        rows: dict[Place, list[Place]] = {}  # by row and stretch
        for place in places:
            rows.setdefault((place[0], answers.stretch(place)), []).append(place)
        texts = [max(map(answers.text, row), key=len) for row in rows.values()]
        prefilled = answers.prefilled.again([b for b, _ in rows], texts, lengths)
        return cls(prefilled=prefilled, places=list(rows.values()))

    def run(
        self, answers: _Answers, decoding: Decoding, lengths: ChooseLength
    ) -> Iterator[tuple[Progress, bool]]:
        """Continues the answers until they end or cross; says of each step whether it is the last.

        A choice counts only where the row's stretch is that of its length.
        """
        prefix, config = self.prefilled.prefix, self.prefilled.reader.model_config
        places = [place for row in self.places for place in row]
        said = len(answers.tokens[places[0][0]][places[0][1]])
        choices = {
            place: longest_of(config, int(prefix.stretch[row])) - answers.length(place) + 1
            for row, row_places in enumerate(self.places)
            for place in row_places
        }
        left = answers.most - said
        decoding = dataclasses.replace(decoding, max_new_tokens=min(left, max(choices.values())))
        ids = [[answers.text(place) for place in row] for row in self.places]
        before = {(b, g): answers.tokens[b][g] for b, g in places}
        engine = self.prefilled.engine
        state = engine.start(prefix, ids, decoding, lengths, self.prefilled.prefixes, said)
        for progress in engine.decode(prefix, state, list(map(len, ids)), decoding):
            for row, row_places in enumerate(self.places):
                for column, (b, g) in enumerate(row_places):
                    new, most = progress.tokens[row][column], choices[b, g]
                    answers.tokens[b][g] = before[b, g] + new[: min(most, left)]
                    answers.ended[b][g] = progress.ended[row][column] and len(new) < most
            yield progress, progress.last or all(map(all, progress.ended))


def decode(
    prefilled: PrefilledRows, questions: Questions, decoding: Decoding, lengths: ChooseLength
) -> Iterator[Progress]:
    """See `Prefilled.decode`."""
    answers = _Answers(prefilled, questions, decoding.max_new_tokens)
    here: list[list[Place]] = [[] for _ in questions]
    waiting: dict[int, list[Place]] = {}  # by the number of tokens so far
    for b, row in enumerate(questions):
        for place in ((b, g) for g in range(len(row))):
            same = answers.stretch(place) == int(prefilled.prefix.stretch[b])
            (here[b] if same else waiting.setdefault(0, [])).append(place)
    part = _Part(prefilled=prefilled, places=here) if any(here) else None
    while part or waiting:
        if part is None:
            part = _Part.again(answers, waiting.pop(min(waiting)), lengths)
        places = [place for row in part.places for place in row]
        for progress, complete in part.run(answers, decoding, lengths):
            crossing = [place for place in places if answers.unfinished(place)] if complete else []
            yield dataclasses.replace(
                progress,
                tokens=[list(row) for row in answers.tokens],
                ended=[list(row) for row in answers.ended],
                last=complete and not crossing and not waiting,
            )
        for b, g in crossing:
            waiting.setdefault(len(answers.tokens[b][g]), []).append((b, g))
        part = None


@dataclasses.dataclass(frozen=True)
class _Some:
    """Some options of a question, which are scored together."""

    place: Place
    options: tuple[int, ...]


def score(
    prefilled: PrefilledRows, choices: Sequence[Sequence[Options]], lengths: ChooseLength
) -> list[list[list[Likelihood]]]:
    """See `Prefilled.score_ids`."""
    config = prefilled.reader.model_config
    here: list[list[_Some]] = [[] for _ in choices]
    elsewhere: dict[Place, list[_Some]] = {}  # by row and stretch
    texts: dict[Place, Ids] = {}
    for b, row in enumerate(choices):
        for g, (question, options) in enumerate(row):
            alike: dict[int, list[int]] = {}
            for k, option in enumerate(options):
                tokens = prefilled.prefix_tokens[b] + len(question) + len(option) - 1
                alike.setdefault(stretch_of(config, tokens), []).append(k)
            for stretch, numbers in alike.items():
                some = _Some((b, g), tuple(numbers))
                if stretch == int(prefilled.prefix.stretch[b]):
                    here[b].append(some)
                    continue
                elsewhere.setdefault((b, stretch), []).append(some)
                longest = max((options[k] for k in numbers), key=len)
                text = (*question, *longest[:-1])
                texts[b, stretch] = max(texts.get((b, stretch), ()), text, key=len)
    found = _scores(prefilled, choices, here, lengths) if any(here) else {}
    if elsewhere:
        again = prefilled.again([b for b, _ in elsewhere], list(texts.values()), lengths)
        found |= _scores(again, choices, list(elsewhere.values()), lengths)
    return [
        [[found[b, g, k] for k in range(len(options))] for g, (_, options) in enumerate(row)]
        for b, row in enumerate(choices)
    ]


def _scores(
    prefilled: PrefilledRows,
    choices: Sequence[Sequence[Options]],
    rows: Sequence[Sequence[_Some]],
    lengths: ChooseLength,
) -> dict[tuple[int, int, int], Likelihood]:
    """Likelihoods by row, question and option of `choices`; `rows` are those of `prefilled`."""
    trees = []
    for row, start in zip(rows, prefilled.prefix_tokens, strict=False):
        asked = [(choices[b][g], some) for some in row for b, g in [some.place]]
        trees.append(
            [
                option_tree(question, [options[k] for k in some.options], start)
                for (question, options), some in asked
            ]
        )
    scores = prefilled.engine.score(prefilled.prefix, trees, lengths)
    return {
        (*some.place, k): value
        for row, row_scores in zip(rows, scores, strict=True)
        for some, values in zip(row, row_scores, strict=True)
        for k, value in zip(some.options, values, strict=True)
    }
