"""What a document is known by, and how it is told what was left out."""

from fairway.data.documents import REASONS, Document, corpus_digest, document_key, told

ONE, OTHER = Document("a.txt", "the text"), Document("\u00e9", "\u4e16\n")


def test_a_key_is_of_name_and_text() -> None:
    # Data folders and splits rest on these figures.
    assert document_key(ONE).hex() == "cc53ef2ae80895d6bc58b4408cc55615"
    assert document_key(OTHER).hex() == "121a4abe011f25c8071283de9085bdd8"
    assert document_key(Document("ab", "c")) != document_key(Document("a", "bc"))


def test_the_digest_of_many_depends_on_their_order() -> None:
    assert (
        corpus_digest([ONE, OTHER])
        == "da059660280654414044729ce23a05c92e952952364453c8a70b838ec090f508"
    )
    assert corpus_digest([OTHER, ONE]) != corpus_digest([ONE, OTHER]) != corpus_digest([ONE])


def test_what_was_left_out_is_told_by_reason() -> None:
    assert told({}) == told({"blank": 0}) == ""
    assert told({"repeats": 1234, "hidden": 1, "blank": 0}) == (
        "left out: hidden files or folders (1), repeats of another document (1,234)"
    )
    # Manifests have these keys.
    keys = (
        "unknown_kind hidden broken_link linked_again not_a_file null_text blank repeats "
        "train_near_validation validation_near_train collection "
        "changed_by_tokenizer not_representable"
    )
    assert list(REASONS) == keys.split() and told(dict.fromkeys(REASONS, 2)).count("(2)") == 13
