r"""Finds the answer in what a model wrote: pure text work, in linear time, for texts that nobody vouches for.

Two questions, two functions. ``find_answer``: what a whole text gives as its answer; generous, since there is nothing
more to come. ``finished_answer``: whether a step gives an answer that ends its track; strict, since a step that only
speaks of the answer is followed by it.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from speclrm.evaluators.notation import word_set

_BOX = re.compile(r"\\\\?(?:boxed|fbox|framebox)(?:\s*(?:\[[^\][]{0,40}\]\s*){0,2}\{|\s+(?=[^\s{}$]))|\\[{}\\]|[{}]")
"""The start of a box, with or without a brace, its backslash doubled where a program wrote it so; an escaped brace or
backslash, which opens nothing; a brace."""
_BARE = re.compile(r"[-+]?(?:\d[^\s{}$.,;)]*(?:\.\d+)?|[A-Za-z](?![A-Za-z])|\\[a-zA-Z]+[^\s$.,;]*)")
"""What a box without braces may hold. Any other word only stands behind the command's name."""
_PLACEHOLDER = re.compile(
    r"(?:\\text\s*\{)?[\s.…?_]*(?:(?:your|the|final|my)\s+)*(?:answer|result|\\ldots|\\dots)?[\s.…?_]*\}?", re.I
)
_HOLDS_SOMETHING = re.compile(r"[\w∞∅]|\\[a-zA-Z{|]")
_BESIDE = re.compile(
    r"(?:[ \t$,;&、，]|\n(?!\s*\n)|\\[()\[\],;:! ]|\\q?quad|\\\\|\\text\s*\{[ ,]*(?:and|or)[ ,]*\}|\b(?:and|or)\b"
    r"|[和或与]|[A-Za-z](?:_\w|_\{\w+\})?\s*=)*"
)
"""What may stand between boxes that are one answer together."""
_BESIDE_MAX = 60
_DENIED = re.compile(r"\b(?:not|instead\s+of|rather\s+than)\s+[\s$]*(?:\\[(\[])?\s*$")
"""What stands before a box that is no answer where there is another one."""

_CLOSES_THOUGHT = re.compile(
    r"<\s*/\s*(?:\w{1,12}:)?(?:think|thinking|thought|thoughts|reasoning|reflection|analysis|scratchpad)\s*>"
    r"|<\|\s*(?:end_of_thought|end_thinking|end_think|/\s*think(?:ing)?|/\s*thought)\s*\|>|<unused95>|\[\s*/\s*think\s*\]|◁\s*/\s*think\s*▷"
    r"|<\|channel\|>final(?:<\|message\|>)?",
    re.IGNORECASE,
)
"""The marks behind a thought, of all families of models. What is written between channels is no answer before the final one."""
_SPECIAL = re.compile(
    r"<\|(?:im_end|eot_id|end|return|endoftext|end_of_text|(?:begin|end)_of_solution|eom_id|end_of_turn|(?:start|end)_response)\|>"
    r"|<end_of_turn>|</s>",
    re.IGNORECASE,
)

