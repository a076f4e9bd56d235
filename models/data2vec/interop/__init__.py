"""Models of other programs: read safely, checked against what they promise, in our terms."""

from .fairseq import FAMILIES, import_checkpoint, load_pretrained_text
from .fairseq_file import FairseqCheckpoint, read_checkpoint
from .imported import ImportedModel, ImportReport
from .v2_text import import_v2_text

__all__ = [
    "FAMILIES",
    "FairseqCheckpoint",
    "ImportReport",
    "ImportedModel",
    "import_checkpoint",
    "import_v2_text",
    "load_pretrained_text",
    "read_checkpoint",
]
