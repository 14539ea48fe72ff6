"""`python -m tests.images.build [NAME...]`: build the images' environments, and gather our own set's wheels for them.

Without names the two that CI uses. A finished environment is left as it is while its list and this builder stay the
same. `TORCH_INDEX` names one more index to take torch from, as in the Makefile.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.helpers import colab_client
from tests.images import FOLDER, IN_CI, LEFT_OUT, LISTS, NAMES, STUBBED, Image, interpreter, load
from tests.images.commands import BuildError, pip, run
from tests.images.wheels import gather
from worker.shared.packages import every_line

TORCH = ("torch", "torchvision", "torchaudio", "triton")
"""What lies in one folder for every image of the same torch and Python; an image links its files."""
BESIDES = ("wrapt", "scikit-learn")
"""On every image, in versions that the lists do not tell: start hooks and transformers import them."""
AT_A_TIME = 2
_LOCKS = {load(name).python: threading.Lock() for name in NAMES}
"""Images of the same Python may wait for the same torch."""
HERE = Path(__file__).parent


def main() -> int:
    """Build what is asked for; the exit code is 1 if an image cannot be built for another reason than a missing
    Python."""
    names = sys.argv[1:] or IN_CI
    if unknown := set(names).difference(NAMES):
        say(f"there is no image {', '.join(sorted(unknown))}, but {', '.join(NAMES)}")
        return 2
    with ThreadPoolExecutor(AT_A_TIME) as pool:
        client = pool.submit(_make_colab_client)
        failed = max(pool.map(_make, map(load, names)))
        client.result()
    return failed


def _make_colab_client() -> None:
    """Make what the tests of paid Colab need besides. They try again if it cannot be made."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            say(f"Colab's client: {colab_client.environment(Path(folder))}")
        except colab_client.MissingError as missing:
            say(f"note: {missing}")


def _make(image: Image) -> int:
    if interpreter(image.python) is None:
        say(f"note: {image.problem}; the tests that need it are skipped")
        return 0
    began = time.monotonic()
    try:
        built = build(image)
        # They are those that the installed package asks for. CI builds before it is installed, and again afterwards.
        wheels = gather(image) if every_line() else "its wheels come later"
        say(f"{image.name}: {built}; {wheels}; {time.monotonic() - began:.0f} s")
    except BuildError as error:
        say(f"{image.name}: {error}")
        return 1
    return 0


def build(image: Image) -> str:
    """Make the environment unless it is there and as it was; returns what was done."""
    key = key_of(image)
    if not image.problem and json.loads(image.marker.read_text())["key"] == key:
        return "built before"
    shutil.rmtree(image.folder, ignore_errors=True)
    run([str(interpreter(image.python)), "-m", "venv", str(image.folder)])
    install(image, [f"pip=={image.packages['pip']}"])
    with tempfile.TemporaryDirectory() as folder:
        pins = Path(folder) / "pins.txt"
        pins.write_text("".join(f"{requirement(n, v)}\n" for n, v in image.packages.items() if n not in LEFT_OUT))
        with _LOCKS[image.python]:
            torch = _torch(image, pins)
        shutil.copytree(torch, image.site_packages, copy_function=os.link, dirs_exist_ok=True)
        install(image, [*BESIDES, "-r", str(pins)])
    stands_in = [said for name in TORCH if (said := _relabel(image, name))]
    _add_tensorflow(image)
    if image.start_hook:
        _add_start_hook(image)
    _add_kernel(image)
    image.marker.write_text(json.dumps({"key": key, "stands_in": stands_in, "distributions": image.distributions}))
    return "; ".join(["built", *stands_in])


def install(image: Image, arguments: list[str]) -> None:
    """Bring packages in without compiling them: a kernel imports few of them."""
    pip(image, "install", ["--no-compile", *arguments])


def key_of(image: Image) -> str:
    """What the environment depends on, as a hash."""
    sources = [LISTS / f"{image.name}.toml", HERE / "build.py", HERE / "stubs" / "tensorflow.py"]
    if image.start_hook:
        sources.append(HERE / "stubs" / f"{image.start_hook}_start.py")
    return hashlib.sha256(b"\0".join(path.read_bytes() for path in sources)).hexdigest()


def requirement(name: str, version: str) -> str:
    """In pip's words; a build such as `+cu128` is not what indexes call a version."""
    return f"{name}{version}" if version[0] in "<>" else f"{name}=={version.partition('+')[0]}"


def _torch(image: Image, pins: Path) -> Path:
    """The shared folder with the image's torch and what it needs; made once."""
    version = image.packages["torch"].partition("+")[0]
    folder = FOLDER / f"torch-{version}-python{image.python}"
    if not folder.exists():
        unfinished = folder.with_suffix(".unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        wanted = [requirement(name, image.packages[name]) for name in TORCH]
        install(image, ["--target", str(unfinished), "--constraint", str(pins), *wanted])
        shutil.rmtree(unfinished / "bin", ignore_errors=True)
        unfinished.rename(folder)
    return folder


def _relabel(image: Image, name: str) -> str:
    """Let a package carry the image's version where another build of it was to be had; returns what was done."""
    wanted = image.packages[name]
    (info,) = image.site_packages.glob(f"{name}-*.dist-info")
    found = re.search(r"^Version: (.*)$", (info / "METADATA").read_text(), re.MULTILINE)
    assert found is not None
    if found[1] == wanted:
        return ""
    _rewrite(info / "METADATA", found[0], f"Version: {wanted}")
    _rewrite(info / "RECORD", info.name, f"{name}-{wanted}.dist-info")
    info.rename(info.with_name(f"{name}-{wanted}.dist-info"))
    imported = image.site_packages / name / "version.py"
    build_of = re.search(r"^__version__ = '(.*)'$", imported.read_text(), re.MULTILINE)
    assert build_of is not None
    _rewrite(imported, build_of[0], f"__version__ = '{wanted}'")
    return f"{name} {build_of[1]} carries the version {wanted}" if build_of[1] != wanted else ""


def _rewrite(path: Path, old: str, new: str) -> None:
    """Replace text in a file that other environments share: they keep the old one."""
    text = path.read_text()
    path.unlink()
    path.write_text(text.replace(old, new))


def _add_tensorflow(image: Image) -> None:
    package = image.site_packages / STUBBED
    info = image.site_packages / f"{STUBBED}-{image.packages[STUBBED]}.dist-info"
    for folder in (package, info):
        folder.mkdir(exist_ok=True)
    shutil.copyfile(HERE / "stubs" / "tensorflow.py", package / "__init__.py")
    about = f"Metadata-Version: 2.1\nName: {STUBBED}\nVersion: {image.packages[STUBBED]}\n"
    (info / "METADATA").write_text(about)
    (info / "RECORD").write_text("")


def _add_start_hook(image: Image) -> None:
    """Run the hook in every process; a `sitecustomize` of the interpreter's own would come before one of ours."""
    name = f"{image.start_hook}_start"
    shutil.copyfile(HERE / "stubs" / f"{name}.py", image.site_packages / f"{name}.py")
    (image.site_packages / f"{name}.pth").write_text(f"import {name}\n")


def _add_kernel(image: Image) -> None:
    """A notebook's kernel; the one that ipykernel brings names no interpreter."""
    folder = image.jupyter / "kernels" / "python3"
    folder.mkdir(parents=True, exist_ok=True)
    command = [image.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    spec = {"argv": command, "display_name": image.title, "language": "python", "env": dict(image.environment)}
    (folder / "kernel.json").write_text(json.dumps(spec))


def say(text: str) -> None:
    """Progress, for people."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
