"""Changes to files that keep enough of their form for a reader to get past the first check.

``mutate`` tells the form by the bytes: JSON, zip, safetensors, PNG, ONNX and lines of a log are changed within their
structure, checksums and lengths made good; anything is changed byte by byte as well.
"""

import io
import json
import random
import re
import struct
import zipfile
import zlib

NUMBERS = (
    0,
    1,
    -1,
    2,
    7,
    127,
    128,
    255,
    256,
    2**31 - 1,
    2**31,
    2**32,
    2**40,
    2**63 - 1,
    2**63,
    2**64,
    -(2**63),
    10**30,
)
FLOATS = (0.0, -0.0, 0.5, -1.0, 1e-308, 5e-324, 1e38, 1e308, -1e308)
TEXTS = (
    *("", "0", "-1", ".", "..", "../x", "/etc/passwd", "a/b", "a\0b", "a\nb", "\x1b[31m", "\u202e", "\u2028", "é"),
    *("x" * 5000, "9" * 5000, "int8", "fp32", "max", "auto", "NaN", "null", "[ONNX Layer: ", "__myl_AddCast"),
)
VALUES = (*NUMBERS, *FLOATS, *TEXTS, None, True, False, [], {}, [[]], [None], [0, 1], {"": 0})
TOKENS = (
    *(b"\0", b"\xff", b"\xff" * 8, b"\n", b"\r\n", b'"', b"{", b"}", b"]", b",", b"=", b"[" * 3000, b'{"a":' * 3000),
    *(b"9" * 5000, b"\xef\xbb\xbf", b"PK\x05\x06", b"../" * 4, b"\x7f\xff\xff\xff", b"\x80\x00\x00\x00", b" " * 4000),
)


def mutate(data: bytes, rng: random.Random) -> bytes:
    """Make one to four changes."""
    for _ in range(rng.choice((1, 1, 2, 4))):
        data = _mutate_once(data, rng)
    return data


def _mutate_once(data, rng):
    if rng.random() < 0.3:
        return mutate_bytes(data, rng)
    for mutator in (_mutate_zip, _mutate_png, _mutate_json, _mutate_safetensors, _mutate_line, _mutate_onnx):
        changed = mutator(data, rng)
        if changed is not None:
            return changed
    return mutate_bytes(data, rng)


def mutate_bytes(data, rng):
    """Flip, overwrite, insert, cut or repeat at a place."""
    at, changed = rng.randrange(len(data) + 1), bytearray(data)
    kind = rng.randrange(6)
    if kind == 0 and changed:
        changed[at % len(changed)] ^= 1 << rng.randrange(8)
    elif kind == 1 and changed:
        changed[at % len(changed)] = rng.choice((0, 1, 127, 128, 255, rng.randrange(256)))
    elif kind == 2:
        changed[at:at] = rng.choice(TOKENS)
    elif kind == 3:
        del changed[at : at + rng.choice((1, 2, 4, 64, len(changed)))]
    elif kind == 4:
        changed[at:at] = changed[at : at + rng.choice((1, 4, 16, 256))] * rng.choice((1, 2, 9))
    else:
        size = rng.choice((2, 4, 8))
        number = rng.choice(NUMBERS) % (1 << 8 * size)
        changed[at : at + size] = number.to_bytes(size, rng.choice(("little", "big")))
    return bytes(changed)


def mutate_value(value, rng):
    """Change one place in a tree of JSON."""
    places = [(None, None), *_places(value)]
    parent, key = places[rng.randrange(len(places))]
    if parent is None:
        return value if len(places) > 1 else rng.choice(VALUES)
    kind = rng.randrange(5)
    if kind == 0:
        del parent[key]
    elif kind == 1 and isinstance(parent, list):
        parent.insert(key, parent[key])
    elif kind == 1:
        parent[rng.choice(TEXTS)] = parent[key]
    elif kind == 2:
        parent[key] = rng.choice(_places(value) or [(parent, key)])[0]  # a part of the tree elsewhere in it
        parent[key] = json.loads(json.dumps(parent[key], default=str)) if not _is_cyclic(value) else None
    else:
        parent[key] = rng.choice(VALUES)
    return value


def _is_cyclic(value):
    try:
        json.dumps(value)
    except (ValueError, RecursionError):
        return True
    return False


def _places(value):
    """Every place in a tree, as its parent and its key."""
    found, stack = [], [value]
    while stack:
        parent = stack.pop()
        children = parent.items() if isinstance(parent, dict) else enumerate(parent) if isinstance(parent, list) else ()
        for key, child in children:
            found.append((parent, key))
            stack.append(child)
    return found


def _parsed(data):
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return None


def _mutate_json(data, rng):
    value = _parsed(data) if data[:1] in (b"{", b"[") else None
    return None if value is None else json.dumps(mutate_value(value, rng)).encode()


def _mutate_line(data, rng):
    """Change the JSON in a line of a log, whatever stands before it."""
    lines = data.split(b"\n")
    for number in rng.sample(range(len(lines)), len(lines))[:8]:
        head, brace, rest = lines[number].partition(b"{")
        value = _parsed(brace + rest) if brace else None
        if value is not None and len(lines) > 1:
            lines[number] = head + json.dumps(mutate_value(value, rng)).encode()
            return b"\n".join(lines)
    return None


