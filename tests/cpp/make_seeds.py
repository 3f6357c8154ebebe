"""Make seeds for fuzz_bundle from real bundles: ``make_seeds.py OUT BUNDLE...``."""

import hashlib
import io
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np

MOST_BYTES = 64 << 10  # a fuzzer gets nowhere with more

# What a manifest has none of.
FRAGMENTS = (
    b"[1e400, -0, -0.0, 1e16, 0.00001, 5e-324, 18446744073709551616]",
    b'"\\ud83d\\ude00 \\ud800 \\u0000 \\u007f \xc3\xa9"',
    b'{"a": 1, "a": 2}',
    b"[" * 80 + b"]" * 80,
    b"\xef\xbb\xbf{}",
)


def seeds_from_bundle(bundle: Path) -> Iterator[bytes]:
    """Yield the manifest, its parts, and the golden vectors: whole where small, and cut to one image."""
    manifest = (bundle / "manifest.json").read_bytes()
    yield b"m" + manifest
    yield b"m" + msgspec.json.encode(msgspec.json.decode(manifest))
    for part in msgspec.json.decode(manifest).values():
        yield b"j" + msgspec.json.encode(part)
    golden = (bundle / "golden.npz").read_bytes()
    if len(golden) <= MOST_BYTES:
        yield b"n" + golden
    with np.load(bundle / "golden.npz") as arrays:
        images, logits = arrays["images"][:1, :2, :2], arrays["logits"][:1, :3]
    yield b"n" + archive(images=images, logits=logits)


def archive(**arrays: "np.ndarray") -> bytes:
    """Write arrays as numpy.savez does."""
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def all_seeds(bundles: list[Path]) -> Iterator[bytes]:
    """Yield the seeds of every bundle, and what no bundle has."""
    for bundle in bundles:
        yield from seeds_from_bundle(bundle)
    yield from (b"j" + fragment for fragment in FRAGMENTS)


def main() -> None:
    """Write each seed under its digest, as libFuzzer names them."""
    out, *bundles = map(Path, sys.argv[1:])
    out.mkdir(parents=True, exist_ok=True)
    for seed in all_seeds(bundles):
        (out / hashlib.sha1(seed, usedforsecurity=False).hexdigest()).write_bytes(seed)


if __name__ == "__main__":
    main()
