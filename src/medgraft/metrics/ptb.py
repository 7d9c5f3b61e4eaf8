"""Tokenizes captions like COCO's scorers: Penn Treebank tokens in lower case, without punctuation.

COCO runs Stanford's PTBTokenizer (CoreNLP 3.4.1), a Java program. The rules here are the Treebank's conventions. Where the
program deviates from them, the rules follow its output on captions of radiology papers, on 25,000 words with a period
in seven contexts, and on some hundred unusual strings.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache

# COCO lower-cases before it filters, so bracket tokens, in capitals in its filter, are not removed
_DROPPED = frozenset(("''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"))
_SPELT = {
    "(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-", "€": "$", "£": "#", "¢": "cents",
    "½": "1/2", "¼": "1/4", "¾": "3/4", "⅓": "1/3", "⅔": "2/3", "&amp;": "&", "&lt;": "<", "&gt;": ">",
    **dict.fromkeys('"“”«»‘’‛‹›', "''"), **dict.fromkeys("–—―…", "--"),
}  # fmt: skip


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# words whose period belongs to them: always; unless a letter follows; if capitalised; before a number
_ALWAYS = _words("""
    al ala apr assn aug bldg blvd bros co corp ct dec esq est etc ext feb fri ga inc ind intl jan jr jul jun kan ky
    ltd mar md mo mon mont nov oct penn plc rd rt sep sept seq sq sr tel thu thurs tue tues univ va vt wed
""")
_TITLES = _words("""
    alex assoc ave brig capt cf cmdr col dept det dr drs ft gen gov hon lt maj messrs mlle mme mr mrs ms mt natl ph
    pres prof rep rev sen sgt st ste vs wm
""")
_CAPITALISED = _words("""
    Ark Az Del Ill La Mass Miss Ore Pa Tex Wash
""")
_BEFORE_NUMBERS = _words("""
    art ca fig figs no nos op pp prop
""")
# a single letter's period ends the sentence before one of these
_STARTERS = "|".join(
    sorted(
        _words("""
    A About According Additionally After An As At But Earlier He Her Here However If In It Last Many More Now Once
    One Other Our She Since So Some Such That The Their Then There These They This We What When While Yet You
