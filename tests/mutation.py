"""``make mutation``: how many planted mistakes the tests notice, by module, in a copy of the tree.

Cosmic Ray makes the mutants: one operator, comparison, number, condition, decorator or loop changed at a
time. A sample of each module is tried, drawn from the seed; the tests of a module are those of the files that
import it, then of those that import its importers, up to ``--tests`` files, without a cluster and without
reference data (so ``make test`` notices more). Results are kept in ``outputs/mutation``: the same command
goes on where it was stopped, and tries a module anew when its text or its tests have changed.
"""

from __future__ import annotations

import argparse
import ast
import collections
import hashlib
import os
import random
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from cosmic_ray.work_db import WorkDB, use_db
from cosmic_ray.work_item import TestOutcome, WorkerOutcome, WorkResult

REPO = Path(__file__).resolve().parents[1]
KEPT = REPO / "outputs" / "mutation"
ROOTS = ("models", "platform", "experiments", "tests")
# Mistakes that a person makes; most other pairs of operators fail at once, and `|` stands in annotations.
SWAPS = ("Add_Sub", "Sub_Add", "Mul_Div", "Div_Mul", "FloorDiv_Mul", "Mod_FloorDiv", "Pow_Mul",
         "Lt_LtE", "LtE_Lt", "Gt_GtE", "GtE_Gt", "Lt_Gt", "GtE_Lt", "Gt_Lt", "Eq_NotEq", "NotEq_Eq",
         "Is_IsNot", "IsNot_Is", "Delete_USub", "Delete_Invert", "Delete_Not")  # fmt: skip
OTHERS = ("AddNot", "ReplaceTrueWithFalse", "ReplaceFalseWithTrue", "ReplaceAndWithOr", "ReplaceOrWithAnd",
          "NumberReplacer", "RemoveDecorator", "ZeroIterationForLoop")  # fmt: skip
WANTED = re.compile(rf"(Operator_({'|'.join(SWAPS)})|/({'|'.join(OTHERS)}))$")


def imported(path: Path) -> set[str]:
    """Dotted names of the modules and members that a file imports, relative ones made absolute."""
    found: set[str] = set()
    package = path.relative_to(REPO).with_suffix("").parts[1:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*start, *filter(None, [node.module])])
            found.update([module, *(f"{module}.{alias.name}" for alias in node.names)])
    return found


def dotted(path: Path) -> str:
    """The name that a file is imported by."""
    return ".".join(path.relative_to(REPO).with_suffix("").parts[1:]).removesuffix(".__init__")


def tests_of(module: Path, most: int) -> list[str]:
    """The test files nearest to a module in the graph of imports, nearest first."""
    files = [path for root in ROOTS for path in sorted((REPO / root).rglob("*.py"))]
    uses = {path: imported(path) for path in files}
    chosen: list[str] = []
    reached, level = {module}, [module]
    while level and len(chosen) < most:
        names = {dotted(path) for path in level}
        level = [path for path in files if path not in reached and uses[path] & names]
        reached.update(level)
        near = [str(path.relative_to(REPO)) for path in level if path.name.startswith("test_")]
        near.sort(key=lambda name: module.stem not in name)  # the module's own tests first
        chosen += [name for name in near if not name.startswith(("tests/cluster", "tests/mutation"))]
    return chosen[:most]


def sample(database: WorkDB, count: int, seed: int) -> None:
    """Set all mutants but a sample aside."""
    items = [(item.job_id, item.mutations[0]) for item in database.work_items]
    items.sort(key=lambda item: (item[1].start_pos, item[1].operator_name, item[1].occurrence))
    wanted = [job for job, mutation in items if WANTED.search(mutation.operator_name)]
    chosen = set(random.Random(seed).sample(wanted, min(count, len(wanted))))
    aside = [job for job, _ in items if job not in chosen]
    database.set_multiple_results(aside, WorkResult(worker_outcome=WorkerOutcome.SKIPPED))


