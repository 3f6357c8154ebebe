"""The JSON Schema of benchmark records, generated from their types and kept as ``docs/bench-record.schema.json``.

It describes every version up to the present one: what a later version added has a default. Fields that a reader does
not know are ignored, so that a record may carry more than its version asks for; a later version is refused as such.
What no schema can say, such as one answer for each image, is checked when a record is read.

    python -m resnet_deploy.bench.schema > docs/bench-record.schema.json
"""

import inspect
import sys
from typing import Any

import msgspec

from resnet_deploy.bench.records import SCHEMA_VERSION, BenchRecord


def record_schema() -> bytes:
    """Generate the schema, as readable JSON."""
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"Benchmark record of resnet-deploy, schema version {SCHEMA_VERSION}",
        **_settled(msgspec.json.schema(BenchRecord)),
    }
    return msgspec.json.format(msgspec.json.encode(schema), indent=1) + b"\n"


def _settled(part: Any) -> Any:
    """Take out what depends on versions: docstrings' indentation (Python 3.13), alternatives' order (msgspec)."""
    if isinstance(part, list):
        return [_settled(each) for each in part]
    if not isinstance(part, dict):
        return part
    settled = {key: _settled(value) for key, value in part.items()}
    if isinstance(settled.get("description"), str):
        settled["description"] = inspect.cleandoc(settled["description"])
    if "anyOf" in settled:
        settled["anyOf"].sort(key=msgspec.json.encode)
    return settled


if __name__ == "__main__":
    sys.stdout.buffer.write(record_schema())
