r"""Ways of writing an answer that mean the same, brought into one: pure text work, in linear time.

Signs of Unicode and the names that programs write become commands of LaTeX, what only dresses an answer is taken off, and numbers
are written in one piece. Also what can be told from the text alone: options, numbers in a base, dots that leave something out.
"""

from __future__ import annotations

import re

DIGIT_GROUPS = re.compile(r"(?<=\d)(?:,|\\,|\{,\}|~|\\ )(?=\d{3}(?!\d))")
_WIDE_GROUPS = re.compile(r"(?<=\d)(?:(?:,|\{,\})(?:\s*\\[!,;: ]\s*|~)|\\[!,;: ])(?=\d{3}(?!\d))")
"""A comma with a thin space behind it, which is one within a number; with a plain space it stands between two."""
_BRACED_GROUPS = re.compile(r"(?<=\d)\{,\}(?=\d{3}(?!\d))")
_GROUPED_FIRST = re.compile(r"^[-+]?(?:\\?\$)?\d{1,3}(?:,\d{3})+(?![\d,])(?=[^,;]*$)")
"""One number before its unit."""
_SPACE_GROUPS = re.compile(r"[-+]?\d{1,3}(?: \d{3})+(?:\.\d+)?")
PERCENT = re.compile(r"\\?%\s*$")
_TEXT_COMMAND = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mbox|operatorname)\s*\{([^{}]*)\}")
_UPRIGHT = re.compile(r"\\mathrm\s*\{\s*([ei])\s*\}")
"""Euler's number and the imaginary unit, set upright as many books do."""
_DOTS = re.compile(r"\\[lcd]?dots[bcimo]?|\.\.\.|…")
_DEGREES = re.compile(r"\^\s*\{?\s*\\circ\s*\}?|°")
_GOES_ON = re.compile(r"(?<![\d.])(\d*\.\d*?)((\d)\3{2,}|(\d{2,6}?)\4+)\s*(?:\\[lc]?dots|\.\.\.|…)\s*$")
"""A decimal that goes on as it has begun: 0.333..., 0.2727..."""
_REPEATING = re.compile(r"(?P<whole>\d*)\.(?P<fixed>\d*)\\overline\s*\{?(?P<period>\d+)\}?")
_PERIODIC = re.compile(r"(?<![\d.])(\d*\.)\((\d+)\)")
"""A repeating decimal whose period, in a bracket, begins at the point. Behind other decimals a bracket is a factor."""
_HIGHER_ROOT = re.compile(r"([∛∜])\s*(\d+|[a-zA-Z]|\([^()]*\))")
_ROOT = re.compile(r"√\s*(\d+|[a-zA-Z]|\{[^{}]*\}|\([^()]*\))")
_SCIENTIFIC = re.compile(r"([-+]?\d+(?:\.\d+)?)[eE]([-+]?\d{1,3})")
_ANGLE = re.compile(r"\\(sin|cos|tan|cot|sec|csc)\s*[({]?\s*(\d+(?:\.\d+)?)\s*(?:\^\s*\{?\s*\\circ\s*\}?|°)\s*[)}]?")
_ONE_NUMBER = re.compile(r"[-+]?(?:\d[\d,]*(?:\.\d*)?|\.\d+|\d+/-?\d+|\\frac\{?-?\d+\}?\{?-?\d+\}?)")
_IN_BASE = re.compile(r"([0-9a-zA-Z]+)_\{?(\d{1,2})\}?")
_CHOICE = re.compile(r"[(\[]?([A-Za-z])[)\]]?\.?")
_LABELLED = re.compile(r"[(\[]?([A-Za-z])[)\]](?=\s|\\|~|\}|$)|([A-Za-z])[.:](?=\s)|([A-J])\s+(?=\([^()]{2,}\)$)")
"""A letter that labels an option, with the option's text behind it: ``(C) 12``, ``B) 12``, ``B. 12``."""
_OTHER_OPTION = re.compile(
    r"\s*(?:or|and|and/or|/|,|&|\\&)\s*(?:option|choice)?\s*[(\[]?[A-Za-z](?![A-Za-z])", re.IGNORECASE
)
"""Another option behind the first: (A) or (B)."""
_OPTION_TEXT = re.compile(
    r"\s*(?:\\(?:text|textbf|mathrm|mathbf|textrm|mbox)\s*)?\{\s*\(?[A-H](?:\)[.:]?|[.:])\s*\}[\s~]*(?=\S)"
    r"|\s*\([A-H]\)[.:]?(?:\s|~|\\ )+(?=[^\s(])"
)
_OPTIONS = re.compile(r"(?=[A-H]{2,6}$)A?B?C?D?E?F?G?H?")
_BETWEEN_OPTIONS = re.compile(r"[,;、\s()&]+|\\[ ,&]")
_AND = re.compile(r"\\text\s*\{\s*(?:and|,)\s*\}|\band\b")
_CHOSEN = re.compile(
    r"^(?:(?:the|my|our|so|correct|final|best|right)\s+)*(?:answer|option|choice|letter)\s*(?::|=|\bis\b|\bof\b)*\s*(?:option|choice)?\s*"
    r"(?=[(\[]?[A-Za-z](?![A-Za-z]))",
    re.IGNORECASE,
)
"""Words before an option's letter."""

