"""Read and write objects of MinIO, signed with AWS Signature Version 4.

The minio package does this too, at 80 ms and 7 MiB of imports for each lab started; a signed GET is
all the hot path needs (https://docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-header-based-auth.html).
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from urllib.parse import quote, urlsplit

import urllib3

from dispatcher.trust import make_context, why_untrusted
from jobs.config.environment import StoreSettings
from jobs.errors import JobError
from jobs.failures import Failure

#: Codes of an answer that names the bucket's region: signed for another one, or asked at another address.
_OTHER_REGION = (b"<Code>AuthorizationHeaderMalformed</Code>", b"<Code>PermanentRedirect</Code>")
#: A 404 that is about the bucket, and not about the object, says this.
_NO_BUCKET = b"<Code>NoSuchBucket</Code>"
#: The answer to a request whose time is more than 15 minutes from the store's own says this.
_SKEWED = b"<Code>RequestTimeTooSkewed</Code>"


def _now() -> datetime:
    return datetime.now(timezone.utc)


@dataclass(frozen=True, slots=True)
class StoredObject:
    """Content of an object, and the version it was read at (the ETag in an unversioned bucket)."""

    content: bytes
    version: str
    #: ETag of the content; `write` compares it.
    etag: str = ""


class ObjectStore:
    """One bucket over one kept connection."""

    def __init__(self, settings: StoreSettings) -> None:
        self._settings = settings
        secure = settings.endpoint.startswith("https:")
        self._pool = urllib3.PoolManager(
            ssl_context=make_context(settings.ca_file) if secure else None,
            retries=urllib3.Retry(total=3, backoff_factor=0.1, status_forcelist=(500, 502, 503, 504)),
            timeout=urllib3.Timeout(connect=3, read=10),
        )
        #: Time by which this node's clock is behind the store's, once the store has refused it.
        self._behind = timedelta()
        #: Region that requests are signed for, until the store has named another.
        self._region = settings.region

    def warm(self) -> None:
        """Open the connection, without caring for the answer."""
        self._pool.request("HEAD", f"{self._settings.endpoint}/{self._settings.bucket}")

    def read(self, key: str) -> StoredObject:
        """Return an object. Raises TransientError without an answer, PermanentError when it is refused."""
        response = self._request("GET", key)
        if response.status == 403 and _SKEWED in response.data and "date" in response.headers:
            # A node with a wrong clock is no reason to fail its labs.
            self._behind = _parse_date(response.headers["date"]) - _now()
            response = self._request("GET", key)
        if response.status == 200:
            etag = response.headers.get("etag", "")
            version = response.headers.get("x-amz-version-id") or etag
            return StoredObject(response.data, version.strip('"'), etag)
        raise self._refusal("GET", key, response)

    def write(self, key: str, content: bytes, *, replaces: StoredObject | None) -> bool:
        """Write an object in place of what was read, or of nothing; False if another is there by now."""
        condition = {"if-match": replaces.etag} if replaces else {"if-none-match": "*"}
        headers = {"content-type": "application/yaml", **condition}
        response = self._request("PUT", key, body=content, headers=headers)
        if response.status == 200:
            return True
        # 409: another write of the same object is under way.
        gone = replaces and response.status == 404 and _NO_BUCKET not in response.data
        if gone or response.status in (409, 412):
            return False
        raise self._refusal("PUT", key, response)

    def _refusal(self, method: str, key: str, response: urllib3.BaseHTTPResponse) -> JobError:
        evidence = f"{method} {key}: {response.status} {response.data[:200].decode(errors='replace')}"
        if response.status in (403, 401):
            return Failure.STORE_REFUSES_ACCESS.error(key=key, evidence=evidence)
        if response.status == 404 and _NO_BUCKET in response.data:
            return Failure.BUCKET_MISSING.error(bucket=self._settings.bucket, evidence=evidence)
        if response.status == 404 and method == "GET":
            return Failure.CONFIGURATION_MISSING.error(key=key, evidence=evidence)
        # 408 and 429 pass by themselves; another 4xx, and a redirect, is the same next time.
        if response.status < 500 and response.status not in (408, 429):
            return Failure.STORE_REFUSES_REQUEST.error(status=response.status, evidence=evidence)
        return Failure.STORE_AWAY.error(evidence=evidence)

    def _request(
        self, method: str, key: str, *, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> urllib3.BaseHTTPResponse:
        response = self._send(method, key, body, headers)
        region = _region_named(response)
        if region and region != self._region:
            self._region = region
            response = self._send(method, key, body, headers)
        return response

    def _send(
        self, method: str, key: str, body: bytes | None, headers: Mapping[str, str] | None
    ) -> urllib3.BaseHTTPResponse:
        path = quote(f"/{self._settings.bucket}/{key}", safe="/-_.~")
        signed = {**self._signed_headers(method, path, body or b""), **(headers or {})}
        try:
            # A redirect is signed for another host: it would be refused there, with a worse reason.
            return self._pool.request(
                method, self._settings.endpoint + path, body=body, headers=signed, redirect=False
            )
        except urllib3.exceptions.HTTPError as exc:
            if untrusted := why_untrusted(exc):
                where = urlsplit(self._settings.endpoint).netloc
                raise Failure.STORE_UNTRUSTED.error(evidence=f"S3_ENDPOINT {where}: {untrusted}") from exc
            raise Failure.STORE_AWAY.error(evidence=f"{method} {key}: {exc}") from exc

    def _signed_headers(self, method: str, path: str, body: bytes) -> dict[str, str]:
        sha256 = hashlib.sha256(body).hexdigest()
        now = _now() + self._behind
        stamp, day = now.strftime("%Y%m%dT%H%M%SZ"), now.strftime("%Y%m%d")
        headers = {
            "host": urlsplit(self._settings.endpoint).netloc,
            "x-amz-content-sha256": sha256,
            "x-amz-date": stamp,
        }
        names = ";".join(headers)
        canonical = "\n".join(
            [method, path, "", *(f"{k}:{v}" for k, v in headers.items()), "", names, sha256]
        )
        scope = f"{day}/{self._region}/s3/aws4_request"
        to_sign = "\n".join(
            ["AWS4-HMAC-SHA256", stamp, scope, hashlib.sha256(canonical.encode()).hexdigest()]
        )
        key = f"AWS4{self._settings.secret_key}".encode()
        for part in (day, self._region, "s3", "aws4_request", to_sign):
            key = hmac.new(key, part.encode(), hashlib.sha256).digest()
        credential = f"{self._settings.access_key}/{scope}"
        headers["authorization"] = (
            f"AWS4-HMAC-SHA256 Credential={credential},SignedHeaders={names},Signature={key.hex()}"
        )
        return headers


def _region_named(response: urllib3.BaseHTTPResponse) -> str | None:
    """Return the bucket's region, if that is what the answer is about."""
    if response.status not in (301, 307, 400):
        return None
    if region := response.headers.get("x-amz-bucket-region"):
        return str(region)
    if not any(code in response.data for code in _OTHER_REGION):
        return None
    found = re.search(rb"<Region>([a-z0-9-]{1,64})</Region>", response.data)
    return found[1].decode() if found else None


def _parse_date(text: str) -> datetime:
    """Return the time of a Date header, or now if it says none."""
    from email.utils import parsedate_to_datetime

    try:
        return parsedate_to_datetime(text)
    except ValueError:
        return _now()
