"""A LaTeX table (booktabs) of attacks side by side: a row per attack, a column per norm and eps.

Numbers are those of the summaries. A protocol that all attacks share is in the caption; where they differ, each row
has a mark that is explained below the table, so that no number stands without its protocol.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Collection, Sequence
from itertools import chain

from kapdist.config.attack import size_name
from kapdist.records.attack_plan import AttackPlan, Norm
from kapdist.records.summary import Rescored
from kapdist.report.export.merged import Merged
from kapdist.report.strength import NOTHING_TOLD, Strength, strength_of
from kapdist.report.words import attack_text, eps_text, percent
from kapdist.statistics.intervals import Proportion

NORMS: dict[Norm, str] = {"Linf": r"$\ell_\infty$", "L2": r"$\ell_2$", "L1": r"$\ell_1$"}
SPECIAL = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "`": "{`}",  # two are a quotation mark, and one behind ? or ! turns that upside down
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': "''",
    "[": "{[}",  # at the beginning of a row it would be an argument of the one before
    "]": "{]}",
    "–": "--",
}
GREEK = "αβγδεζηθικλμνξπρστυφχψωΓΔΘΛΞΠΣΦΨΩ"
SIGNS = {"−": "-", "≤": r"\leq", "≥": r"\geq", "≠": r"\neq", "≈": r"\approx", "∞": r"\infty"}
SIGNS |= {
    letter: "\\" + (name.lower() if "SMALL" in unicodedata.name(letter) else name.capitalize())
    for letter in GREEK
    for name in [unicodedata.name(letter).rpartition(" ")[2].replace("LAMDA", "LAMBDA")]
}
SPECIAL |= {sign: rf"\ensuremath{{{name}}}" for sign, name in SIGNS.items()}
# What pdflatex prints in its first encoding, found by trying each: of Latin letters all but some.
PLAIN = {*map(chr, range(0xA0, 0x180)), *"‐‑‒–—―‖‘’“”†‡•…‰€™←↑→↓"} - {*"«»ÐÞðþĄąĐđĘęĦħĮįĸĿŀŉŊŋŦŧŲųſ"}
WHAT = (
    r"Accuracy in percent with 95\% Wilson intervals over the images. Robust: right on the clean image and under "
    r"every attack up to $\varepsilon$."
)
Column = tuple[Norm, float]


def latex_table(attacks: Sequence[Merged]) -> str:
    """Return a table environment that compiles with booktabs alone; for letters see `beyond_pdflatex`."""
    columns = columns_of(attacks)
    of_each = protocol_texts([attack.plan for attack in attacks])
    protocols = list(dict.fromkeys(of_each))
    same = len(protocols) == 1
    rows = [
        [
            name + ("" if same else mark(protocols.index(protocol))),
            f"{attack.summary.num_images:,}",
            *accuracies(attack, columns),
        ]
        for name, attack, protocol in zip(row_names(attacks), attacks, of_each, strict=True)
    ]
    marked = [f"{mark(number)}{escape(protocol)}" for number, protocol in enumerate(protocols)]
    table = [
        r"\begin{table}",
        r"  \centering",
        rf"  \caption{{{WHAT}{f' Attack: {escape(protocols[0])}.' if same else ''}}}",
        r"  \label{tab:robust-accuracy}",
        rf"  \begin{{tabular}}{{lr{'l' * (1 + len(columns))}}}",
        r"    \toprule",
        f"    {row(['Model', 'Images', 'Clean', *map(column_text, columns)])}",
        r"    \midrule",
        *(f"    {row(cells)}" for cells in rows),
        r"    \bottomrule",
        r"  \end{tabular}",
        *(
            rf"  \par\smallskip{{\footnotesize {line}.\par}}"
            for line in [*([] if same else marked), *remarks(attacks)]
        ),
        r"\end{table}",
    ]
    letters = beyond_pdflatex("\n".join(table))
    heads = [
        "% \\usepackage{booktabs}",
        *([f"% for lualatex or xelatex and a font that has {letters}, which pdflatex has not"] if letters else []),
        *(f"% {comment(attack)}" for attack in attacks),
    ]
    return "\n".join([*heads, *table]) + "\n"


def beyond_pdflatex(tex: str) -> str:
    """Return the letters of a table, comments aside, that pdflatex does not know; lualatex and xelatex take any."""
    lines = [line for line in tex.splitlines() if not line.startswith("%")]
    return "".join(dict.fromkeys(one for one in "".join(lines) if not one.isascii() and one not in PLAIN))


def mark(number: int) -> str:
    return rf"\textsuperscript{{{number + 1}}}"


def columns_of(attacks: Sequence[Merged]) -> list[Column]:
    """Return every (norm, eps) that some attack has a result for: norms as in NORMS, eps ascending."""
    found = {(attack.plan.norm, rounded(at.eps)) for attack in attacks for at in attack.summary.sweep}
    return sorted(found, key=lambda column: (list(NORMS).index(column[0]), column[1]))


def rounded(eps: float) -> float:
    """Return a size to six digits, so that 0.0313725 and 8/255 are one column."""
    return float(size_name(eps))


def column_text(column: Column) -> str:
    norm, eps = column
    return rf"{NORMS[norm]}, $\varepsilon = {eps_text(norm, eps)}$"


def accuracies(attack: Merged, columns: Sequence[Column]) -> list[str]:
    """Return the clean accuracy and that of each column; a dash where the attack had no such eps."""
    robust = {(attack.plan.norm, rounded(at.eps)): at.robust_accuracy for at in attack.summary.sweep}
    return [cell(attack.summary.clean_accuracy), *(cell(robust.get(column)) for column in columns)]


def cell(accuracy: Proportion | None) -> str:
    if accuracy is None:
        return "--"
    return rf"{percent(accuracy.value)} {{\scriptsize [{percent(accuracy.low)}, {percent(accuracy.high)}]}}"


def row_names(attacks: Sequence[Merged]) -> list[str]:
    """Name rows by their run, and by the attack too where a run has several."""
    runs = [attack.run for attack in attacks]
    return [
        escape(attack.run if runs.count(attack.run) == 1 else f"{attack.run} ({attack.name})") for attack in attacks
    ]


def protocol_texts(plans: Sequence[AttackPlan]) -> list[str]:
    """Say how each model was attacked, all but norm and eps, and on what, as far as it was not the same for all."""
    strengths = [strength_of(plan.model_dump(mode="json")) for plan in plans]
    on_what = [circumstances(plan) for plan in plans]
    varying = [key for key in on_what[0] if any(it[key][0] != on_what[0][key][0] for it in on_what)]
    return [
        ", ".join((protocol_text(plan, said_too(strength, strengths)), *(it[key][1] for key in varying)))
        for plan, strength, it in zip(plans, strengths, on_what, strict=True)
    ]


def said_too(strength: Strength, others: Sequence[Strength]) -> set[str]:
    """Return the parts of a strength that others have otherwise; what an attack has none of goes unsaid."""
    return {key for key in strength.differing(others) if key != "eot" and getattr(strength, key)}


def protocol_text(plan: AttackPlan, told: Collection[str] = NOTHING_TOLD) -> str:
    """Say how a model was attacked, all but norm and eps.

    Args:
        told: parts of the attack's strength that are said even where they are the usual ones.
    """
    functions = plan.functions
    names = [attack_text(attack, functions) for attack in plan.attacks]
    name = ", ".join(names) if plan.version == "custom" else plan.version
    words = [f"AutoAttack {name}", f"noise {plan.noise}"]
    if plan.gradient_of:
        words.append(f"gradient of {attack_text(plan.gradient_of, functions)}")
    strength = strength_of(plan.model_dump(mode="json"))
    return ", ".join((*words, *strength.in_words({*told, *({"screen"} if plan.screen else ())})))


def circumstances(plan: AttackPlan) -> dict[str, tuple[object, str]]:
    """Return what was attacked on which images: what tells it from others, wherever it lies, and its words."""
    data, model = plan.data, plan.model
    resized = "" if data.crop == "none" else f", {data.crop_ratio:g} of the shorter side ({data.interpolation})"
    chosen = {"random": f"random images of seed {plan.seed}", "first": "the first images"}
    listed = f"images of {plan.chosen}{sha256_text(plan.list_sha256)}"
    network = (model.factory, model.factory_sha256, model.arguments)
    given = f" with {model.arguments}" if model.arguments else ""
    code = f"network of {model.factory}{sha256_text(model.factory_sha256)}{given}"
    return {
        "data": (data.fingerprint, f"data {data.path.stem} ({data.fingerprint[:12]})"),
        "choice": (plan.list_sha256 or chosen.get(plan.chosen, plan.chosen), chosen.get(plan.chosen, listed)),
        "pixels": (data.shape, f"{data.resolution} pixels a side{resized}"),
        "network": (network, code) if model.factory else (None, "the run's own network"),
    }


def sha256_text(sha256: str | None) -> str:
    return f" (sha256 {sha256[:12]})" if sha256 else ""


def remarks(attacks: Sequence[Merged]) -> list[str]:
    """Return the lines below the rows: doubts, what the summaries note, and scores under fresh noise."""
    return [
        f"{name}: {text}"
        for name, attack in zip(row_names(attacks), attacks, strict=True)
        for text in chain(
            map(escape, filter(None, [attack.doubt, *attack.summary.notes])),
            rescored_texts(attack.summary.rescored),
        )
    ]


def rescored_texts(found: Rescored | None) -> list[str]:
    if found is None:
        return []
    kinds = {"clean": found.clean, "adversarial": found.adversarial}
    return [
        f"{kind} images under {found.num_draws} fresh draws: single draw {cell(scores.single_draw)}, majority "
        f"{cell(scores.majority)}, all draws right {cell(scores.worst)}"
        for kind, scores in kinds.items()
    ]


def comment(attack: Merged) -> str:
    return one_line(f"{attack.run}/{attack.name}: plan {attack.plan.fingerprint}")


def row(cells: Sequence[str]) -> str:
    return " & ".join(cells) + r" \\"


def escape(text: str) -> str:
    """Return text that LaTeX prints as it stands; control characters become spaces."""
    line = one_line(text)
    pairs = zip(line, f"{line[1:]} ", strict=True)
    # Two hyphens would be a dash.
    return "".join(SPECIAL.get(one, one) + ("{}" if one == after == "-" else "") for one, after in pairs)


def one_line(text: str) -> str:
    return "".join(character if character.isprintable() else " " for character in text)