def _mutate_safetensors(data, rng):
    if len(data) < 10 or data[8:9] != b"{":
        return None
    (size,) = struct.unpack("<Q", data[:8])
    header = _parsed(data[8 : 8 + size].rstrip()) if size < len(data) else None
    if not isinstance(header, dict) or not header:
        return None
    metadata = header.get("__metadata__")
    inner = [
        key
        for key, text in (metadata if isinstance(metadata, dict) else {}).items()
        if isinstance(text, str) and isinstance(_parsed(text), dict)
    ]
    if inner and rng.random() < 0.7:
        key = rng.choice(inner)
        metadata[key] = json.dumps(mutate_value(json.loads(metadata[key]), rng))
    elif rng.random() < 0.2:
        name = rng.choice(list(header))
        header[name] = {
            "dtype": rng.choice(("BF16", "F8_E4M3", "F4", "C64", "BOOL")),
            "shape": [1],
            "data_offsets": [0, 2],
        }
    else:
        header = mutate_value(header, rng)
    written = json.dumps(header).encode()
    return struct.pack("<Q", len(written)) + written + data[8 + size :]


def _mutate_zip(data, rng):
    """Change one member of an archive, which stays a sound archive."""
    if data[:2] != b"PK":
        return None
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = {info.filename: archive.read(info) for info in archive.infolist()}
    except Exception:  # noqa: BLE001 - whatever zipfile makes of a damaged one
        return None
    if not members:
        return None
    name = rng.choice(list(members))
    members[name] = mutate_bytes(members[name], rng)
    file = io.BytesIO()
    method = zipfile.ZIP_DEFLATED if rng.random() < 0.1 else zipfile.ZIP_STORED
    with zipfile.ZipFile(file, "w", method) as archive:
        for one, content in members.items():
            archive.writestr(one, content)
    return file.getvalue()


def _mutate_png(data, rng):
    """Change one chunk of a PNG and make its checksum good."""
    if data[:4] != b"\x89PNG":
        return None
    chunks, at = [], 8
    while at + 8 <= len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + size]))
        at += size + 12
    if not chunks:
        return None
    number = rng.randrange(len(chunks))
    kind, content = chunks[number]
    if rng.random() < 0.3:
        kind = rng.choice(
            (b"tEXt", b"zTXt", b"iTXt", b"iCCP", b"eXIf", b"acTL", b"fcTL", b"tRNS", b"PLTE", b"IHDR", b"gAMA")
        )
        content = rng.choice((content, zlib.compress(bytes(1 << 20)), b"a\0\0" + zlib.compress(bytes(1 << 20))))
        chunks.insert(number, (kind, content))
    else:
        chunks[number] = (kind, mutate_bytes(content, rng))
    return data[:8] + b"".join(
        len(body).to_bytes(4, "big") + name + body + zlib.crc32(name + body).to_bytes(4, "big") for name, body in chunks
    )


def _mutate_onnx(data, rng):
    """Change one field of an ONNX model."""
    if b"resnet_deploy.model_card" not in data:
        return None
    import onnx
    from google.protobuf.message import DecodeError

    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
        messages = list(_messages(model))
        message = rng.choice(messages)
        field = rng.choice(message.DESCRIPTOR.fields)
        _mutate_field(message, field, rng)
        return model.SerializeToString()
    except (DecodeError, ValueError, TypeError, RecursionError):
        return None


def _messages(message):
    """A message and every message in it."""
    yield message
    for field, value in message.ListFields():
        if field.type == field.TYPE_MESSAGE:
            for one in [value] if hasattr(value, "ListFields") else value:
                yield from _messages(one)


def _mutate_field(message, field, rng):
    current = getattr(message, field.name)
    if rng.random() < 0.2:
        message.ClearField(field.name)
        return
    if field.type == field.TYPE_MESSAGE:
        if hasattr(current, "ListFields"):
            current.SetInParent()
        else:
            current.add().CopyFrom(rng.choice(list(current)) if len(current) > 1 else type(current.add())())
        return
    value = _value_for(field, rng)
    if isinstance(current, (int, float, str, bytes)):
        setattr(message, field.name, value)
    elif len(current) and rng.random() < 0.6:
        current[rng.randrange(len(current))] = value
    else:
        current.append(value)


def _value_for(field, rng):
    if field.type == field.TYPE_STRING:
        return rng.choice(TEXTS)
    if field.type == field.TYPE_BYTES:
        return rng.choice((b"", b"\0", b"\xff" * 9, b"x" * 5000))
    if field.type in (field.TYPE_FLOAT, field.TYPE_DOUBLE):
        return rng.choice((0.0, -1.0, 1e38, float("nan"), float("inf")))
    if field.enum_type is not None:
        return rng.choice(field.enum_type.values).number
    return (
        rng.choice((*range(26), -1, 2**31 - 1))
        if "32" in str(field.cpp_type) or rng.random() < 0.5
        else rng.choice((0, 1, -1, 2**31, 2**40, 2**62, -(2**62)))
    )


def sealed_lines(data: bytes) -> bytes:
    """Give each line of a journal the checksum of what it holds now."""
    lines = [re.sub(rb"^[0-9a-f]{8} ", b"", line) for line in data.split(b"\n") if line]
    return b"".join(f"{zlib.crc32(line):08x} ".encode() + line + b"\n" for line in lines)