_ARTICLE = r"(?:the|my|our|this|your|la|le|die|das|el|a|so|hence|thus|therefore|then|and|consequently|finally|overall)"
_KIND = (
    r"(?:final|correct|best|right|only|complete|exact|numerical|numeric|required|desired|overall|full"
    "|endgültige|richtige|bonne|правильный|верный)"
)
_NOUN = (
    r"(?:answers?|ans|solutions?|result|choice|option|respuesta|réponse|antwort|risposta|resposta|ответ|答え|정답|최종 답|답"
    "|cevap|đáp án|الجواب|उत्तर|odpowiedź)"
)
_ABOUT = (
    r"(?:\s+(?:to|of|for)\s+(?:the|this|our)\s+(?:\w+\s+)?(?:problem|question|exercise|equation|task|puzzle)"
    r"|\s+in\s+\w+|\s*\([^()]{1,30}\)|\s+(?:final|finale|correcta|correcte|correta|corretta))?"
)
_IS = (
    r"(?:'s\b|\s+[-–—](?=\s)|\s*[*_`]*\s*(?::|：|=|-+>|→|\\to\b)|\.(?=\s*\S)|\s*[*_`]*\s+(?:is|are|equals|ist|lautet|es|est|è|é|"
    r"(?:should|must|would|will|has\s+to)\s+be|becomes|comes\s+(?:out\s+)?to)\b|\s*[はは은는])"
)
_MENTIONS = (
    *("answer", "solution", "result", "choice", "option", "respuesta", "réponse", "antwort", "risposta", "resposta"),
    *(
        "ответ",
        "답",
        "cevap",
        "đáp án",
        "الجواب",
        "उत्तर",
        "odpowiedź",
        "答",
        "结果",
        "选",
        "####",
        " is correct",
        " i choose",
        "go with",
    ),
)
"""What gives an answer in words holds one of these or ``_ANS``, in small letters. Most steps hold none, and are read no further.
A noun or a form that is added below must stand here, too.
"""
_PLAIN_MENTIONS = tuple(filter(str.isascii, _MENTIONS))
_ANS = re.compile(r"(?<![a-z])ans(?![a-z])")
_SAYS = re.compile(
    rf"(?:(?:^|(?<=[.!?;:,]\s))[\s>*#_`(\[✅✔🎯\ufe0f-]*(?:{_ARTICLE}\b[\s,]*)*|(?<=\s)(?:{_ARTICLE}\b[\s,]*)+)(?:{_KIND}\s+)*(?P<noun>{_NOUN})(?:\s+(?:option|choice|letter|value))?"
    rf"{_ABOUT}(?P<says>{_IS})(?:\s*(?::|：|=))?[\s*_`]*",
    re.IGNORECASE,
)
_HEADING = re.compile(
    rf"^[\s>*#_`✅✔🎯\ufe0f-]*(?:{_ARTICLE}\b[\s,]*)*(?:{_KIND}\s+)*(?:answer|solution|result|ans|最终答案|答案)(?:\s+is)?[\s*_`:：]*$",
    re.IGNORECASE,
)
"""A line that announces the answer and holds none: it stands on a line behind it."""
_CHINESE = re.compile(
    r"(?:最终|正确|最后)?(?:答案|结果)[*_]*(?:应该|应)?(?:是|为|选|：|:)+\s*[：:]?\s*|(?:故|应|因此|所以|本题|答案|[，,。])选择?\s*(?:[：:]\s*|(?=[\s*（($]*(?:\\\w+\{\s*)?[A-J](?![a-zA-Z]|\s*=)))|正确的?选项(?:应该|应)?[是为：:]+\s*|【(?:最终)?答案】\s*[：:]?\s*|^\s*(?:正确)?选项?\s*[：:]?\s*(?=[（(]?[A-J])|^\s*答\s*[：:]\s*"
)
_IS_THE_ANSWER = re.compile(
    rf"^[\s>*#_`-]*(?P<answer>\S.{{0,80}}?)[*_`]*\s+is\s+(?:{_ARTICLE}\s+)(?:{_KIND}\s+)*answer\b", re.IGNORECASE
)
_CHOSEN = re.compile(
    r"(?:(?:^|[.,;:]\s|\b(?:so|thus|hence|therefore|then|that)\b)\s*[\s>*#_`(\[-]*(?:the\s+)?(?:(?i:option|choice|answer)\s+)?"
    r"[*_`(\[]*(?P<first>[A-J])[*_`)\]]*\s+is\s+(?:therefore\s+|thus\s+)?(?:the\s+)?(?:correct|right|best)\b"
    r"|\bI(?:'d|\s+would|\s+will|'ll)?\s+(?:choose|select|pick|go\s+with)\s+(?:(?:option|choice|answer)\s+)?[*_`(\[]*(?P<last>[A-J])\b)",
)
"""An option that is called the correct one, or chosen. Each option in turn may be, so a step does not end by it."""
_HASHES = re.compile(r"^\s*####\s*(?P<answer>[^\s#].*)$")
_FIELD = re.compile(
    r'"(?:final[_ ]?)?answer"\s*:\s*(?:(?P<text>"(?:[^"\\]|\\.)+")|(?P<number>-?\d[\d.]*))', re.IGNORECASE
)
"""The answer in an object of JSON."""
_TAG = re.compile(
    r"<\s*(?:final[_ ]?)?answer\s*>(.*?)(?:<\s*/\s*(?:final[_ ]?)?answer\s*>|\Z)", re.IGNORECASE | re.DOTALL
)
_LINE_CHARACTERS_MAX = 400
"""A sentence that gives an answer is short; what is longer only talks about one."""
_SENTENCE_END = re.compile(r"(?<=[^\s.\d][.!?])\s+(?=[A-Z*$\\])|(?<=[\d)}$][.!?])\s+(?=[A-Z*$\\])|。")

