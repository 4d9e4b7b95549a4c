"""A bucket as an independent client (boto3) sees it, without spo and pyarrow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import boto3

from stages.core.store import StorePath


@dataclass(frozen=True)
class Bucket:
    """A bucket on the server of the environment variable AWS_ENDPOINT_URL."""

    name: str
    client: Any

    @classmethod
    def make(cls, name: str) -> Bucket:
        """Create a bucket."""
        client = boto3.client("s3")
        client.create_bucket(Bucket=name)
        return cls(name, client)

    def path(self, key: str = "") -> StorePath:
        """Return the path of a key."""
        return StorePath.parse(f"s3://{self.name}/{key}")

    def names(self, prefix: str = "") -> list[str]:
        """Return the keys of all objects, without the empty objects that represent directories."""
        listed = self.client.list_objects_v2(Bucket=self.name, Prefix=prefix).get("Contents", [])
        return [entry["Key"] for entry in listed if not entry["Key"].endswith("/")]

    def objects(self) -> dict[str, bytes]:
        """Return the content of all objects by key."""
        read = self.client.get_object
        return {key: read(Bucket=self.name, Key=key)["Body"].read() for key in self.names()}

    def uploads(self) -> list[str]:
        """Return the keys of multipart uploads that were started and not completed."""
        return [entry["Key"] for entry in self.client.list_multipart_uploads(Bucket=self.name).get("Uploads", [])]

    def put(self, key: str, content: bytes) -> None:
        """Write an object."""
        self.client.put_object(Bucket=self.name, Key=key, Body=content)
