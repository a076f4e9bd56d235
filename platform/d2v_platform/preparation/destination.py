"""Where prepared data goes: options that the commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..storage.local_places import folder_to_write

Dest = Annotated[Path, typer.Option("--dest", help="Folder to write.", parser=folder_to_write)]
OutputDir = Annotated[Path, typer.Option("--output-dir", help="Folder to write.", parser=folder_to_write)]