_ALONE_MAX = 60
_WRAPPERS = (
    *(("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"), ("**", "**"), ("__", "__"), ("`", "`")),
    *(('"', '"'), ("“", "”"), ("「", "」")),
)
_SIGNS_OF_JOY = re.compile(r"^[✅✔🎉🎯☑\ufe0f\s]+|[✅✔🎉🎯☑\ufe0f\s]+$")
_COPULA = re.compile(r"(?<=[\d$*)}A-Za-z])\s*(?:です|となります|になります|である|입니다|이다)\s*[。.]?\s*$")
"""The verb behind a value, in Japanese and Korean."""

_CLAUSE = re.compile(
    r"(?:\s*[,;(]\s*|\s+)(?=(?:because|since|which|who|whose|where(?:as)?|as\s+(?:we|it|shown|claimed|required|desired|expected|asked"
    r"|stated|above|before)|so\s+(?:that|the|we|it|I|\d+)|but|though|although|rather\s+than|instead\s+of|and\s+(?:not|we|so|that|this|it|the\s+proof)|given\s+that"
    r"|assuming|for\s+(?:a\s+total|which|this)|thus|hence|therefore)\b)"
    r"|\s+[-–—]+\s+(?=[a-z]{2})|\s*;\s*(?=[a-z]{2,}\s)"
    r"|\s*[,;]\s*(?=(?:in|i\.e|e\.g|namely|not|when|while|with|by|that|see|for|counting|rounded|if|just|or\s+(?:about|roughly|just)|to|at)\b)",
)
"""Where a sentence goes on behind the value that it gives."""
_TRAILING = re.compile(r",\s+[a-z][a-z\s]*$")
"""Words alone behind a number and its comma: 36 boats, altogether."""
_LEADS = re.compile(
    r"(?:\s*(?:therefore|thus|then|hence|now|simply|just|clearly|indeed|la(?=\s+[A-J]\b)|equal\s+to|given\s+by|exactly|precisely)\b[\s,:]*)+"
)
_NOT_BUT = re.compile(r"^\s*not\s+[^\s,]+(?:\s[^\s,]+)?,?\s+but(?:\s+rather)?\s+")
_SENTENCE_OF_VALUE = re.compile(
    r"(?:the|there|it|its|his|her|they|she|he|[A-Z][a-z]+)\b[^=?]*?\b(?:is|are|equals|has|have)\s+(?P<value>(?:\$|\\|[-−]?\d).*)",
    re.I,
)
"""A whole sentence for an answer: There are 9 ways."""
_MATH = re.compile(r"\$[^$]*\$|\\\(.*?\\\)|\\\[.*?\\\]|\\[a-zA-Z]+\s*\{[^{}]*\}|\\[a-zA-Z]+|`[^`]*`")
_TEXT = re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf|mbox)\s*\{([^{}]*)\}")
_WORD = re.compile(r"[^\W\d_]{2,}")
_FUNCTIONS = word_set(
    "sqrt cbrt sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh log ln lg exp abs floor ceil max min gcd "
    "lcm mod pi theta alpha beta gamma delta lambda mu sigma omega phi infinity oo inf"
)
_DOUBT = word_set(
    "not either neither nor or maybe perhaps possibly probably never likely if only unless when whenever but unclear "
    "unknown uncertain what between least most more less fewer than supposed should must may might could cannot about "
    "around other another below above under over greater smaller larger bigger below undefined whether"
)
"""Words by which a value is not given but bounded, doubted, denied or made to depend on something."""
_TALK = word_set(
    "a an the is are was were be been being to of by in on at as it its this that these those i we you let us me my "
    "our so then first now next see here there still just also how why who where which from with for obtained found "
    "given computed determined easy hard simple clear close below above likely following again correct wrong right "
    "same different needed needs wanted expected called written said using use get gets check compute find list start "
    "because since after before far sum product number integer form value ready done both all some any"
)
"""Words of sentences about an answer. An answer in words is a name or two."""
_SHORT_ANSWERS = word_set(
    "yes no true false even odd none zero one two three four five six seven eight nine ten eleven twelve infinite "
    "infinity impossible never always increasing decreasing undefined"
)
_HEDGE = re.compile(
    r"^[\s,;$)]*(?:but|where|when|if|unless|assuming|provided|though|although)\b|\b(?:check|verify|wait|however|need|contradict\w*|impossible|absurd)\b",
    re.IGNORECASE,
)
"""What takes a value back, or makes it depend on something."""
_TAKEN_BACK = re.compile(
    r"\s*(?:but\s+)?(?:wait|hmm+|hold\s+on|no[,.!]|actually|(?:this|that|it)(?:'s|\s+is|\s+seems)\s+(?:not\s+right|wrong|incorrect))\b",
    re.IGNORECASE,
)
"""A sentence that takes back the one before it."""
_ONLY_A_RESULT = re.compile(
    r"^(?!.*\b(?:final|correct|best|right)\b).*\b(?:result|solutions?)\b", re.IGNORECASE | re.DOTALL
)
_MODAL = re.compile(r"\bbe\s*$", re.IGNORECASE)
_PRE_VALUE = re.compile(r"[-+−±(\[{$\\|<>≤≥=√∞¬\d.]|[A-Za-z]\b(?!\s+[a-z]{2,})|\\")


