"""Compare our library with recorded numbers of the reference: ``python tests/parity/check.py CASE_DIR...``

Takes any folders in the format of ``golden/README.md``, or folders that hold such folders. One line a case:

    v2_text_base_clone1 PASS 6.1e-07 out/decoder_output (limit 3e-05, 214 values)

with the value that comes nearest to its limit (or is farthest beyond it). Exit status: 0 all passed; 1
something failed or is not built (``UNSUPPORTED``); 2 a case cannot be read, whatever the others did.
"""

from __future__ import annotations

import argparse
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path

import torch
from cases import UnreadableCase, UnsupportedCase, family_of, find_cases, read_case
from compare import Report
from families import run_case

from data2vec.errors import Data2VecError


@dataclass(frozen=True)
class Outcome:
    """What became of one case."""

    name: str
    family: str
    verdict: str  # PASS, FAIL, UNSUPPORTED or UNREADABLE
    message: str
    report: Report | None = None
    trace: str = ""

    @property
    def line(self) -> str:
        """One line for the terminal."""
        return f"{self.name} {self.verdict} {self.message}"


def check(folder: Path, device: str = "cpu") -> Outcome:
    """Read, run and compare one case; never raises for what is wrong with the case or the numbers."""
    name, family = folder.resolve().name, "-"
    try:
        case = read_case(folder, device)
        family = family_of(case)
        report = run_case(case)
    except UnreadableCase as error:
        return Outcome(name, family, "UNREADABLE", str(error))
    except UnsupportedCase as error:
        return Outcome(name, family, "UNSUPPORTED", str(error))
    except Data2VecError as error:
        return Outcome(name, family, "FAIL", f"nan - {' '.join(str(error).split())}")
    except Exception as error:  # a bug of ours or numbers of a wrong shape: this case fails, the others go on
        text = " ".join(str(error).split())
        message = f"nan - {type(error).__name__}: {text} (--verbose shows where)"
        return Outcome(name, family, "FAIL", message, trace=traceback.format_exc())
    worst = report.worst
    values = f"{len(report.comparisons)} values"
    failed = sum(not c.passed for c in report.comparisons)
    detail = f"limit {worst.limit:.0e}, {values}" + (f", {failed} beyond their limits" if failed else "")
    note = f": {worst.note}" if failed and worst.note else ""
    message = f"{worst.error:.1e} {worst.name} ({detail}){note}"
    return Outcome(name, family, "PASS" if report.passed else "FAIL", message, report)


def markdown(outcomes: list[Outcome]) -> str:
    """The table of cases for tests/README.md."""
    rows = [
        "| case | result | values compared | nearest to its limit | error | limit |",
        "|---|---|---:|---|---:|---:|",
    ]
    for outcome in outcomes:
        if outcome.report is None:
            rows.append(f"| {outcome.name} | {outcome.verdict} | - | {outcome.message} | - | - |")
            continue
        worst, count = outcome.report.worst, len(outcome.report.comparisons)
        rows.append(
            f"| {outcome.name} | {outcome.verdict} | {count} | `{worst.name}` "
            f"| {worst.error:.1e} | {worst.limit:.0e} |"
        )
    return "\n".join(rows) + "\n"


def show_details(outcome: Outcome) -> None:
    """Every comparison of a case, and what was not compared, with the reason."""
    if outcome.trace:
        print(outcome.trace)
    if outcome.report is None:
        return
    for comparison in sorted(outcome.report.comparisons, key=lambda c: -c.severity):
        mark = "ok  " if comparison.passed else "FAIL"
        note = f"  {comparison.note}" if comparison.note else ""
        print(f"    {mark} {comparison.error:.1e} (limit {comparison.limit:.0e}) {comparison.name}{note}")
    for key in sorted(outcome.report.case.fed):
        print(f"    fed  {key}")
    for remark in outcome.report.remarks:
        print(f"    note {remark}")


def main(arguments: list[str] | None = None) -> int:
    """The command; returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "folders", nargs="+", type=Path, metavar="CASE_DIR", help="a case, or a folder with cases"
    )
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="also write the table of cases to FILE")
    parser.add_argument(
        "--device", default="cpu", help="where our models compute, in fp32 (TF32 off): cpu or cuda"
    )
    parser.add_argument(
        "--verbose", action="store_true", help="print every comparison and what is not compared"
    )
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)  # recorded models are tiny: more threads are slower
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False  # recorded in fp32
    outcomes: list[Outcome] = []
    unreadable = False
    for folder in options.folders:
        try:
            found = find_cases([folder])
        except UnreadableCase as error:
            print(f"{folder.name} UNREADABLE {error}", flush=True)
            unreadable = True
            continue
        for case in found:
            outcomes.append(check(case, options.device))
            print(outcomes[-1].line, flush=True)
            if options.verbose:
                show_details(outcomes[-1])
    if options.markdown:
        options.markdown.parent.mkdir(parents=True, exist_ok=True)
        options.markdown.write_text(markdown(outcomes), encoding="utf-8")
    verdicts = [outcome.verdict for outcome in outcomes]
    passed = verdicts.count("PASS")
    print(f"{passed} of {len(verdicts)} cases passed", file=sys.stderr)
    if unreadable or "UNREADABLE" in verdicts:
        return 2
    return 0 if verdicts and passed == len(verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())
