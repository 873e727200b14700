from pathlib import Path

import pytest

from fairway.data import corpus
from fairway.data.corpus import Document, corpus_digest, corpus_versions, embedded_documents

SENTENCES = [
    "The first sentence says what the module is for and who would want to use it.",
    "The second sentence belongs to a class that is defined in the body of the module.",
    "The third sentence is about a method, and it is where you would expect to find it.",
    "The fourth sentence is attached by a call, as it is done for compiled functions.",
    "The fifth sentence is a value in a dictionary, as the help topics of Python are.",
]
MODULE = f'''"""{SENTENCES[0]}"""

raise SystemExit("a module is read, not run")

if True:
    class A:
        """{SENTENCES[1]}

        >>> A()
        """

        async def f(self):
            r"""{SENTENCES[2]}"""

add_docstr(f, r"""
{SENTENCES[3]}
""".format(x=1))
topics = {{"a": """{SENTENCES[4]}\n"""}}
log("Here is a message that reads like a sentence, but it is not documentation of it.")
'''


def modules(tmp_path: Path, **sources: str) -> list[tuple[str, Path]]:
    for name, source in sources.items():
        (tmp_path / name).write_text(source)
    return [(name, tmp_path / name) for name in sources]


def test_a_module_becomes_a_document(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus, "_sources", lambda: modules(tmp_path, a=MODULE))
    assert embedded_documents() == [Document("a", "\n".join(SENTENCES))]


def test_repeated_paragraphs_are_kept_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repeat = f'"""{SENTENCES[0].upper()}\n\n' + "\n\n".join(
        f"Here is what is new in this module, number {word}, and it was never said before."
        for word in ("one", "two", "three")
    )
    found = modules(tmp_path, a=MODULE, b=repeat + '"""', c='"""' + SENTENCES[1] + '"""')
    monkeypatch.setattr(corpus, "_sources", lambda: found)
    documents = embedded_documents()
    assert [document.name for document in documents] == ["a", "b"]
    assert SENTENCES[0] not in documents[1].text and documents[1].text.count("\n") == 2


def test_the_number_of_processes_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = {f"m{i:02d}": MODULE.replace("sentence", f"sentence of {'x' * i}") for i in range(40)}
    monkeypatch.setattr(corpus, "_sources", lambda: modules(tmp_path, **sources))
    monkeypatch.setattr("fairway.data.parallel.processes", lambda: 1)
    alone = embedded_documents()
    monkeypatch.setattr("fairway.data.parallel.processes", lambda: 2)
    assert embedded_documents() == alone and len(alone) == 40


def test_files_that_are_not_python_are_passed_over(tmp_path: Path) -> None:
    for name, data in {"a": b'"""' + b"\xff", "b": b'x = """', "c": b"\0'''x'''"}.items():
        (tmp_path / name).write_bytes(data)
        assert corpus._module_prose(tmp_path / name) == []
    assert corpus._module_prose(tmp_path / "missing") == []


def test_the_real_sources_are_ordered_and_without_tests() -> None:
    names = [name for name, _ in corpus._sources()]
    assert len(set(names)) == len(names) > 1000
    assert "python/pydoc_data/topics.py" in names and "torch/torch/nn/functional.py" in names
    assert not any("/tests/" in name or "/test_" in name for name in names)
    packages = [name.split("/")[0] for name in names]
    assert packages == sorted(packages, key=["python", *corpus._PACKAGES].index)


def test_a_real_module_gives_clean_sentences() -> None:
    paths = dict(corpus._sources())
    found = corpus._module_prose(paths["python/pydoc_data/topics.py"])
    assert sum(map(len, found)) > 100_000
    assert not any(mark in paragraph for paragraph in found for mark in (">>>", "::", "`", "\n"))


def test_the_versions_are_recorded() -> None:
    versions = corpus_versions()
    assert {"python", "torch", "numpy"} <= versions.keys()
    assert not versions.keys() & {"pytest", "hypothesis", "numba"}


def test_the_digest_depends_on_names_texts_and_order() -> None:
    a, b = Document("a", "b"), Document("c", "d")
    digests = {corpus_digest(d) for d in ([a, b], [b, a], [a], [Document("ab", "")], [])}
    assert len(digests) == 5 and len(corpus_digest([a])) == 64