def run_module(module: Path, scratch: Path, options: argparse.Namespace) -> collections.Counter[str]:
    """Try the mutants of one module that have no result yet; counts by outcome, survivors printed."""
    name = str(module.relative_to(REPO))
    tests = tests_of(module, options.tests)
    if not tests:
        print(f"mutation: no test imports {name}, nor what imports it")
        return collections.Counter()
    key = "\0".join([module.read_text(), *(f"{t}\0{(REPO / t).read_text()}" for t in tests)])
    digest = hashlib.sha256(f"{options.mutants} {options.seed} {key}".encode()).hexdigest()[:16]
    session = KEPT / f"{name.replace('/', '.')}.{digest}.sqlite"
    plain = "not slow and not gpu and not cluster"
    command = f"{sys.executable} -m pytest -q -x -p no:cacheprovider -m '{plain}' {' '.join(tests)}"
    config = scratch / "mutation.toml"
    config.write_text(
        f'[cosmic-ray]\nmodule-path = "{name}"\ntimeout = {options.timeout}\nexcluded-modules = []\n'
        f'test-command = "{command}"\n[cosmic-ray.distributor]\nname = "local"\n'
    )
    environment = os.environ | {
        "D2V_SHARED": "/nonexistent",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": f"{scratch / 'platform'}:{scratch / 'models'}",
    }
    cosmic_ray = [sys.executable, "-m", "cosmic_ray.cli"]
    if not session.exists():
        for old in KEPT.glob(f"{name.replace('/', '.')}.*"):
            old.unlink()
        if subprocess.run(shlex.split(command), cwd=scratch, env=environment).returncode != 0:
            sys.exit(f"mutation: {name}: its tests fail without any mistake planted")
        new = session.with_suffix(".new")
        subprocess.run([*cosmic_ray, "init", "--force", str(config), str(new)], cwd=scratch, check=True)
        with use_db(new) as database:
            sample(database, options.mutants, options.seed)
        new.rename(session)
    subprocess.run([*cosmic_ray, "exec", str(config), str(session)], cwd=scratch, check=True, env=environment)
    counts: collections.Counter[str] = collections.Counter()
    with use_db(session, WorkDB.Mode.open) as database:
        for _, result in database.completed_work_items:
            if result.worker_outcome is not WorkerOutcome.NORMAL:
                continue
            counts["mutants"] += 1
            if result.test_outcome is TestOutcome.SURVIVED:
                counts["survived"] += 1
                print("\n".join(line for line in (result.diff or "").splitlines() if line[:1] in "+-@"))
    return counts


def main() -> None:
    """Print the table, and what survived above it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("modules", nargs="+", type=Path)
    parser.add_argument("--mutants", type=int, default=5, help="of each module")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--tests", type=int, default=5, help="most test files for a module")
    parser.add_argument("--timeout", type=int, default=300, help="seconds for the tests of one mutant")
    options = parser.parse_args()
    KEPT.mkdir(parents=True, exist_ok=True)
    table: dict[str, collections.Counter[str]] = {}
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder) / "repository"  # its parent is empty: no ../shared
        ignore = shutil.ignore_patterns(".venv", ".git", "outputs", "mlruns", "__pycache__", ".*_cache")
        shutil.copytree(REPO, scratch, ignore=ignore)
        for path in options.modules:
            module = path.resolve()
            table[str(module.relative_to(REPO))] = run_module(module, scratch, options)
    print(f"\n{'module':<58}{'mutants':>8}{'killed':>8}{'survived':>10}{'share':>8}")
    for name, counts in [*table.items(), ("all", sum(table.values(), collections.Counter()))]:
        tried, survived = counts["mutants"], counts["survived"]
        share = f"{100 * (tried - survived) / tried:.0f} %" if tried else "-"
        print(f"{name:<58}{tried:>8}{tried - survived:>8}{survived:>10}{share:>8}")


if __name__ == "__main__":
    main()
