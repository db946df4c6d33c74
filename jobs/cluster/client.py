"""Call the Kubernetes API as JSON over one kept pool, and say which failure an answer is (a 403, a 409).

The kubernetes package needs 270 ms and 66 MiB for the same five verbs; a container that serves one
lab would spend more on its models than on the lab. The tests compare with the package.
"""

from __future__ import annotations

import json
import re
import ssl
from collections.abc import Iterator
from datetime import datetime
from email.utils import parsedate_to_datetime
from urllib.parse import urlencode

import urllib3

from jobs.cluster.access import ClusterAccess
from jobs.config.naming import Manifest as Manifest  # callers take it from here
from jobs.errors import JobError
from jobs.failures import Failure
from jobs.waiting import through_blips

FIELD_MANAGER = "autolabs-jobs"
_STRICT = urlencode({"fieldManager": FIELD_MANAGER, "fieldValidation": "Strict"})
#: Seconds of patience with 429, 5xx and lost connections before the task goes back to the broker.
BLIP_S = 8.0
#: A manifest with an unknown field, or one of a wrong type, gets a 500 from a server-side apply.
_NO_SUCH_FIELD = "failed to create typed patch object"
#: Words with which RBAC refuses. A new API server refuses everybody until it has read the roles, a second or
#: two, and may know no token until it has read the accounts.
_RBAC_REFUSES = 'is forbidden: User "'
#: Beginning of a 403 of RBAC, and of a quota. Admission (Pod Security, policies, limits) answers 403 too, and
#: repeats what it objects to.
_RBAC_SAYS_NO = r'[^"]*("[^"]*" )?is forbidden: User "[^"]*" cannot \w+ (resource|path)'
_QUOTA_SAYS_NO = r'[^"]*("[^"]*" )?is forbidden: exceeded quota'
#: Words with which a quota refuses while others count against it, as a class that starts does: none was made
#: (https://github.com/kubernetes/kubernetes/issues/67761).
_QUOTA_CONFLICT = "Operation cannot be fulfilled on resourcequotas "
#: Most times that a list in pages begins again.
_MAX_RESTARTS = 3
#: Longest part of an error that is read, in bytes.
_STATUS_LIMIT = 20_000


def api_time(text: str | None) -> datetime | None:
    """Return a time of the API, such as 2026-01-02T03:04:05Z."""
    return datetime.fromisoformat(text) if text else None


class ApiError(Exception):
    """Raised when the API server refuses; `reason` and `message` are from its Status object."""

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(f"{status} {reason}: {message}")
        self.status = status
        self.reason = reason
        self.message = message


class _AccessRefused(ApiError):
    """Raised when RBAC refuses, or the token; believed only when that happens again and again."""


class _QuotaConflict(ApiError):
    """Raised when a quota changed while it was counted; believed only when that happens again and again."""


class ApiUnavailable(Exception):
    """Raised when the API server does not answer, or says that it cannot now (429, 5xx)."""


