"""Commands that open a cluster, as documents and scripts give them; stand-ins note the calls."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parents[2]

# A stand-in of any program: notes its name, its words and the environment that decides who may enter.
STAND_IN = """#!{python}
import json, os, sys
names = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "RAY_ADDRESS")
with open({log!r}, "a") as log:
    seen = {{name: os.environ[name] for name in names if name in os.environ}}
    print(json.dumps([os.path.basename(sys.argv[0]), sys.argv[1:], seen]), file=log)
if "get-auth-token" in sys.argv:
    os.makedirs(os.path.expanduser("~/.ray"), exist_ok=True)
    open(os.path.expanduser("~/.ray/auth_token"), "w").write("t" * 64)
"""


def stand_ins(folder: Path, *names: str) -> dict[str, str]:
    """An environment in which the programs are stand-ins; what is called goes to ``folder/calls``."""
    (folder / "bin").mkdir()
    for name in names:
        program = folder / "bin" / name
        program.write_text(STAND_IN.format(python=sys.executable, log=str(folder / "calls")))
        program.chmod(0o755)
    return {"PATH": f"{folder / 'bin'}:/usr/bin:/bin", "HOME": str(folder)}


def calls(folder: Path) -> list[Any]:
    return [json.loads(line) for line in (folder / "calls").read_text().splitlines()]


def test_the_readmes_head_asks_for_a_token_and_keeps_to_this_machine(tmp_path: Path) -> None:
    text = (REPO / "README.md").read_text(encoding="utf-8")
    (block,) = [block for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL) if "ray start" in block]
    subprocess.run(["bash", "-euc", block], env=stand_ins(tmp_path, "ray"), cwd=tmp_path, check=True)
    made, start, *jobs = calls(tmp_path)
    assert made[1] == ["get-auth-token", "--generate"] and start[1] == ["start", "--head"]
    assert (tmp_path / ".ray" / "auth_token").stat().st_mode & 0o077 == 0
    assert start[2] == {"RAY_AUTH_MODE": "token", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
    assert jobs
    for _, words, environment in jobs:
        assert words[:2] == ["job", "submit"] and environment["RAY_AUTH_MODE"] == "token"
        assert environment["RAY_ADDRESS"] == "http://127.0.0.1:8265"
