import os
import sys

# Many container images forbid compiled files. Each of hundreds of processes would then compile our code anew.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
