"""Opens the dashboard in a browser of this computer."""

from __future__ import annotations

import sys
import threading
from collections.abc import Mapping


def has_desktop(variables: Mapping[str, str], platform: str = sys.platform) -> bool:
    """Whether a person sits at this computer's desktop. Over SSH the desktop is another computer's."""
    if variables.get("SSH_CONNECTION") or variables.get("SSH_TTY"):
        return False
    return platform in ("darwin", "win32") or bool(variables.get("DISPLAY") or variables.get("WAYLAND_DISPLAY"))


def open_browser(url: str) -> None:
    """Open the address, without waiting for the browser: some end only when their window is closed."""
    import webbrowser

    threading.Thread(target=webbrowser.open, args=(url,), daemon=True).start()
