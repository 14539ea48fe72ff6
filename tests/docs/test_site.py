"""The site of the docs builds without a warning, and its pages load nothing from another host."""

import os
import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest

from tests.docs.reference import ROOT

LOADING = {
    "img": "src",
    "script": "src",
    "iframe": "src",
    "source": "src",
    "video": "src",
    "audio": "src",
    "embed": "src",
}
LINKS = {"stylesheet", "preload", "modulepreload", "preconnect", "dns-prefetch", "icon", "manifest", "prefetch"}
FOREIGN = re.compile(r"(?:https?:)?//")


class _Loads(HTMLParser):
    """Addresses that a browser loads by itself."""

    def __init__(self):
        super().__init__()
        self.found = []
        self.in_style = False

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.in_style = tag == "style"
        self.found += _in_css(values.get("style") or "")
        if tag in LOADING:
            self.found.append(values.get(LOADING[tag]) or "")
        if tag == "link" and LINKS & set((values.get("rel") or "").split()):
            self.found.append(values.get("href") or "")
        if "mermaid" in (values.get("class") or "").split():
            self.found.append("https://unpkg.com/mermaid")  # the theme's script would fetch it

    def handle_data(self, data):
        if self.in_style:
            self.found += _in_css(data)


def _in_css(text):
    return re.findall(r"url\(\s*[\"']?([^)\"']+)", text) + re.findall(r"@import\s+[\"']([^\"']+)", text)


def _loaded(html):
    parser = _Loads()
    parser.feed(html)
    return [address for address in parser.found if FOREIGN.match(address)]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-f", ".ci/mkdocs.yml", "-d", str(folder)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


def test_no_page_loads_anything_from_another_host(site):
    """Guard: without `font: false` every page asks Google for its fonts."""
    pages = list(site.rglob("*.html"))
    assert len(pages) > 15
    assert not {str(page.relative_to(site)): found for page in pages if (found := _loaded(page.read_text()))}


def test_no_style_sheet_loads_anything_from_another_host(site):
    sheets = list(site.rglob("*.css"))
    assert sheets
    assert not [a for sheet in sheets for a in _in_css(sheet.read_text()) if FOREIGN.match(a)]


@pytest.mark.parametrize(
    "html",
    [
        '<link rel="stylesheet" href="https://fonts.example/css">',
        '<script src="//cdn.example/x.js"></script>',
        '<img src="https://elsewhere.example/x.png">',
        '<p style="background: url(https://elsewhere.example/x.png)">',
        '<style>@import "https://fonts.example/css"</style>',
        '<pre class="mermaid"></pre>',
    ],
)
def test_what_would_be_loaded_is_seen(html):
    assert _loaded(html)


def test_a_link_to_another_site_is_no_load():
    assert not _loaded('<a href="https://www.kaggle.com/terms">terms</a>')