_WORDS, _RESULT, _ANSWER = range(3)
"""What a place of a text may give: words about an answer; the value of a result, which may be one of many on the way; an
answer.
"""


class Found(NamedTuple):
    place: int
    answer: str
    rank: int


def find_answer(text: str) -> str | None:
    """Returns the answer of a whole completion as the model wrote it, or None.

    Where thinking was closed, only what follows counts: what a model weighs while it thinks is not yet its answer. What is
    said last counts: a box, a tag, or a line that gives a value. A line that gives a result, and words about an answer, count
    where there is nothing else.
    """
    said = _said(text)
    found = [*last_boxes(said), *_tags(said), *_lines(said)]
    return max(found, key=lambda one: (one.rank, one.place)).answer if found else None


def finished_answer(step: str, before: str = "") -> str | None:
    """Returns the answer that a step gives and by which it ends its track, or None.

    A line that announces an answer, asks for it, doubts, bounds or denies it gives none, nor does a box in a question. The
    track goes on: the answer may stand in the next step, and a text that ends without one is read by ``find_answer``.

    ``before``: the step before it. Where that ends by announcing the answer, a step that is a value alone gives it.
    """
    announced = before.rstrip().rpartition("\n")[2]
    if not ("box" in step or "<" in step or _mentions_answer(step) or _mentions_answer(announced)):
        return None  # as most steps
    said = _said(step)
    found = [
        *(box for box in last_boxes(said) if not _asked(said, box)),
        *(tag for tag in _tags(said) if _is_finished(tag.answer)),
        *(line for line in _lines(said) if line.rank == _ANSWER),
    ]
    if not found and _mentions_answer(announced) and not _lines(announced):
        value = tidy(said)
        if len(value) <= _ALONE_MAX and "\n" not in value and len(_WORD.findall(_unmathed(value))) <= 1:
            found = [line for line in _lines(f"{announced}\n\n{said}") if line.rank == _ANSWER]
    return max(found, key=lambda one: one.place).answer if found else None