_SIGNS = str.maketrans(
    {
        **{chr(code): chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F)},
        **dict.fromkeys("\u2009\u202f\u2008\u2007\u2002\u2003\u2005\u2006\u00a0\u3000", " "),
        **dict.fromkeys("\u200b\u2060\ufeff\u2061\u2062", ""),
        **dict.fromkeys("−‐‑‒—", "-"),
        "、": ",", "。": ".", "「": "", "」": "", "’": "'", "′": "'", "″": "''", "∣": "\\mid ", "∶": ":", "⁄": "/", "∕": "/",
        "µ": "μ",
        **{sign: f"\\{name} " for sign, name in {
            "×": "times", "·": "cdot", "⋅": "cdot", "∙": "cdot", "•": "cdot", "∗": "ast", "÷": "div", "≤": "le", "⩽": "le",
            "≥": "ge", "⩾": "ge", "≠": "ne", "≈": "approx", "≡": "equiv", "∈": "in", "∉": "notin", "∪": "cup", "∩": "cap",
            "∞": "infty", "±": "pm", "∓": "mp", "∅": "emptyset", "→": "to", "∠": "angle", "△": "triangle", "¬": "neg",
            "∧": "land", "∨": "lor", "ℏ": "hbar", "ħ": "hbar",
            "⌊": "lfloor", "⌋": "rfloor", "⌈": "lceil", "⌉": "rceil", "∖": "setminus",
            "⟨": "langle", "⟩": "rangle",
            "∂": "partial", "∇": "nabla", "∑": "sum", "∏": "prod", "∫": "int", "⊂": "subset", "⊆": "subseteq", "∥": "parallel",
            "⊥": "perp", "∝": "propto", "∼": "sim", "≅": "cong", "⊕": "oplus", "⊗": "otimes", "∀": "forall", "∃": "exists",
            "α": "alpha", "β": "beta", "γ": "gamma", "δ": "delta", "ε": "epsilon", "ϵ": "epsilon", "ζ": "zeta", "η": "eta",
            "θ": "theta", "ϑ": "vartheta", "ι": "iota", "κ": "kappa", "λ": "lambda", "μ": "mu", "ν": "nu", "ξ": "xi", "π": "pi",
            "ρ": "rho", "σ": "sigma", "ς": "varsigma", "τ": "tau", "υ": "upsilon", "φ": "phi", "ϕ": "phi", "χ": "chi",
            "ψ": "psi", "ω": "omega", "Γ": "Gamma", "Δ": "Delta", "Θ": "Theta", "Λ": "Lambda", "Ξ": "Xi", "Π": "Pi",
            "Σ": "Sigma", "Φ": "Phi", "Ψ": "Psi", "Ω": "Omega",
        }.items()},
        **{sign: f"\\mathbb{{{letter}}}" for sign, letter in zip("ℝℤℚℂℕ", "RZQCN", strict=True)},
        **{sign: f"\\frac{{{top}}}{{{below}}}" for sign, top, below in (
            ("½", 1, 2), ("⅓", 1, 3), ("⅔", 2, 3), ("¼", 1, 4), ("¾", 3, 4), ("⅕", 1, 5), ("⅖", 2, 5), ("⅗", 3, 5), ("⅘", 4, 5),
            ("⅙", 1, 6), ("⅚", 5, 6), ("⅛", 1, 8), ("⅜", 3, 8), ("⅝", 5, 8), ("⅞", 7, 8),
        )},
    }
)  # fmt: skip
_RAISED = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁼⁽⁾ⁿⁱ", "0123456789+-=()ni")
_LOWERED = str.maketrans("₀₁₂₃₄₅₆₇₈₉₊₋₌₍₎ₙᵢₓₐₑ", "0123456789+-=()nixae")
_RAISED_RUN = re.compile(r"[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁼⁽⁾ⁿⁱ]+")
_LOWERED_RUN = re.compile(r"[₀₁₂₃₄₅₆₇₈₉₊₋₌₍₎ₙᵢₓₐₑ]+")
_PLAIN_NAMES = re.compile(
    r"(?<![a-zA-Z\\])(?P<name>(?:arcsin|arccos|arctan|arccot|arcsinh|arccosh|arctanh|arsinh|arcosh|artanh|asin|acos|atan|sinh|cosh|tanh"
    r"|coth|sin|cos|tan|cot|exp|ln|log|lg|sqrt|cbrt|pi|alpha|beta|gamma|delta|epsilon|theta|lambda|sigma|omega|phi|rho|tau|mu|hbar|psi"
    r"|chi|kappa|eta|nu|xi|zeta)"
    r"(?=[xyr]?(?![a-zA-Z]))|(?:sec|csc|floor|ceil|abs|max|min|gcd|lcm|binom)(?=\s*[({^]))"
)
"""A function's name or that of a letter as programs write it, also with one letter behind it (sinx)."""
_LOG_TO_BASE = re.compile(r"(?<![a-zA-Z])\\?log_?(2|10)\s*(?=\()")
_CHOOSE = re.compile(
    r"(?<![a-zA-Z\\])(\w{1,4})\s+choose\s+(\w{1,4})(?![a-zA-Z])|(?<![a-zA-Z\\])(?:nCr|comb)\(\s*(\w{1,4})\s*,\s*(\w{1,4})\s*\)"
)
_C_OF_TWO = re.compile(r"(?<![a-zA-Z\\])C\(\s*(\w{1,4})\s*,\s*(\w{1,4})\s*\)")
_BETWEEN_C = re.compile(
    r"(?:\{\})?([\^_])\s*\{?(\w{1,4})\}?\s*(?:C|\\(?:mathrm|text)\s*\{\s*C\s*\})\s*_\s*\{?(\w{1,4})\}?"
)
"""Binomials as programs and calculators write them: 10 choose 3, nCr(10, 3), {}_{10}C_3."""
_INFINITY = re.compile(r"(?<![a-zA-Z\\])(?:infinity|oo|inf)(?![a-zA-Z])", re.IGNORECASE)
_OPERATOR_NAME = re.compile(
    r"\\(?:operatorname\*?|mathrm|text)\s*\{\s*(arc(?:sin|cos|tan|cot|sec|csc)h?|ar(?:sin|cos|tan)h|(?:sin|cos|tan|cot|csc)h?|sech|exp|ln|log|lg"
    r"|gcd|lcm|det|ker|arg|dim|sup|inf|Pr|cis|cosec)\s*\}|\\operatorname\*?\s*\{\s*(max|min|sec|deg)\s*\}"
)
"""A function's name set upright. Minutes and seconds look the same where they are no operators."""
_CHINESE_AND = re.compile(r"(?<=[\d\s$})])(或者?|且|和)(?=[-−\s\d$\\(（{a-zA-Z}])")
_DELIMITERS = re.compile(r"(?<!\\)\$|(?<!\\)\\[()\[\]]")
_TIMES_TEN = re.compile(r"(?<=\d)\s*x\s*(?=10\s*(?:\^|\*\*))")
_UNIT_POWER = re.compile(r"\\(?:mathrm|text|rm)\s*\{(?:[^{}]|\^\s*\{[^{}]*\})*\}")
_COLOURED = re.compile(r"\\(?:textcolor|colorbox)\s*\{[^{}]*\}|\\color\s*(?:\[[^\]]*\])?\s*\{[^{}]*\}|\\color\s+[a-z]+")
_DRESS = re.compile(
    r"\\(?:left|right|middle|[bB]igg?[lrm]?|displaystyle|textstyle|scriptstyle|limits|nolimits|mathstrut|strut|bf|it|rm|tiny|small|large"
    r"|Large|LARGE|huge|Huge|normalsize|boldmath|h?phantom\{[^{}]*\}|tag\*?\{[^{}]*\}|hspace\{[^{}]*\}|,|;|:|!|quad$|qquad$)(?![a-zA-Z])"
)
_DRESSED = re.compile(
    r"\\(?:underline|uline|boxed|fbox|framebox|ensuremath|mathop|mathord|underbrace|overbrace|emph|textsf|texttt|large)\s*(?=\{)"
)
_BOLD = re.compile(
    r"\\(?:mathbf|boldsymbol|bm|mathit|mathsf|mathtt|pmb)\s*\{([^{}A-Za-z]*|[^{}]*[-+*/=^(\d][^{}]*|\\[dt]?frac\s*\{[^{}]*\}\s*\{[^{}]*\})\}|\\textbf\s*\{([^{}A-Za-z]*)\}"
)
"""Bold type around more than a letter. A bold letter may be a vector, and stays one."""
_UNIT_VECTOR = re.compile(
    r"\\(?:hat|widehat|vec)\s*\{\s*\\(?:mathbf|bm|boldsymbol|mathrm)\s*\{\s*([ijk])\s*\}\s*\}|\\(?:hat|widehat|vec)\s*(?:\{\s*(?:\\(?=[ij]math))?"
    r"([ijk])(?:math)?\s*\}|\\?([ijk])(?:math)?(?![a-zA-Z]))"
)
"""The unit vectors of the axes, which books write with a hat, an arrow or in bold."""
AXIS = re.compile(r"\\mathbf\s*\{[ijk]\}")
"""What they are read as."""
_ENDS_PROOF = re.compile(
    r"(?:\s|\\q?quad|\\[,;:! ])*(?:\\(?:checkmark|blacksquare|square|Box|qed|QED)(?![a-zA-Z])|[✓✔✅■□∎]\ufe0f?)\s*$"
)
_LINES = re.compile(
    r"\\begin\s*\{(?P<kind>aligned|align\*?|gathered|gather\*?|split|cases|array)\}(?:\s*\{[lcr|]*\})?(?P<lines>.*)\\end\s*\{(?P=kind)\}",
    re.DOTALL,
)
_ANGLE_BRACKETS = re.compile(r"\\langle(?![a-zA-Z])([^|]*,[^|]*?)\\rangle(?![a-zA-Z])")
"""A vector, which others write as a tuple. An inner product may look so too; then both do."""
_ROWS = re.compile(r"\[\s*\[([^][]*(?:\]\s*,\s*\[[^][]*)*)\]\s*\]")
_ROW_END = re.compile(r"\]\s*,\s*\[")
_NEXT_ROW = r"\\\\"
"""A matrix as programs write it: [[1, 2], [3, 4]]."""
_TEXT_IN_TEXT = re.compile(r"\\(?:text|mbox)\s*\{\s*\\(?:textbf|textit|text|emph|mathrm|mathbf)\s*\{([^{}]*)\}\s*\}")


