"""Says which names and signs formulas may use, and what sympy calls them."""

from __future__ import annotations

from speclrm.evaluators.notation import word_set

GREEK = word_set(
    "alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta iota kappa lambda mu nu xi rho varrho sigma "
    "varsigma tau upsilon phi varphi chi psi omega Gamma Delta Theta Lambda Xi Pi Sigma Upsilon Phi Psi Omega ell "
    "hbar"
)
TRIGONOMETRIC = ("sin", "cos", "tan", "cot", "sec", "csc")
HYPERBOLIC = ("sinh", "cosh", "tanh", "coth", "sech", "csch")
FUNCTIONS: dict[str, str] = {
    **{name: name for name in TRIGONOMETRIC + HYPERBOLIC},
    **{prefix + name: "a" + name for name in TRIGONOMETRIC for prefix in ("arc", "a")},
    **{prefix + name: "a" + name for name in HYPERBOLIC for prefix in ("arc", "ar", "a")},
    "arctg": "atan",
    "tg": "tan",
    "ctg": "cot",
    "cosec": "csc",
    "cis": "cis",
    "exp": "exp",
    "abs": "Abs",
    "floor": "floor",
    "ceil": "ceiling",
    "ceiling": "ceiling",
    "sgn": "sign",
    "sign": "sign",
    "Gamma": "gamma",
}
LOGARITHMS = {"log": 10, "lg": 10, "ln": None}
MANY = {"gcd": "gcd", "lcm": "lcm", "max": "Max", "min": "Min"}
TEXTS = frozenset(
    (
        "\\text",
        "\\textrm",
        "\\textit",
        "\\textbf",
        "\\mathrm",
        "\\mathit",
        "\\mbox",
        "\\operatorname",
        "\\operatorname*",
        "\\textnormal",
        "\\mathsf",
        "\\rm",
    )
)
ACCENTS = word_set(
    "vec hat bar overline tilde dot ddot widehat widetilde overrightarrow overleftarrow mathbf mathcal mathbb "
    "mathfrak mathscr boldsymbol bm acute grave breve check underbar overset stackrel"
)
NAMED = word_set(
    "angle measuredangle triangle odot square parallelogram det ker dim deg Re Im arg sup inf tr rank limsup liminf "
    "Pr nabla partial neg lnot overparen wideparen hom im span diag sphericalangle"
)
"""Operators and figures whose name and operand make one unknown together."""
OPENING = {"(": ")", "[": "]", "{": "}", "\\lbrace": "\\rbrace", "\\lparen": "\\rparen"}
TIMES = {"*", "\\cdot", "\\times", "\\ast"}
OVER = {"/", "\\div"}
APPLIED = frozenset("fghFGH")
"""Letters that are functions wherever a bracket stands behind them."""
APPLIED_TO_NUMBERS = frozenset("pqyuPQRSTUVWXYZABCDEKLMN")
