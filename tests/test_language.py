"""Plain English: the words that the glossary of the project replaces do not come back."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parent.parent
# What to write instead -> what is rejected. A pattern is tried on each line, letters in any case.
GLOSSARY = {
    "iteration": r"\bsteps?\b|\biters?\b|\b(?:each|every|in) turns?\b",
    "epoch, pass over the unlabeled images": r"\bpasses through the (?:un)?labeled|over the larger stream",
    "fraction of training": r"shares? of (?:the |a )?(?:training|steps|iterations)",
    "EMA": r"(?<!exponential )moving average",
    "synthetic dataset": r"embedded dataset|drawn (?:images|dataset)|another drawing",
    "GPU-CPU synchronization": r"(?:ask|let)\w* the host|\bwait\w* for the device|\bthe host\b",
    "official implementation": r"authors' (?:published )?program",
    "metadata, record": r"\btold\b|\btells?\b",
    "valid_mask, valid": r"\bcounted\b(?! from)",
    "confidence, confident": r"\bsure(?:ness|st|r)?\b|\bunsure\b|\bsurely\b",
    "misclassification detection": r"knows? (?:the |its |a mask's )?errors|errors found by",
    "training curves, history": r"\bcourse\b",
    "fix, recreate": r"\bmend\w*\b|\banew\b",
    "is not a (valid) ...": r"(?<!there )(?<!where )\b(?:is|are) no (?!longer\b|more\b)",
    "internal error": r"fault of (?:sslseg|ours)",
    "messages": r"\bremarks?\b",
    "eval_model": r"\bdeploy(?:s|ed)?\b",
    "one_hot, categorical sample, top-k": r"\bbelonging\b|among_first|\bdrawn\b",
    "American spelling": r"labell|\w+ali(?:se|sed|ses|sing|sation)\b|optimis|initialis|behaviour|colour|\bgrey\b|\bcentre|neighbour|artefact|\blicence",
}
# Lines that may: names of mmengine and of options, the optimizer's step, the paper's own words.
ALLOWED = {
    "iteration": re.compile(
        r"\.iter\b|max_iters|train_iter|\.step\(|def step|steps? of (?:the|each|an) (?:optimizer|pipeline|paper)|optimizer's step"
        r"|both steps|--iters|\"iters?\"|schedule\.iters|best_iter|per_step|next\(iter|iter\(|key == \"step\"|version 0\.1"
    ),
    "misclassification detection": re.compile(r"(?!)"),
}


def files() -> list[Path]:
    found = [path for folder in ("sslseg", "configs") for path in (CHECKOUT / folder).rglob("*.py")]
    pages = [*(CHECKOUT / "docs").rglob("*.md"), CHECKOUT / "README.md", CHECKOUT / "CONTRIBUTING.md"]
    return sorted([*found, *pages])


@pytest.mark.parametrize("instead", GLOSSARY)
def test_the_glossary_s_other_words_are_not_used(instead: str) -> None:
    rejected, allowed = re.compile(GLOSSARY[instead], re.IGNORECASE), ALLOWED.get(instead)
    lines = [
        f"{path.relative_to(CHECKOUT)}:{number}: {line.strip()}"
        for path in files()
        for number, line in enumerate(path.read_text().splitlines(), start=1)
        if rejected.search(line) and not (allowed is not None and allowed.search(line))
    ]
    assert lines == [], f"write {instead!r} instead"


def test_private_names_of_other_packages_are_touched_in_one_file() -> None:
    """``compat.py`` is what an upgrade of mmengine, mmcv, mmseg or torch has to look at."""
    found = []
    for path in (CHECKOUT / "sslseg").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names: list[str] = []
            if isinstance(node, ast.Attribute) and not (
                isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
            ):
                names = [node.attr]
            elif isinstance(node, ast.ImportFrom) and not (node.module or "").startswith("sslseg"):
                names = [alias.name for alias in node.names]
            private = [name for name in names if name.startswith("_") and not name.startswith("__")]
            found += [f"{path.name}:{node.lineno}: {name}" for name in private if path.name != "compat.py"]
    assert found == []
