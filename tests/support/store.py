"""A bucket of one test on a real MinIO."""

from __future__ import annotations

import io
import uuid
from dataclasses import replace
from urllib.parse import urlsplit

from minio import Minio
from minio.deleteobjects import DeleteObject

from jobs.config.environment import StoreSettings


class Bucket:
    """A bucket that need not exist yet; everything in it is gone after the test."""

    def __init__(self, endpoint: str, access_key: str, secret_key: str) -> None:
        name = f"test-{uuid.uuid4().hex[:12]}"
        self.settings = StoreSettings(
            endpoint=endpoint.rstrip("/"), access_key=access_key, secret_key=secret_key, bucket=name
        )
        parts = urlsplit(endpoint)
        self.client = Minio(
            endpoint=parts.netloc,
            access_key=access_key,
            secret_key=secret_key,
            secure=parts.scheme == "https",
        )

    @property
    def name(self) -> str:
        return self.settings.bucket

    @property
    def environ(self) -> dict[str, str]:
        """The settings of whoever reads this bucket."""
        return {
            "S3_ENDPOINT": self.settings.endpoint,
            "S3_ACCESS_KEY": self.settings.access_key,
            "S3_SECRET_KEY": self.settings.secret_key,
            "S3_BUCKET": self.name,
        }

    def with_endpoint(self, endpoint: str) -> StoreSettings:
        return replace(self.settings, endpoint=endpoint)

    def put(self, key: str, content: bytes) -> str | None:
        """Store an object and return its version."""
        written = self.client.put_object(
            bucket_name=self.name, object_name=key, data=io.BytesIO(content), length=len(content)
        )
        return written.version_id

    def keys(self) -> list[str]:
        return sorted(
            str(item.object_name) for item in self.client.list_objects(bucket_name=self.name, recursive=True)
        )

    def remove(self) -> None:
        if not self.client.bucket_exists(bucket_name=self.name):
            return
        listed = self.client.list_objects(bucket_name=self.name, recursive=True, include_version=True)
        doomed = [DeleteObject(str(item.object_name), item.version_id) for item in listed]
        errors = list(self.client.remove_objects(bucket_name=self.name, delete_object_list=doomed))
        if errors:
            raise AssertionError(f"bucket {self.name} was not emptied: {errors}")
        self.client.remove_bucket(bucket_name=self.name)