class Cluster:
    """Calls to the API server; paths are those of the API reference.

    Each may be repeated: create and apply name their object, delete its uid, patch its version.
    """

    def __init__(self, access: ClusterAccess) -> None:
        try:
            context = ssl.create_default_context(cadata=access.ca_pem)
            if access.client_pem_file:
                context.load_cert_chain(access.client_pem_file)
        except ssl.SSLError as exc:
            raise Failure.CERTIFICATES_INVALID.error(evidence=str(exc)) from exc
        self._access = access
        self._date = ""
        self._pool = urllib3.PoolManager(ssl_context=context, maxsize=4, retries=False)

    @property
    def server(self) -> str:
        return self._access.server

    @property
    def answered_at(self) -> datetime:
        """The API server's time at its last answer, to the second. Raises ApiUnavailable without any."""
        try:
            return parsedate_to_datetime(self._date)
        except (TypeError, ValueError) as exc:
            raise ApiUnavailable(f"an answer without the server's time: Date {self._date!r}") from exc

    def warm(self) -> None:
        """Open the connection; /version needs no rights."""
        self._request("GET", "/version")

    def get(self, path: str) -> Manifest | None:
        try:
            return self._request("GET", path)
        except ApiError as exc:
            if exc.status == 404:
                return None
            raise

    def list_items(self, path: str, **query: str) -> tuple[list[Manifest], str]:
        """Return the items of a collection and the resource version to watch from."""
        answer = self._request("GET", f"{path}?{urlencode(query)}")
        return answer.get("items", []), answer["metadata"]["resourceVersion"]

    def list_pages(self, path: str, *, limit: int, **query: str) -> Iterator[list[Manifest]]:
        """Yield the items of a collection, at most `limit` at a time.

        A list that takes longer than the server keeps its version (410, five minutes with etcd's defaults)
        begins anew: items may come twice, none is left out that was there all the time.
        """
        token, restarts = "", 0
        while True:
            page = {"limit": str(limit), **({"continue": token} if token else {}), **query}
            try:
                answer = self._request("GET", f"{path}?{urlencode(page)}")
            except ApiError as exc:
                if exc.status != 410 or restarts == _MAX_RESTARTS:
                    raise
                token, restarts = "", restarts + 1
                continue
            yield answer.get("items", [])
            token = answer["metadata"].get("continue", "")
            if not token:
                return

    def create(self, path: str, manifest: Manifest) -> Manifest | None:
        """Create an object and return it; None when one of its name, perhaps of a lost answer, is there."""
        try:
            return self._request("POST", f"{path}?{_STRICT}", manifest)
        except ApiError as exc:
            if exc.reason == "AlreadyExists":
                return None
            raise

    def apply(
        self,
        path: str,
        manifest: Manifest,
        *,
        field_manager: str = FIELD_MANAGER,
        take_over: bool = False,
        dry_run: bool = False,
    ) -> Manifest:
        """Apply server-side; a field that somebody else set is taken over only if told to."""
        query = {"fieldManager": field_manager, "fieldValidation": "Strict"}
        if take_over:
            query["force"] = "true"
        if dry_run:
            query["dryRun"] = "All"
        return self._request("PATCH", f"{path}?{urlencode(query)}", manifest, "application/apply-patch+yaml")

    def patch(self, path: str, change: Manifest, *, strategic: bool = False) -> Manifest:
        """Merge a change into an object, lists by key if `strategic`.

        A resourceVersion in its metadata is a precondition: a newer version, or another object, is answered
        by 409; so is a uid, by 422.
        """
        kind = "strategic-merge-patch" if strategic else "merge-patch"
        return self._request("PATCH", f"{path}?{_STRICT}", change, f"application/{kind}+json")

    def delete(self, path: str, *, uid: str, grace_s: int | None) -> None:
        """Delete exactly the object with this uid; one that is gone or replaced counts as deleted."""
        options: Manifest = {
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "preconditions": {"uid": uid},
            "propagationPolicy": "Background",
        }
        if grace_s is not None:
            options["gracePeriodSeconds"] = grace_s
        try:
            self._request("DELETE", path, options)
        except ApiError as exc:
            if exc.status not in (404, 409):
                raise

    def read_text(self, path: str, *, limit: int, timeout_s: float, **query: str) -> str:
        """Return the answer to one GET, tried once, as text of at most `limit` bytes.

        For what may be of any size and is nobody's to rely on, such as a log. Raises as `get`, 404 too.
        """
        response = self._open("GET", f"{path}?{urlencode(query)}", read_timeout_s=timeout_s)
        try:
            return response.read(limit).decode(errors="backslashreplace")
        except (urllib3.exceptions.HTTPError, OSError) as exc:
            raise ApiUnavailable(f"GET {path}: {exc}") from exc
        finally:
            # Not kept: the rest of the answer may be on its way.
            response.close()

    def follow(self, path: str, *, timeout_s: float, **query: str) -> Iterator[bytes]:
        """Yield the lines of one GET as they come, `timeout_s` at most between two of them."""
        response = self._open("GET", f"{path}?{urlencode(query)}", read_timeout_s=timeout_s)
        try:
            pending = b""
            for chunk in response.stream(None):
                *lines, pending = (pending + chunk).split(b"\n")
                yield from lines
            if pending:
                yield pending
        except (urllib3.exceptions.HTTPError, OSError) as exc:
            raise ApiUnavailable(f"GET {path}: {exc}") from exc
        finally:
            response.close()

    def create_once(self, path: str, manifest: Manifest, *, timeout_s: float) -> bool:
        """Create an object, tried once; False when one of its name is there already."""
        try:
            response = self._open("POST", path, manifest, read_timeout_s=timeout_s)
        except ApiError as exc:
            if exc.reason == "AlreadyExists":
                return False
            raise
        response.close()
        return True

    def watch(
        self, path: str, *, resource_version: str, timeout_s: float, **query: str
    ) -> Iterator[tuple[str, Manifest]]:
        """Yield (event type, object) until the timeout; an expired version ends it with "ERROR"."""
        query |= {
            "watch": "1",
            "resourceVersion": resource_version,
            "timeoutSeconds": str(max(1, round(timeout_s))),
        }
        try:
            for line in self.follow(path, timeout_s=timeout_s + 5, **query):
                event = json.loads(line)
                yield event["type"], event["object"]
        except (ApiUnavailable, json.JSONDecodeError) as exc:
            raise ApiUnavailable(f"watch of {path} broke: {exc}") from exc

    def _request(
        self, method: str, path: str, body: Manifest | None = None, content_type: str = "application/json"
    ) -> Manifest:
        def once() -> Manifest:
            try:
                response = self._open(method, path, body, content_type)
            except ApiError as exc:
                if exc.status == 401 or (exc.status == 403 and _RBAC_REFUSES in exc.message):
                    raise _AccessRefused(exc.status, exc.reason, exc.message) from exc
                if exc.status == 409 and exc.message.startswith(_QUOTA_CONFLICT):
                    raise _QuotaConflict(exc.status, exc.reason, exc.message) from exc
                raise
            try:
                return dict(json.loads(response.read()))
            except (urllib3.exceptions.HTTPError, OSError, ValueError) as exc:
                raise ApiUnavailable(f"{method} {path}: {exc}") from exc
            finally:
                response.release_conn()

        blips = (ApiUnavailable, _AccessRefused, _QuotaConflict)
        return through_blips(once, on=blips, within_s=BLIP_S, what=f"{method} {path}")

    def _open(
        self,
        method: str,
        path: str,
        body: Manifest | None = None,
        content_type: str = "application/json",
        read_timeout_s: float = 15,
    ) -> urllib3.BaseHTTPResponse:
        try:
            response = self._pool.request(
                method,
                self._access.server + path,
                body=None if body is None else json.dumps(body).encode(),
                headers={
                    "accept": "application/json",
                    "content-type": content_type,
                    **self._access.authorization(),
                },
                timeout=urllib3.Timeout(connect=3, read=read_timeout_s),
                preload_content=False,
            )
        except (urllib3.exceptions.HTTPError, OSError) as exc:
            raise ApiUnavailable(f"{method} {path}: {exc}") from exc
        self._date = response.headers.get("date", "")
        if response.status < 400:
            return response
        status = _status(response)
        message = str(status.get("message") or "")
        if response.status == 429 or (response.status >= 500 and not message.startswith(_NO_SUCH_FIELD)):
            raise ApiUnavailable(f"{method} {path}: {response.status} {message}")
        raise ApiError(response.status, status.get("reason", ""), message)


