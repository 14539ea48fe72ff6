"""In TensorFlow's place on an image: notes each import, with the process and who asked, and offers nothing."""

import os
import sys
import traceback
from pathlib import Path

__version__ = "2.20.0"

_note = Path(os.environ.get("TRAINHOP_TEST_TENSORFLOW_IMPORTS") or Path(sys.prefix) / "tensorflow-imports.log")
with _note.open("a") as _file:
    _file.write(f"{os.getpid()} {sys.argv} {[frame.filename for frame in traceback.extract_stack()[-12:-1]]}\n")