def _said(text: str) -> str:
    """Returns what is said behind the last thought. A mark at the very end, behind an earlier one, closes nothing."""
    text = _SPECIAL.sub(" ", text)
    begin, end = 0, len(text)
    closings = [(mark.start(), mark.end()) for mark in _CLOSES_THOUGHT.finditer(text)]
    while closings:
        start, stop = closings.pop()
        if text[stop:end].strip() or not closings:
            begin = stop
            break
        end = start
    return text[begin:end]


# ------------------------------------------------------------------------------------------------------------- boxes


def last_boxes(text: str) -> list[Found]:
    """Returns the last box as an answer, with those side by side with it, or nothing.

    One pass with a stack: each box remembers where it began, so a thousand unclosed ones cost no more than one.
    """
    if "box" not in text:
        return []
    whole: list[tuple[int, int, str]] = []  # begin, end, content
    stack: list[tuple[int, int] | None] = []  # the start of a box and of its content, or None for any other brace
    for token in _BOX.finditer(text):
        mark = token.group()
        if mark.startswith("\\") and "box" in mark:
            if mark.endswith("{"):
                stack.append((token.start(), token.end()))
            elif bare := _BARE.match(text, token.end()):
                whole.append((token.start(), bare.end(), bare.group()))
        elif mark == "{":
            stack.append(None)
        elif mark == "}" and stack and (box := stack.pop()) is not None:
            content = text[box[1] : token.start()].strip()
            if _HOLDS_SOMETHING.search(content) and not _PLACEHOLDER.fullmatch(content):
                while whole and whole[-1][0] > box[0]:
                    whole.pop()  # a box within this one
                whole.append((box[0], token.end(), content))
    while len(whole) > 1 and _DENIED.search(text, max(0, whole[-1][0] - _BESIDE_MAX), whole[-1][0]):
        whole.pop()
    if not whole:
        return []
    together = [whole.pop()]
    while whole and 0 <= together[-1][0] - whole[-1][1] <= _BESIDE_MAX:
        if not _BESIDE.fullmatch(text, whole[-1][1], together[-1][0]):
            break
        together.append(whole.pop())
    answers = list(dict.fromkeys(content for _, _, content in reversed(together)))
    return [Found(together[0][1], ", ".join(answers), _ANSWER)]


def _asked(text: str, box: Found) -> bool:
    """Returns whether a box stands at the end of a question, or a few words before it."""
    return (
        re.match(
            r"[\s$.*)]*(?:\\[\])])?(?:[\s$]*,?\s*(?:right|correct|true|ok(?:ay)?|I think|maybe|perhaps|is it|isn't it))?\s*\?",
            text[box.place : box.place + 40],
        )
        is not None
    )


def _tags(text: str) -> list[Found]:
    tags = list(_TAG.finditer(text)) if "<" in text else []
    if not tags:
        return []
    inside = last_boxes(tags[-1][1])
    answer = inside[0].answer if inside else tidy(tags[-1][1])
    lines = _lines(tags[-1][1]) if not inside else []
    answer = lines[-1].answer if lines else answer
    return [Found(tags[-1].end(), answer, _ANSWER)] if answer else []


# ------------------------------------------------------------------------------------------------------------- lines


def _lines(text: str) -> list[Found]:
    """Returns what the lines give that say they give the answer: the last value, and the last words about one."""
    if not _mentions_answer(text):
        return []
    found: dict[int, Found] = {}
    place = len(text)
    behind: str | None = None  # the next line that holds something
    for line in reversed(text.splitlines(keepends=True)):
        place -= len(line)
        for one in _in_line(line, behind):
            found.setdefault(one.rank, one._replace(place=place + one.place))
        if _ANSWER in found:
            break
        behind = line.strip() if tidy(line) else behind
    return list(found.values())


def _mentions_answer(text: str) -> bool:
    small = text.casefold()
    for mention in (
        _PLAIN_MENTIONS if small.isascii() else _MENTIONS
    ):  # a generator takes twice as long, and each step is asked
        if mention in small:
            return True
    return "ans" in small and _ANS.search(small) is not None


