"""Read templates and settings from the object store at each task, and upload the defaults at the setup.

`python -m jobs.config.stored upload` puts the defaults of this release where nothing is yet, and in place of
those of an earlier release that nobody changed.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from dispatcher.errors import DispatcherError
from dispatcher.settings import read_settings
from dispatcher.trust import make_context, why_untrusted
from jobs.config.environment import StoreSettings
from jobs.config.lab_settings import LabSettings
from jobs.config.manifests import NETWORK_POLICY_TEMPLATE, POD_TEMPLATE
from jobs.config.objectstore import ObjectStore
from jobs.config.settings_document import parse_document
from jobs.errors import JobError
from jobs.failures import Failure

if TYPE_CHECKING:
    from jobs.config.lifetimes import LifeSettings

SETTINGS = "settings/celery-workers-config.yaml"
LIFE_SETTINGS = "settings/lab-life.yaml"
DEFAULTS = Path(__file__).parent / "default_configs"
#: Codes by which a store says that it has no versions.
_NO_VERSIONS = ("NotImplemented", "MethodNotAllowed")
#: Metadata of an object that a release uploaded: its ETag, which differs once somebody changed it.
_SHIPPED = "autolabs-shipped"


@dataclass(slots=True)
class Configs:
    """The configuration of one task; `versions` says what exactly was used."""

    store: ObjectStore
    versions: dict[str, str] = field(default_factory=dict)

    def lab_settings(self) -> LabSettings:
        return parse_document(LabSettings, SETTINGS, self._read(SETTINGS))

    def life_settings(self) -> LifeSettings:
        """Return the settings for labs that run; the defaults in a bucket of an older release."""
        from jobs.config.lifetimes import LifeSettings

        try:
            return parse_document(LifeSettings, LIFE_SETTINGS, self._read(LIFE_SETTINGS))
        except JobError as exc:
            # Labs end on time on a platform that is not set up; its creates say what is missing.
            if exc.failure not in (Failure.CONFIGURATION_MISSING, Failure.BUCKET_MISSING):
                raise
            return LifeSettings()

    def pod_template(self) -> bytes:
        return self._read(POD_TEMPLATE)

    def network_policy_template(self) -> bytes:
        return self._read(NETWORK_POLICY_TEMPLATE)

    def _read(self, key: str) -> bytes:
        stored = self.store.read(key)
        self.versions[key] = stored.version
        return stored.content


def upload_defaults(settings: StoreSettings, *, overwrite: bool = False) -> list[str]:
    """Create the versioned bucket and the objects it lacks; return the keys that were written.

    What an earlier release uploaded, and nobody changed since, is replaced too.
    """
    import urllib3
    from minio import Minio
    from minio.commonconfig import ENABLED
    from minio.error import S3Error
    from minio.versioningconfig import VersioningConfig

    parts = urlsplit(settings.endpoint)
    # minio-py brings authorities of its own; the containers that read the bucket do not have them.
    http = urllib3.PoolManager(
        ssl_context=make_context(settings.ca_file) if parts.scheme == "https" else None,
        timeout=urllib3.Timeout(connect=5, read=30),
        retries=urllib3.Retry(total=3, backoff_factor=0.2, status_forcelist=(500, 502, 503, 504)),
    )
    client = Minio(
        endpoint=parts.netloc,
        access_key=settings.access_key,
        secret_key=settings.secret_key,
        secure=parts.scheme == "https",
        # Without one it asks the store for it.
        region=None if settings.region == "us-east-1" else settings.region,
        http_client=http,
    )
    if not client.bucket_exists(bucket_name=settings.bucket):
        client.make_bucket(bucket_name=settings.bucket)
    try:
        client.set_bucket_versioning(bucket_name=settings.bucket, config=VersioningConfig(ENABLED))
    except S3Error as exc:
        # 501 and 405: the store has no versions. Labs need none; people cannot go back to one.
        if exc.code not in _NO_VERSIONS:
            raise
        print(f"the store keeps no versions ({exc.code}): what is replaced is gone", file=sys.stderr)
    written = []
    for path in sorted(DEFAULTS.rglob("*.yaml")):
        key, content = path.relative_to(DEFAULTS).as_posix(), path.read_bytes()
        # The ETag of an object that came in one part, unless the store encrypts it with a key of its own.
        md5 = hashlib.md5(content, usedforsecurity=False).hexdigest()
        try:
            found = client.stat_object(bucket_name=settings.bucket, object_name=key)
            shipped = (found.metadata or {}).get(f"x-amz-meta-{_SHIPPED}")
            outdated = found.etag == shipped and found.etag != md5
        except S3Error as exc:
            if exc.code != "NoSuchKey":
                raise
            outdated = True
        if overwrite or outdated:
            client.put_object(
                bucket_name=settings.bucket,
                object_name=key,
                data=io.BytesIO(content),
                length=len(content),
                content_type="application/yaml",
                metadata={_SHIPPED: md5},
            )
            written.append(key)
    return written


def main(argv: list[str] | None = None) -> int:
    """Run the command line; 0 done, 1 failed."""
    from minio.error import MinioException
    from urllib3.exceptions import HTTPError

    parser = argparse.ArgumentParser(prog="python -m jobs.config.stored", description=main.__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    upload = commands.add_parser("upload", help="upload the default templates and settings that are missing")
    upload.add_argument(
        "--overwrite", action="store_true", help="replace existing ones (older versions stay)"
    )
    arguments = parser.parse_args(argv)
    try:
        settings = read_settings(os.environ, StoreSettings.from_environment)
        written = upload_defaults(settings, overwrite=arguments.overwrite)
    except (DispatcherError, MinioException, HTTPError) as exc:
        problem = str(exc)
        if untrusted := why_untrusted(exc):
            problem = f"S3_ENDPOINT {urlsplit(settings.endpoint).netloc}: {untrusted}"
        print(f"jobs.config.stored: {problem}", file=sys.stderr)
        return 1
    print(f"bucket {settings.bucket}: uploaded {', '.join(written) or 'nothing, all is there'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