def word_set(text: str) -> frozenset[str]:
    return frozenset(text.split())


def in_latex(text: str) -> str:
    """Returns the answer without decoration, its signs and plain names as commands of LaTeX."""
    text = _CHINESE_AND.sub(lambda match: " or " if match[1][0] == "或" else " and ", text.strip())
    before = None
    while before != text:  # marks of Markdown and of formulas around it
        before = text
        for left, right in (("$", "$"), ("\\(", "\\)"), ("\\[", "\\]"), ("**", "**"), ("`", "`")):
            if (
                len(text) > len(left) + len(right)
                and text.startswith(left)
                and text.endswith(right)
                and (left != "$" or not text.endswith("\\$"))
            ):
                text = text[len(left) : -len(right)].strip()
    text = _DELIMITERS.sub("", text).strip()
    text = _ENDS_PROOF.sub("", text) or text
    if lines := _LINES.fullmatch(text):
        text = _listed(lines["kind"], lines["lines"]) or text
    text = _RAISED_RUN.sub(lambda match: f"^{{{match[0].translate(_RAISED)}}}", text)
    text = _LOWERED_RUN.sub(lambda match: f"_{{{match[0].translate(_LOWERED)}}}", text)
    text = _HIGHER_ROOT.sub(lambda match: f"\\sqrt[{'3' if match[1] == '∛' else '4'}]{{{match[2]}}}", text)
    text = _ROOT.sub(
        lambda match: (
            f"\\sqrt{{{match[1].translate(_SIGNS)[1:-1] if match[1][0] in '({' else match[1].translate(_SIGNS)}}}"
        ),
        text,
    )
    text = _UNIT_VECTOR.sub(lambda match: f"\\mathbf{{{match[1] or match[2] or match[3]}}}", text.translate(_SIGNS))
    text = text.replace("\\dfrac", "\\frac").replace("\\tfrac", "\\frac").replace("\\cfrac", "\\frac")
    text = (
        text.replace("\\varnothing", "\\emptyset")
        .replace("\\lvert", "|")
        .replace("\\rvert", "|")
        .replace("\\vert", "|")
    )
    text = (
        text.replace("\\leqslant", "\\le")
        .replace("\\geqslant", "\\ge")
        .replace("\\leq", "\\le")
        .replace("\\geq", "\\ge")
    )
    text = (
        text.replace("\\neq", "\\ne").replace("\\lt", "<").replace("\\gt", ">").replace("\\colon", ":")
        if "\\l" in text or "\\g" in text or "\\n" in text or "\\c" in text
        else text
    )
    text = _WIDE_GROUPS.sub("", text).replace("{:}", ":")
    text = _TIMES_TEN.sub(r"\\times ", text)
    text = _UNIT_POWER.sub(lambda match: re.sub(r"\^\s*\{\s*([-+]?\d)\s*\}", r"^\1", match[0]), text)
    text = _COLOURED.sub("", text)
    text = _TEXT_IN_TEXT.sub(r"\\text{\1}", text)
    text = _DRESSED.sub("", text)
    text = _BOLD.sub(lambda match: f"{{{match[1] or match[2] or ''}}}", text)
    text = _OPERATOR_NAME.sub(lambda match: f"\\{match[1] or match[2]} ", text)
    text = _UPRIGHT.sub(r" \1 ", text)
    text = _DRESS.sub(" ", text).strip()
    text = _ANGLE_BRACKETS.sub(r"(\1)", text)
    if (rows := _ROWS.fullmatch(text)) and "," in rows[1]:
        text = f"\\begin{{pmatrix}}{_ROW_END.sub(_NEXT_ROW, rows[1]).replace(',', '&')}\\end{{pmatrix}}"
    return text


