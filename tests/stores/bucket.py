"""A bucket seen from outside: by Amazon's own client, which knows nothing of spo or pyarrow."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3

from stages.core.paths import as_path


@dataclass(frozen=True)
class Bucket:
    """A bucket of the server that the environment names."""

    name: str
    client: Any

    @classmethod
    def make(cls, name: str) -> Bucket:
        client = boto3.client("s3")
        client.create_bucket(Bucket=name)
        return cls(name, client)

    def path(self, key: str = "") -> Path:
        """As the stages take it."""
        return as_path(f"s3://{self.name}/{key}")

    def names(self, prefix: str = "") -> list[str]:
        """Keys of all objects, but the empty ones that stand for directories."""
        listed = self.client.list_objects_v2(Bucket=self.name, Prefix=prefix).get("Contents", [])
        return [one["Key"] for one in listed if not one["Key"].endswith("/")]

    def objects(self) -> dict[str, bytes]:
        """All of them."""
        read = self.client.get_object
        return {key: read(Bucket=self.name, Key=key)["Body"].read() for key in self.names()}

    def uploads(self) -> list[str]:
        """Keys of objects that have been begun and not completed."""
        return [one["Key"] for one in self.client.list_multipart_uploads(Bucket=self.name).get("Uploads", [])]

    def put(self, key: str, content: bytes) -> None:
        self.client.put_object(Bucket=self.name, Key=key, Body=content)
