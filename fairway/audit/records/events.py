"""Events of a followed script: training on validation tokens, scores of them, and sums."""

import ast
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from fairway.audit.records.shown import Printed
from fairway.audit.records.trees import Steps, short
from fairway.audit.records.values import (
    COST,
    VAL,
    Cut,
    Held,
    Label,
    Labels,
    Scope,
    Slice,
    Summed,
    Trained,
    Turn,
    Value,
)

# The most events that are kept; a script with more repeats itself.
_MOST_EVENTS = 2_000


@dataclass(frozen=True, slots=True)
class Place:
    """The place of something: file, line, the expression as text, the function around it."""

    file: str
    line: int
    text: str
    function: str


@dataclass(frozen=True, slots=True)
class _Event:
    """An event with tokens: where, when, under which conditions, in which turns of loops."""

    place: Place
    when: int
    labels: Labels
    guards: tuple[str, ...]
    turns: tuple[Turn, ...]
    calls: tuple[int, ...]

    @property
    def pieces(self) -> set[Slice]:
        """Return the pieces of the text that the event is about."""
        return Value(self.labels).of(Slice)

    @property
    def cuts(self) -> set[Cut]:
        """Return the ends of ranges in its labels."""
        return Value(self.labels).of(Cut)


@dataclass(frozen=True, slots=True)
class Training(_Event):
    """A step on a loss of validation tokens; `fresh` if everything it changed is new."""

    fresh: bool


@dataclass(frozen=True, slots=True)
class Score(_Event):
    """A summed cost of validation tokens, and the training that it depends on."""

    @property
    def trained(self) -> set[int]:
        """Return the indices in `Events.trainings` that it depends on."""
        return {t.number for t in Value(self.labels).of(Trained)}


@dataclass(frozen=True, slots=True)
class Sink:
    """A place where scores are converted to bits, with these scores in order."""

    place: Place
    calls: tuple[int, ...]
    scores: tuple[Score, ...]


@dataclass(frozen=True, slots=True)
class _Pending:
    """A differentiated loss that waits for an optimiser step."""

    place: Place
    labels: Labels


