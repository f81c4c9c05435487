"""A LaTeX table (booktabs) of attacks side by side: a row per attack, a column per norm and eps.

Numbers are those of the summaries. What differs between the attacks' protocols is a column, what does not is in the
caption, so that no number stands without its protocol.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

from kapdist.attack.export.merged import Merged
from kapdist.attack.intervals import Proportion
from kapdist.attack.plan import AttackPlan, Norm
from kapdist.attack.summary import Rescored
from kapdist.epsilon import eps_text

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
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "[": "{[}",  # would be the argument of the row's end before it
    "]": "{]}",
    "–": "--",
}
WHAT = (
    r"Accuracy in percent with 95\% Wilson intervals over the images. Robust: right on the clean image and under "
    r"every attack up to $\varepsilon$."
)
Column = tuple[Norm, float]


def latex_table(attacks: Sequence[Merged]) -> str:
    """Return a table environment that compiles with booktabs alone."""
    columns = columns_of(attacks)
    protocols = [protocol_text(attack.plan) for attack in attacks]
    same = len(set(protocols)) == 1
    head = ["Model", *([] if same else ["Attack"]), "Images", "Clean", *map(column_text, columns)]
    middle = [[] if same else [escape(protocol)] for protocol in protocols]
    rows = [
        [name, *protocol, f"{attack.summary.num_images:,}", *accuracies(attack, columns)]
        for name, protocol, attack in zip(row_names(attacks), middle, attacks, strict=True)
    ]
    caption = f"{WHAT} Attack: {escape(protocols[0])}." if same else WHAT
    lines = [
        "% \\usepackage{booktabs}",
        *(f"% {comment(attack)}" for attack in attacks),
        r"\begin{table}",
        r"  \centering",
        rf"  \caption{{{caption}}}",
        r"  \label{tab:robust-accuracy}",
        rf"  \begin{{tabular}}{{{'l' if same else 'll'}r{'l' * (1 + len(columns))}}}",
        r"    \toprule",
        f"    {row(head)}",
        r"    \midrule",
        *(f"    {row(cells)}" for cells in rows),
        r"    \bottomrule",
        r"  \end{tabular}",
        *remarks(attacks),
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def columns_of(attacks: Sequence[Merged]) -> list[Column]:
    """Return every (norm, eps) that some attack has a result for: norms as in NORMS, eps ascending."""
    found = {(attack.plan.norm, at.eps) for attack in attacks for at in attack.summary.sweep}
    return sorted(found, key=lambda column: (list(NORMS).index(column[0]), column[1]))


def column_text(column: Column) -> str:
    norm, eps = column
    return rf"{NORMS[norm]}, $\varepsilon = {eps_text(norm, eps)}$"


def accuracies(attack: Merged, columns: Sequence[Column]) -> list[str]:
    """Return the clean accuracy and that of each column; a dash where the attack had no such eps."""
    robust = {(attack.plan.norm, at.eps): at.robust_accuracy for at in attack.summary.sweep}
    return [cell(attack.summary.clean_accuracy), *(cell(robust.get(column)) for column in columns)]


def cell(accuracy: Proportion | None) -> str:
    return "--" if accuracy is None else escape(interval(accuracy))


def interval(accuracy: Proportion) -> str:
    return f"{percent(accuracy.value)} [{percent(accuracy.low)}, {percent(accuracy.high)}]"


def percent(share: float) -> str:
    return f"{100 * share:.1f}"


def row_names(attacks: Sequence[Merged]) -> list[str]:
    """Name rows by their run, and by the attack too where a run has several."""
    runs = [attack.run for attack in attacks]
    return [
        escape(attack.run if runs.count(attack.run) == 1 else f"{attack.run} ({attack.name})") for attack in attacks
    ]


def protocol_text(plan: AttackPlan) -> str:
    """Say how the model was attacked, all but norm and eps."""
    name = ", ".join(plan.attacks) if plan.version == "custom" else plan.version
    words = [f"AutoAttack {name}", f"noise {plan.noise}"]
    if plan.eot > 1:
        words.append(f"mean of {plan.eot} draws")
    if plan.screen:
        words.append(f"{plan.screen}-step screen first")
    return ", ".join(words)


def remarks(attacks: Sequence[Merged]) -> list[str]:
    """Return the lines below the rows: what the summaries note, and scores under fresh noise."""
    said = [
        f"{name}: {escape(text)}."
        for name, attack in zip(row_names(attacks), attacks, strict=True)
        for text in chain(attack.summary.notes, rescored_texts(attack.summary.rescored))
    ]
    return [rf"  \par\smallskip{{\footnotesize {line}\par}}" for line in said]


def rescored_texts(found: Rescored | None) -> list[str]:
    if found is None:
        return []
    kinds = {"clean": found.clean, "adversarial": found.adversarial}
    return [
        f"{kind} images under {found.num_draws} fresh draws: single draw {interval(scores.single_draw)}, majority "
        f"{interval(scores.majority)}, all draws right {interval(scores.worst)}"
        for kind, scores in kinds.items()
    ]


def comment(attack: Merged) -> str:
    return one_line(f"{attack.run}/{attack.name}: plan {attack.plan.fingerprint}")


def row(cells: Sequence[str]) -> str:
    return " & ".join(cells) + r" \\"


def escape(text: str) -> str:
    """Return text that LaTeX prints as it stands; control characters become spaces."""
    return "".join(SPECIAL.get(character, character) for character in one_line(text))


def one_line(text: str) -> str:
    return "".join(character if character.isprintable() else " " for character in text)