""")
    )
)
_CUT_AT = {"cannot": 3, "gonna": 3, "gotta": 3, "lemme": 3, "gimme": 3, "wanna": 3, "'tis": 2, "'twas": 2}  # split in two

_NUMERALS = "²³¹¼-¾\u2070-\u209c\u2150-\u215f\U00010000-\U0010ffff"  # word characters in Python, symbols in the program
_LETTER = rf"(?:[^\W\d_{_NUMERALS}]|[\u0300-\u036f])"
_ALNUM = rf"(?:[^\W_{_NUMERALS}]|[\u0300-\u036f])"
_APOSTROPHE = "['’\u0092]"
_REDUCED = rf"(?i:n{_APOSTROPHE}t|{_APOSTROPHE}(?:s|m|d|re|ve|ll))"  # n't, 's, 'll
_OWN = rf"(?:[dDoOlL]['’‘`\u0092])?{_ALNUM}+"  # as in d'une, O'Brien
_COMPOUND = rf"{_OWN}(?:[-_\u2010\u2011]{_OWN})*"
_JOINED = rf"{_LETTER}{_ALNUM}*(?:[.!?]{_LETTER}{_ALNUM}*)*"  # no space after a period: skull.The
_SIDE = r"[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}"

# the longest match wins, then the first
_RULES = tuple(
    re.compile(pattern)
    for pattern in (
        _JOINED,
        _COMPOUND,
        rf"(?:{_JOINED}|{_COMPOUND})\.(?=[,;:])",
        r"[A-Za-z0-9][A-Za-z0-9.,]*(?:-[A-Za-z0-9]+)+(?:\.(?=[,;:]))?",  # 1.5-T, i.v.-line
        r"[-+]?(?:\d*(?:[.,:]\d+)+|\d+)",
        rf"{_SIDE}(?:/{_SIDE}){{1,2}}",  # PET/CT, T1/T2-weighted
        r"\d{1,2}[-/]\d{1,2}[-/]\d{2,4}",
        r"(?:\d{1,4}-)?\d{1,4}/\d{1,4}",
        r"[A-Za-z](?:\.[A-Za-z])+\.",
        rf"[A-Za-z]\.(?!{_LETTER})(?!\s+(?i:{_STARTERS})\s)",
        rf"[A-Za-z]\.(?!{_LETTER})(?=\s+(?:{_STARTERS.lower()})\s)",  # these words in lower case begin no sentence
        rf"[A-Za-z]*(?i:[aeiouy]){_APOSTROPHE}[aeiou]{_LETTER}*|[cnCN]{_APOSTROPHE}(?i:est)",  # qu'il, n'est
        rf"{_REDUCED}(?!{_LETTER})",
        rf"{_APOSTROPHE}n{_APOSTROPHE}|{_APOSTROPHE}(?i:n|em|til|tis|twas|[2-9]0s)(?!{_LETTER})|[yY]{_APOSTROPHE}(?={_LETTER})|[dDjJlL]{_APOSTROPHE}",
        r"[A-Z]+(?:(?:&amp;|[&+])[A-Z]+)+|[cC]\+\+|[cCfF]#|(?i:(?:ph|ed)\.d\.|pro-|anti-)",
        r"(?:https?://|www\.[\w-]+\.)[^\s<>|()]*[^\s<>|.!?(){},-]",
        r"[A-Za-z0-9][^\s<>|()]*@(?:[^\s<>|().]+\.)*[^\s<>|().]+|[@#][A-Za-z_]\w*",
        r"</?[A-Za-z][\w.:-]*/?>|&(?:amp|lt|gt);",
        r"[A-Z]*\$|\*+|_+|@+|-+|[?!]+|\.{3,5}|''|``|<<|>>|[:;=][-o*']?[()DP](?![A-Za-z0-9])",
        "[\u207a\u207b]?[\u2070\u00b9\u00b2\u00b3\u2074-\u2079]+|[\u2080-\u2089]+",
        r"[^\s\u200b-\u2011\u2028-\u202e\u2060-\u206f\ufeff\U00010000-\U0010ffff]",
    )
)
_NEGATED = re.compile(rf"(?i:[a-z]+(?=n{_APOSTROPHE}t(?!{_ALNUM})))")  # do|n't: the shorter match
_PLAIN = re.compile(r"[A-Za-z]{2,}(?=[ ,)])")  # most words of most captions
_DOTTED, _FIRST_LETTER, _FIRST_DIGIT = re.compile(r"[A-Za-z]{2,}\."), re.compile(_LETTER), re.compile(r" ?\d")
_ENDING = re.compile(_REDUCED)


def _abbreviation(text: str, start: int) -> int:
    """The end of an abbreviation with its period that begins at `start`; `start` itself if there is none."""
    match = _DOTTED.match(text, start)
    if not match:
        return start
    word, lower, end = match[0][:-1], match[0][:-1].lower(), match.end()
    if lower in _ALWAYS or (word[0].isupper() and word.capitalize() in _CAPITALISED):
        return end
    if lower in _TITLES and not _FIRST_LETTER.match(text, end):
        return end
    if lower in _BEFORE_NUMBERS and _FIRST_DIGIT.match(text, end):
        return end
    return start


def _longest(text: str, start: int) -> int:
    end = _abbreviation(text, start)
    for rule in _RULES:
        match = rule.match(text, start)
        if match and match.end() > end:
            end = match.end()
    return end


def _scan(text: str, length: int) -> Iterable[str]:
    start = 0
    while start < length:
        if text[start].isspace():
            start += 1
            continue
        simple = _PLAIN.match(text, start) or _NEGATED.match(text, start)
        end = simple.end() if simple else _longest(text, start)
        if end == start:  # an invisible character, which the program deletes
            start += 1
            continue
        word = text[start:end]
        cut = _CUT_AT.get(word.lower()) if len(word) < 7 else None
        if cut:
            yield word[:cut]
            word = word[cut:]
        yield word
        start = end


def _spelt(token: str) -> str:
    if token.strip("-.") == "" and len(token) < 6:  # dashes and dots of usual length
        return "--"
    if _ENDING.fullmatch(token):
        return token.replace("’", "'")
    if len(token) < 4 and token[-1] in "()" and token[0] in ":;=":  # a smiley
        return token[:-1] + _SPELT[token[-1]]
    return _SPELT.get(token, token)


@lru_cache(maxsize=65536)
def _tokens(text: str, following: str) -> tuple[str, ...]:
    tokens = (_spelt(token.lower()) for token in _scan(f"{text}\n{following}", len(text)))
    return tuple(token for token in tokens if token not in _DROPPED)


def tokenize(text: str, following: str = "") -> list[str]:
    """The tokens of one caption. White space of any kind separates tokens and is otherwise ignored.

    `following` is the next caption in COCO's file; it decides whether a closing "panel B." keeps its period.
    """
    return list(_tokens(" ".join(text.replace("\u00ad", "").split()), " ".join(following.split()[:1]) + " "))


def tokenize_lines(texts: Sequence[str]) -> list[list[str]]:
    """The tokens of each caption of COCO's file, in its order."""
    return [tokenize(text, following) for text, following in zip(texts, [*texts[1:], ""], strict=True)]