def _listed(kind: str, lines: str) -> str | None:
    """Returns the lines of formulas set one below the other as a list. Cases with conditions, and matrices, are none."""
    if "\\begin" in lines or (kind in ("cases", "array") and re.search(r"&(?!\s*=)", lines)):
        return None
    parts = [part.strip().rstrip(",;").strip() for part in re.split(r"\\\\(?:\[[^][]*\])?", lines.replace("&", ""))]
    several = [part for part in parts if part]
    return ", ".join(several) if len(several) == 1 or all("=" in part for part in several) else None


def plain_names(text: str) -> str:
    """Puts backslashes before the names of functions and Greek letters, outside of words."""
    text = _LOG_TO_BASE.sub(r"\\log_{\1}", text)
    text = _CHOOSE.sub(lambda match: f"\\binom{{{match[1] or match[3]}}}{{{match[2] or match[4]}}}", text)
    text = _BETWEEN_C.sub(r"\\binom{\2}{\3}", text) if text.startswith(("^", "_", "{}")) else text
    parts = _WORDS.split(text)
    return "".join(
        part if at % 2 else _INFINITY.sub(r"\\infty ", _PLAIN_NAMES.sub(r"\\\g<name> ", part))
        for at, part in enumerate(parts)
    )


_WORDS = re.compile(r"(\\(?:text\w*|mbox|mathrm|operatorname|begin|end)\s*\{[^{}]*\})")


