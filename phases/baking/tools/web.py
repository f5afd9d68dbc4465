"""`web_search`: one HTTP GET to a search engine named by a URL template, and a small engine of fixtures on loopback.

A real engine is a matter of configuration: a template with `{query}` and `{k}` whose answer is a JSON list of objects
with `title`, `url` and `snippet`, or an object that holds such a list under `results`. Answers are size-limited, and
redirects are not followed.
"""

import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

import httpx

from phases.baking.tools.rag import Index
from phases.errors import ConfigError, ForgeError

_MAX_BYTES = 1_000_000
_SNIPPET = 300


class SearchError(ForgeError):
    """A search engine that cannot be reached, or whose answer is none."""


@dataclass(frozen=True)
class Page:
    """A result of a search."""

    title: str
    url: str
    snippet: str


def check_template(template: str) -> None:
    """Raises `ConfigError` where a URL template is no http(s) address with a place for the query."""
    if urlsplit(template).scheme not in {"http", "https"} or "{query}" not in template:
        fix = "write e.g. https://host/search?q={query}&n={k}"
        raise ConfigError.of("search_url", template, "no http address with {query}", fix)


def search(query: str, k: int, template: str, timeout: float = 10.0) -> list[Page]:
    """Ask the engine at `template`. Raises `SearchError` saying what went wrong."""
    check_template(template)
    url = template.replace("{query}", quote(query, safe="")).replace("{k}", str(k))
    try:
        with httpx.Client(timeout=timeout, follow_redirects=False, trust_env=False) as client:
            body = _get(client, url)
        document = json.loads(body)
    except (httpx.HTTPError, ValueError) as error:
        raise SearchError(f"{urlsplit(url).netloc}: {error}") from error
    results = document.get("results", []) if isinstance(document, dict) else document
    if not isinstance(results, list):
        raise SearchError(f"{urlsplit(url).netloc}: the answer holds no list of results")
    return [_page(result) for result in results[:k] if isinstance(result, dict)]


def _get(client: httpx.Client, url: str) -> bytes:
    with client.stream("GET", url) as response:
        response.raise_for_status()
        body = b""
        for part in response.iter_bytes():
            body += part
            if len(body) > _MAX_BYTES:
                raise ValueError(f"an answer of more than {_MAX_BYTES} bytes")
    return body


def _page(result: dict[str, Any]) -> Page:
    title, url, snippet = (str(result.get(key, "")) for key in ("title", "url", "snippet"))
    return Page(title, url, snippet[:_SNIPPET])


@contextmanager
def fixture_engine(pages: Sequence[Page], folder: Path) -> Iterator[str]:
    """Serve a search engine over `pages` on loopback; the value is its URL template. Its index lies in `folder`."""
    by_url = {page.url: page for page in pages}
    index = Index.build(((page.url, f"{page.title} {page.snippet}") for page in pages), folder / "pages.sqlite")
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked = parse_qs(urlsplit(self.path).query)
            with lock:
                found = index.search(asked.get("q", [""])[0], int(asked.get("k", ["5"])[0]))
            body = json.dumps({"results": [asdict(by_url[passage.source]) for passage in found]}).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing: requests are part of a model's answer, not of the log."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/search?q={{query}}&k={{k}}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
        index.close()
