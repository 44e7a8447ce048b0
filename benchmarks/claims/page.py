# Copyright 2026 The trl-ext authors
# SPDX-License-Identifier: Apache-2.0

"""The page of the papers' claims."""

from collections import Counter
from collections.abc import Sequence

from benchmarks.harness.tables import table

from .figures import Sources
from .file import Claims, Judged, verdict_of
from .verdicts import Verdict


def page(claims: Claims, sources: Sources) -> str:
    """A table of claims for each paper, with the verdicts of the results, and where the figures come from."""
    judged = [verdict_of(claim, sources) for claim in claims.claims]
    lines = [_counts(judged)]
    for paper, title in claims.papers.items():
        heading, _, reference = title.partition(": ")
        rows = [["claim", "in the paper", "verdict", "what was measured"]]
        for found in judged:
            if found.claim.paper == paper:
                rows.append(_row(found, claims))
        lines += ["", f"## {heading}", "", *([reference, ""] if reference else []), *table(rows)]
    lines += ["", "## Where the figures come from", ""]
    lines += [f"- **{name}**: {' '.join(task.what.split())}" for name, task in claims.tasks.items()]
    return "\n".join(lines)


def _counts(judged: Sequence[Judged]) -> str:
    counts = Counter(found.verdict for found in judged)
    words = {
        Verdict.HOLDS: "hold",
        Verdict.DOES_NOT_HOLD: "do not hold",
        Verdict.NOT_SHOWN: "are not shown at this size",
    }
    words[Verdict.NOT_TESTED] = "are not tested"
    parts = [f"{counts[verdict]} {word}" for verdict, word in words.items()]
    return f"Of {len(judged)} claims, {', '.join(parts[:-1])} and {parts[-1]}."


def _row(found: Judged, claims: Claims) -> list[str]:
    claim = found.claim
    parts = [f"{finding.text[0].upper()}{finding.text[1:]}." for finding in found.findings]
    names = {id(task): name for name, task in claims.tasks.items()}
    used = dict.fromkeys(names[id(check.task)] for check in claim.checks if found.findings)
    if used:
        seeds = min(finding.seeds for finding in found.findings)
        parts.append(f"({', '.join(used)}; {seeds} seed{'s' if seeds > 1 else ''})")
    parts += [f"{found.missing[0].upper()}{found.missing[1:]}."] if found.missing else []
    parts += [claim.note] if claim.note else []
    if found.verdict is Verdict.NOT_TESTED:
        parts += [f"Needed first: {claim.needs}."] if claim.needs else []
        parts += [f"To test it: `{claim.run}`"] if claim.run else []
    return [claim.claim, claim.source, f"**{found.verdict}**", " ".join(parts).replace("|", "\\|")]