def clean(text: str) -> str:
    """Returns the answer in the notation that is compared, without degrees and a percent sign."""
    text = plain_names(in_latex(text))
    text = text.replace("\\$", "").removeprefix("$")
    text = _ANGLE.sub(r"\\\1(\\frac{\2\\pi}{180})", text)
    text = _DEGREES.sub("", text)
    return PERCENT.sub("", numbers(text)).strip().rstrip(".")


def numbers(text: str) -> str:
    """Writes numbers in one piece, and those of programs as powers of ten."""
    text = _PERIODIC.sub(r"\1\\overline{\2}", text)
    text = _REPEATING.sub(_exact, _BRACED_GROUPS.sub("", text))
    if _SPACE_GROUPS.fullmatch(text):
        text = text.replace(" ", "")
    text = _GROUPED_FIRST.sub(lambda match: match[0].replace(",", ""), text)
    if "(" not in text and "{" not in text.replace("{,}", ""):
        text = DIGIT_GROUPS.sub("", text)  # in a tuple the comma may be one between numbers
    if match := _SCIENTIFIC.fullmatch(text):
        text = f"{match[1]} \\times 10^{{{match[2]}}}"
    return text


def _exact(match: re.Match[str]) -> str:
    """Returns a repeating decimal as a fraction: 0.1(6) is (16 - 1) / 90."""
    fixed, period = match["fixed"], match["period"]
    whole = int((match["whole"] or "0") + fixed)
    top = int((match["whole"] or "0") + fixed + period) - whole
    return f"\\frac{{{top}}}{{{'9' * len(period)}{'0' * len(fixed)}}}"


