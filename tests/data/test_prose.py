import pytest

from fairway.data.prose import is_prose, prose

SENTENCE = "This is a plain sentence that says what the function does for you."
OTHER = "Another sentence follows here, and it is as long as the first one was."


def paragraphs(text: str) -> list[str]:
    return list(prose(text))


def test_hard_wraps_are_joined_and_indentation_dropped() -> None:
    text = """This is a plain sentence that
    says what the function
    does for you.

        Another sentence follows here, and it
        is as long as the first one was.
    """
    assert paragraphs(text) == [SENTENCE, OTHER]


def test_numpydoc_keeps_descriptions_without_names_and_titles() -> None:
    text = f"""{SENTENCE}

    Parameters
    ----------
    axis : int or tuple of int, optional
        The axis along which the sum is taken, or all of them
        when it is not given.
    out : ndarray
        The array.

    Returns
    -------
    {OTHER}
    """
    described = "The axis along which the sum is taken, or all of them when it is not given."
    assert paragraphs(text) == [SENTENCE, described, OTHER]


def test_google_and_field_lists_keep_descriptions() -> None:
    text = f"""{SENTENCE}

    Args:
        input (Tensor, optional): {OTHER}
        dim (int): the dimension.
    :param str name: The name by which the thing is known to those that want it.
    :returns: The number of the things that were found by the search.
    """
    assert paragraphs(text) == [
        SENTENCE,
        OTHER,
        "The name by which the thing is known to those that want it.",
        "The number of the things that were found by the search.",
    ]


@pytest.mark.parametrize(
    "block",
    [
        ">>> this is not what we want to see in the text\nIt is the output of the call, not prose.",
        "::\n\n    This looks like a sentence but it is in a literal block.\n    So is this one.",
        ".. code-block:: python\n\n    This looks like a sentence but it is in a code block.",
        ".. math:: This is what the formula says, as it would be read to you.",
        ".. [1] A. Author, The title of the work that is cited here, in the journal of it.",
        "```\nThis looks like a sentence but it is in a fence, so it is not.\n```",
        "+----+----+\n| This is the first cell of the table | and this is the other one. |\n+--+",
        "name        what it is for and when you would want to use it, if at all.",
        "This is a long title that reads like a sentence does.\n========================",
    ],
)
def test_blocks_that_are_not_prose_are_dropped(block: str) -> None:
    assert paragraphs(f"{SENTENCE}\n\n{block}\n\n{OTHER}") == [SENTENCE, OTHER]


def test_text_after_a_literal_block_is_kept() -> None:
    text = "This is how the function is to be called when you need it::\n\n    x = f(1)\n\n" + OTHER
    assert paragraphs(text) == ["This is how the function is to be called when you need it:", OTHER]


def test_admonitions_keep_their_text() -> None:
    text = f".. note::\n    {SENTENCE}\n\n.. warning:: {OTHER}"
    assert paragraphs(text) == [SENTENCE, OTHER]


def test_bullets_are_paragraphs() -> None:
    text = f"- {SENTENCE[:30]}\n  {SENTENCE[30:].strip()}\n* {OTHER}\n1. {SENTENCE}"
    assert paragraphs(text) == [SENTENCE, OTHER, SENTENCE]


def test_inline_markup_is_removed() -> None:
    text = (
        "Use :func:`~numpy.sum` with the ``axis`` argument, as in `the guide <there>`_ [1]_, or "
        "*better* the **new** one of :ref:`this page <page>` with `out`, but not *args or **kw."
    )
    assert paragraphs(text) == [
        "Use numpy.sum with the axis argument, as in the guide, or better the new one of this "
        "page with out, but not *args or **kw."
    ]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Too short to be one.",
        "this one starts in the middle of a sentence, as we can see from the letter.",
        "This one does not end as a sentence would be expected to end in a text",
        "See it at https://example.com if you want to know more about what it does.",
        "The sum over all \\sum_i of the things that are in the set of the things.",
        "Alpha Beta Gamma Delta Epsilon Zeta Eta Theta Iota Kappa Lambda Mu Nu Xi.",
        "In [1]: x_1 = f(a_b) and {y} = g[0] or the_other == this_one if a.b else c/d.",
        "It is 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 and so on as the list is.",
        "\u8fd9\u662f the text that is not all English and so we do not want to have it.",
    ],
)
def test_what_is_not_prose(text: str) -> None:
    assert not is_prose(text)


def test_what_is_prose() -> None:
    assert is_prose(SENTENCE) and is_prose(OTHER)
    assert is_prose(
        '"If the file is not there, open raises an error," as they have it in the caf\u00e9.'
    )