@dataclass(eq=False)
class Events:
    """The state of a followed script, and its events so far."""

    work: Steps
    clock: int = 0
    scope: Scope = field(default_factory=lambda: Scope(""))
    turns: list[Turn] = field(default_factory=list)
    guards: list[str] = field(default_factory=list)
    # Lines of the calls that led here.
    calls: list[int] = field(default_factory=list)
    trainings: list[Training] = field(default_factory=list)
    scores: list[Score] = field(default_factory=list)
    sinks: list[Sink] = field(default_factory=list)
    prints: set[Printed] = field(default_factory=set)
    # Calls that receive validation tokens to calibrate a quantiser.
    calibrations: list[Place] = field(default_factory=list)
    # For every object with state: the training it depends on, its parts, and its sums.
    learned: dict[Held, set[Trained]] = field(default_factory=dict)
    parts: dict[Held, dict[str, Value]] = field(default_factory=dict)
    summed: dict[Held, set[Summed]] = field(default_factory=dict)
    born: dict[Held, tuple[Turn, ...]] = field(default_factory=dict)
    # Objects for names that are defined nowhere, and for unknown parameters.
    unknown: dict[str, Held] = field(default_factory=dict)
    vague: set[Held] = field(default_factory=set)
    disk: set[Label] = field(default_factory=set)
    waiting: list[_Pending] = field(default_factory=list)
    # Switches that a log shows to be on, with the place in the log.
    seen: dict[str, str] = field(default_factory=dict)

    def place(self, node: ast.AST, text: str = "") -> Place:
        """Return the place of a node."""
        line = getattr(node, "lineno", 0)
        return Place(self.scope.file, line, text, self.scope.function)

    def new(self) -> Held:
        """Return a new object with state."""
        held = Held(len(self.born))
        self.born[held] = tuple(self.turns)
        return held

    def parts_of(self, value: Value) -> Iterator[dict[str, Value]]:
        """Yield the parts of all objects with state in a value."""
        return (self.parts[held] for held in value.of(Held) if held in self.parts)

    def set_part(self, value: Value, name: str, part: Value) -> None:
        """Set a part of all objects with state in a value."""
        for held in value.of(Held):
            self.parts.setdefault(held, {})[name] = part

    def vague_one(self, name: str) -> Held:
        """Return the object for an unknown name."""
        if name not in self.unknown:
            self.unknown[name] = self.new()
            self.born[self.unknown[name]] = ()
            self.vague.add(self.unknown[name])
        return self.unknown[name]

    def with_training(self, value: Value) -> Value:
        """Return a value of validation tokens with the training of everything it depends on."""
        if VAL not in value.labels:
            return value
        return value.plus(self._learned_by(value))

    def _learned_by(self, value: Value) -> set[Trained]:
        """Return the training of all objects with state in a value."""
        return {t for h in value.of(Held) for t in self.learned.get(h, ())}

    def summed_in(self, value: Value) -> set[Summed]:
        """Return the scores that a value, or an object with state in it, contains."""
        return value.of(Summed) | {s for h in value.of(Held) for s in self.summed.get(h, ())}

    def snapshot(self, value: Value) -> Value:
        """Return a copy that later changes of the original do not reach."""
        if not value.of(Held):
            return value
        learned, new = self._learned_by(value), self.new()
        self.learned[new] = learned
        self.summed[new] = {s for h in value.of(Held) for s in self.summed.get(h, ())}
        return Value(value.without(Held).labels | learned | {new})

    def differentiated(self, node: ast.AST, value: Value) -> None:
        """Record that a loss was differentiated."""
        value = self._opened(value)
        if VAL in value.labels:
            self.waiting.append(_Pending(self.place(node, short(node)), value.labels))

    def _opened(self, value: Value) -> Value:
        """Return a sum with the labels of its summands."""
        summed = sorted(self.summed_in(value))[:20]
        return value.plus(n for s in summed for n in self.scores[s.number].labels)

    def stepped(self, changed: Iterable[Held]) -> None:
        """Record that an optimiser step changed objects by the waiting losses."""
        waiting, self.waiting = self.waiting, []
        holders = set(changed)
        for pending in waiting:
            own = {n for n in pending.labels if isinstance(n, Held)}
            known = (own & holders) or holders or own
            if holders <= self.vague:
                known = own | holders
            self._train(pending.place, pending.labels, known)

    def _train(self, place: Place, labels: Labels, changed: set[Held]) -> Trained | None:
        if len(self.trainings) >= _MOST_EVENTS:
            return None
        fresh = bool(changed) and all(self.born.get(h) for h in changed)
        self.trainings.append(Training(place, *self._next(labels), fresh))
        self.clock += 1
        trained = Trained(len(self.trainings) - 1)
        for held in changed:
            self.learned.setdefault(held, set()).add(trained)
        return trained

    def _next(
        self, labels: Labels
    ) -> tuple[int, Labels, tuple[str, ...], tuple[Turn, ...], tuple[int, ...]]:
        """Return the fields of a new event after its place."""
        state = tuple(self.guards), tuple(self.turns), tuple(self.calls)
        return self.clock + 1, labels, *state

    def gradient(self, node: ast.AST, loss: Value) -> Value:
        """Return a gradient; adding it to a weight is training."""
        if VAL not in loss.labels:
            return Value(loss.labels)
        trained = self._train(self.place(node, short(node)), loss.labels, set())
        return Value(frozenset({trained}) if trained else frozenset())

    def forget(self, value: Value) -> None:
        """Record that objects were reset to their initial state."""
        for held in value.of(Held):
            self.learned.pop(held, None)
            self.summed.pop(held, None)

    def load(self, target: Value, source: Value) -> None:
        """Record that the state of objects was replaced by another one."""
        learned = source.of(Trained) | self._learned_by(source)
        for held in target.of(Held):
            self.learned[held] = set(learned)

    def absorb(self, target: Value, source: Value) -> None:
        """Record that objects took in something trained, such as a gradient or an average."""
        others = Value(source.labels - target.of(Held))
        trained = source.of(Trained) | self._learned_by(others)
        for held in target.of(Held):
            if trained:
                self.learned.setdefault(held, set()).update(trained)

    def save(self, value: Value) -> None:
        """Record that something was written to disk."""
        self.disk |= value.of(Trained) | self._learned_by(value)

    def added(self, node: ast.AST, target: Value, value: Value) -> Value:
        """Return a sum after an addition; an added cost of validation tokens is a score."""
        value = self.with_training(value)
        if not (VAL in value.labels and COST in value.labels):
            kept = self.summed_in(value)
            for held in target.of(Held):
                self.summed.setdefault(held, set()).update(kept)
            return target.plus(kept | (value.labels & {VAL, COST} if kept else set()))
        if len(self.scores) >= _MOST_EVENTS:
            return target
        self.scores.append(Score(self.place(node, short(node)), *self._next(value.labels)))
        self.clock += 1
        label = Summed(len(self.scores) - 1)
        for held in target.of(Held):
            self.summed.setdefault(held, set()).add(label)
        return Value(target.labels | {label})

    def bits(self, node: ast.AST, value: Value) -> None:
        """Record that a value is converted to bits."""
        value = self.with_training(value)
        scores = [self.scores[s.number] for s in sorted(self.summed_in(value))]
        if VAL in value.labels and COST in value.labels:
            scores.append(Score(self.place(node), *self._next(value.labels)))
        if scores and len(self.sinks) < _MOST_EVENTS:
            self.clock += 1
            scores.sort(key=lambda score: score.when)
            self.sinks.append(Sink(self.place(node), tuple(self.calls), tuple(scores)))