def repeating(text: str) -> str:
    """Returns a decimal that goes on as it has begun as the fraction that it is; any other text as it stands."""
    return _GOES_ON.sub(lambda match: numbers(f"{match[1]}\\overline{{{match[3] or match[4]}}}"), text)


def one_greek(gold: str, answer: str) -> tuple[str, str]:
    """Returns two answers with one form of each Greek letter, where none has both forms of it."""
    for name in ("epsilon", "phi", "theta", "rho", "sigma", "kappa"):
        forms = [re.compile(rf"\\{form}{name}(?![a-zA-Z])") for form in ("", "var")]
        if forms[1].search(gold + answer) and not any(
            all(form.search(text) for form in forms) for text in (gold, answer)
        ):
            gold, answer = (forms[1].sub(lambda _, name=name: f"\\{name}", text) for text in (gold, answer))
    return gold, answer


def one_binomial(gold: str, answer: str) -> tuple[str, str]:
    """Returns two answers, of which one may hold ``C(10, 3)``, with a binomial for it. Where both do, they may be points."""
    if bool(_C_OF_TWO.search(gold)) == bool(_C_OF_TWO.search(answer)):
        return gold, answer
    return _C_OF_TWO.sub(r"\\binom{\1}{\2}", gold), _C_OF_TWO.sub(r"\\binom{\1}{\2}", answer)


def with_dots(text: str) -> str | None:
    """Returns a text that leaves something to the reader (1, 2, ..., n), without space and with dots of one kind; else None."""
    return re.sub(r"\s+", "", _DOTS.sub("...", text)) if _DOTS.search(text) else None


def words(text: str) -> str:
    """Returns the text inside LaTeX's text commands, without space around."""
    return re.sub(r"\s+", " ", _TEXT_COMMAND.sub(r"\1", text)).strip()


def optioned(gold: str, answer: str) -> tuple[str, str] | None:
    """Returns two answers without the option's letter before the text of one of them (``(C) 12``, ``12``); beside a letter that
    letter alone. None where there is none, or one on both sides.
    """
    ours, theirs = (_OPTION_TEXT.match(text) for text in (gold, answer))
    if ours and is_letter(answer):
        return (choice(gold) or gold, choice(answer) or answer)
    if (ours is None) == (theirs is None) or is_letter(gold) or is_letter(answer):
        return None
    return (gold[ours.end() :], answer) if ours else (gold, answer[theirs.end() :] if theirs else answer)


def several_options(gold: str, answer: str) -> bool:
    """Returns whether both are the same options, of several that are right: ``BC``, ``B, C``."""
    one, other = (_BETWEEN_OPTIONS.sub("", words(_AND.sub(",", text))) for text in (gold, answer))
    return one == other and _OPTIONS.fullmatch(one) is not None


def choice(text: str) -> str | None:
    """Returns the letter where the text is one, in parentheses or not, or labels an option with it."""
    plain = _CHOSEN.sub("", words(text).strip("${}* "))
    if match := _CHOICE.fullmatch(plain):
        return match[1].upper()
    if (match := _LABELLED.match(plain)) is None or _OTHER_OPTION.match(plain, match.end()):
        return None
    return (match[1] or match[2] or match[3]).upper()


def is_number(text: str) -> bool:
    """Returns whether the answer is one number, written out, and no expression that still has to be worked out."""
    return _ONE_NUMBER.fullmatch(clean(words(text)).replace(" ", "")) is not None


def is_letter(text: str) -> bool:
    return _CHOICE.fullmatch(words(text)) is not None and not AXIS.fullmatch(text.strip())


def in_base(text: str) -> tuple[str, int] | None:
    """Digits and base of a number such as ``101_2``."""
    match = _IN_BASE.fullmatch(text.replace(" ", ""))
    if match is None or not match[1][0].isdecimal():
        return None
    digits, base = match[1].lower(), int(match[2])
    if base > 1 and digits.isdecimal():
        return digits, base
    return (digits, base) if all(int(digit, 36) < base for digit in digits) else None  # else letters: 2x_1