def _status(response: urllib3.BaseHTTPResponse) -> Manifest:
    try:
        text = response.read(_STATUS_LIMIT)
        if len(text) == _STATUS_LIMIT:
            response.close()  # what is left of it would be taken for the next answer
    except (urllib3.exceptions.HTTPError, OSError) as exc:
        raise ApiUnavailable(f"answer {response.status} was cut off: {exc}") from exc
    finally:
        response.release_conn()
    try:
        status = json.loads(text)
    except ValueError:
        status = None
    if isinstance(status, dict):
        return status
    return {"reason": "", "message": text.decode(errors="replace")[:300]}


def api_failure(error: ApiError | ApiUnavailable) -> JobError:
    """Return the job's error for a status of https://kubernetes.io/docs/reference/using-api/api-concepts/."""
    if isinstance(error, ApiUnavailable):
        failure = Failure.CLUSTER_AWAY
    elif error.status == 403 and re.match(_QUOTA_SAYS_NO, error.message):
        failure = Failure.QUOTA_EXCEEDED
    elif error.status == 409:
        failure = Failure.CHANGED_MEANWHILE
    elif error.status == 401 or (error.status == 403 and re.match(_RBAC_SAYS_NO, error.message)):
        failure = Failure.CLUSTER_REFUSES_ACCESS
    else:
        failure = Failure.CLUSTER_REFUSES_LAB
    return failure.error(evidence=str(error))
