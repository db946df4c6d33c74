"""The API server for thousands of objects: many connections, an operator's rights, no kubectl per object."""

from __future__ import annotations

import json
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar
from urllib.parse import urlencode

import urllib3

from jobs.cluster.access import kubeconfig_access
from jobs.cluster.client import Manifest
from tests.support.cluster.own_namespace import kubectl

#: More gain nothing on two cores.
CONNECTIONS = 8
#: Objects per deletecollection: the API server takes them one after the other, and ends a request after 60 s.
_DELETED_AT_ONCE = 250
T = TypeVar("T")

_MERGE_PATCH = "application/merge-patch+json"


class BulkApi:
    """Calls as the operator of KUBECONFIG; any refusal but an absent object is an AssertionError."""

    def __init__(self) -> None:
        access = kubeconfig_access(kubectl("config", "view", "--raw", "--flatten", "--minify").encode())
        context = ssl.create_default_context(cadata=access.ca_pem)
        if access.client_pem_file:
            context.load_cert_chain(access.client_pem_file)
            Path(access.client_pem_file).unlink()
        self._access = access
        self._pool = urllib3.PoolManager(
            ssl_context=context, maxsize=CONNECTIONS, block=True, retries=False, timeout=90
        )

    def __enter__(self) -> BulkApi:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.clear()

    def call(self, method: str, path: str, body: Any = None, **query: object) -> Manifest:
        """Return the answer; an object that is absent gives an empty one.

        A busy API server cuts connections and says 429 or 504: everything here can be asked again.
        """
        for patience_s in (1, 5, 15):
            try:
                status, answer = self._once(method, path, body, query)
            except urllib3.exceptions.HTTPError:
                status, answer = 0, b""
            if status not in (0, 429) and status < 500:
                break
            time.sleep(patience_s)
        else:
            status, answer = self._once(method, path, body, query)
        if status == 409 and method == "POST":
            # Our own earlier attempt, whose answer was lost.
            return self.call("GET", f"{path}/{body['metadata']['name']}")
        if status >= 400 and status != 404:
            raise AssertionError(f"{method} {path}: {status} {answer[:500]!r}")
        return {} if status == 404 else dict(json.loads(answer))

    def _once(self, method: str, path: str, body: Any, query: dict[str, object]) -> tuple[int, bytes]:
        kind = _MERGE_PATCH if method == "PATCH" else "application/json"
        answer = self._pool.request(
            method,
            f"{self._access.server}{path}?{urlencode(query)}",
            body=None if body is None else json.dumps(body).encode(),
            headers={"accept": "application/json", "content-type": kind, **self._access.authorization()},
        )
        return answer.status, answer.data

    def items(self, path: str, **query: str) -> Iterator[Manifest]:
        """Yield a collection, in pages."""
        token = ""
        while True:
            page = self.call("GET", path, limit=500, **query, **({"continue": token} if token else {}))
            yield from page.get("items", [])
            if not (token := page.get("metadata", {}).get("continue", "")):
                return

    def each(self, items: Iterable[T], do: Callable[[T], object], *, timeout_s: float = 60) -> int:
        """Do something for each item, over all connections, and return how many there were.

        The first failure ends it, and so does the timeout; what was not begun by then is not done.
        """
        deadline, failed, count = time.monotonic() + timeout_s, threading.Event(), 0

        def one(item: T) -> None:
            if failed.is_set():
                return
            try:
                do(item)
            except BaseException:
                failed.set()
                raise

        waiting = iter(items)
        with ThreadPoolExecutor(CONNECTIONS) as threads:
            try:
                # In parts, for a Ctrl-C waits until the part is done.
                while part := list(islice(waiting, 250)):
                    count += sum(1 for _ in threads.map(one, part))
                    if time.monotonic() > deadline:
                        raise AssertionError(f"only {count} were done in {timeout_s:g} s")
            except BaseException:
                failed.set()
                raise
        return count

    def delete_all(self, path: str, **query: str) -> None:
        """Delete what a collection's selectors find, at once and for good; return when it is gone."""
        now = {"kind": "DeleteOptions", "apiVersion": "v1", "gracePeriodSeconds": 0}
        while self.call("GET", path, limit=1, **query).get("items"):
            self.call(
                "DELETE", path, {**now, "propagationPolicy": "Background"}, limit=_DELETED_AT_ONCE, **query
            )
