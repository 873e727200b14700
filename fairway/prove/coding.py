"""Streams of tokens through a model and the coder, in both directions.

A *method* defines how streams are predicted: the segments, and what learns during the walk. Methods
are frozen dataclasses, and the header of a file stores their settings. `Sliding` is the scorer's
frozen model; the methods that learn are in `learning`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from fairway.api import LanguageModel, load
from fairway.base import units
from fairway.base.arrays import IntArray
from fairway.base.errors import UserError
from fairway.base.files import digest_file
from fairway.base.memory import free_bytes
from fairway.base.mistaken import artifact_at
from fairway.base.progress import progress
from fairway.base.room import host_room
from fairway.config.settings import MAX_STREAMS, MixtureConfig, ScoreConfig, TttConfig, unknown_name
from fairway.config.written import from_dict, to_dict
from fairway.data.tokens import Tokenizer
from fairway.machine.plan import Plan
from fairway.model.gpt import GPT
from fairway.model.need import (
    adapters_bytes,
    cached_bytes,
    coding,
    unadapted_bytes,
    way_of,
    weight_bytes,
)
from fairway.prove.coder import Decoder, Encoder
from fairway.prove.container import Header, least_bytes, padded
from fairway.prove.helping import WithExperts
from fairway.prove.learning import ChunkSgd, DocumentLora, proven_text
from fairway.prove.machine import Machine, fingerprint, plan_of, this_machine
from fairway.prove.streams import Stream, cut_evenly, default_streams
from fairway.prove.walk import (
    Coded,
    Course,
    Frozen,
    Known,
    Learner,
    Segments,
    Walked,
    walk,
    window_segments,
)
from fairway.score.evaluation import Evaluation
from fairway.score.sliding import evaluate_frozen


class Method(Protocol):
    """A way to predict streams, the same for encoder and decoder."""

    def cut(self, ids: IntArray, count: int, tokenizer: Tokenizer) -> list[Stream]:
        """Return documents, each after its BOS, as streams; `count` streams are coded side by
        side."""

    def segments(self, targets: int, score: ScoreConfig) -> Segments:
        """Return the segments if the longest stream has this many targets."""

    def learner(self, language: LanguageModel, course: Course) -> Learner:
        """Return the learner that changes this model during the walk of a course."""

    def scorer_nats(self, language: LanguageModel, streams: Sequence[IntArray]) -> float:
        """Return the nats of streams by the scorer's own fast path, each from its BOS on.

        The model is unchanged afterwards.
        """


@dataclass(frozen=True, slots=True)
class Sliding:
    """The frozen model under the scorer's sliding window."""

    def cut(self, ids: IntArray, count: int, tokenizer: Tokenizer) -> list[Stream]:
        """Return up to `count` streams of about equal length."""
        return cut_evenly(ids, count, tokenizer)

    def segments(self, targets: int, score: ScoreConfig) -> Segments:
        """Return the windows of `score.windows`."""
        return window_segments(targets, score.seq_len, score.stride)

    def learner(self, language: LanguageModel, course: Course) -> Learner:
        """Return a learner that changes nothing."""
        course.require_one_group()
        return Frozen(language.model)

    def scorer_nats(self, language: LanguageModel, streams: Sequence[IntArray]) -> float:
        """Return the sum of the streams' scores; a separate ledger scores and checks each
        stream."""
        config = language.score_config
        checks = -(-config.check_positions // max(len(streams), 1))
        config = replace(config, truncate=False, check_positions=checks)
        texts = (proven_text(language, [ids]) for ids in streams)
        asked = (Evaluation(text, config, description="scoring") for text in texts)
        return sum(evaluate_frozen(language.model, each, sliding=True).nats for each in asked)


METHODS: dict[str, type[Any]] = {
    "sliding": Sliding,
    "sgd": ChunkSgd,
    "lora": DocumentLora,
    "experts": WithExperts,
}


def method_named(
    name: str, ttt: TttConfig, seed: int, streams: int | None, mixture: MixtureConfig | None = None
) -> tuple[Method, int | None]:
    """Return a method with its settings, and the number of streams that are coded side by side.

    With `streams` None the method decides the number: the documents of `ttt` for LoRA, one stream
    if all weights or experts learn, and None for the frozen model, where `Session.streams` decides.
    The experts of `mixture`, if there are any, are added to the method. Raises UserError for an
    unknown name, and for several streams if the method learns along one stream.
    """
    if name not in METHODS or name == "experts":
        raise UserError(unknown_name("method", name, [n for n in METHODS if n != "experts"]))
    if name == "sgd" and (streams or 1) > 1:
        raise UserError("method sgd uses one stream; leave --streams out")
    if mixture is not None and mixture.experts:
        return WithExperts(replace(mixture, base=name, published=False), ttt), streams or 1
    if name == "lora":
        rows = streams or ttt.lora_documents
        return DocumentLora(replace(ttt, lora_documents=rows), seed), rows
    return (ChunkSgd(ttt), 1) if name == "sgd" else (Sliding(), streams)


def method_record(method: Method) -> dict[str, Any]:
    """Return a method's name and settings, for a header."""
    name = next(name for name, kind in METHODS.items() if type(method) is kind)
    return {"name": name, **to_dict(method)}


def method_of(record: dict[str, Any]) -> Method:
    """Return the method that a header names; UserError for an unknown one."""
    settings = dict(record)
    name = settings.pop("name")
    if name not in METHODS:
        raise UserError(unknown_name("method", name, METHODS))
    method: Method = from_dict(settings, METHODS[name], "method.")
    return method


def _learning_bytes(model: GPT, method: DocumentLora, positions: int) -> int:
    """Return the bytes of one document's adapters, and of what the model itself keeps beside them
    for so many positions."""
    ttt, sizes = method.ttt, (model.config, way_of(model), model.looping)
    own = adapters_bytes(*sizes, ttt.lora_targets, ttt.lora_rank)
    return own + unadapted_bytes(*sizes, ttt, positions)


@dataclass(frozen=True, slots=True, eq=False)
class Session:
    """An artifact loaded for coding, its digest and the machine; for one walk."""

    language: LanguageModel
    artifact: str
    plan: Plan

    @property
    def machine(self) -> Machine:
        """Return this machine with its present settings."""
        return this_machine(self.plan)

    def streams(self, tokens: int, on_cpu: int) -> int:
        """Return the number of streams for this many tokens, unless the user sets it."""
        seq_len, on_gpu = self.language.score_config.seq_len, self.plan.device == "cuda"
        most = self._most_rows(seq_len) // 2 if on_gpu else on_cpu
        return default_streams(tokens, seq_len, self.plan.device, min(most, MAX_STREAMS))

    def _most_rows(self, room: int, method: Method | None = None) -> int:
        """Return how many rows fit into the GPU's memory with their caches and adapters."""
        model = self.language.model
        config, way = model.config, way_of(model)
        wanted = coding(config, way, model.looping, room, MAX_STREAMS)
        if isinstance(method, DocumentLora):
            own = _learning_bytes(model, method, room)
            wanted = replace(wanted, each=wanted.each + own)
        # The planned need includes the weights, which are in memory already.
        free = free_bytes(model.tok_emb.weight.device) + weight_bytes(config)
        return wanted.fitting(free)

    def fingerprint(self, rows: int) -> str:
        """Return the fingerprint of the model's numbers on this machine: see `machine`."""
        language = self.language
        return fingerprint(
            language.model, rows, language.score_config.seq_len, language.tokenizer.bos_id
        )

    def encode(
        self, streams: Sequence[IntArray], rows: int, method: Method
    ) -> tuple[bytes, Walked]:
        """Return the coded streams, without their BOS, and the result of the walk."""
        encoder = Encoder()
        targets = tuple(len(ids) for ids in streams)
        walked = self._walk(targets, rows, method, Known(streams, encoder), "coding")
        return padded(encoder.finish(), sum(targets)), walked

    def decode(self, header: Header, payload: bytes) -> tuple[IntArray, ...]:
        """Return the streams of a file.

        Raises UserError if this machine computes other numbers, or if there are bytes that no token
        needs.
        """
        if self.fingerprint(header.rows) != header.fingerprint:
            raise UserError(
                "this machine looks like the one that coded it, but computes other numbers "
                "(another processor?); decode on the machine that coded it"
            )
        decoder, method = Decoder(payload), method_of(header.method)
        walked = self._walk(header.targets, header.rows, method, Coded(decoder), "decoding")
        if not decoder.is_whole(least_bytes(sum(header.targets))):
            raise UserError(
                f"its code of {len(payload):,} bytes does not end where its last token does: it "
                "was changed, or this machine computes other numbers than the one that coded it"
            )
        return walked.ids

    def _walk(
        self,
        targets: tuple[int, ...],
        rows: int,
        method: Method,
        source: Known | Coded,
        description: str,
    ) -> Walked:
        language = self.language
        score = language.score_config
        segments = method.segments(max(targets, default=0), score)
        course = Course(targets, rows, score.seq_len, language.tokenizer.bos_id, segments)
        if self.plan.device == "cuda" and rows > (most := self._most_rows(course.room(), method)):
            raise UserError(
                f"{rows} streams side by side do not fit this GPU, which has memory for {most} "
                "now; "
                "code with fewer --streams, or decode on a device with more memory"
            )
        self._check_memory(method, rows, course.room())
        learner = method.learner(language, course)
        with progress(description, sum(targets)) as advance:
            return walk(language.model, course, source, learner, advance)

    def _check_memory(self, method: Method, rows: int, positions: int) -> None:
        """Raise UserError if the memory of a CPU does not suffice for the rows and adapters that a
        file claims."""
        room = host_room()
        if self.plan.device == "cuda" or room is None:
            return
        model = self.language.model
        sizes = model.config, way_of(model), model.looping
        needed_bytes = rows * cached_bytes(*sizes, positions)
        if isinstance(method, DocumentLora):
            needed_bytes += method.ttt.lora_documents * _learning_bytes(model, method, positions)
        if needed_bytes > room.bytes:
            raise UserError(
                f"{rows} streams side by side need {units.megabytes(needed_bytes)} of memory "
                f"with this method, and {room.told()}; code with fewer --streams, or decode with "
                "more memory"
            )


def open_session(artifact: Path, tokenizer: Path | None, plan: Plan) -> Session:
    """Return a session of an artifact, or of the artifact of a run folder; its plan stays in
    effect."""
    path = artifact_at(artifact)
    plan.apply()
    language = load(path, tokenizer=tokenizer, plan=plan)
    return Session(language, digest_file(path), plan)


def session_for(header: Header, artifact: Path, tokenizer: Path | None) -> Session:
    """Return a session that can decode a file.

    Raises UserError for another artifact, and for another machine, naming the difference.
    """
    path = artifact_at(artifact)
    if not path.is_file():
        raise UserError(f"{path} does not exist; name the artifact that the file was coded with")
    if (digest := digest_file(path)) != header.artifact:
        raise UserError(
            f"it was coded with the artifact {header.artifact[:12]}, but {path} is {digest[:12]}"
        )
    return open_session(artifact, tokenizer, plan_of(header.machine))
