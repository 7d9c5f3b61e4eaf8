"""Answers in the form in which the evaluator of VQA v2 compares them (Antol et al. 2015; its vqaEval.py).

Punctuation goes, numbers up to ten are digits, articles are left out, and contractions get their apostrophes. The quirks are
the evaluator's own: "none" is 0, and a hyphen becomes a space, or nothing if a space stands beside one or a number has a comma.
"""

from __future__ import annotations

import re

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_PERIOD, _DIGIT_COMMA = re.compile(r"\.(?!\d)"), re.compile(r"\d,\d")
_PERIODS = 32  # at most so many are removed
_DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_NUMBERS = {"none": "0"} | {word: str(number) for number, word in enumerate(_DIGITS)}
_ARTICLES = frozenset(("a", "an", "the"))
_CONTRACTED = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've he's
    how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've o'clock
    oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd
    someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've there're there's
    they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've when's
    where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't wouldn't've
    y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""


def normalized_answer(answer: str) -> str:
    """`answer` after the evaluator's processPunctuation and processDigitArticle, in lower case with single spaces."""
    text = answer.replace("\n", " ").replace("\t", " ").strip()
    plain = text
    comma = _DIGIT_COMMA.search(text) is not None
    for mark in _PUNCTUATION:
        beside = f"{mark} " in text or f" {mark}" in text
        plain = plain.replace(mark, "" if beside or comma else " ")
    words = (_NUMBERS.get(word, word) for word in _PERIOD.sub("", plain, count=_PERIODS).lower().split())
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def _without_one_apostrophe() -> dict[str, str]:
    """Each contraction by the ways to write it with one apostrophe missing."""
    places = ((form, place) for form in _CONTRACTED.split() for place, letter in enumerate(form) if letter == "'")
    return {form[:place] + form[place + 1 :]: form for form, place in places} | {"somebody'd": "somebodyd"}


_CONTRACTIONS = _without_one_apostrophe()