def _in_line(line: str, behind: str | None) -> list[Found]:
    """Returns what a line gives, the last first. ``behind``: the next line, for a line that only announces."""
    if len(line) <= _LINE_CHARACTERS_MAX and _HEADING.match(line):
        value = tidy(behind) if behind is not None and len(behind) <= _LINE_CHARACTERS_MAX else ""
        if value and not _is_finished(value) and (spoken := _SENTENCE_OF_VALUE.fullmatch(value)):
            return [Found(len(line), tidy(spoken["value"]), _WORDS)]
        return [Found(len(line), value, _ANSWER)] if value and _is_finished(value) else []
    if match := _HASHES.match(line[:_LINE_CHARACTERS_MAX]):
        value = tidy(match["answer"])
        if not value or _HEADING.match(line):
            return []
        return [Found(match.start("answer"), value, _ANSWER if _is_finished(value) else _WORDS)]
    if (match := _FIELD.search(line[:_LINE_CHARACTERS_MAX])) and (value := _in_field(match)):
        return [Found(match.start(), value, _ANSWER)]
    found: list[Found] = []
    end = len(line)
    for begin in reversed([0, *(cut.end() for cut in _SENTENCE_END.finditer(line))]):
        sentence, following = line[begin:end], line[end:]
        if len(sentence) <= _LINE_CHARACTERS_MAX and (one := _in_sentence(sentence, following, behind)):
            found.append(one._replace(place=begin + one.place))
        end = begin
    return found


def _in_field(match: re.Match[str]) -> str:
    """Returns the answer in an object's field, its backslashes doubled or, as models write them, not."""
    value = match["number"] or match["text"][1:-1].replace("\\\\", "\\")
    return value if match["number"] or _is_finished(value, colon=True) else ""


def _in_sentence(sentence: str, following: str, behind: str | None) -> Found | None:
    if re.search(r"\\text\s*\{[^{}]*answer", sentence, re.IGNORECASE):
        sentence = _TEXT.sub(r"\1", sentence).replace("$", "")
    says = None
    for says in _SAYS.finditer(sentence):
        if says["noun"].lower() in ("solution", "solutions", "result", "choice", "option"):
            continue
        while again := _SAYS.match(sentence, says.end()):  # Final answer: the final answer is 7
            says = again
        break
    chinese = list(_CHINESE.finditer(sentence))
    if chinese and (says is None or chinese[-1].end() > says.end()):
        says = chinese[-1]
    if says is None:
        match = _IS_THE_ANSWER.match(sentence)
        value = tidy(match["answer"]) if match else ""
        if value and _is_finished(value) and not _WORD.search(_unmathed(value)):
            return Found(0, value, _ANSWER)
        chosen = _CHOSEN.search(sentence)
        return Found(chosen.start(), chosen["first"] or chosen["last"], _RESULT) if chosen else None
    rank = _RESULT if _ONLY_A_RESULT.search(says.group()) else _ANSWER
    value = sentence[says.end() :]
    if "\\boxed" in value:
        return None  # the box says it
    colon = re.search(r"[:：=>→][\s*_`]*$", says.group()) is not None
    if not tidy(value):
        if following.strip():
            return None  # more of the line stands behind; it is a sentence of its own
        value = behind if behind is not None and len(behind) <= _LINE_CHARACTERS_MAX else ""
        value = tidy(value)
        return Found(says.end(), value, rank) if value and _is_finished(value, colon=True) else None
    asked = value.rstrip(" \n*_`").endswith(("?", "？"))
    doubted = re.search(
        r"\b(?:(?:suppose|assum(?:e|ing)|imagine)(?:\s+\w+){0,4}|(?:maybe|perhaps|guess|if|whether|is|unless|claim|check|verify|see|say|suspect"
        r"|seems?|appears?)(?:\s+that)?)\s+$",
        sentence[: says.start()].rstrip() + " ",
        re.I,
    )
    value = _NOT_BUT.sub("", value)
    value = _LEADS.sub("", value, count=1) if _LEADS.match(value) else value
    whole = tidy(_COPULA.sub("", value))
    if whole.endswith((")", "]")) and whole.count("(") + whole.count("[") < whole.count(")") + whole.count("]"):
        whole = whole[:-1]
    cut = _without_clause(whole)
    value = tidy(cut)
    if not value or re.match(r"not\b|n't\b", value, re.I):
        return None
    doubted = doubted or _HEDGE.search(whole[len(cut) :]) or _TAKEN_BACK.match(following)
    sure = not asked and not doubted and _is_finished(value, colon=colon)
    if _MODAL.search(says.group()) and _WORD.search(_unmathed(value)) and not re.match(r"\W*\d", value):
        sure = False  # the answer must be even
    if not sure and rank == _RESULT:
        return None
    if (
        not (sure or asked or doubted)
        and (spoken := _SENTENCE_OF_VALUE.fullmatch(value))
        and _is_finished(spoken["value"])
    ):
        value = tidy(spoken["value"])
    return Found(says.end(), value, rank if sure else _WORDS)


def _without_clause(value: str) -> str:
    """Returns a value without what a sentence says behind it; formulas are left whole."""
    hidden = _MATH.sub(lambda match: "\x01" * len(match.group()), value)
    cut = _CLAUSE.search(hidden) or (_TRAILING.search(hidden) if re.match(r"\W*\d", value) else None)
    return value[: cut.start()] if cut and cut.start() > 0 else value


def _unmathed(value: str) -> str:
    """Returns the words of a value: its formulas and the names of functions aside, the words within formulas kept."""
    value = _TEXT.sub(r" \1 ", value)
    return _MATH.sub(" ", value)


def _is_finished(value: str, *, colon: bool = False) -> bool:
    """Returns whether it is a value, and nothing that is said of one. ``colon``: it stands behind a colon, where names
    are answers too.
    """
    if not re.search(r"\w|[∞∅≥≤]|\\infty|\\emptyset|\\varnothing", value) or value.endswith((":", "?", "...")):
        return False
    plain = _unmathed(value)
    words = [word for word in _WORD.findall(plain) if word.lower() not in _FUNCTIONS]
    if not words:
        return True
    lower = {word.lower() for word in words}
    if re.search(r"\bfor\s+\w\s*(?:=|\\|<|>)", value):
        return False
    if lower & _DOUBT and not re.fullmatch(r".*=.*\bor\b.*=.*", plain):
        return False
    if re.match(r"\s*(?:[-+−(\[{|√$€£]|\\|\d|\x01)", value) or _PRE_VALUE.match(plain.strip()):
        return True  # a number or a formula first: what follows is a unit or the like
    if any(not word.isascii() for word in words):
        return len(plain.strip()) <= 12 and bool(colon or re.search("[A-Za-z0-9]", plain))
    if lower & _TALK or len(words) > 4:
        return bool(re.match(r"(?:option|choice|approximately|approx)\b", plain.strip(), re.I))
    return (
        colon
        or words[0][0].isupper()
        or (len(words) == 1 and words[0].lower() in _SHORT_ANSWERS)
        or words[0].lower() in ("option", "choice", "approximately", "approx")
    )


def tidy(answer: str) -> str:
    """Removes the marks around an answer: full stops, dollar signs, bold type."""
    before = None
    while answer != before:
        before = answer
        answer = _SIGNS_OF_JOY.sub("", answer.strip()).rstrip(".;,。，；").rstrip()
        for left, right in _WRAPPERS:
            if len(answer) > len(left) + len(right) and answer.startswith(left) and answer.endswith(right):
                inside = answer[len(left) : -len(right)]
                if left not in inside or left == right == "**":
                    answer = inside
        for mark in ("**", "`"):
            answer = answer.removesuffix(mark).removeprefix(mark)
    return "" if re.fullmatch(r"[\s:：*_`$.=#-]*|\\[\[\](){}]", answer) else answer
